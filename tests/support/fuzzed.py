"""Any bytes -> one input of one of the doors, judged: taken and within every limit, or refused by name.

The same function serves the box in CI (a mutator of its own), Hypothesis, and atheris:
`python tests/wire/atheris_mapping.py -runs=1000000`.
"""

from __future__ import annotations

import math
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.model import Tokenizer
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, RequestId
from superinfer_trt.serve.errors import STATUS_OF_REFUSAL, status_of
from superinfer_trt.serve.facade_mapping import refusal_of, translate
from superinfer_trt.serve.mapping import NAME_PATTERN, REQUEST_ID_CHARS_MAX, Accepted, Bounds, accept
from superinfer_trt.serve.objectives import fill_from_class, fill_from_metadata
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from superinfer_trt.serve.security import Caller, Guard, token_line
from superinfer_trt.triton.mapping import read
from superinfer_trt.triton.tensors import FACES
from support.echo_service import LetterTokenizer

BOUNDS = (
    Bounds(vocabulary=256, context_tokens_max=64, pool_tokens_max=128, model_stop_ids=frozenset({0})),
    Bounds(vocabulary=2, context_tokens_max=500, pool_tokens_max=16, supports=frozenset()),
    Bounds(vocabulary=1 << 21, context_tokens_max=4096, pool_tokens_max=4096, default_max_tokens=5000),
)
CLASSES = {"gold": Slo(500 * MILLISECOND, 50 * MILLISECOND)}
TOKEN = "t" * 40
NUMPY: dict[str, Any] = {
    "INT32": np.int32,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "FP16": np.float16,
    "FP32": np.float32,
    "BOOL": np.bool_,
    "STRING": np.object_,
}
"""How Triton's stub shows each type."""


def check(message: pb.GenerateRequest, limits: Bounds, tokenizer: Tokenizer | None) -> bool:
    """Whether it was accepted; all that core.Request promises is looked at."""
    try:
        accepted = accept(message, id=RequestId(1), arrival=0, bounds=limits, tokenizer=tokenizer)
    except Refused as refusal:
        check_refused(refusal, named=True)
        return False
    check_accepted(accepted, limits)
    return True


def check_refused(refused: Refused, *codes: RefusalCode, named: bool = False) -> None:
    """`codes`: those that it may have; none: any."""
    assert refused.message
    assert refused.field or not named
    assert not codes or refused.code in codes
    status = status_of(refused)
    assert status.code is STATUS_OF_REFUSAL[refused.code]
    assert status.trailers
    for _, value in status.trailers:
        value.encode("ascii")  # what metadata may carry
    assert len(status.message) < 2_000


def check_accepted(accepted: Accepted, limits: Bounds) -> None:
    request = accepted.request
    assert request.prompt
    assert all(0 <= token < limits.vocabulary for token in request.prompt)
    tokens = len(request.prompt) + request.sampling.max_tokens
    assert tokens <= min(limits.context_tokens_max, limits.pool_tokens_max)
    assert request.sampling.max_tokens >= 1
    assert math.isfinite(request.sampling.temperature)
    assert request.sampling.temperature >= 0
    assert 0 < request.sampling.top_p <= 1
    assert 0 <= request.sampling.top_k < limits.vocabulary
    assert 0 <= request.sampling.seed < 2**64
    assert all(token < limits.vocabulary for token in request.sampling.stop_ids)
    assert -1 <= request.sampling.logprobs <= 20
    assert 0 <= request.sampling.min_p <= 1
    assert 0 < request.sampling.repetition_penalty <= 100
    assert -2 <= request.sampling.presence_penalty <= 2
    assert -2 <= request.sampling.frequency_penalty <= 2
    assert 0 <= request.sampling.min_tokens <= request.sampling.max_tokens
    assert len(request.sampling.forbidden(0)) < limits.vocabulary
    assert request.slo.ttft > 0
    assert request.slo.tbt > 0
    assert all(accepted.stop)


def check_facade(message: trt.GenerateRequest, limits: Bounds) -> bool:
    """The same of a request in the gateways' protocol; its refusals are in its own names."""
    try:
        made = translate(message, limits)
        fill_from_class(made, message.request_id, CLASSES)
        assert len(made.request_id) <= REQUEST_ID_CHARS_MAX
        assert NAME_PATTERN.match(made.request_id)
        accepted = accept(made, id=RequestId(1), arrival=0, bounds=limits, tokenizer=LetterTokenizer())
    except Refused as refusal:
        told = refusal_of(refusal)
        check_refused(told)
        assert told.code is not RefusalCode.UNSUPPORTED
        top = told.field.replace("[", ".").split(".")[0]
        assert top in {field.name for field in trt.GenerateRequest.DESCRIPTOR.fields}, told.field
        return False
    check_accepted(accepted, limits)
    assert list(accepted.request.prompt) == list(message.tokenized.input_token_ids)
    return True


class Judge:
    """`judge(data)`: the name of the door and what became of it. Raises whatever should not have happened."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "auth"
            path.write_text(token_line(TOKEN, Caller("acme")) + "\n")
            self._guard = Guard(path)
        self._doors = (self._executor, self._facade, self._metadata, self._token, self._triton)

    def __call__(self, data: bytes) -> tuple[str, bool]:
        if len(data) < 2:
            return "none", False
        door = self._doors[data[0] % len(self._doors)]
        return door.__name__.removeprefix("_"), door(data[2:], BOUNDS[data[1] % len(BOUNDS)])

    def _executor(self, data: bytes, limits: Bounds) -> bool:
        try:
            message = pb.GenerateRequest.FromString(data)
        except DecodeError:
            return False  # gRPC ends the call before the servicer is asked
        return check(message, limits, LetterTokenizer() if limits.supports else None)

    def _facade(self, data: bytes, limits: Bounds) -> bool:
        try:
            message = trt.GenerateRequest.FromString(data)
        except DecodeError:
            return False
        return check_facade(message, limits)

    def _metadata(self, data: bytes, limits: Bounds) -> bool:
        parts = data.split(b"\0")
        names = ("superinfer-ttft-slo-ms", "superinfer-tbt-slo-ms", "superinfer-tenant", "superinfer-x")
        metadata: list[tuple[str, str | bytes]] = []
        for at, value in enumerate(parts[:8]):
            odd = bool(at % 2 and value)
            metadata.append((names[at % 4], value if odd else value.decode("latin-1")))
        message = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1]))
        try:
            fill_from_metadata(message, metadata)
        except Refused as refusal:
            check_refused(refusal)
            return False
        return check(message, limits, None)

    def _token(self, data: bytes, limits: Bounds) -> bool:
        del limits
        text = data.decode("latin-1")
        try:
            caller = self._guard.caller([("authorization", text), *([("x", text)] if len(text) % 2 else [])])
        except Refused as refusal:
            check_refused(refusal, RefusalCode.UNAUTHENTICATED)
            return False
        assert text.partition(" ")[2] == TOKEN
        with suppress(Refused):
            assert caller.tenant_of(text) == "acme"
        return True

    def _triton(self, data: bytes, limits: Bounds) -> bool:
        face = FACES[sorted(FACES)[data[0] % len(FACES)]] if data else FACES["ids"]
        tensors, rest = {}, data[1:]
        for one in face.inputs:
            if len(rest) < 2:
                break
            given, size, rest = rest[0], rest[1] % 9, rest[2:]
            if given % 2 and not (one.required and given % 16):
                continue
            count = 1 if one.scalar or one.dims == (1,) else size
            body, rest = rest[: count * 8], rest[count * 8 :]
            tensors[one.name] = _tensor(one.data_type, body, count, len(one.dims), batched=face.batched)
        parameters = {"ttft_slo_ms": struct.unpack("<d", rest[:8])[0]} if len(rest) >= 8 else {}
        try:
            asked = read(face, tensors, parameters)
        except Refused as refusal:
            check_refused(refusal)
            return False
        taken = [check(item.request, limits, LetterTokenizer()) for item in asked.items]
        return any(taken)


def _tensor(kind: str, data: bytes, count: int, dims: int, *, batched: bool) -> Any:
    if NUMPY[kind] is np.object_:
        made: Any = np.empty(count, np.object_)
        made[:] = [data[at * 8 : at * 8 + 8] for at in range(count)]
    else:
        dtype = np.dtype(NUMPY[kind])
        padded = data.ljust(count * 8, b"\0")
        made = np.frombuffer(padded[: count * dtype.itemsize], np.uint8 if dtype == np.bool_ else dtype)
        made = made.astype(dtype)
    shape = (2, count // 2) if dims == 2 and count % 2 == 0 else ((1,) * (dims - 1) + (count,))
    made = made.reshape(shape)
    return made[None] if batched else made
