"""Clients of a chaotic world: they read the production outbox late, never, or not to the end.

`LateLoop` stands where the event loop stands, so that the outbox is the one that serves; it runs what it was
handed when the world says so. A reader is a coroutine that the world steps by hand. Deterministic. One
thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.outcome import TokenEvent
from superinfer_trt.core.ports import Outbox
from superinfer_trt.core.units import RequestId


class Stream(Protocol):
    """What a reader reads from (serve.streams.Stream)."""

    def take(self) -> Awaitable[list[TokenEvent]]: ...


class StreamOutbox(Outbox, Protocol):
    """An outbox with readers (serve.streams.StreamOutbox)."""

    def open(self, id: RequestId) -> Stream: ...
    def close(self, id: RequestId) -> None: ...


class _Place:
    """Where a reader waits: as much of a future as one coroutine and one waker need."""

    def __init__(self) -> None:
        self._woken = False

    def done(self) -> bool:
        return self._woken

    def set_result(self, value: None) -> None:
        del value
        self._woken = True

    def __await__(self) -> Generator[_Place, None, None]:
        while not self._woken:
            yield self


class LateLoop:
    """As much of an asyncio loop as the outbox asks for. Calls run in order, when `run` is called."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()

    def call_soon_threadsafe(self, callback: Callable[..., object], *arguments: object) -> None:
        self._calls.append((callback, arguments))

    def create_future(self) -> _Place:
        return _Place()

    def is_closed(self) -> bool:
        return False

    def run(self) -> None:
        """Everything that was handed over so far."""
        while self._calls:
            callback, arguments = self._calls.popleft()
            callback(*arguments)


class Reader:
    """One client: what it has read, in order and without gap (C4), until the ending."""

    def __init__(self, id: RequestId, stream: Stream) -> None:
        self.id = id
        self.tokens: list[int] = []
        self.ended = False
        self._stream = stream
        self._taking: Coroutine[Any, None, list[TokenEvent]] | None = None

    def read(self) -> None:
        """Takes what is there, once; returns at once where there is nothing."""
        if self.ended:
            return
        if self._taking is None:
            self._taking = self._take()
        try:
            self._taking.send(None)
        except StopIteration as done:
            self._taking = None
            for event in done.value:
                self._hear(event)

    def leave(self) -> None:
        """Reads no more."""
        if self._taking is not None:
            self._taking.close()
            self._taking = None

    async def _take(self) -> list[TokenEvent]:
        return await self._stream.take()

    def _hear(self, event: TokenEvent) -> None:
        if self.ended:
            raise InvariantViolation(f"C4: the reader of request {self.id} hears something after the ending")
        if event.sampled is not None:
            if event.index != len(self.tokens):
                raise InvariantViolation(
                    f"C4: the reader of request {self.id} gets token {event.index} after {len(self.tokens)}"
                )
            self.tokens.append(event.sampled.token)
        self.ended = event.ending is not None
