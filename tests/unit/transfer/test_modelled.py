"""ModelledLink: landing times by arithmetic, to the nanosecond."""

from __future__ import annotations

import math

import pytest

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.step import Copy, CopyDone, CopyKind, Direction
from superinfer_trt.core.units import RequestId, Ticket
from superinfer_trt.transfer.modelled import ModelledLink
from support.virtual_clock import VirtualClock

D2H, H2D = Direction.D2H, Direction.H2D
LAUNCH, BLOCK = 10, 1000  # a block takes 1,000 ns out (1 GB/s) and 500 ns in (2 GB/s)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def link(clock: VirtualClock) -> ModelledLink:
    return ModelledLink(clock, BLOCK, 2e9, 1e9, LAUNCH)


def out(first: int, count: int, after: int = -1) -> Copy:
    slots = range(first, first + count)
    return Copy(RequestId(first), CopyKind.OUT, slots, slots, after)


def back(first: int, count: int, after: int = -1) -> Copy:
    slots = range(first, first + count)
    return Copy(RequestId(first), CopyKind.IN, slots, slots, after)


def landings(link: ModelledLink, clock: VirtualClock) -> list[tuple[int, int]]:
    """(time, ticket) of all that will land without a further mark."""
    told = []
    while (landing := link.next_landing()) is not None:
        clock.park(landing)
        told += [(clock.now(), int(done.ticket)) for done in link.poll()]
    return told


def test_copies_of_a_direction_follow_each_other_and_directions_do_not(
    link: ModelledLink, clock: VirtualClock
) -> None:
    clock.park(100)
    link.submit(D2H, [out(0, 3), out(10, 1)])
    link.submit(H2D, [back(50, 4)])
    assert landings(link, clock) == [(2110, 3), (3110, 1), (4120, 2)]


def test_nothing_lands_before_its_time(link: ModelledLink, clock: VirtualClock) -> None:
    link.submit(D2H, [out(0, 1)])
    clock.park(1009)
    assert link.poll() == []
    assert link.next_landing() == 1010
    clock.park(1010)
    assert link.poll() == [CopyDone(Ticket(1), ok=True)]
    assert link.next_landing() is None


def test_an_idle_link_starts_when_asked_a_busy_one_when_free(link: ModelledLink, clock: VirtualClock) -> None:
    link.submit(D2H, [out(0, 1)])
    clock.park(500)
    link.submit(D2H, [out(1, 1)])
    clock.park(10_000)
    link.submit(D2H, [out(2, 1)])
    assert [done.ticket for done in link.poll()] == [1, 2]
    assert landings(link, clock) == [(11_010, 3)]


def test_a_mark_starts_what_it_releases_at_its_own_time(link: ModelledLink, clock: VirtualClock) -> None:
    link.submit(D2H, [out(0, 1, after=3), out(1, 1)])
    assert link.next_landing() is None
    clock.park(5000)
    link.mark(2)
    assert link.next_landing() is None
    link.mark(3)
    assert landings(link, clock) == [(6010, 1), (7020, 2)]


def test_polled_late_the_order_is_that_of_landing(link: ModelledLink, clock: VirtualClock) -> None:
    link.submit(D2H, [out(0, 1), out(1, 1)])
    link.submit(H2D, [back(50, 1), back(51, 4)])
    clock.park(1_000_000)
    assert [done.ticket for done in link.poll()] == [3, 1, 2, 4]  # 510, 1010, 2020, 2520


def test_a_link_without_a_rate_costs_the_launch(clock: VirtualClock) -> None:
    link = ModelledLink(clock, BLOCK, 0, 0, LAUNCH)
    link.submit(D2H, [out(0, 1000)])
    assert link.next_landing() == LAUNCH
    assert math.isinf(link.link_bytes_per_s(D2H))


def test_a_fraction_of_a_nanosecond_rounds_up(clock: VirtualClock) -> None:
    link = ModelledLink(clock, 1, 3e9, 3e9, 0)
    link.submit(D2H, [out(0, 1)])
    assert link.next_landing() == 1


def test_close_keeps_what_had_landed(link: ModelledLink, clock: VirtualClock) -> None:
    link.submit(D2H, [out(0, 1), out(1, 1), out(2, 1, after=9)])
    clock.park(1500)
    link.close()
    assert link.next_landing() is not None
    assert [(done.ticket, done.ok) for done in link.poll()] == [(1, True), (2, False), (3, False)]
    assert link.next_landing() is None


def test_a_source_read_three_times_is_free_after_the_third(link: ModelledLink, clock: VirtualClock) -> None:
    reads = [
        Copy(RequestId(n), CopyKind.OUT, slots, targets)
        for n, (slots, targets) in enumerate((([5], [0]), ([5, 6], [1, 2]), ([5, 5], [3, 4])))
    ]
    link.submit(D2H, reads)
    write = Copy(RequestId(9), CopyKind.IN, [90], [5])
    while link.next_landing() is not None:
        with pytest.raises(ValueError, match="slot 5 is used"):
            link.submit(H2D, [write])
        clock.park(link.next_landing())
        link.poll()
    assert link.submit(H2D, [write]) == [4]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"block_bytes": 0}, "block_bytes"),
        ({"h2d_bytes_per_s": -1.0}, "h2d_bytes_per_s"),
        ({"d2h_bytes_per_s": math.nan}, "d2h_bytes_per_s"),
        ({"d2h_bytes_per_s": math.inf}, "d2h_bytes_per_s"),
        ({"launch_ns": -1}, "launch_ns"),
        ({"queue_groups_max": 0}, "queue_groups_max"),
    ],
)
def test_values_that_are_none_are_refused_by_name(
    clock: VirtualClock, options: dict[str, int], word: str
) -> None:
    fields = {"block_bytes": 1, "h2d_bytes_per_s": 1e9, "d2h_bytes_per_s": 1e9, **options}
    with pytest.raises(ConfigError, match=word):
        ModelledLink(clock, **fields)  # type: ignore[arg-type]
