"""DuplexLink over pools in parts, with several copying threads and a budget that links share."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.step import Copy, CopyKind, Direction
from superinfer_trt.core.units import RequestId
from superinfer_trt.transfer.native import DuplexLink, NodeBudget
from superinfer_trt.transfer.pools import allocate_pool

D2H, H2D = Direction.D2H, Direction.H2D
BLOCKS, LAYERS = 24, 3
VALUES, SCALES = 2048, 32  # bytes of a layer's keys or values in a block, and of their scales
Pool = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]


def layer_first() -> list[NDArray[np.uint8]]:
    """K and V of each layer as one array [K or V, blocks, bytes], and the scales of all in one pool."""
    layers = [np.zeros((2, BLOCKS, VALUES), np.uint8) for _ in range(LAYERS)]
    return [*(half for layer in layers for half in layer), np.zeros((BLOCKS, SCALES), np.uint8)]


def padded() -> list[NDArray[np.uint8]]:
    """The same bytes as columns of rows that are longer than a block."""
    rows = np.zeros((BLOCKS, 2 * LAYERS * VALUES + SCALES + 100), np.uint8)
    return [rows[:, 7 : 7 + 2 * LAYERS * VALUES], rows[:, -SCALES:]]


def block_first() -> NDArray[np.uint8]:
    return allocate_pool(BLOCKS, 2 * LAYERS * VALUES + SCALES)


def block(pool: Pool, slot: int) -> NDArray[np.uint8]:
    """Its bytes, in order."""
    parts = [pool] if isinstance(pool, np.ndarray) else pool
    return np.concatenate([part[slot] for part in parts])


def copy_of(kind: CopyKind, source: list[int], target: list[int]) -> Copy:
    return Copy(RequestId(1), kind, array("i", source), array("i", target))


def cross(link: DuplexLink, copy: Copy) -> None:
    assert link.submit(copy.direction, [copy])
    assert link.wait(60.0)
    assert [done.ok for done in link.poll()] == [True]


@pytest.mark.parametrize("host_threads", [1, 3])
@pytest.mark.parametrize("device_pool", [layer_first, padded, block_first])
@pytest.mark.parametrize("host_pool", [block_first, layer_first])
def test_a_block_is_the_same_bytes_however_it_lies(device_pool, host_pool, host_threads: int) -> None:  # type: ignore[no-untyped-def]
    device, host = device_pool(), host_pool()
    random = np.random.default_rng(5)
    for part in device if isinstance(device, list) else [device]:
        part[:] = random.integers(0, 256, part.shape, np.uint8)
    want = [block(device, slot) for slot in range(BLOCKS)]
    with_budget = NodeBudget(4e9)
    link = DuplexLink(
        device, host, h2d_bytes_per_s=0, d2h_bytes_per_s=0, host_threads=host_threads, budget=with_budget
    )
    try:
        cross(link, copy_of(CopyKind.OUT, [3, 4, 5, 9], [12, 13, 14, 2]))
        assert all((block(host, to) == want[of]).all() for of, to in ((3, 12), (4, 13), (5, 14), (9, 2)))
        cross(link, copy_of(CopyKind.IN, [2, 12], [20, 21]))
        assert (block(device, 20) == want[9]).all()
        assert (block(device, 21) == want[3]).all()
        kept = [slot for slot in range(BLOCKS) if slot not in (20, 21)]
        assert all((block(device, slot) == want[slot]).all() for slot in kept)
    finally:
        link.close()


def test_runs_merge_layer_by_layer() -> None:
    link = DuplexLink(layer_first(), layer_first())
    try:
        cross(link, copy_of(CopyKind.OUT, [4, 5, 6], [1, 2, 3]))
        assert link.stats(D2H).descriptors == 2 * LAYERS + 1
    finally:
        link.close()


def test_parts_that_cannot_work_are_refused_by_name() -> None:
    part = np.zeros((BLOCKS, 64), np.uint8)
    block_bytes = np.zeros((BLOCKS, 64), np.uint8)
    refusals: list[tuple[Pool, Pool, str]] = [
        ([part.T], block_bytes, "parts of device_pool"),
        ([part.view(np.int8)], block_bytes, "parts of device_pool"),  # type: ignore[list-item]
        ([part, part[:5]], block_bytes, "differ in blocks"),
        ([part[:, :32]], block_bytes, "host pool: its segments hold 64 bytes of a block, block_bytes is 32"),
        ([part, part], block_bytes, "segments 0 and 1 share memory"),
        ([part], [part], "device and host share memory"),
        ([], block_bytes, "parts: none"),
    ]
    for device, host, word in refusals:
        with pytest.raises(ConfigError, match=word):
            DuplexLink(device, host)


def test_threads_and_budgets_that_cannot_work_are_refused_by_name() -> None:
    device, host = block_first(), block_first()
    for threads in (0, 65):
        with pytest.raises(ConfigError, match="host_threads"):
            DuplexLink(device, host, host_threads=threads)
    for rate in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="bytes_per_s"):
            NodeBudget(rate)
