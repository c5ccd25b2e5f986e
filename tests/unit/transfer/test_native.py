"""DuplexLink beyond the port: its configuration, statistics, poisoned lanes, measured rate."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from superinfer_trt.core.errors import ConfigError, TransferFailed
from superinfer_trt.core.step import Copy, CopyDone, CopyKind, Direction
from superinfer_trt.core.units import RequestId, Ticket
from superinfer_trt.transfer.native import DuplexLink
from superinfer_trt.transfer.pools import allocate_pool

D2H, H2D = Direction.D2H, Direction.H2D


def link_of(blocks: int = 64, block_bytes: int = 4096, **options: float) -> DuplexLink:
    return DuplexLink(allocate_pool(blocks, block_bytes), allocate_pool(blocks, block_bytes), **options)  # type: ignore[arg-type]


def out(slots: range | list[int], after: int = -1) -> Copy:
    return Copy(RequestId(1), CopyKind.OUT, array("i", slots), array("i", slots), after)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"h2d_bytes_per_s": -1.0}, "bytes_per_s"),
        ({"d2h_bytes_per_s": float("nan")}, "bytes_per_s"),
        ({"d2h_bytes_per_s": 1.0}, "bytes_per_s"),
        ({"queue_groups_max": 0}, "queue_groups_max"),
        ({"queue_groups_max": 1 << 21}, "queue_groups_max"),
        ({"queue_groups_max": 1 << 40}, "link"),
        ({"queue_bytes_max": -5}, "queue_bytes_max"),
        ({"slice_bytes_max": 0}, "slice_bytes_max"),
        ({"slice_bytes_max": 1 << 30}, "slice_bytes_max"),
    ],
)
def test_limits_that_cannot_work_are_refused_by_name(options: dict[str, float], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        link_of(**options)


def test_pools_that_cannot_work_are_refused_by_name() -> None:
    good = allocate_pool(8, 64)
    with pytest.raises(ConfigError, match="device_pool must be"):
        DuplexLink(good.view(np.int8), good)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="host_pool must be"):
        DuplexLink(good, allocate_pool(16, 64)[::2])
    with pytest.raises(ConfigError, match="block_bytes"):
        DuplexLink(good, allocate_pool(8, 128))
    with pytest.raises(ConfigError, match="share memory"):
        DuplexLink(good, good)


@pytest.mark.parametrize("slots", [[1 << 31], [-(1 << 31) - 1], [1.5], ["a"], [None]])
def test_slots_that_are_no_int32_are_refused(slots: list[int]) -> None:
    link = link_of()
    with pytest.raises(ValueError, match="int32 slots"):
        link.submit(D2H, [Copy(RequestId(7), CopyKind.OUT, slots, array("i", [0]))])


def test_slots_may_be_any_sequence_of_ints() -> None:
    link = link_of()
    for number, slots in enumerate(([3, 4], (5, 6), range(7, 9), np.array([9, 10], np.int32))):
        copy = Copy(RequestId(number), CopyKind.OUT, slots, slots)  # type: ignore[arg-type]
        assert link.submit(D2H, [copy]) == [number + 1]
        assert link.wait(60.0)
        assert link.poll() == [CopyDone(number + 1, ok=True)]  # type: ignore[arg-type]


def test_statistics_count_what_crossed() -> None:
    link = link_of(64, 4096)
    link.submit(D2H, [out(range(10)), out([20, 22])])
    link.submit(D2H, [out([30], after=5)])
    done = 0
    while done < 2:
        assert link.wait(60.0)
        done += len(link.poll())
    stats = link.stats(D2H)
    assert (stats.bytes, stats.descriptors, stats.groups_done) == (12 * 4096, 3, 2)
    assert (stats.queued_groups, stats.unpolled_groups, stats.unpolled_bytes) == (1, 1, 4096)
    assert stats.busy_ns >= 12 * 4096 / 2e9 * 1e9 * 0.9, "2 GB/s is the default"
    assert not stats.poisoned
    link.close()
    assert link.stats(D2H).groups_cancelled == 1
    assert link.stats(H2D).bytes == 0


def test_what_is_ahead_of_need_is_passed_by_what_is_needed() -> None:
    link = link_of(64, 4096, d2h_bytes_per_s=4e6)  # a block takes a millisecond
    eager = [Copy(RequestId(n), CopyKind.SYNC, [n], [n]) for n in range(20)]
    early = link.submit(D2H, eager)
    (needed,) = link.submit(D2H, [out([40])]) or ()
    told: list[Ticket] = []
    while len(told) < 21:
        assert link.wait(60.0)
        told += [done.ticket for done in link.poll() if done.ok]
    assert told.index(needed) < 20
    assert [ticket for ticket in told if ticket != needed] == early


def test_a_cancelled_copy_is_told_as_not_ok_and_leaves_its_slots() -> None:
    link = link_of()
    held, dropped = link.submit(D2H, [out([1], after=1), out([2], after=1)]) or ()
    link.cancel(dropped)
    assert link.submit(H2D, [Copy(RequestId(2), CopyKind.IN, [2], [2])]) == [3]
    link.mark(1)
    done: list[CopyDone] = []
    while len(done) < 3:
        assert link.wait(60.0)
        done += link.poll()
    assert {item.ticket: item.ok for item in done} == {held: True, dropped: False, 3: True}
    link.cancel(dropped)
    assert link.stats(D2H).groups_cancelled == 1
    with pytest.raises(ValueError, match="never given out"):
        link.cancel(Ticket(99))


def test_a_poisoned_lane_fails_what_is_queued_and_the_other_lives() -> None:
    link = link_of()
    assert link.submit(D2H, [out([1], after=1), out([2], after=2)]) == [1, 2]
    link.poison(D2H)
    while link.stats(D2H).queued_groups:
        link.wait(60.0)
    assert [done.ok for done in link.poll()] == [False, False]
    with pytest.raises(TransferFailed, match="d2h lane: poisoned"):
        link.submit(D2H, [out([3])])
    assert link.submit(H2D, [Copy(RequestId(1), CopyKind.IN, [4], [4])]) == [3]
    assert link.stats(D2H).poisoned


def test_the_rate_is_the_configured_one_or_else_measured() -> None:
    link = link_of(h2d_bytes_per_s=3e9, d2h_bytes_per_s=0.0)
    assert link.link_bytes_per_s(H2D) == 3e9
    assert link.link_bytes_per_s(D2H) > 1e7
    assert link.link_bytes_per_s(D2H) == link.link_bytes_per_s(D2H), "measured once"


def test_own_traffic_is_the_better_measure() -> None:
    link = link_of(32, 1 << 20, d2h_bytes_per_s=0.0)
    link.submit(D2H, [out(range(32))])
    assert link.wait(60.0)
    stats = link.stats(D2H)
    assert link.link_bytes_per_s(D2H) == stats.bytes / stats.busy_ns * 1e9


def test_a_link_out_of_reach_closes_its_engine() -> None:
    link = link_of()
    engine = link._engine
    link.submit(D2H, [out([1], after=1)])
    del link
    with pytest.raises(RuntimeError, match="closed"):
        engine.mark(1)
