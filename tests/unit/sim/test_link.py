"""The link: the paper's Table 1, sharing of DRAM, order, marks, and what it says of itself."""

from __future__ import annotations

import math

import pytest

from superinfer_trt.core.errors import ConfigError, TransferFailed
from superinfer_trt.core.step import Copy, CopyKind, Direction
from superinfer_trt.core.units import MILLISECOND, SECOND, Nanos, RequestId
from superinfer_trt.sim.clock import SimClock
from superinfer_trt.sim.link import LinkModel, SimLink
from superinfer_trt.sim.profiles import HARDWARE, LINKS, MODELS, find_hardware, link_model

QWEN = MODELS["qwen2.5-32b"]
BLOCK_BYTES = QWEN.geometry(16).block_bytes
TABLE_1_BLOCKS = 2048  # 32,768 tokens, 8 GiB each way
KIND = {Direction.D2H: CopyKind.OUT, Direction.H2D: CopyKind.IN}


def copy(direction: Direction, blocks: int, after: int = -1) -> Copy:
    return Copy(RequestId(0), KIND[direction], range(blocks), range(blocks), after)


def gh200(kind: str) -> tuple[SimClock, SimLink]:
    clock = SimClock()
    model = link_model(find_hardware("gh200-144gb"), kind)
    return clock, SimLink(clock, model, BLOCK_BYTES, QWEN.layers)


def drain(clock: SimClock, link: SimLink) -> Nanos:
    """When the last copy lands."""
    while (landing := link.next_landing()) is not None:
        clock.park(landing)
        assert link.poll(), "nothing landed when it was foretold"
    return clock.now()


@pytest.mark.parametrize(
    ("kind", "both_ms", "out_gib_per_s", "in_gib_per_s"),
    [
        ("naive", 1556.15, 10.75, 9.86),
        ("merged-segments", 159.87, 80.05, 133.51),
        ("merged-kernels", 63.14, 238.95, 269.69),
        ("duplex", 46.80, None, None),
    ],
)
def test_table_1_comes_out_within_a_tenth(
    kind: str, both_ms: float, out_gib_per_s: float | None, in_gib_per_s: float | None
) -> None:
    assert BLOCK_BYTES * TABLE_1_BLOCKS == 8 << 30
    clock, link = gh200(kind)
    for direction in Direction:
        link.submit(direction, [copy(direction, TABLE_1_BLOCKS)])
    assert drain(clock, link) / MILLISECOND == pytest.approx(both_ms, rel=0.1)
    for direction, rate in ((Direction.D2H, out_gib_per_s), (Direction.H2D, in_gib_per_s)):
        if rate is not None:
            clock, link = gh200(kind)
            link.submit(direction, [copy(direction, TABLE_1_BLOCKS)])
            assert 8 * SECOND / drain(clock, link) == pytest.approx(rate, rel=0.1)


def test_both_directions_share_the_memory_behind_them() -> None:
    model = LinkModel(d2h_bytes_per_s=1e9, h2d_bytes_per_s=1e9, dram_bytes_per_s=1.5e9)
    assert model.shares() == (0.75, 0.75)
    clock = SimClock()
    link = SimLink(clock, model, 1_000_000, 1)  # a block is a millisecond alone
    (out,) = link.submit(Direction.D2H, [copy(Direction.D2H, 30)]) or ()
    clock.advance(10 * MILLISECOND)
    (back,) = link.submit(Direction.H2D, [copy(Direction.H2D, 30)]) or ()
    # 20 ms of work are left of the first, at 3/4 speed: it lands at 10 + 26.67.
    assert link.next_landing() == pytest.approx(36_666_667, abs=2)
    clock.park(36_666_700)
    assert [done.ticket for done in link.poll()] == [out]
    # The second has done 20 of its 30 ms and goes on alone.
    assert link.next_landing() == pytest.approx(46_666_667, abs=40)
    assert drain(clock, link) == pytest.approx(46_666_667, abs=40)
    assert back != out


def test_a_slow_direction_leaves_the_rest_to_the_other() -> None:
    slow = LinkModel(d2h_bytes_per_s=0.2e9, h2d_bytes_per_s=1e9, dram_bytes_per_s=1e9)
    assert slow.shares() == (1.0, 0.8)
    assert LinkModel(1e9, 1e9).shares() == (1.0, 1.0)


def test_copies_wait_for_their_mark_and_hold_up_those_behind() -> None:
    clock, link = gh200("duplex")
    first, second = (
        link.submit(Direction.D2H, [copy(Direction.D2H, 1, after=4), copy(Direction.D2H, 1)]) or ()
    )
    assert link.next_landing() is None
    clock.advance(SECOND)
    assert link.poll() == []
    link.mark(3)
    assert link.next_landing() is None
    link.mark(4)
    drained = drain(clock, link)
    assert drained > SECOND
    assert (first, second) == (1, 2)


def test_a_blocking_link_keeps_its_caller() -> None:
    clock, link = gh200("naive-blocking")
    link.submit(Direction.D2H, [copy(Direction.D2H, 300)])
    assert clock.now() == pytest.approx(300 * 64 * 5.69e-6 * SECOND, rel=0.02)
    assert len(link.poll()) == 1


def test_it_says_what_it_carries() -> None:
    _, duplex = gh200("duplex")
    assert duplex.link_bytes_per_s(Direction.D2H) == pytest.approx(192e9, rel=0.01)
    assert duplex.link_bytes_per_s(Direction.H2D) == pytest.approx(192e9, rel=0.01)
    _, naive = gh200("naive")
    assert naive.link_bytes_per_s(Direction.D2H) == pytest.approx(10.75 * 2**30 / 2, rel=0.02)
    told = link_model(find_hardware("gh200-144gb"), "naive", unlimited_allowance=True)
    assert SimLink(SimClock(), told, BLOCK_BYTES, 64).link_bytes_per_s(Direction.H2D) == math.inf


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("kind", LINKS)
def test_every_link_of_every_hardware_moves_blocks(hardware: str, kind: str) -> None:
    clock = SimClock()
    link = SimLink(clock, link_model(find_hardware(hardware), kind), BLOCK_BYTES, 64)
    for direction in Direction:
        link.submit(direction, [copy(direction, 100), copy(direction, 1)])
    assert 0 < drain(clock, link) < SECOND
    link.close()
    with pytest.raises(TransferFailed):
        link.submit(Direction.D2H, [copy(Direction.D2H, 1)])


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="d2h_bytes_per_s"):
        LinkModel(0, 1)
    with pytest.raises(ConfigError, match="batch_ns"):
        LinkModel(1, 1, batch_ns=-1)
    with pytest.raises(ConfigError, match="known: duplex"):
        link_model(find_hardware("gb200"), "carrier-pigeon")
