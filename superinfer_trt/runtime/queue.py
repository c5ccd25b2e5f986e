"""A queue kept in a static order. Knows nothing of phases or policies.

Insertion at the end and removal anywhere are O(log n); the backlog is never sorted again (removal
leaves a hole; holes are swept when they are the larger half, those at the head a few at a time). Walking
over it costs what is walked over. Not thread-safe.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from collections.abc import Sequence as SequenceABC
from itertools import islice
from typing import overload

from superinfer_trt.core.units import RequestId
from superinfer_trt.core.view import Candidate, OrderKey
from superinfer_trt.runtime.sequence import Sequence

HEAD_HOLES_MAX = 64
"""Holes kept before the first member: to pass them by costs less than a microsecond."""


class OrderedQueue(SequenceABC[Candidate]):
    """Live records ordered by (key, id). The key of a member may not change while it is inside."""

    __slots__ = ("_head", "_key", "_keys", "_members", "_places")

    def __init__(self, key: OrderKey) -> None:
        self._key = key
        self._places: list[tuple[int, RequestId]] = []  # (key, id), ascending, holes too
        self._members: list[Sequence | None] = []  # at the same index; None: a hole
        self._keys: dict[RequestId, int] = {}
        self._head = 0  # everything before it is a hole

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Sequence]:
        # Members are true, holes are not: no line of Python runs for each.
        return filter(None, islice(self._members, self._head, None))

    @overload
    def __getitem__(self, index: int) -> Sequence: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sequence]: ...
    def __getitem__(self, index: int | slice) -> Sequence | list[Sequence]:
        """O(index) from the head; policies iterate instead."""
        if isinstance(index, slice):
            return [*self.__iter__()][index]
        found = next(islice(iter(self), index if index >= 0 else index + len(self), None), None)
        if found is None:
            raise IndexError(index)
        return found

    def add(self, member: Sequence) -> None:
        """Takes a record in at its place."""
        key = self._key(member)
        self._keys[member.id] = key
        place = (key, member.id)
        places, members = self._places, self._members
        if not places or places[-1] < place:
            places.append(place)
            members.append(member)
            return
        index = bisect_left(places, place, self._head)
        if index < len(places) and places[index] == place:
            members[index] = member  # back into its own hole
        elif index == self._head > 0:
            self._head -= 1
            places[self._head] = place
            members[self._head] = member
        else:
            places.insert(index, place)
            members.insert(index, member)

    def remove(self, member: Sequence) -> None:
        """Takes a record out; a hole stays behind."""
        key = self._keys.pop(member.id)
        members = self._members
        index = bisect_left(self._places, (key, member.id), self._head)
        members[index] = None
        if index == self._head:
            head, end = index + 1, len(members)
            while head < end and members[head] is None:
                head += 1
            self._head = head
            if head > HEAD_HOLES_MAX:
                del self._places[:head], members[:head]
                self._head = 0
        if len(members) > 2 * len(self._keys) + 64:
            kept = [at for at, one in enumerate(members) if one is not None]
            self._places = [self._places[at] for at in kept]
            self._members = [members[at] for at in kept]
            self._head = 0
