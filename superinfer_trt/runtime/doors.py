"""The bounded door in. Thread-safe: any thread may submit and cancel, the driver drains."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.ports import Clock
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.units import RequestId


class BoundedInbox:
    """core.ports.Inbox. `requests_max` bounds all accepted requests that have not ended."""

    def __init__(self, clock: Clock, requests_max: int) -> None:
        self._clock = clock
        self._requests_max = requests_max
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._arrived: list[Request] = []
        self._cancels: list[tuple[RequestId, FinishReason]] = []
        self._live = 0
        self._closed = ""

    def next_id(self) -> RequestId:
        """An id for the next request; never reused."""
        return RequestId(next(self._ids))

    @property
    def live(self) -> int:
        """Accepted requests that have not ended."""
        return self._live

    def submit(self, request: Request) -> None:
        """Accepts a request; raises Refused (queue full, draining)."""
        with self._lock:
            if self._closed:
                raise Refused(RefusalCode.DRAINING, "", self._closed)
            if self._live >= self._requests_max:
                raise Refused(
                    RefusalCode.QUEUE_FULL,
                    "",
                    f"{self._live} requests are live, the limit is {self._requests_max}",
                )
            self._live += 1
            self._arrived.append(request)
        self._clock.wake()

    def cancel(self, id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ends a request early; unknown and finished ids are ignored."""
        with self._lock:
            self._cancels.append((id, reason))
        self._clock.wake()

    def drain(self) -> tuple[Sequence[Request], Sequence[tuple[RequestId, FinishReason]]]:
        """All that arrived since the last call."""
        if not self._arrived and not self._cancels:  # the usual turn takes no lock
            return (), ()
        with self._lock:
            arrived, self._arrived = self._arrived, []
            cancels, self._cancels = self._cancels, []
        return arrived, cancels

    def ended(self, count: int) -> None:
        """`count` accepted requests have ended: as many places are free again."""
        if count:
            with self._lock:
                self._live -= count

    def close(self, reason: str) -> None:
        """Refuses everything from now on, with `reason`."""
        with self._lock:
            self._closed = self._closed or reason
        self._clock.wake()
