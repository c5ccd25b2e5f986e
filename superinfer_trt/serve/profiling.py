"""Recordings on demand: attached to the executor for a while, then handed over in pieces.

Costs nothing while nobody records. One recording at a time, until its last piece is taken: so a caller that
reads slowly holds one record and not many. Knows no call and no format. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.ports import Clock, Observer
from superinfer_trt.serve.service import Service

DURATION_MS_MAX, DURATION_MS_DEFAULT = 60_000, 1000
CHUNK_BYTES = 60_000  # a message stays below 64 KiB
READER_TIMEOUT_S = 60.0


class Recording(Observer, Protocol):
    """An observer that keeps what it hears."""

    def pieces(self) -> Iterator[str]:
        """Ends the recording; then it, in pieces of a few hundred characters."""
        ...


MakeRecording = Callable[[Clock], Recording]


class Profiler:
    """`make_recording` None: this service cannot be recorded."""

    def __init__(self, service: Service, make_recording: MakeRecording | None) -> None:
        self._service = service
        self._make_recording = make_recording
        self._busy = False

    async def record(
        self, duration_ms: int, closing: asyncio.Event, write: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Records for `duration_ms` (0: the default), less when `closing` is set, then writes it all.

        Raises Refused (the duration, busy, no recordings here) and asyncio.TimeoutError when a `write` takes
        longer than READER_TIMEOUT_S.
        """
        make = self._check(duration_ms)
        self._busy = True
        try:
            pieces = await self._recorded(make, (duration_ms or DURATION_MS_DEFAULT) / 1000, closing)
            while chunk := await asyncio.to_thread(_chunk, pieces):
                await asyncio.wait_for(write(chunk), READER_TIMEOUT_S)
        finally:
            self._busy = False

    def _check(self, duration_ms: int) -> MakeRecording:
        if self._make_recording is None:
            raise Refused(RefusalCode.UNSUPPORTED, "", "the turns of this server cannot be recorded here")
        if duration_ms > DURATION_MS_MAX:
            why = f"must be at most {DURATION_MS_MAX}, not {duration_ms}"
            raise Refused(RefusalCode.INVALID, "duration_ms", why)
        if self._busy:
            raise Refused(RefusalCode.QUEUE_FULL, "", "a recording is under way; there is one at a time")
        return self._make_recording

    async def _recorded(
        self, make: MakeRecording, duration_s: float, closing: asyncio.Event
    ) -> Iterator[str]:
        recording, executor = make(self._service.clock), self._service.executor
        executor.observe(recording)
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(closing.wait(), duration_s)
        finally:
            executor.unobserve(recording)
        return recording.pieces()


def _chunk(pieces: Iterator[str]) -> bytes:
    """The next CHUNK_BYTES or a little more; empty at the end."""
    found: list[str] = []
    size = 0
    for piece in pieces:
        found.append(piece)
        size += len(piece)
        if size >= CHUNK_BYTES:
            break
    return "".join(found).encode()
