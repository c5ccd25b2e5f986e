"""A pool of block-sized slots in one tier: a fixed free stack. Knows nothing of requests or bytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.units import SlotId


class SlotPool:
    """Slots 0 .. capacity - 1. `take` and `give` are O(count); nothing is allocated after start."""

    __slots__ = ("_free", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = array("i", range(capacity - 1, -1, -1))

    def __len__(self) -> int:
        """Free slots."""
        return len(self._free)

    def take(self, count: int) -> array[int]:
        """`count` slots, the lowest-numbered of a fresh pool first, so that runs stay adjacent."""
        if count > len(self._free):
            raise InvariantViolation(f"{count} slots wanted, {len(self._free)} free: a plan was not checked")
        cut = len(self._free) - count
        taken = self._free[cut:]
        del self._free[cut:]
        taken.reverse()
        return taken

    def take_one(self) -> SlotId:
        """One slot."""
        if not self._free:
            raise InvariantViolation("a slot is wanted, none is free: a plan was not checked")
        return self._free.pop()

    def give(self, slots: Iterable[SlotId]) -> None:
        """Returns slots; that none is returned twice is audited by the ledger (L1)."""
        returned = array("i", slots)
        returned.reverse()
        self._free.extend(returned)

    def free_slots(self) -> Iterable[SlotId]:
        """The free slots, for the audit."""
        return iter(self._free)
