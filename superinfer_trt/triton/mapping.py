"""Tensors of one Triton request -> `superinfer.v1` requests, one a row of the batch. Pure; knows no server.

Only what the wire has no room for is refused here; whatever it can carry is judged by the executor, as every
other client's requests are (`serve/mapping.py`). Raises `Refused`, naming the tensor or the parameter, and
nothing else for any input. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.triton.tensors import REFUSED, Face, Input

Array = NDArray[Any]

STOP_WORDS_MAX = 64
STOP_WORD_TOKENS_MAX = 256
_UINT32, _UINT64 = (1 << 32) - 1, (1 << 64) - 1
_SLOS = {"ttft_slo_ms": "ttft_ms", "tbt_slo_ms": "tbt_ms", "tpot_slo_ms": "tbt_ms"}
_WANTS = (
    "streaming",
    "exclude_input",
    "log_probs",
    "times",
    "num_input_tokens",
    "num_output_tokens",
    "finish_reason",
    "stop_reason",
    "cumulative_logprob",
)


@dataclass(frozen=True, slots=True)
class Wants:
    """How the caller wants to be answered, beside the request itself."""

    streaming: bool = False
    exclude_input: bool = False
    log_probs: bool = False
    times: bool = False
    num_input_tokens: bool = False
    num_output_tokens: bool = False
    finish_reason: bool = False
    stop_reason: bool = False
    cumulative_logprob: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """One row. `stop_sequences`: output that ends in one of these runs of tokens is finished."""

    request: pb.GenerateRequest
    wants: Wants
    batch_index: int
    stop_sequences: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """One Triton request. `stop`: it asks to cancel the one of the same id, and has no items.

    `remarks`: what was given and has no effect; the same text each time, so that it can be told once.
    """

    items: tuple[Item, ...]
    stop: bool = False
    remarks: tuple[str, ...] = ()


def read(
    face: Face,
    tensors: Mapping[str, Array],
    parameters: Mapping[str, object],
    *,
    exclude_input: bool | None = None,
) -> Asked:
    """What a request asks for. `exclude_input`: of this model, where the request does not say."""
    rows = [_Row(face, index, row) for index, row in enumerate(_rows(face, tensors))]
    if rows[0].flag("stop"):
        return Asked((), stop=True)
    default = face.exclude_input if exclude_input is None else exclude_input
    made = pb.GenerateRequest()
    remarks = _read_parameters(parameters, made)
    return Asked(tuple(row.item(made, exclude_input=default) for row in rows), remarks=remarks)


def _refuse(name: str, why: str, code: RefusalCode = RefusalCode.INVALID) -> NoReturn:
    raise Refused(code, name, why)


def _rows(face: Face, tensors: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """The tensors of each row, flat, but for those with several dims."""
    if not face.batched:
        yield dict(tensors)
        return
    sizes = {name: len(array) if array.ndim else 0 for name, array in tensors.items()}
    count = max(sizes.values(), default=0)
    if count < 1:
        _refuse("", "the request has no tensors")
    for name, size in sizes.items():
        if size != count:
            _refuse(name, f"has a batch of {size}; the other tensors have one of {count}")
    for at in range(count):
        yield {name: array[at : at + 1].reshape(array.shape[1:]) for name, array in tensors.items()}


class _Row:
    """One row of a batch; each tensor that is given is read once, by its role."""

    def __init__(self, face: Face, index: int, tensors: Mapping[str, Array]) -> None:
        self._index = index
        self._face = face
        self._given: dict[str, tuple[Input, Array]] = {}
        for one in face.inputs:
            array = tensors.get(one.name)
            if array is None or array.size == 0:
                continue
            if one.role == REFUSED:
                _check_neutral(one, array)
            else:
                self._given.setdefault(one.role, (one, array.reshape(-1)))
        self._words = {role: tensors.get(face.tensor_of(role)) for role in _WORD_LISTS}

    def item(self, base: pb.GenerateRequest, *, exclude_input: bool) -> Item:
        request = pb.GenerateRequest()
        request.CopyFrom(base)
        self._prompt(request)
        sequences = self._sampling(request.sampling)
        wants = {role: self.flag(role) for role in _WANTS if role in self._given}
        wants.setdefault("exclude_input", exclude_input)
        made = Wants(**wants)
        if made.log_probs or made.cumulative_logprob:
            request.sampling.logprobs = 0
        return Item(request, made, self._index, sequences)

    def flag(self, role: str) -> bool:
        return bool(self._given[role][1][0]) if role in self._given else False

    def _number(self, role: str) -> float | None:
        return float(self._given[role][1][0]) if role in self._given else None

    def _whole(self, role: str, low: int, high: int) -> int | None:
        """A whole number that the wire can carry."""
        if role not in self._given:
            return None
        one, array = self._given[role]
        value = int(array[0])
        if not low <= value <= high:
            _refuse(one.name, f"must be {low} or more, not {value}")
        return value

    def _prompt(self, request: pb.GenerateRequest) -> None:
        if self._face.text:
            if "text" not in self._given:
                _refuse(self._face.tensor_of("text"), "is required")
            one, array = self._given["text"]
            request.text = _text(one.name, array[0])
            return
        if "input_ids" not in self._given:
            _refuse(self._face.tensor_of("input_ids"), "is required")
        one, array = self._given["input_ids"]
        length = self._whole("input_lengths", 1, _UINT32)
        if length is None:
            length = array.size
        if length > array.size:
            name = self._face.tensor_of("input_lengths")
            _refuse(name, f"{length} is more than the {array.size} ids of {one.name}")
        ids = array[:length]
        if ids.min() < 0:
            at = int(np.argmax(ids < 0))
            _refuse(one.name, f"id {int(ids[at])} at place {at} is below 0")
        request.token_ids.ids.extend(ids.tolist())

    def _sampling(self, sampling: pb.Sampling) -> tuple[tuple[int, ...], ...]:
        """Fills the message; returns the stop words that are more than one token."""
        tokens = self._whole("max_tokens", 1, _UINT32)
        if tokens is not None:
            sampling.max_tokens = tokens
        self._draw(sampling)
        for role, neutral in (
            ("repetition_penalty", 1.0),
            ("presence_penalty", 0.0),
            ("frequency_penalty", 0.0),
        ):
            value = self._number(role)
            if value is not None and value != neutral:
                setattr(sampling, role, value)
        sampling.min_tokens = self._whole("min_tokens", 0, _UINT32) or 0
        end = self._whole("end_id", -1, _UINT32)
        if end is not None:  # it takes the place of the model's own, as in TensorRT-LLM
            sampling.ignore_eos = True
            if end >= 0:
                sampling.stop_token_ids.append(end)
        if "stop_words" in self._given:
            one, words = self._given["stop_words"]
            sampling.stop.extend(word for word in (_text(one.name, word) for word in words) if word)
        if word_list(self._face.tensor_of("bad_words_list"), self._words["bad_words_list"]):
            _refuse(self._face.tensor_of("bad_words_list"), _CANNOT, RefusalCode.UNSUPPORTED)
        found = word_list(self._face.tensor_of("stop_words_list"), self._words["stop_words_list"])
        sampling.stop_token_ids.extend(word[0] for word in found if len(word) == 1)
        return tuple(word for word in found if len(word) > 1)

    def _draw(self, sampling: pb.Sampling) -> None:
        """TensorRT-LLM's rule: greedy unless one of the three is given, or when top_k is 1; a temperature
        that is left out is 1, a top_p of 0 or less counts as left out."""
        temperature = self._number("temperature")
        top_k = self._whole("top_k", 0, (1 << 31) - 1) or 0
        top_p = self._number("top_p")
        if top_p is not None and top_p <= 0:
            top_p = None
        seed = self._whole("seed", 0, _UINT64)
        if seed is not None:
            sampling.seed = seed
        if top_k == 1 or (temperature is None and top_k == 0 and top_p is None):
            return
        sampling.temperature = 1.0 if temperature is None else temperature
        sampling.top_k = top_k
        if top_p is not None:
            sampling.top_p = top_p


_WORD_LISTS = ("stop_words_list", "bad_words_list")
_CANNOT = "this executor cannot do it; leave it out"


def word_list(name: str, array: Array | None) -> tuple[tuple[int, ...], ...]:
    """The words in a tensor [2, n]: token ids one after another, and where each word ends, padded with -1."""
    if array is None or array.size == 0:
        return ()
    if array.ndim != 2 or array.shape[0] != 2:
        _refuse(name, f"must be [2, n] in each row, not {list(array.shape)}")
    ids, ends = array[0].tolist(), [end for end in array[1].tolist() if end > 0]
    if len(ends) > STOP_WORDS_MAX:
        _refuse(name, f"has {len(ends)} words; at most {STOP_WORDS_MAX} are allowed", RefusalCode.TOO_LARGE)
    words, start = [], 0
    for end in ends:
        if not start < end <= len(ids) or end - start > STOP_WORD_TOKENS_MAX:
            why = f"must ascend, by at most {STOP_WORD_TOKENS_MAX}, and not pass the {len(ids)} ids"
            _refuse(name, f"the ends of the words {why}; found {end} after {start}")
        word = tuple(ids[start:end])
        if min(word) < 0:
            _refuse(name, f"a word has the id {min(word)}; ids are 0 or more")
        words.append(word)
        start = end
    return tuple(words)


def _check_neutral(one: Input, array: Array) -> None:
    """Refuses an input that this executor cannot serve, unless it asks for nothing."""
    if one.data_type == "STRING":
        asks = any(_text(one.name, value) for value in array.reshape(-1))
    else:
        asks = not bool(np.isin(array, one.neutral).all())
    if asks:
        neutral = f" or give {one.neutral[-1]:g}" if one.neutral else ""
        _refuse(one.name, f"{_CANNOT}{neutral}", RefusalCode.UNSUPPORTED)


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        _refuse(name, f"must be bytes, not {type(value).__name__}")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(name, f"is not UTF-8 (byte {error.start})")


def _read_parameters(parameters: Mapping[str, object], request: pb.GenerateRequest) -> tuple[str, ...]:
    """Objectives and tenant; other parameters may be anything (Triton passes headers on as such)."""
    remarks = []
    given: dict[str, str] = {}
    for name, value in parameters.items():
        if name in _SLOS:
            field = _SLOS[name]
            number = _milliseconds(name, value)
            if field in given and getattr(request.slo, field) != number:
                _refuse(name, f"is the same as {given[field]}, which says otherwise")
            given[field] = name
            setattr(request.slo, field, number)
        elif name == "tenant":
            request.tenant = str(value)
        elif name == "priority":
            remarks.append("priority has no effect: requests are served by their objectives (ttft_slo_ms)")
        elif name.endswith(("slo_ms", "slo")):
            _refuse(name, f"is not known here; there are {', '.join(_SLOS)}")
    return tuple(remarks)


def _milliseconds(name: str, value: object) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    _refuse(name, f"must be a number of milliseconds, not {value!r:.64}")


_TENSOR_OF_FIELD = {
    "token_ids": "input_ids",
    "text": "text",
    "sampling.max_tokens": "max_tokens",
    "sampling.temperature": "temperature",
    "sampling.top_k": "top_k",
    "sampling.top_p": "top_p",
    "sampling.repetition_penalty": "repetition_penalty",
    "sampling.presence_penalty": "presence_penalty",
    "sampling.frequency_penalty": "frequency_penalty",
    "sampling.min_tokens": "min_tokens",
    "sampling.stop": "stop_words",
    "slo.ttft_ms": "ttft_slo_ms",
    "slo.tbt_ms": "tbt_slo_ms",
}


def in_tensors(face: Face, field: str, message: str) -> str:
    """A refusal of the executor in the words of this caller: the tensor's name where the field's stood."""
    base = field.partition("[")[0]
    role = _TENSOR_OF_FIELD.get(base)
    if role is None and base == "sampling.stop_token_ids":
        role = "stop_words_list" if not face.text else "end_id"
    if role is None or not message.startswith(f"{field}:"):
        return message
    return face.tensor_of(role) + message[len(base) :]
