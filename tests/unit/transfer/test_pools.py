"""Pools: shape, zeroes, lifetime, refusals."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.transfer.pools import allocate_pool


def test_a_pool_is_zeroed_bytes_by_block() -> None:
    pool = allocate_pool(5, 1000)
    assert pool.shape == (5, 1000)
    assert pool.dtype == np.uint8
    assert pool.flags.c_contiguous
    assert pool.flags.writeable
    assert not pool.any()
    assert pool.ctypes.data % (2 << 20) == 0


def test_memory_lives_as_long_as_a_view() -> None:
    pool = allocate_pool(64, 4096)
    pool[63] = 9
    view = pool.view(np.uint16)[63, :]
    del pool
    gc.collect()
    others = [allocate_pool(64, 4096) for _ in range(8)]
    for other in others:
        other[:] = 1
    assert (view == 0x0909).all()


@pytest.mark.parametrize(
    ("blocks", "block_bytes", "word"),
    [
        (0, 64, "blocks 0"),
        (-1, 64, "blocks -1"),
        (64, 0, "block_bytes 0"),
        (1 << 31, 64, "2147483647"),
        (1, 1 << 62, "bytes of memory"),
        (1 << 30, 1 << 40, "bytes of memory"),
        (1, 1 << 64, "block_bytes"),
        (1 << 70, 1, "blocks"),
    ],
)
def test_absurd_sizes_are_refused_by_name(blocks: int, block_bytes: int, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        allocate_pool(blocks, block_bytes)
