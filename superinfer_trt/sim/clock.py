"""The clock of a simulation: integer nanoseconds that pass only when somebody says so.

Knows no event: who parks names the moment it waits for, and the clock is there at once. One thread.
"""

from __future__ import annotations

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.units import Nanos


class SimClock:
    """core.ports.Clock. Starts at 0 and never goes back."""

    __slots__ = ("_now",)

    def __init__(self) -> None:
        self._now: Nanos = 0

    def now(self) -> Nanos:
        """The present simulated moment."""
        return self._now

    def park(self, until: Nanos | None) -> None:
        """It is `until`, or later already. Nobody can wake a simulation: None raises InvariantViolation."""
        if until is None:
            raise InvariantViolation("a simulated clock was parked for ever")
        self._now = max(self._now, until)

    def advance(self, duration: Nanos) -> None:
        """Something took `duration` nanoseconds (>= 0)."""
        self._now += duration

    def wake(self) -> None:
        """Nothing: a park is over before anybody could wake it."""
