"""An executor as a front meets it (a Triton model, a batch): one port, and its two implementations.

`GrpcExecutor` is a client of a running one; `LocalExecutor` is one in the same process. Both live on one
asyncio loop and raise `Ended` with the same statuses for the same requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc

from superinfer_trt.core.units import SECOND
from superinfer_trt.serve import stats
from superinfer_trt.serve.calls import Calls, Ended
from superinfer_trt.serve.errors import FIELD_TRAILER, WireStatus
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.security_client import open_aio_channel

Write = Callable[[pb.GenerateResponse], None]
RECONNECTING = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),  # an executor that comes back is found again at once
)


class Executor(Protocol):
    """What a front needs. All calls on the loop that made it."""

    async def generate(self, request: pb.GenerateRequest, write: Write) -> None:
        """Hands every message to `write`; ends the request when its task is cancelled. Raises Ended
        for anything but a good end."""
        ...

    async def stats(self) -> pb.Stats:
        """Raises Ended when the executor cannot be reached."""
        ...

    async def model_info(self) -> pb.GetModelInfoResponse:
        """Raises Ended when the executor cannot be reached."""
        ...

    async def close(self) -> None: ...


class GrpcExecutor:
    """A client of `superinfer.v1.ExecutorService` at `target`. Connects when it is first needed, and again
    when the executor was away."""

    def __init__(self, target: str, timeout_s: float = 2.0) -> None:
        self._channel = open_aio_channel(target, RECONNECTING)
        self._stub: Any = ExecutorServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._timeout_s = timeout_s

    async def generate(self, request: pb.GenerateRequest, write: Write) -> None:
        call = self._stub.Generate(request)
        try:
            async for response in call:
                write(response)
        except grpc.aio.AioRpcError as error:
            raise Ended(_status(error)) from None
        finally:
            call.cancel()  # no effect on one that has ended

    async def stats(self) -> pb.Stats:
        try:
            response = await self._stub.GetStats(pb.GetStatsRequest(), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise Ended(_status(error)) from None
        found: pb.Stats = response.stats
        return found

    async def model_info(self) -> pb.GetModelInfoResponse:
        try:
            info: pb.GetModelInfoResponse = await self._stub.GetModelInfo(
                pb.GetModelInfoRequest(), timeout=self._timeout_s
            )
        except grpc.aio.AioRpcError as error:
            raise Ended(_status(error)) from None
        return info

    async def close(self) -> None:
        await self._channel.close(None)


class LocalExecutor:
    """The executor whose `Calls` these are; `close` is the owner's."""

    def __init__(self, calls: Calls, close: Callable[[], Awaitable[None]]) -> None:
        self._calls = calls
        self._close = close
        self._ready_at = calls.service.clock.now()

    async def generate(self, request: pb.GenerateRequest, write: Write) -> None:
        await self._calls.generate(request, _Front(write))

    async def stats(self) -> pb.Stats:
        uptime_s = (self._calls.service.clock.now() - self._ready_at) / SECOND
        return stats.stats(self._calls, uptime_s=uptime_s)

    async def model_info(self) -> pb.GetModelInfoResponse:
        calls = self._calls
        return stats.model_info(calls.service, calls.bounds, calls.requests_max)

    async def close(self) -> None:
        await self._close()


class _Front:
    """serve.calls.Front for a reader that is never slow: Triton queues what it has not sent."""

    def __init__(self, write: Write) -> None:
        self._write = write

    async def accepted(self, name: str) -> None:
        del name

    async def write(self, response: pb.GenerateResponse) -> None:
        self._write(response)
        await asyncio.sleep(0)  # one request with much to send does not keep the others waiting


def field_of(status: WireStatus) -> str:
    """The field that a refusal names; empty if none."""
    return dict(status.trailers).get(FIELD_TRAILER, "")


def _status(error: grpc.aio.AioRpcError) -> WireStatus:
    metadata: Any = error.trailing_metadata() or ()
    trailers = tuple((name, value) for name, value in metadata if isinstance(value, str))
    return WireStatus(error.code(), error.details() or "no details", trailers)
