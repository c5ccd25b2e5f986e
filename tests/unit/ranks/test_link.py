"""Copies have landed when they have on every rank, in one order, whatever each rank's own link does."""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Callable, Sequence
from random import Random

import pytest

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.step import Copy, CopyDone, CopyKind, Direction
from superinfer_trt.core.units import RequestId, Ticket
from superinfer_trt.ranks.comm import Comm
from superinfer_trt.ranks.link import AgreedLink
from superinfer_trt.ranks.room import Room


class DiceLink:
    """Lands, fails and is busy as its dice say; in order within a kind. Its tickets are its own affair."""

    def __init__(self, seed: int, *, failing: frozenset[int] = frozenset(), full: float = 0.6) -> None:
        self.dice = Random(seed)
        self.failing = failing  # numbers of copies, counted from 0
        self.full = full
        self.next = 1000 * seed
        self.count = 0
        self.flying: dict[CopyKind, list[CopyDone]] = {kind: [] for kind in CopyKind}

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        if self.dice.random() < self.full:
            return None
        tickets = []
        for copy in copies:
            assert copy.direction is direction
            self.next += 1 + self.dice.randrange(3)
            self.flying[copy.kind].append(CopyDone(Ticket(self.next), copy.id not in self.failing))
            tickets.append(Ticket(self.next))
        return tickets

    def mark(self, turn: int) -> None:
        pass

    def poll(self) -> Sequence[CopyDone]:
        done = []
        for flying in self.flying.values():
            while flying and self.dice.random() < 0.6:
                done.append(flying.pop(0))
        return done

    def link_bytes_per_s(self, direction: Direction) -> float:
        return 1e9

    def close(self) -> None:
        pass


def on_ranks(ranks: int, body: Callable[[Comm], None]) -> list[BaseException]:
    room, errors = Room(ranks, 20), []

    def run(rank: int) -> None:
        try:
            body(room.comm(rank))
        except BaseException as error:
            errors.append(error)
            room.part(str(error))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return errors


def copies_of(dice: Random, count: int, first: int) -> list[Copy]:
    return [
        Copy(RequestId(first + i), dice.choice(tuple(CopyKind)), array("i", (0,)), array("i", (0,)))
        for i in range(count)
    ]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_all_ranks_see_the_same_landings_at_the_same_turn(ranks: int, seed: int) -> None:
    """Links that land at different times, some copies failing on one rank only: each turn's landings are
    equal on all ranks, each copy lands once, and it has failed everywhere if it has anywhere."""
    failing = {rank: frozenset(Random(100 + rank).sample(range(60), 3)) for rank in range(ranks)}
    seen: dict[int, list[list[tuple[int, bool]]]] = {}
    submitted: dict[int, list[int]] = {}
    busy = 0

    def body(comm: Comm) -> None:
        nonlocal busy
        own = DiceLink(10 * seed + comm.rank + 1, failing=failing[comm.rank])
        link = AgreedLink(own, comm, 64, lambda: 7)
        dice, turns, ids, sent = Random(seed), [], [], 0
        for _ in range(400):
            if sent < 60:
                made = copies_of(dice, 4, sent)
                for direction in Direction:
                    wanted = [c for c in made if c.direction is direction]
                    tickets = link.submit(direction, wanted) if wanted else []
                    if tickets is None:
                        busy += comm.rank == 0
                        continue
                    ids += zip(tickets, [c.id for c in wanted], strict=True)
                sent += 4
            done = link.poll()
            turns.append([(item.ticket, item.ok) for item in done])
        seen[comm.rank] = turns
        submitted[comm.rank] = ids
        assert not any(own.flying.values())

    assert on_ranks(ranks, body) == []
    assert all(turns == seen[0] for turns in seen.values())
    assert all(ids == submitted[0] for ids in submitted.values())
    landed = [item for turn in seen[0] for item in turn]
    assert sorted(ticket for ticket, _ in landed) == sorted(ticket for ticket, _ in submitted[0])
    anywhere = frozenset().union(*failing.values())
    copy_of = dict(submitted[0])
    assert {copy_of[t] for t, ok in landed if not ok} == anywhere & set(copy_of.values())
    assert busy, "no lane was ever full"


def test_the_slowest_blocks_make_the_rate_and_only_rank_0_is_bound() -> None:
    found: dict[int, float] = {}

    def body(comm: Comm) -> None:
        link = AgreedLink(DiceLink(1), comm, (512, 1024)[comm.rank], lambda: 0)
        found[comm.rank] = link.link_bytes_per_s(Direction.D2H)

    assert on_ranks(2, body) == []
    assert found == {0: 5e8, 1: math.inf}


def test_ranks_that_computed_different_tokens_are_found_out() -> None:
    def body(comm: Comm) -> None:
        AgreedLink(DiceLink(1), comm, 8, lambda: 5 + comm.rank).poll()

    errors = on_ranks(3, body)
    assert len(errors) == 3
    assert all(isinstance(error, InvariantViolation) for error in errors)
    assert "different tokens" in str(errors[0])
