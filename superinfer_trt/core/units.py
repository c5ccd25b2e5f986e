"""The integer types of the project. Knows no clock, no tier and no request."""

from __future__ import annotations

from typing import NewType, TypeAlias

RequestId = NewType("RequestId", int)
"""A live request inside one executor; handed out by a counter, never reused."""

Ticket = NewType("Ticket", int)
"""One group of copies inside a transfer engine; completion is reported per ticket."""

Nanos: TypeAlias = int
"""Monotonic integer nanoseconds, whatever clock was injected."""

SlotId: TypeAlias = int
"""Index of a block-sized place in one tier's pool, 0-based."""

NO_SLOT: SlotId = -1
"""Marks a block without a place in that tier."""

MILLISECOND: Nanos = 1_000_000
SECOND: Nanos = 1_000_000_000


def div_ceil(value: int, divisor: int) -> int:
    """The least integer >= value / divisor, for divisor > 0."""
    return -(-value // divisor)
