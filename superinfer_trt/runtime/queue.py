"""A queue kept in a static order. Knows nothing of phases or policies.

Insertion at the end and removal anywhere are O(log n); the backlog is never sorted again (removal
leaves a hole, and holes are swept when they are the larger half). Not thread-safe.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from collections.abc import Sequence as SequenceABC
from itertools import islice
from typing import TypeAlias, overload

from superinfer_trt.core.units import RequestId
from superinfer_trt.core.view import Candidate, OrderKey
from superinfer_trt.runtime.sequence import Sequence

_Entry: TypeAlias = "tuple[int, int, Sequence | None]"


def _place(entry: _Entry) -> tuple[int, int]:
    return entry[0], entry[1]


class OrderedQueue(SequenceABC[Candidate]):
    """Live records ordered by (key, id). The key of a member may not change while it is inside."""

    __slots__ = ("_entries", "_head", "_key", "_keys")

    def __init__(self, key: OrderKey) -> None:
        self._key = key
        self._entries: list[_Entry] = []
        self._keys: dict[RequestId, int] = {}
        self._head = 0  # everything before it is a hole

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Sequence]:
        for index in range(self._head, len(self._entries)):
            member = self._entries[index][2]
            if member is not None:
                yield member

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
        entry: _Entry = (key, int(member.id), member)
        entries = self._entries
        if not entries or _place(entries[-1]) < _place(entry):
            entries.append(entry)
            return
        index = bisect_left(entries, _place(entry), lo=self._head, key=_place)
        if index < len(entries) and _place(entries[index]) == _place(entry):
            entries[index] = entry  # back into its own hole
        elif index == self._head > 0:
            self._head -= 1
            entries[self._head] = entry
        else:
            entries.insert(index, entry)

    def remove(self, member: Sequence) -> None:
        """Takes a record out; a hole stays behind."""
        key = self._keys.pop(member.id)
        index = bisect_left(self._entries, (key, int(member.id)), lo=self._head, key=_place)
        self._entries[index] = (key, member.id, None)
        while self._head < len(self._entries) and self._entries[self._head][2] is None:
            self._head += 1
        if len(self._entries) > 2 * len(self._keys) + 64:
            self._entries = [entry for entry in self._entries if entry[2] is not None]
            self._head = 0
