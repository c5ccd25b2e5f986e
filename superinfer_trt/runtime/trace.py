"""A listener that keeps the newest plan lines, and writes all of them where asked. Not thread-safe.

A plan line reads back with core.plan.parse_line, so a run can be followed and replayed from it.
"""

from __future__ import annotations

from collections import deque
from typing import TextIO

from superinfer_trt.core.plan import Plan


class PlanTrace:
    """The last `lines_max` plans in memory; every plan to `sink` if there is one."""

    def __init__(self, lines_max: int = 256, sink: TextIO | None = None) -> None:
        self._plans: deque[Plan] = deque(maxlen=lines_max)
        self._sink = sink

    def plan(self, plan: Plan) -> None:
        """One turn was planned. Text is only made when somebody reads it."""
        self._plans.append(plan)
        if self._sink is not None:
            self._sink.write(plan.line() + "\n")

    @property
    def newest(self) -> Plan | None:
        """The last plan; None before the first."""
        return self._plans[-1] if self._plans else None

    def tail(self) -> list[str]:
        """The kept lines, oldest first."""
        return [plan.line() for plan in list(self._plans)]
