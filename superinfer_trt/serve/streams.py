"""The outbox: one turn's events from the driver's thread to the readers on the event loop.

Knows no proto and no status. `emit` may be called from any one thread; everything else belongs to
the loop. A turn costs one wake-up of the loop, however many readers it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from superinfer_trt.core.outcome import TokenEvent
from superinfer_trt.core.units import RequestId


class Abandoned(Exception):
    """The reader's request will get no ending: the message says why."""


class Stream:
    """Events of one request that its reader has not taken yet.

    What piles up behind a slow reader is taken at once, so it becomes one message; it is bounded by
    the max_tokens of the request itself.
    """

    __slots__ = ("_abandoned", "_loop", "_pending", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: list[TokenEvent] = []
        self._waiter: asyncio.Future[None] | None = None
        self._abandoned: str | None = None

    def put(self, event: TokenEvent) -> None:
        self._pending.append(event)
        self._wake()

    def abandon(self, message: str) -> None:
        """The reader gets what is pending, then Abandoned."""
        self._abandoned = message
        self._wake()

    async def take(self) -> list[TokenEvent]:
        """All pending events, at least one, in order. Raises Abandoned. One reader only."""
        while not self._pending:
            if self._abandoned is not None:
                raise Abandoned(self._abandoned)
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        taken, self._pending = self._pending, []
        return taken

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class StreamOutbox:
    """core.ports.Outbox for readers on one asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streams: dict[RequestId, Stream] = {}
        self._listener: Callable[[Sequence[TokenEvent]], None] | None = None

    def emit(self, events: Sequence[TokenEvent]) -> None:
        """Hands one turn over; never blocks. After the loop has closed there is nobody to tell."""
        if not events:
            return
        try:
            self._loop.call_soon_threadsafe(self._deliver, tuple(events))
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def listen(self, listener: Callable[[Sequence[TokenEvent]], None]) -> None:
        """`listener` hears each turn's events on the loop, before any reader does. One listener."""
        self._listener = listener

    def open(self, id: RequestId) -> Stream:
        """A reader's place; before the request is submitted, so that no event is missed."""
        stream = Stream(self._loop)
        self._streams[id] = stream
        return stream

    def close(self, id: RequestId) -> None:
        """The reader is gone: later events of `id` are dropped. Unknown ids are ignored."""
        self._streams.pop(id, None)

    def abandon(self, message: str) -> None:
        """Tells every open reader that nothing more will come."""
        for stream in self._streams.values():
            stream.abandon(message)

    def __len__(self) -> int:
        return len(self._streams)

    def _deliver(self, events: tuple[TokenEvent, ...]) -> None:
        if self._listener is not None:
            self._listener(events)
        streams = self._streams
        for event in events:
            stream = streams.get(event.id)
            if stream is not None:
                stream.put(event)
