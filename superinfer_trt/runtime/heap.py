"""A heap of entries that may lose their meaning while they are inside. Knows not what they mean."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

Entry = TypeVar("Entry", bound=tuple[int, ...])

HEAP_SPARE = 64
"""Entries without meaning that a heap may hold beside as many as mean something."""


class LazyHeap(Generic[Entry]):
    """The least entry of those for which `means` is true; which they are changes from outside.

    Others are dropped when they come to the top, and swept when they are the larger half: one at the top may
    stay for ever. O(log n) an entry. Not thread-safe.
    """

    __slots__ = ("_entries", "_means")

    def __init__(self, means: Callable[[Entry], bool]) -> None:
        self._means = means
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        """Of all that it holds."""
        return len(self._entries)

    def push(self, entry: Entry, meant: int) -> None:
        """Takes an entry in; `meant` of different ones mean something now, it included."""
        heapq.heappush(self._entries, entry)
        if len(self._entries) > 2 * meant + HEAP_SPARE:
            self._entries = list(set(filter(self._means, self._entries)))
            heapq.heapify(self._entries)

    def first(self) -> Entry | None:
        """The least; None if there is none."""
        entries = self._entries
        while entries and not self._means(entries[0]):
            heapq.heappop(entries)
        return entries[0] if entries else None

    def pop(self) -> None:
        """Takes out what `first` gave."""
        heapq.heappop(self._entries)
