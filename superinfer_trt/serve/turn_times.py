"""How long turns took, as histograms: an observer of the executor for the metrics endpoint.

Three additions a turn, in the thread of the turns; others may read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from superinfer_trt.core.plan import Plan
from superinfer_trt.core.step import Copy, CopyDone, Row
from superinfer_trt.core.units import Nanos, Ticket
from superinfer_trt.core.view import Candidate
from superinfer_trt.serve.histogram import TURN_BOUNDS, Histogram


class TurnTimes:
    """core.ports.Observer."""

    def __init__(self) -> None:
        self.plan = Histogram(TURN_BOUNDS)
        self.apply = Histogram(TURN_BOUNDS)
        self.step = Histogram(TURN_BOUNDS)

    def planned(self, plan: Plan, start: Nanos, planned: Nanos, applied: Nanos) -> None:
        del plan
        self.plan.add(planned - start)
        self.apply.add(applied - planned)

    def stepped(self, turn: int, rows: Sequence[Row], launched: Nanos, ended: Nanos) -> None:
        del turn, rows
        self.step.add(ended - launched)

    def submitted(self, copies: Sequence[Copy], tickets: Sequence[Ticket], now: Nanos) -> None:
        """Blocks and bytes are in the executor's totals."""

    def landed(self, done: Sequence[CopyDone], now: Nanos) -> None:
        """As `submitted`."""

    def turned(self, live: Iterable[Candidate], now: Nanos) -> None:
        """Phases are in its snapshot."""
