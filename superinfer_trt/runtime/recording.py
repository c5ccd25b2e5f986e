"""An observer that records an executor for a while, as a Chrome trace.

Knows no wire and no timer: who attached it takes it off. Written to in the thread of the turns; `pieces` may
be called from any thread once it has been taken off. A turn under way then may still bring its last notes:
they are dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import Clock
from superinfer_trt.core.step import Copy, CopyDone, Row
from superinfer_trt.core.units import Nanos, Ticket
from superinfer_trt.core.view import Candidate
from superinfer_trt.runtime.run_trace import RunTrace

SLICES_MAX = 200_000
"""About 60 MB while it is kept; a turn brings three, and one for each request that changed its phase."""


class Recording:
    """core.ports.Observer."""

    def __init__(self, clock: Clock, slices_max: int = SLICES_MAX) -> None:
        self._trace = RunTrace(clock, clock.now(), slices_max)
        self._begun = False
        self._over = False
        self._lock = threading.Lock()

    @property
    def dropped(self) -> int:
        """Slices that were too many."""
        return self._trace.dropped

    def planned(self, plan: Plan, start: Nanos, planned: Nanos, applied: Nanos) -> None:
        with self._lock:
            if not self._over:
                self._trace.plan(plan, start, planned, applied)

    def stepped(self, turn: int, rows: Sequence[Row], launched: Nanos, ended: Nanos) -> None:
        with self._lock:
            if not self._over:
                self._trace.step(turn, rows, launched, ended)

    def submitted(self, copies: Sequence[Copy], tickets: Sequence[Ticket], now: Nanos) -> None:
        del now
        with self._lock:
            if not self._over:
                for copy, ticket in zip(copies, tickets, strict=True):
                    self._trace.submitted(ticket, copy.direction, copy)

    def landed(self, done: Sequence[CopyDone], now: Nanos) -> None:
        del now
        with self._lock:
            if not self._over:
                self._trace.landed(item.ticket for item in done)

    def turned(self, live: Iterable[Candidate], now: Nanos) -> None:
        del now
        with self._lock:
            if self._over:
                return
            if self._begun:
                self._trace.look(live)
            else:
                self._begun = True
                self._trace.begin(live)

    def pieces(self) -> Iterator[str]:
        """Ends the recording; then its JSON in small pieces."""
        with self._lock:
            if not self._over:
                self._over = True
                self._trace.finish()
        return self._trace.pieces()
