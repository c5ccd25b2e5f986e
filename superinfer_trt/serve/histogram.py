"""Counts of durations by upper bound. Knows no label and no exporter. Plain integers: cheap to add to, and
to read from another thread (each number is right, not all of one moment)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from superinfer_trt.core.units import MILLISECOND, SECOND, Nanos


def _bounds(unit: Nanos, *values: float) -> tuple[Nanos, ...]:
    return tuple(round(value * unit) for value in values)


TTFT_BOUNDS = _bounds(SECOND, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 20, 30, 60, 120)
TBT_BOUNDS = _bounds(
    MILLISECOND, 1, 2.5, 5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000, 2500, 10_000
)
TURN_BOUNDS = _bounds(
    MILLISECOND, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 200, 500, 1000
)
TOTAL_BOUNDS = _bounds(SECOND, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


class Histogram:
    """`counts[i]`: values at most `bounds[i]` and above the bound before; the last counts all larger ones."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[Nanos]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total: Nanos = 0

    def add(self, value: Nanos) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound in seconds, values up to it) of every bucket, "+Inf" last."""
        found: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            below += count
            found.append(("+Inf" if bound is None else repr(bound / SECOND), below))
        return found
