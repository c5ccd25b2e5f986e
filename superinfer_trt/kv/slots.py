"""A pool of block-sized slots in one tier, handed out in runs: what adjoins in both tiers crosses the
link as one copy. Knows nothing of requests or bytes. Not thread-safe.

Free slots are kept as extents (maximal runs), found by either end and by the power of two below their
length. Who asks for the slots behind its own gets those. Who starts anew gets, of a pool that is short,
the front of a small extent that is long enough, and of one with room to spare the middle of a large one,
so that it and the one before it can grow. Which slots are given never changes how many there are:
policies see counts only.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.units import NO_SLOT, SlotId


class SlotPool:
    """Slots 0 .. capacity - 1. `take` costs O(log capacity) a run and O(1) a slot, `give` O(1) a slot.

    `roomy`: those who start anew are spread out.
    """

    __slots__ = ("_by_size", "_free", "_length", "_roomy", "_start", "capacity")

    def __init__(self, capacity: int, *, roomy: bool = False) -> None:
        self.capacity = capacity
        self._roomy = roomy
        self._free = 0
        self._length: dict[SlotId, int] = {}  # of the free extent that starts there
        self._start: dict[SlotId, SlotId] = {}  # of the free extent that ends before it
        # Starts of the extents whose length has so many bits; dicts as sets with an order, so that the same
        # calls give the same slots.
        self._by_size: list[dict[SlotId, None]] = [{} for _ in range(capacity.bit_length() + 1)]
        if capacity:
            self._add(0, capacity)

    def __len__(self) -> int:
        """Free slots."""
        return self._free

    def take(self, count: int, near: SlotId = NO_SLOT) -> array[int]:
        """`count` slots in as few runs as there are extents for, the first from `near` on if one
        starts there."""
        if count > self._free:
            raise InvariantViolation(f"{count} slots wanted, {self._free} free: a plan was not checked")
        taken = array("i")
        if count and near in self._length:
            self._cut(near, near, min(count, self._length[near]), taken)
        while len(taken) < count:
            missing = count - len(taken)
            start = self._large() if self._roomy else self._fitting(missing)
            length = self._length[start]
            missing = min(missing, length)
            self._cut(start, start + (length - missing) // 2 * self._roomy, missing, taken)
        return taken

    def take_one(self, near: SlotId = NO_SLOT) -> SlotId:
        """One slot: `near` if an extent starts there."""
        if near not in self._length:
            return self.take(1)[0]
        length = self._remove(near)
        if length > 1:
            self._add(near + 1, length - 1)
        return near

    def give(self, slots: Iterable[SlotId]) -> None:
        """Returns slots; that none is returned twice is audited by the ledger (L1)."""
        start = stop = NO_SLOT
        for slot in slots:
            if slot != stop:
                if stop > start:
                    self._join(start, stop)
                start = slot
            stop = slot + 1
        if stop > start:
            self._join(start, stop)

    def free_slots(self) -> Iterator[SlotId]:
        """The free slots, for the audit."""
        return (slot for start, length in self._length.items() for slot in range(start, start + length))

    def _large(self) -> SlotId:
        """Start of an extent that none surpasses twice."""
        return next(reversed(next(starts for starts in reversed(self._by_size) if starts)))

    def _fitting(self, count: int) -> SlotId:
        """Start of a small extent of at least `count`; of a large one if none is found."""
        size = count.bit_length()
        for start in reversed(self._by_size[size]):
            if self._length[start] >= count:
                return start
            break  # the others may fit, but to look at all of them is not worth it
        for starts in self._by_size[size + 1 :]:
            if starts:
                return next(reversed(starts))
        return self._large()

    def _cut(self, extent: SlotId, first: SlotId, count: int, taken: array[int]) -> None:
        """Moves first .. first + count - 1 out of the extent that starts at `extent`."""
        stop = extent + self._remove(extent)
        if first > extent:
            self._add(extent, first - extent)
        if first + count < stop:
            self._add(first + count, stop - first - count)
        taken.extend(range(first, first + count))

    def _join(self, start: SlotId, stop: SlotId) -> None:
        """Frees start .. stop - 1, as one extent with what is free on either side."""
        before = self._start.get(start)
        if before is not None:
            self._remove(before)
            start = before
        if stop in self._length:
            stop += self._remove(stop)
        self._add(start, stop - start)

    def _add(self, start: SlotId, length: int) -> None:
        self._length[start] = length
        self._start[start + length] = start
        self._by_size[length.bit_length()][start] = None
        self._free += length

    def _remove(self, start: SlotId) -> int:
        """Forgets the extent that starts there; returns its length."""
        length = self._length.pop(start)
        del self._start[start + length]
        del self._by_size[length.bit_length()][start]
        self._free -= length
        return length


class SlotStack:
    """Slots 0 .. capacity - 1 that are numbers only: nothing adjoins, the newest free ones go first. What
    `SlotPool` is, for a tier whose places somebody else gives out, at a cost that does not show."""

    __slots__ = ("_slots", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._slots = array("i", range(capacity - 1, -1, -1))

    def __len__(self) -> int:
        """Free slots."""
        return len(self._slots)

    def take(self, count: int, near: SlotId = NO_SLOT) -> array[int]:
        """`count` slots; `near` does not matter."""
        del near
        slots = self._slots
        left = len(slots) - count
        if left < 0:
            raise InvariantViolation(f"{count} slots wanted, {len(slots)} free: a plan was not checked")
        taken = slots[left:]
        del slots[left:]
        return taken

    def take_one(self, near: SlotId = NO_SLOT) -> SlotId:
        """One slot; `near` does not matter."""
        del near
        if not self._slots:
            raise InvariantViolation("1 slots wanted, 0 free: a plan was not checked")
        return self._slots.pop()

    def give(self, slots: Iterable[SlotId]) -> None:
        """Returns slots; that none is returned twice is audited by the ledger (L1)."""
        self._slots.extend(slots)

    def free_slots(self) -> Iterator[SlotId]:
        """The free slots, for the audit."""
        return iter(self._slots)
