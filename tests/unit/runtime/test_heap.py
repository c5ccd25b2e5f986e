"""The least of the entries that mean something, beside a plain search."""

from __future__ import annotations

from random import Random

import pytest

from superinfer_trt.runtime.heap import HEAP_SPARE, LazyHeap


@pytest.mark.parametrize("seed", range(5))
def test_the_least_that_means_something(seed: int) -> None:
    random = Random(seed)
    meant: set[tuple[int, int]] = set()
    heap = LazyHeap[tuple[int, int]](lambda entry: entry in meant)
    for turn in range(2_000):
        entry = (random.randrange(20), random.randrange(20))  # some come again
        meant.add(entry)
        heap.push(entry, len(meant))
        assert len(heap) <= 2 * len(meant) + HEAP_SPARE
        while len(meant) > turn % 30:
            meant.remove(random.choice(sorted(meant)))
        assert heap.first() == min(meant, default=None)
        if meant and turn % 3 == 0:
            meant.remove(min(meant))
            heap.pop()
            assert heap.first() == min(meant, default=None)
