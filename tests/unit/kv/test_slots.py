"""The slot pool against a set of free slots, and what its runs look like."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.units import NO_SLOT
from superinfer_trt.kv.slots import SlotPool, SlotStack


def runs(slots: list[int]) -> int:
    """Of slots that follow each other."""
    return sum(1 for before, after in pairwise([None, *slots]) if before is None or after != before + 1)


def extents(free: set[int]) -> int:
    return sum(1 for slot in free if slot - 1 not in free)


@given(capacity=st.integers(0, 70), roomy=st.booleans(), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_slots_are_those_of_a_set_in_as_few_runs_as_promised(capacity: int, roomy: bool, seed: int) -> None:
    random = Random(seed)
    pool, free, held = SlotPool(capacity, roomy=roomy), set(range(capacity)), list[list[int]]()
    for _ in range(60):
        if held and random.randrange(2):
            slots = held.pop(random.randrange(len(held)))
            if random.randrange(3) == 0:
                random.shuffle(slots)
            part = random.randrange(len(slots) + 1)
            pool.give(slots[:part])
            free.update(slots[:part])
            if slots[part:]:
                held.append(slots[part:])
        elif free:
            near = random.choice([NO_SLOT, 0, capacity, held[-1][-1] + 1 if held else 3])
            count = random.randrange(len(free) + 1)
            taken = list(pool.take(count, near))
            assert len(set(taken)) == len(taken) == count
            assert free.issuperset(taken)
            if count and near in free and near - 1 not in free:
                assert taken[0] == near
            assert runs(taken) <= extents(free) + 1
            free.difference_update(taken)
            if taken:
                held.append(taken)
        assert len(pool) == len(free)
        assert sorted(pool.free_slots()) == sorted(free)
    for slots in held:
        pool.give(slots)
    assert list(pool.take(capacity)) == list(range(capacity))


def test_the_same_calls_give_the_same_slots() -> None:
    def told(seed: int) -> list[list[int]]:
        random, pool, held, out = Random(seed), SlotPool(500), list[list[int]](), list[list[int]]()
        for _ in range(300):
            if len(pool) > 40 and random.randrange(3):
                held.append(list(pool.take(random.randrange(1, 40))))
                out.append(held[-1])
            elif held:
                pool.give(held.pop(random.randrange(len(held))))
        return out

    assert told(3) == told(3)


@pytest.mark.parametrize("roomy", [False, True])
def test_one_that_grows_stays_in_one_run(roomy: bool) -> None:
    pool = SlotPool(1000, roomy=roomy)
    slots = list(pool.take(7))
    for _ in range(20):
        slots.append(pool.take_one(slots[-1] + 1))
    assert runs(slots) == 1


def test_many_that_grow_side_by_side_stay_in_a_run_each_where_there_is_room() -> None:
    pool = SlotPool(64 * 40, roomy=True)
    chains = [[pool.take_one()] for _ in range(40)]
    for _ in range(19):
        for chain in chains:
            chain.append(pool.take_one(chain[-1] + 1))
    assert sum(map(runs, chains)) == 40


def test_a_short_pool_keeps_its_long_extents_for_who_needs_them() -> None:
    pool = SlotPool(100)
    first, hole, _rest = pool.take(20), pool.take(6), pool.take(34)
    pool.give(hole)
    assert list(pool.take(5)) == list(hole)[:5]
    assert runs(list(pool.take(40))) == 1
    pool.give(first)
    assert list(pool.take(21)) == [*first, hole[5]]


def test_what_is_not_there_is_not_given() -> None:
    pool = SlotPool(3)
    pool.take(3)
    with pytest.raises(InvariantViolation, match="1 slots wanted, 0 free"):
        pool.take_one()
    with pytest.raises(InvariantViolation, match="2 slots wanted"):
        pool.take(2, near=1)
    assert list(pool.take(0)) == []


@given(capacity=st.integers(0, 40), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_slots_without_places_are_those_of_a_set(capacity: int, seed: int) -> None:
    random = Random(seed)
    pool, free, held = SlotStack(capacity), set(range(capacity)), list[int]()
    for _ in range(40):
        if held and random.randrange(2):
            slots = [held.pop(random.randrange(len(held))) for _ in range(random.randint(1, len(held)))]
            pool.give(slots)
            free.update(slots)
        elif free:
            count = random.randint(1, len(free))
            taken = list(pool.take(count, 3)) if random.randrange(2) else [pool.take_one(3)]
            assert free.issuperset(taken)
            assert len(set(taken)) == len(taken)
            free.difference_update(taken)
            held += taken
        assert len(pool) == len(free)
        assert sorted(pool.free_slots()) == sorted(free)
    for take in (lambda: pool.take(len(pool) + 1), lambda: [pool.take_one() for _ in range(len(pool) + 1)]):
        with pytest.raises(InvariantViolation, match="not checked"):
            take()
