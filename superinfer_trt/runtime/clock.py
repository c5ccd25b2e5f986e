"""The wall side of time: monotonic nanoseconds and an interruptible wait. Thread-safe."""

from __future__ import annotations

import threading
import time

from superinfer_trt.core.units import SECOND, Nanos


class SystemClock:
    """core.ports.Clock over the machine's monotonic clock."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def now(self) -> Nanos:
        """Monotonic nanoseconds."""
        return time.monotonic_ns()

    def park(self, until: Nanos | None) -> None:
        """Returns at `until`, or as soon as `wake` is called (also if it was called before)."""
        timeout_s = None if until is None else max(0, until - time.monotonic_ns()) / SECOND
        if timeout_s is None or timeout_s > 0:
            self._woken.wait(timeout_s)
        self._woken.clear()

    def wake(self) -> None:
        """Ends a park, from any thread."""
        self._woken.set()
