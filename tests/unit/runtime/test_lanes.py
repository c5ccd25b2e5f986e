"""Lanes kept move by move are the lanes made anew from the queues."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from superinfer_trt.core.phase import Phase
from superinfer_trt.core.request import Request, Sampling
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, SECOND, RequestId
from superinfer_trt.core.view import Lane, Order, lanes_of
from superinfer_trt.runtime.heap import HEAP_SPARE
from superinfer_trt.runtime.lanes import Lanes
from superinfer_trt.runtime.sequence import Sequence
from superinfer_trt.sched.registry import make_policy
from unit.core.test_view import view as empty_view

ORDER = make_policy("rota-slack").order


def new_sequence(random: Random, id: int, now: int) -> Sequence:
    request = Request(
        id=RequestId(id),
        prompt=tuple(range(random.randint(1, 50))),
        sampling=Sampling(max_tokens=5),
        slo=Slo(random.choice([50, 500]) * MILLISECOND, 10 * MILLISECOND),
        arrival=now,
        tenant=random.choice(["a", "b", "c"]),
    )
    return Sequence.of(request, 16)


def ids(lane: Lane) -> list[list[int]]:
    return [[c.id for c in part] for part in (lane.waiting, lane.waiting_late, lane.rotary, lane.rotary_late)]


@pytest.mark.parametrize("seed", range(30))
def test_kept_lanes_are_the_lanes(seed: int) -> None:
    random = Random(seed)
    lanes = Lanes.asked_for(ORDER)
    assert lanes is not None
    inside: list[Sequence] = []
    now = 0
    for id in range(200):
        now += random.randint(0, 20) * MILLISECOND
        if inside and random.random() < 0.4:
            sequence = inside.pop(random.randrange(len(inside)))
            lanes.remove(sequence)
            if random.random() < 0.5:  # it comes back as the other kind, with another moment
                sequence.phase = Phase.ROTARY
                sequence.first_token, sequence.produced_tokens = now, random.randint(1, 40)
                lanes.add(sequence)
                inside.append(sequence)
        else:
            inside.append(new_sequence(random, id, now))
            lanes.add(inside[-1])

        def queue(phase: Phase, key) -> list[Sequence]:
            return sorted((s for s in inside if s.phase is phase), key=lambda s: (key(s), s.id))

        view = replace(
            empty_view(),
            now=now,
            waiting=queue(Phase.WAITING, ORDER.waiting),
            rotary=queue(Phase.ROTARY, ORDER.rotary),
        )
        fresh = lanes_of(view, ORDER)
        kept = lanes.at(now)
        assert {tenant: ids(lane) for tenant, lane in kept.items()} == {
            tenant: ids(lane) for tenant, lane in fresh.items()
        }


def test_nobody_asks_for_them_without_moments() -> None:
    assert Lanes.asked_for(make_policy("fcfs").order) is None
    assert Lanes.asked_for(Order(*(lambda c: 0,) * 3, waiting_late=lambda c: 0)) is None


def test_moments_far_away_are_not_kept_for_those_who_left() -> None:
    """Objectives may be a day long."""
    lanes = Lanes.asked_for(ORDER)
    assert lanes is not None
    for id in range(5_000):
        request = Request(RequestId(id), (1,), slo=Slo(ttft=86_400 * SECOND), arrival=id, tenant="a")
        sequence = Sequence.of(request, 16)
        lanes.add(sequence)
        if id:  # the first stays
            lanes.remove(sequence)
    assert len(lanes._moments) <= 2 + HEAP_SPARE
    (lane,) = lanes.at(0).values()
    assert ids(lane) == [[0], [], [], []]
    assert ids(next(iter(lanes.at(86_400 * SECOND).values()))) == [[], [0], [], []]
