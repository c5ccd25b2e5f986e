"""The five calls of superinfer.v1.ExecutorService on grpc.aio.

Knows no port, signal or health service. Everything runs on one event loop; the executor is reached
through its inbox, and heard through the outbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.request import FinishReason
from superinfer_trt.core.units import MILLISECOND, SECOND, RequestId
from superinfer_trt.serve import stats
from superinfer_trt.serve.errors import REQUEST_ID_HEADER, STATUS_OF_ENDING, WireStatus, status_of
from superinfer_trt.serve.mapping import Accepted, Bounds, accept, text_chars
from superinfer_trt.serve.output import Output
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceServicer
from superinfer_trt.serve.service import Service
from superinfer_trt.serve.streams import Abandoned, Stream, StreamOutbox

log = logging.getLogger(__name__)

INLINE_CHARS_MAX = 2048  # a longer text is tokenised off the event loop (about 1 ms)
WATCHERS_MAX = 256
PERIOD_MS_MIN, PERIOD_MS_MAX, PERIOD_MS_DEFAULT = 10, 3_600_000, 1000


@dataclass(slots=True)
class _Live:
    """A request between its acceptance and the end of its call."""

    id: RequestId
    task: asyncio.Task[Any] | None
    writing_since: int = -1  # clock; -1: not in a write
    ended: bool = False
    stalled: bool = False


class Servicer(ExecutorServiceServicer):
    """Generate, Abort, GetModelInfo, GetStats, WatchStats."""

    def __init__(self, service: Service, outbox: StreamOutbox, bounds: Bounds, requests_max: int) -> None:
        self._service = service
        self._outbox = outbox
        self._bounds = bounds
        self._requests_max = requests_max
        self._live: dict[str, _Live] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = asyncio.Event()
        self._draining = False
        self._cut = False
        self._ready_at = service.clock.now()
        self._refused = 0
        self._messages = 0
        self._watchers = 0

    # ---- the calls -------------------------------------------------------------------------------

    async def Generate(  # noqa: N802  # the name is the proto's
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Streams one request; the context's cancellation ends it in the executor too."""
        try:
            name, live = self._enter(request)
            try:
                await self._generate(name, live, request, context)
            finally:
                self._leave(name, live)
        except grpc.aio.AbortError:
            raise
        except Refused as refusal:
            self._refused += 1
            await _abort(context, status_of(refusal))
        except Exception as error:
            if not context.done():  # a client that went away makes a write fail: nobody is left to tell
                log.exception("a call to Generate failed")
                await _abort(context, status_of(error))

    async def Abort(  # noqa: N802
        self,
        request: pb.AbortRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.AbortResponse:
        """Cancels in the executor; the request's own stream tells how it ended."""
        if not request.request_id:
            await _abort(context, status_of(Refused(RefusalCode.INVALID, "request_id", "is required")))
        live = self._live.get(request.request_id)
        if live is None:
            return pb.AbortResponse(found=False)
        self._service.inbox.cancel(live.id, FinishReason.CANCELLED)
        return pb.AbortResponse(found=True)

    async def GetModelInfo(  # noqa: N802
        self,
        request: pb.GetModelInfoRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.GetModelInfoResponse:
        del request, context
        return stats.model_info(self._service, self._bounds, self._requests_max)

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
            await _abort(context, status_of(Refused(RefusalCode.INVALID, "period_ms", why)))
        if self._watchers >= WATCHERS_MAX:
            why = f"{WATCHERS_MAX} callers watch already"
            await _abort(context, status_of(Refused(RefusalCode.QUEUE_FULL, "", why)))
        self._watchers += 1
        try:
            while not self._closing.is_set():
                await context.write(pb.WatchStatsResponse(stats=self._stats()))
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), period_ms / 1000)
        finally:
            self._watchers -= 1

    # ---- what the server asks --------------------------------------------------------------------

    @property
    def serving(self) -> bool:
        """Whether a new request would be taken."""
        return not self._draining and self._service.driver.alive

    @property
    def live(self) -> int:
        """Requests whose call has not ended."""
        return len(self._live)

    def drain(self) -> None:
        """From now on new requests are refused with UNAVAILABLE; live ones go on."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Returns when no request is live."""
        await self._idle.wait()

    def cut(self) -> None:
        """Cancels what is live; those calls end with UNAVAILABLE."""
        self._cut = True
        for live in self._live.values():
            self._service.inbox.cancel(live.id, FinishReason.CANCELLED)

    def close(self) -> None:
        """Ends the watchers."""
        self._closing.set()

    def end_stalled(self, reader_timeout_s: float) -> int:
        """Ends the calls whose reader has taken nothing for that long; returns how many."""
        oldest = self._service.clock.now() - round(reader_timeout_s * SECOND)
        stalled = [v for v in self._live.values() if 0 <= v.writing_since < oldest and v.task is not None]
        for live in stalled:
            assert live.task is not None
            live.stalled = True
            live.task.cancel()
        return len(stalled)

    # ---- one request -----------------------------------------------------------------------------

    def _enter(self, message: pb.GenerateRequest) -> tuple[str, _Live]:
        """A place for the request before anything is computed for it. Raises Refused."""
        if self._draining:
            raise Refused(RefusalCode.DRAINING, "", "the server is draining and takes no new requests")
        if not self._service.driver.alive:
            raise Refused(RefusalCode.DRAINING, "", "the engine loop has ended")
        if len(self._live) >= self._requests_max:
            raise Refused(
                RefusalCode.QUEUE_FULL, "", f"{self._requests_max} requests are live; try again later"
            )
        id = self._service.inbox.next_id()
        name = message.request_id or f"#{id}"
        if name in self._live:
            raise Refused(RefusalCode.DUPLICATE, "request_id", f"{name[:128]} is the id of a live request")
        live = self._live[name] = _Live(id, asyncio.current_task())
        self._idle.clear()
        return name, live

    async def _accept(self, message: pb.GenerateRequest, id: RequestId) -> Accepted:
        def mapped() -> Accepted:
            return accept(
                message,
                id=id,
                arrival=arrival,
                bounds=self._bounds,
                tokenizer=self._service.tokenizer,
            )

        arrival = self._service.clock.now()
        if text_chars(message) <= INLINE_CHARS_MAX:
            return mapped()
        return await asyncio.to_thread(mapped)

    async def _generate(
        self,
        name: str,
        live: _Live,
        request: pb.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        accepted = await self._accept(request, live.id)
        stream = self._submit(accepted)
        output = Output(accepted, self._service.tokenizer)
        await context.send_initial_metadata(((REQUEST_ID_HEADER, name),))
        try:
            await self._pump(live, stream, output, context)
        except asyncio.CancelledError:
            if not live.stalled:
                raise
            self._leave(name, live)  # its place is free, even if the reader never takes the status either
            why = "the reader took nothing for too long"
            await _abort(context, WireStatus(grpc.StatusCode.ABORTED, why))
        await self._close(output, context)

    def _submit(self, accepted: Accepted) -> Stream:
        id = accepted.request.id
        stream = self._outbox.open(id)
        self._service.inbox.submit(accepted.request)
        return stream

    async def _pump(
        self, live: _Live, stream: Stream, output: Output, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Events to messages until the ending. A slow reader waits in `write`; its events pile up."""
        clock, told = self._service.clock, False
        while output.ending is None:
            try:
                events = await stream.take()
            except Abandoned as why:
                live.ended = True
                await _abort(context, WireStatus(grpc.StatusCode.UNAVAILABLE, str(why)))
            response = output.feed(events)
            live.ended = output.ending is not None
            if output.stopped and not told and not live.ended:
                told = True
                self._service.inbox.cancel(live.id, FinishReason.STOP)
            if response is not None:
                live.writing_since = clock.now()
                await context.write(response)
                live.writing_since = -1
                self._messages += 1

    async def _close(self, output: Output, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """The status behind the ending."""
        reason = output.ending
        assert reason is not None
        if reason is FinishReason.CANCELLED and self._cut:
            await _abort(context, WireStatus(grpc.StatusCode.UNAVAILABLE, "the server went away"))
        code = STATUS_OF_ENDING[reason]
        if code is not grpc.StatusCode.OK:
            await _abort(context, WireStatus(code, f"the request was {reason.value}; see its ending"))

    def _leave(self, name: str, live: _Live) -> None:
        """Gives the place back; once, whoever comes first."""
        if self._live.get(name) is not live:
            return
        del self._live[name]
        self._outbox.close(live.id)
        if not live.ended:  # the client went away, or the door refused: either way nobody reads it
            self._service.inbox.cancel(live.id, FinishReason.CANCELLED)
        if not self._live:
            self._idle.set()

    def _stats(self) -> pb.Stats:
        uptime_ms = (self._service.clock.now() - self._ready_at) / MILLISECOND
        return stats.stats(
            self._service,
            serving=self.serving,
            uptime_s=uptime_ms / 1000,
            refused=self._refused,
            streams=len(self._live),
            messages=self._messages,
        )


async def _abort(context: grpc.aio.ServicerContext[Any, Any], status: WireStatus) -> NoReturn:
    """Ends the call with `status`; raises grpc's own exception."""
    await context.abort(status.code, status.message, status.trailers)
    raise AssertionError("abort raises")
