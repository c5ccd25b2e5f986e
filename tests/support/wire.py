"""An in-process server over the echo service, and a client's view of one call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc

from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.server import Server, ServerOptions
from superinfer_trt.serve.streams import StreamOutbox
from support.echo_service import EchoService

T = TypeVar("T")
PATIENCE_S = 30.0


@dataclass
class Wire:
    """A listening server and a channel to it."""

    server: Server
    service: EchoService
    outbox: StreamOutbox
    channel: grpc.aio.Channel
    stub: Any


@dataclass
class Said:
    """All that a call to Generate brought; checks the stream's own rules as it comes (C4)."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    messages: int = 0
    ending: pb.Ending | None = None
    logprobs: list[pb.TokenLogprobs] = field(default_factory=list)
    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    trailers: dict[str, str] = field(default_factory=dict)

    def take(self, response: pb.GenerateResponse) -> None:
        assert self.ending is None, "nothing comes behind the ending"
        self.messages += 1
        if response.delta.token_ids:
            assert response.delta.first_index == len(self.token_ids)
        self.token_ids += response.delta.token_ids
        self.text += response.delta.text
        self.logprobs += response.delta.logprobs
        if response.HasField("ending"):
            self.ending = response.ending


@asynccontextmanager
async def serving(service_options: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Wire]:
    """A server on a free port; afterwards no stream may be open and no request live (C2, C3)."""
    outbox = StreamOutbox(asyncio.get_running_loop())
    service = EchoService(outbox, **(service_options or {}))
    server = Server(service, outbox, ServerOptions(**options))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.target) as channel:
            yield Wire(server, service, outbox, channel, ExecutorServiceStub(channel))
    finally:
        service.driver.release()
        await server.stop()
        assert len(outbox) == 0
        assert server.calls.live == 0
        await asyncio.to_thread(service.close)
        assert service.executor.totals.accepted == len(service.executor.endings)


async def say(call: Any, said: Said | None = None) -> Said:
    """Reads a call to its end, whatever that is; `said` holds what was read before."""
    said = said if said is not None else Said()
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            said.take(response)
    except grpc.aio.AioRpcError as error:
        said.code, said.details = error.code(), error.details() or ""
        said.trailers = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
    return said


async def until(condition: Any, what: str = "the condition") -> None:
    """Waits for something the other thread or the other side of the wire does."""
    for _ in range(int(PATIENCE_S / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{what} did not come in {PATIENCE_S} s")


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """One scenario on its own loop."""

    async def bounded() -> T:
        return await asyncio.wait_for(scenario, 120)

    return asyncio.run(bounded())


def request(*ids: int, max_tokens: int = 4, **fields: Any) -> pb.GenerateRequest:
    """Token ids in."""
    made = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), **fields)
    made.sampling.max_tokens = max_tokens
    return made


def text_request(text: str, max_tokens: int = 4, **sampling: Any) -> pb.GenerateRequest:
    """Text in."""
    return pb.GenerateRequest(text=text, sampling=pb.Sampling(max_tokens=max_tokens, **sampling))
