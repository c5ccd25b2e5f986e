"""The wrappers that misbehave on purpose do so as told, and the same way every time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from superinfer_trt.core.ports import TransferEngine
from superinfer_trt.core.step import Copy, CopyKind, Direction
from superinfer_trt.core.units import RequestId
from superinfer_trt.transfer.modelled import ModelledLink
from superinfer_trt.transfer.wrap import BusyLink, CountingLink, DelayedLink, FailingLink, chance
from support.virtual_clock import VirtualClock

D2H = Direction.D2H


class At:
    """A clock at one moment long past every landing."""

    def now(self) -> int:
        return 10**15

    def park(self, until: int | None) -> None: ...
    def wake(self) -> None: ...


def instant() -> ModelledLink:
    return ModelledLink(At(), 1, 0, 0, 0)


def out(slot: int) -> Copy:
    return Copy(RequestId(slot), CopyKind.OUT, [slot], [slot])


def submit(link: TransferEngine, count: int) -> list[int]:
    tickets: list[int] = []
    for slot in range(count):
        tickets += link.submit(D2H, [out(slot)]) or ()
    return tickets


def test_chance_is_uniform_and_depends_on_seed_and_number() -> None:
    draws = [chance(3, number) for number in range(20_000)]
    assert all(0 <= draw < 1 for draw in draws)
    assert abs(sum(draws) / len(draws) - 0.5) < 0.01
    assert abs(sum(draw < 0.1 for draw in draws) / len(draws) - 0.1) < 0.01
    assert len(set(draws)) == len(draws)
    assert draws[:50] != [chance(4, number) for number in range(50)]
    steps = [abs(a - b) for a, b in itertools.pairwise(draws)]
    assert abs(sum(steps) / len(steps) - 1 / 3) < 0.01, "neighbours are independent"


def test_every_third_group_fails_and_is_spoiled_first() -> None:
    spoiled: list[int] = []
    link = FailingLink(instant(), every=3, spoil=lambda copy: spoiled.append(copy.target[0]))
    submit(link, 7)
    assert [(done.ticket, done.ok) for done in link.poll()] == [
        (ticket, ticket % 3 != 0) for ticket in range(1, 8)
    ]
    assert spoiled == [2, 5]
    assert link.failures == 2


def test_a_delayed_link_holds_some_back_and_keeps_their_order() -> None:
    link = DelayedLink(instant(), polls_max=4, seed=11)
    submit(link, 50)
    told: list[int] = []
    polls = 0
    while len(told) < 50:
        told += [done.ticket for done in link.poll()]
        polls += 1
        assert (link.next_landing() == 0) == (len(told) < 50)
    assert told == list(range(1, 51))
    assert 1 < polls <= 5


def test_a_busy_link_refuses_its_share_and_queues_nothing() -> None:
    inner = CountingLink(instant())
    link = BusyLink(inner, probability=0.4, seed=2)
    tickets = submit(link, 1000)
    assert 500 < len(tickets) < 700
    assert inner.submits == len(tickets)
    assert submit(BusyLink(instant(), probability=1.0), 5) == []


@pytest.mark.parametrize(
    "wrap",
    [
        lambda link: FailingLink(link, probability=0.3, seed=5),
        lambda link: DelayedLink(link, polls_max=3, seed=5),
        lambda link: BusyLink(link, probability=0.3, seed=5),
    ],
)
def test_the_same_calls_give_the_same_answers(wrap: Callable[[TransferEngine], TransferEngine]) -> None:
    def run() -> list[object]:
        link = wrap(instant())
        seen: list[object] = []
        for slot in range(200):
            seen += (link.submit(D2H, [out(slot)]), tuple(link.poll()))
        return seen

    assert run() == run()


def test_counts_add_up() -> None:
    clock = VirtualClock()
    link = CountingLink(FailingLink(ModelledLink(clock, 1, 1e9, 1e9, 0, queue_groups_max=4), every=2))
    assert link.submit(D2H, [out(0), out(1), out(2)]) is not None
    assert link.submit(D2H, [out(3), out(4)]) is None
    assert link.submit(Direction.H2D, [Copy(RequestId(1), CopyKind.IN, [8, 9], [8, 9])]) is not None
    assert (link.submits, link.busy, link.in_air) == (3, 1, 4)
    assert link.next_landing() == 1
    clock.park(1000)
    link.poll()
    assert link.groups == {D2H: 3, Direction.H2D: 1}
    assert link.blocks == {D2H: 3, Direction.H2D: 2}
    assert (link.landed, link.failed, link.in_air) == (2, 2, 0)
    assert link.link_bytes_per_s(D2H) == 1e9
    link.mark(1)
    link.close()


def test_sync_copies_apart_are_overtaken_and_keep_their_own_order() -> None:
    link = DelayedLink(instant(), polls_max=4, seed=11, sync_apart=True)
    kinds = {}
    for slot in range(60):
        kind = CopyKind.SYNC if slot % 2 else CopyKind.OUT
        for ticket in link.submit(D2H, [Copy(RequestId(slot), kind, [slot], [slot])]) or ():
            kinds[ticket] = kind
    told = [done.ticket for _ in range(6) for done in link.poll()]
    assert sorted(told) == sorted(kinds)
    assert told != sorted(told), "one kind overtook the other"
    for kind in (CopyKind.SYNC, CopyKind.OUT):
        own = [ticket for ticket in told if kinds[ticket] is kind]
        assert own == sorted(own)


def test_a_healed_stack_has_no_whims() -> None:
    link = BusyLink(
        DelayedLink(FailingLink(CountingLink(instant()), every=1), polls_max=9, seed=3), probability=1.0
    )
    assert link.submit(D2H, [out(0)]) is None
    link.heal()
    assert len(submit(link, 50)) == 50
    assert [done.ok for done in link.poll()] == [True] * 50
