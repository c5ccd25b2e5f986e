"""The life of one request between a front and the executor: accepted, streamed, ended, its place given back.

A front is whatever speaks to a client: the gRPC service, the gateway facade, the Triton model. It brings a
`superinfer.v1` request and writes what `Calls.generate` hands it; validation, bounds, draining, stop
strings and slow readers are the same for all of them. Knows no port, signal or health service.

Everything runs on one event loop; the executor is reached through its inbox, and heard through the outbox.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.request import FinishReason
from superinfer_trt.core.units import SECOND, Nanos, RequestId
from superinfer_trt.serve.errors import STATUS_OF_ENDING, WireStatus, retry_trailer, status_of
from superinfer_trt.serve.logs import log_ending, log_refusal
from superinfer_trt.serve.mapping import Bounds, accept, text_chars
from superinfer_trt.serve.output import Output
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.security import ANY_TENANT
from superinfer_trt.serve.service import Service
from superinfer_trt.serve.streams import Abandoned, Stream, StreamOutbox
from superinfer_trt.serve.tally import Tally

INLINE_CHARS_MAX = 2048  # a longer text is tokenised off the event loop (about 1 ms)


_Name = tuple[str, str]
"""Owner and id of a request: callers see and end what is their own."""


class Front(Protocol):
    """The client's side of one request. An exception from either method ends the request."""

    async def accepted(self, name: str) -> None:
        """The request is in the queue, under this name. Before the first `write`."""
        ...

    async def write(self, response: pb.GenerateResponse) -> None:
        """The next message. Returns when the client can take another: a slow one waits here."""
        ...


class Ended(Exception):
    """A request that did not end well, or was not taken: the status for the client."""

    def __init__(self, status: WireStatus) -> None:
        super().__init__(status.message)
        self.status = status


@dataclass(slots=True)
class _Live:
    """A request between its acceptance and the end of its call."""

    id: RequestId
    task: asyncio.Task[Any] | None
    writing_since: Nanos = -1  # clock; -1: not in a write
    ended: bool = False
    stalled: bool = False


class Calls:
    """The live requests of one service, whichever front they came through.

    `requests_max`: live requests; the next is refused. Ids are unique over all fronts, for each owner.
    """

    def __init__(self, service: Service, outbox: StreamOutbox, bounds: Bounds, requests_max: int) -> None:
        self.service = service
        self.bounds = bounds
        self.requests_max = requests_max
        self.messages = 0
        self.tally = Tally(bounds.default_slo, log_ending)
        self._outbox = outbox
        outbox.listen(self.tally.told)
        self._live: dict[_Name, _Live] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._cut = False

    async def generate(self, message: pb.GenerateRequest, front: Front, owner: str = ANY_TENANT) -> None:
        """Runs one request to its end; a front whose task is cancelled ends it in the executor too.

        Returns when it ended well (stopped, full length, cancelled by `abort`); raises Ended with any
        other status, after the ending has been written if there was one. Ids are unique for each `owner`.
        """
        try:
            name, live = self._enter(message, owner)
            try:
                await self._generate(name, live, message, front)
            finally:
                self._leave((owner, name), live)
        except Refused as refusal:
            raise self.refuse(message, refusal) from refusal

    def refuse(self, message: pb.GenerateRequest, refusal: Refused) -> Ended:
        """How a request that is not taken ends; for a front that finds out before `generate` does."""
        self.tally.refused(refusal.code)
        log_refusal(message.request_id, message.tenant, refusal)
        return Ended(status_of(refusal))

    def abort(self, name: str, owner: str = ANY_TENANT) -> bool:
        """Ends a live request early; its own front hears the ending. False: `owner` has none of that name."""
        live = self._live.get((owner, name))
        if live is None:
            return False
        self.service.inbox.cancel(live.id, FinishReason.CANCELLED)
        self.tally.aborted()
        return True

    # ---- what keeps the house -----------------------------------------------------------------

    @property
    def serving(self) -> bool:
        """Whether a new request would be taken."""
        return not self._draining and self.service.driver.alive

    @property
    def refused(self) -> int:
        """Requests that were not taken."""
        return sum(self.tally.refusals.values())

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
            self.service.inbox.cancel(live.id, FinishReason.CANCELLED)

    @property
    def was_cut(self) -> bool:
        """Whether requests end because the server goes away, and not because somebody asked."""
        return self._cut

    def abandon(self, why: str) -> None:
        """Ends what is live with UNAVAILABLE without asking the executor, which no longer answers."""
        self._outbox.abandon(why)

    def end_stalled(self, reader_timeout_s: float) -> int:
        """Ends the calls whose reader has taken nothing for that long; returns how many."""
        oldest = self.service.clock.now() - round(reader_timeout_s * SECOND)
        stalled = [v for v in self._live.values() if 0 <= v.writing_since < oldest and v.task is not None]
        for live in stalled:
            assert live.task is not None
            live.stalled = True
            live.task.cancel()
        return len(stalled)

    # ---- one request --------------------------------------------------------------------------

    def _enter(self, message: pb.GenerateRequest, owner: str) -> tuple[str, _Live]:
        """A place for the request before anything is computed for it. Raises Refused."""
        if self._draining:
            raise Refused(RefusalCode.DRAINING, "", "the server is draining and takes no new requests")
        if not self.service.driver.alive:
            raise Refused(RefusalCode.DRAINING, "", "the engine loop has ended")
        if len(self._live) >= self.requests_max:
            raise Refused(
                RefusalCode.QUEUE_FULL,
                "",
                f"{self.requests_max} requests are live; try again later",
                self.service.inbox.retry_after(),
            )
        self.service.inbox.check(message.tenant)
        id = self.service.inbox.next_id()
        name = message.request_id or f"#{id}"
        if (owner, name) in self._live:
            raise Refused(RefusalCode.DUPLICATE, "request_id", f"{name[:128]} is the id of a live request")
        live = self._live[owner, name] = _Live(id, asyncio.current_task())
        self._idle.clear()
        return name, live

    async def _generate(self, name: str, live: _Live, message: pb.GenerateRequest, front: Front) -> None:
        arrival, tokenizer = self.service.clock.now(), self.service.tokenizer
        if text_chars(message) <= INLINE_CHARS_MAX:
            accepted = accept(message, id=live.id, arrival=arrival, bounds=self.bounds, tokenizer=tokenizer)
        else:
            accepted = await asyncio.to_thread(
                accept, message, id=live.id, arrival=arrival, bounds=self.bounds, tokenizer=tokenizer
            )
        stream = self._outbox.open(live.id)
        self.service.inbox.submit(accepted.request)
        self.tally.accepted(accepted.request, accepted.name)  # its events come in a later turn of the loop
        output = Output(accepted, tokenizer)
        await front.accepted(name)
        try:
            await self._pump(live, stream, output, front)
        except asyncio.CancelledError:
            if not live.stalled:
                raise
            why = "the reader took nothing for too long"
            raise Ended(WireStatus(grpc.StatusCode.ABORTED, why)) from None
        self._check(output)

    async def _pump(self, live: _Live, stream: Stream, output: Output, front: Front) -> None:
        """Events to messages until the ending. A slow reader waits in `write`; its events pile up."""
        clock, told = self.service.clock, False
        while output.ending is None:
            try:
                events = await stream.take()
            except Abandoned as why:
                live.ended = True
                raise Ended(WireStatus(grpc.StatusCode.UNAVAILABLE, str(why))) from None
            response = output.feed(events)
            live.ended = output.ending is not None
            if output.stopped and not told and not live.ended:
                told = True
                self.service.inbox.cancel(live.id, FinishReason.STOP)
            if response is not None:
                live.writing_since = clock.now()
                await front.write(response)
                live.writing_since = -1
                self.messages += 1

    def _check(self, output: Output) -> None:
        """Raises Ended for an ending that is not a good one."""
        reason = output.ending
        assert reason is not None
        if reason is FinishReason.CANCELLED and self._cut:
            raise Ended(WireStatus(grpc.StatusCode.UNAVAILABLE, "the server went away"))
        code = STATUS_OF_ENDING[reason]
        if code is not grpc.StatusCode.OK:
            trailers: tuple[tuple[str, str], ...] = ()
            if reason is FinishReason.REJECTED:
                trailers = (retry_trailer(self.service.inbox.retry_after()),)
            raise Ended(WireStatus(code, f"the request was {reason.value}; see its ending", trailers))

    def _leave(self, name: _Name, live: _Live) -> None:
        """Gives the place back."""
        del self._live[name]
        self._outbox.close(live.id)
        if not live.ended:  # the client went away, or the door refused: either way nobody reads it
            self.service.inbox.cancel(live.id, FinishReason.CANCELLED)
        if not self._live:
            self._idle.set()
