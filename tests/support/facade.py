"""A client's view of trtllm.TrtllmService, through stubs of our own text of the proto."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from superinfer_trt.core.request import Request
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from superinfer_trt.serve.pb.trtllm_service_pb2_grpc import TrtllmServiceStub
from support.wire import Wire, serving


@dataclass
class Got:
    """All that a call to Generate brought."""

    chunks: list[trt.GenerateStreamChunk] = field(default_factory=list)
    complete: trt.GenerateComplete | None = None
    ids: set[str] = field(default_factory=set)
    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    trailers: dict[str, Any] = field(default_factory=dict)

    @property
    def streamed(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]


async def read(call: Any, got: Got | None = None) -> Got:
    got = got if got is not None else Got()
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            assert got.complete is None, "nothing comes behind `complete`"
            got.ids.add(response.request_id)
            if response.HasField("chunk"):
                got.chunks.append(response.chunk)
            else:
                got.complete = response.complete
    except grpc.aio.AioRpcError as error:
        got.code, got.details = error.code(), error.details() or ""
        got.trailers = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
    return got


@asynccontextmanager
async def facing(service: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[tuple[Wire, Any]]:
    async with serving(service, **options) as wire:
        yield wire, TrtllmServiceStub(wire.channel)


def ask(*ids: int, max_tokens: int = 4, **fields: Any) -> trt.GenerateRequest:
    fields.setdefault("streaming", True)
    return trt.GenerateRequest(
        tokenized=trt.TokenizedInput(input_token_ids=ids), max_tokens=max_tokens, **fields
    )


def watch(wire: Wire) -> list[Request]:
    """The requests that reach the executor from now on."""
    seen: list[Request] = []
    submit = wire.service.inbox.submit
    wire.service.inbox.submit = lambda one: (seen.append(one), submit(one))[1]  # type: ignore[method-assign]
    return seen
