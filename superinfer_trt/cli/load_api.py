"""The two services that a load is sent to, and what an answer is: one shape for both.

A request is always written as superinfer.v1 has it; `facade` says the same in trtllm.TrtllmService, with
objectives and tenant in metadata. Knows no schedule and no figures. One event loop, no threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import click
import grpc

from superinfer_trt.cli.client import call_failed
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, Nanos
from superinfer_trt.serve.objectives import TBT_METADATA, TENANT_METADATA, TTFT_METADATA
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.pb.trtllm_service_pb2_grpc import TrtllmServiceStub
from superinfer_trt.serve.security_client import open_channel

ASK_TIMEOUT_S = 10
BROKEN = "BROKEN_STREAM"
"""Status of an answer whose token indices do not follow each other, or whose count is not the server's."""

_REASONS = {
    "stop": pb.FINISH_REASON_STOP,
    "stop_word": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "cancelled": pb.FINISH_REASON_CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Job:
    """One request of the load, due `offset` after the start.

    `group`: its class or tenant, for figures of its own. `measured`: False while the server warms up.
    """

    index: int
    offset: Nanos
    request: pb.GenerateRequest
    cancel_after: Nanos | None
    group: str = ""
    measured: bool = True


@dataclass(slots=True)
class Answer:
    """What came back for a job, on the client's clock.

    `cancelled`: by its own caller. `cut`: the whole load was ended before this one was.
    """

    job: Job
    due: Nanos
    sent: Nanos | None = None
    token_ids: list[int] = field(default_factory=list)
    tokens: list[Nanos] = field(default_factory=list)
    text: str = ""
    ending: pb.Ending | None = None
    status: str = "OK"
    message: str = ""
    cancelled: bool = False
    cut: bool = False

    @property
    def completed(self) -> bool:
        """It ended as asked."""
        fine = (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH)
        return self.status == "OK" and self.ending is not None and self.ending.finish_reason in fine


@dataclass(frozen=True, slots=True)
class Api:
    """How one service is called. `open` makes a caller on a channel: (request, number, timeout) -> stream
    of messages; `take` writes a message that came at a time into its answer."""

    name: str
    open: Callable[[grpc.aio.Channel], Callable[[pb.GenerateRequest, int, float], Any]]
    take: Callable[[Answer, Any, Nanos], None]


def _open_executor(channel: grpc.aio.Channel) -> Callable[[pb.GenerateRequest, int, float], Any]:
    stub = ExecutorServiceStub(channel)  # type: ignore[no-untyped-call]
    return lambda request, _, timeout_s: stub.Generate(request, timeout=timeout_s)


def _take_executor(answer: Answer, response: pb.GenerateResponse, now: Nanos) -> None:
    new = response.delta.token_ids
    if new and response.delta.first_index != len(answer.token_ids):
        _broken(answer, f"token {response.delta.first_index} came as token {len(answer.token_ids)}")
    answer.token_ids.extend(new)
    answer.tokens.extend([now] * len(new))
    answer.text += response.delta.text
    if response.HasField("ending"):
        _end(answer, response.ending)


def _open_facade(channel: grpc.aio.Channel) -> Callable[[pb.GenerateRequest, int, float], Any]:
    stub = TrtllmServiceStub(channel)  # type: ignore[no-untyped-call]
    prefix = f"bench-{os.getpid()}"  # ids are unique among the live ones of a server

    def call(request: pb.GenerateRequest, number: int, timeout_s: float) -> Any:
        message, metadata = facade_request(request, f"{prefix}-{number}")
        return stub.Generate(message, timeout=timeout_s, metadata=metadata)

    return call


def _take_facade(answer: Answer, response: trt.GenerateResponse, now: Nanos) -> None:
    if response.HasField("chunk"):
        answer.token_ids.extend(response.chunk.token_ids)
        answer.tokens.extend([now] * len(response.chunk.token_ids))
    elif response.HasField("complete"):
        told = response.complete
        ending = pb.Ending(finish_reason=_REASONS.get(told.finish_reason, pb.FINISH_REASON_UNSPECIFIED))
        ending.usage.prompt_tokens = told.prompt_tokens
        ending.usage.output_tokens = len(told.output_token_ids)
        _end(answer, ending)


def _end(answer: Answer, ending: pb.Ending) -> None:
    answer.ending = ending
    told, came = ending.usage.output_tokens, len(answer.token_ids)
    # Text that turned out to be a stop string is taken back, so fewer are told than came.
    if came < told or (came > told and ending.finish_reason == pb.FINISH_REASON_LENGTH):
        _broken(answer, f"{came} tokens came, {told} were told")


def _broken(answer: Answer, why: str) -> None:
    if answer.status == "OK":
        answer.status, answer.message = BROKEN, why


EXECUTOR = Api("executor", _open_executor, _take_executor)
FACADE = Api("facade", _open_facade, _take_facade)
APIS = {api.name: api for api in (EXECUTOR, FACADE)}


def facade_request(
    request: pb.GenerateRequest, request_id: str
) -> tuple[trt.GenerateRequest, list[tuple[str, str]]]:
    """The same request in trtllm, and its metadata. Raises click.UsageError for what has no field there."""
    if request.WhichOneof("prompt") != "token_ids":
        raise click.UsageError("--api facade: every prompt must be token ids (tokenIds)")
    asked = request.sampling
    made = trt.GenerateRequest(
        request_id=request.request_id or request_id, streaming=True, max_tokens=asked.max_tokens
    )
    made.tokenized.input_token_ids.extend(request.token_ids.ids)
    made.stop.extend(asked.stop)
    made.stop_token_ids.extend(asked.stop_token_ids)
    made.ignore_eos = asked.ignore_eos
    config = made.sampling_config
    for name in ("temperature", "top_k", "min_p", "presence_penalty", "frequency_penalty", "min_tokens"):
        setattr(config, name, getattr(asked, name))
    for name in ("top_p", "seed", "repetition_penalty"):
        if asked.HasField(name):
            setattr(config, name, getattr(asked, name))
    if asked.HasField("logprobs"):
        made.output_config.logprobs = asked.logprobs
    metadata = []
    if request.slo.HasField("ttft_ms"):
        metadata.append((TTFT_METADATA, repr(request.slo.ttft_ms)))
    if request.slo.HasField("tbt_ms"):
        metadata.append((TBT_METADATA, repr(request.slo.tbt_ms)))
    if request.tenant:
        metadata.append((TENANT_METADATA, request.tenant))
    return made, metadata


def ask(target: str, api: Api) -> tuple[pb.GetModelInfoResponse, pb.Stats | None]:
    """What is served, and its counters; through the facade None, unless the server is one of ours.

    Raises CallFailed.
    """
    try:
        with open_channel(target) as channel:
            try:
                stub = ExecutorServiceStub(channel)  # type: ignore[no-untyped-call]
                info: pb.GetModelInfoResponse = stub.GetModelInfo(
                    pb.GetModelInfoRequest(), timeout=ASK_TIMEOUT_S
                )
                return info, stub.GetStats(pb.GetStatsRequest(), timeout=ASK_TIMEOUT_S).stats
            except grpc.RpcError as error:
                if api is not FACADE or error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    raise
            return _facade_info(channel), None
    except grpc.RpcError as error:
        raise call_failed(error, target) from error


def _facade_info(channel: grpc.Channel) -> pb.GetModelInfoResponse:
    """Objectives that nobody tells are this project's defaults."""
    stub = TrtllmServiceStub(channel)  # type: ignore[no-untyped-call]
    model = stub.GetModelInfo(trt.GetModelInfoRequest(), timeout=ASK_TIMEOUT_S)
    server = stub.GetServerInfo(trt.GetServerInfoRequest(), timeout=ASK_TIMEOUT_S)
    made = pb.GetModelInfoResponse(
        engine=server.backend or "trtllm",
        model=model.model_id,
        vocabulary=max(0, model.vocab_size),
        request_tokens_max=max(0, model.max_seq_len),
        seats=max(0, model.max_batch_size),
    )
    made.default_slo.ttft_ms = Slo().ttft / MILLISECOND
    made.default_slo.tbt_ms = Slo().tbt / MILLISECOND
    return made
