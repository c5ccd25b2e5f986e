"""The calls of superinfer.v1.ExecutorService on grpc.aio.

Knows no port, signal or health service; the life of a request is `calls.Calls`. Everything runs on one
event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import grpc

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.units import SECOND
from superinfer_trt.serve import stats
from superinfer_trt.serve.calls import Calls, Ended
from superinfer_trt.serve.errors import REQUEST_ID_HEADER, WireStatus, end_call, status_of
from superinfer_trt.serve.objectives import fill_from_metadata
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceServicer
from superinfer_trt.serve.profiling import MakeRecording, Profiler
from superinfer_trt.serve.security import Guard

log = logging.getLogger(__name__)

WATCHERS_MAX = 256
PERIOD_MS_MIN, PERIOD_MS_MAX, PERIOD_MS_DEFAULT = 10, 3_600_000, 1000


class Servicer(ExecutorServiceServicer):
    """Generate, Abort, GetModelInfo, GetStats, WatchStats, Profile.

    `make_recording` None: Profile is UNIMPLEMENTED. `guard`: whose requests they are; None: everybody may
    name any tenant.
    """

    def __init__(
        self, calls: Calls, make_recording: MakeRecording | None = None, guard: Guard | None = None
    ) -> None:
        self._calls = calls
        self._guard = guard or Guard()
        self._profiler = Profiler(calls.service, make_recording)
        self._closing = asyncio.Event()
        self._ready_at = calls.service.clock.now()
        self._watchers = 0

    async def Generate(  # noqa: N802  # the name is the proto's
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Streams one request; the context's cancellation ends it in the executor too."""
        try:
            metadata = context.invocation_metadata()
            caller = self._guard.caller(metadata)
            fill_from_metadata(request, metadata)
            request.tenant = caller.tenant_of(request.tenant)
            await self._calls.generate(request, _Front(context), caller.tenant)
        except Refused as refusal:
            await end_call(context, self._calls.refuse(request, refusal).status)
        except Ended as end:
            await end_call(context, end.status)
        except Exception as error:
            if not context.done():  # a client that went away makes a write fail: nobody is left to tell
                log.exception("a call to Generate failed")
                await end_call(context, status_of(error))

    async def Abort(  # noqa: N802
        self,
        request: pb.AbortRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.AbortResponse:
        """Cancels in the executor; the request's own stream tells how it ended."""
        if not request.request_id:
            await end_call(context, status_of(Refused(RefusalCode.INVALID, "request_id", "is required")))
        owner = self._guard.caller(context.invocation_metadata()).tenant
        return pb.AbortResponse(found=self._calls.abort(request.request_id, owner))

    async def GetModelInfo(  # noqa: N802
        self,
        request: pb.GetModelInfoRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.GetModelInfoResponse:
        del request, context
        return stats.model_info(self._calls.service, self._calls.bounds, self._calls.requests_max)

    async def GetStats(  # noqa: N802
        self, request: pb.GetStatsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetStatsResponse:
        del request, context
        return pb.GetStatsResponse(stats=self._stats())

    async def WatchStats(  # noqa: N802
        self, request: pb.WatchStatsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """One message at once, then one a period; ends with the server."""
        period_ms = request.period_ms or PERIOD_MS_DEFAULT
        if not PERIOD_MS_MIN <= period_ms <= PERIOD_MS_MAX:
            why = f"must be {PERIOD_MS_MIN} to {PERIOD_MS_MAX}, not {period_ms}"
            await end_call(context, status_of(Refused(RefusalCode.INVALID, "period_ms", why)))
        if self._watchers >= WATCHERS_MAX:
            why = f"{WATCHERS_MAX} callers watch already"
            await end_call(context, status_of(Refused(RefusalCode.QUEUE_FULL, "", why)))
        self._watchers += 1
        try:
            while not self._closing.is_set():
                await context.write(pb.WatchStatsResponse(stats=self._stats()))
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), period_ms / 1000)
        finally:
            self._watchers -= 1

    async def Profile(  # noqa: N802
        self, request: pb.ProfileRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Records, then streams the record."""

        async def write(chunk: bytes) -> None:
            await context.write(pb.ProfileResponse(chunk=chunk))

        try:
            await self._profiler.record(request.duration_ms, self._closing, write)
        except Refused as refusal:
            await end_call(context, status_of(refusal))
        except asyncio.TimeoutError:
            why = "the reader took nothing for too long"
            await end_call(context, WireStatus(grpc.StatusCode.ABORTED, why))

    def close(self) -> None:
        """Ends the watchers, and a recording early."""
        self._closing.set()

    def _stats(self) -> pb.Stats:
        uptime_s = (self._calls.service.clock.now() - self._ready_at) / SECOND
        return stats.stats(self._calls, uptime_s=uptime_s)


class _Front:
    """calls.Front over one gRPC call."""

    __slots__ = ("_context", "write")

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context
        self.write = context.write

    async def accepted(self, name: str) -> None:
        """A write of its own, the dearest part of a request: grpc.aio lets no message carry metadata, and the
        proto promises that it comes at once."""
        await self._context.send_initial_metadata(((REQUEST_ID_HEADER, name),))
