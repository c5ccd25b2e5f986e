"""A clock that moves only when somebody parks on it."""

from __future__ import annotations

from superinfer_trt.core.units import Nanos


class VirtualClock:
    """`park` jumps to its end, or a part of the way where `wakes` holds an earlier moment."""

    def __init__(self) -> None:
        self.time: Nanos = 0
        self.wakes: list[Nanos] = []
        self.woken = 0
        self.parked: list[Nanos | None] = []

    def now(self) -> Nanos:
        return self.time

    def park(self, until: Nanos | None) -> None:
        self.parked.append(until)
        assert until is not None, "nobody would ever wake it"
        self.time = min([until, *(moment for moment in self.wakes if self.time < moment < until)])

    def wake(self) -> None:
        self.woken += 1
