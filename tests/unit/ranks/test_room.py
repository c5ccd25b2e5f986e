"""The room of threads keeps what ranks.comm promises: order, one sum everywhere, bounded waits."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from superinfer_trt.build.service import build_service
from superinfer_trt.config import load
from superinfer_trt.core.errors import ConfigError, SuperInferError
from superinfer_trt.ranks.comm import Comm, RankLost
from superinfer_trt.ranks.room import Room
from superinfer_trt.ranks.start import NotStarted, together
from support.world import Streams


def on_ranks(ranks: int, body: Callable[[Comm], Any], timeout_s: float = 20) -> list[Any]:
    """What `body` returns or raises, by rank."""
    room = Room(ranks, timeout_s)
    found: list[Any] = [None] * ranks

    def run(rank: int) -> None:
        try:
            found[rank] = body(room.comm(rank))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


def test_least_is_taken_element_by_element() -> None:
    rows = [array("q", (5, -(1 << 62), 3)), array("q", (4, 0, 3)), array("q", (9, 1, 2))]
    assert on_ranks(3, lambda comm: comm.least(rows[comm.rank])) == [array("q", (4, -(1 << 62), 2))] * 3


def test_what_rank_0_tells_is_heard_in_order() -> None:
    def body(comm: Comm) -> list[int]:
        if comm.rank:
            return [comm.hear()[0] for _ in range(200)]
        for i in range(200):
            comm.tell(array("q", (i,)))
        return list(range(200))

    assert on_ranks(3, body) == [list(range(200))] * 3


def test_sums_are_taken_in_the_order_of_ranks_and_equal_on_each() -> None:
    parts = [
        np.random.default_rng(rank).standard_normal(999).astype(np.float32) * 10**rank for rank in range(4)
    ]
    expected = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    assert not np.array_equal(expected, parts[0] + (parts[1] + (parts[2] + parts[3])))

    def body(comm: Comm) -> bytes:
        mine = parts[comm.rank].copy()
        comm.add(mine)
        return mine.tobytes()

    assert on_ranks(4, body) == [expected.tobytes()] * 4


def test_a_rank_that_does_not_come_ends_the_waits_of_the_others() -> None:
    def body(comm: Comm) -> None:
        if comm.rank != 1:
            comm.least(array("q", (1,)))

    found = on_ranks(3, body, timeout_s=0.05)
    assert [type(error) for error in found] == [RankLost, type(None), RankLost]
    assert "did not answer" in str(found[0])


def test_an_alarm_ends_a_wait_on_either_plane_and_says_why() -> None:
    def body(comm: Comm) -> None:
        if comm.rank == 0:
            comm.least(array("q", (1,)))
        elif comm.rank == 1:
            comm.add(np.ones(3, np.float32))
        else:
            comm.alarm("rank 2: out of paper")

    found = on_ranks(3, body)
    assert [str(error) for error in found[:2]] == ["rank 2: out of paper"] * 2


def starting(errors: dict[int, Exception], alike: dict[int, str]) -> list[Any]:
    def body(comm: Comm) -> Any:
        def make() -> str:
            if comm.rank in errors:
                raise errors[comm.rank]
            return f"made {comm.rank}"

        return together(comm, make, alike.get(comm.rank, "same"))

    return on_ranks(3, body)


def test_all_start_or_none() -> None:
    assert starting({}, {}) == ["made 0", "made 1", "made 2"]


@pytest.mark.parametrize(
    ("errors", "alike", "kind", "words"),
    [
        (
            {0: ConfigError("no such model"), 2: ConfigError("no such model")},
            {},
            ConfigError,
            "no such model",
        ),
        ({1: ConfigError("no memory")}, {}, SuperInferError, "rank 1: no memory"),
        ({}, {2: "other"}, ConfigError, "rank 2 was started with another configuration"),
    ],
)
def test_rank_0_says_why_they_did_not_start(
    errors: dict[int, Exception], alike: dict[int, str], kind: type[Exception], words: str
) -> None:
    found = starting(errors, alike)
    assert isinstance(found[0], kind)
    assert words in str(found[0])
    assert [type(error) for error in found[1:]] == [NotStarted, NotStarted]


def test_a_service_of_one_refuses_to_be_several() -> None:
    """Where a service is made without mpiexec: Triton, the batch scripts."""
    config = load(None, {"engine.name": "pattern", "engine.tp": 2})
    with pytest.raises(
        ConfigError, match=r"engine.tp: 2 ranks are for `mpiexec -n 2 .*this is a service of 1"
    ):
        build_service(config, Streams())
