"""Tensor parallel ranks plan alike, whatever their clocks and links do; one that does not is found out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.core.view import View
from superinfer_trt.trtllm.agreement import CHECKED_TURNS, AmongRanks, Sample
from support.trtllm.executor import Dist
from support.trtllm.rotating import RotatingWorker, RotationShape
from support.trtllm.worker import WorkerShape, make_requests
from support.trtllm.worlds import check_tokens


class Ranks:
    """An allgather among threads."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count, timeout=60)
        self._values: list[object] = [None] * count

    def gather_for(self, rank: int) -> Callable[[object], list[object]]:
        def allgather(value: object) -> list[object]:
            self._values[rank] = value
            self._barrier.wait()
            gathered = list(self._values)
            self._barrier.wait()
            return gathered

        return allgather

    def leave(self) -> None:
        self._barrier.abort()


def run_ranks(count: int, seed: int, prepare: Callable[[int, RotatingWorker], None]) -> list[list[str]]:
    """Runs one rank a thread over the same requests; returns each rank's plans."""
    ranks = Ranks(count)

    def run(rank: int) -> list[str]:
        dist = Dist(rank=rank, tp_size=count, tp_allgather=ranks.gather_for(rank))
        shape = WorkerShape(blocks=24, seed=seed, eager=0.2 * rank)
        link = RotationShape(polls_max=1 + 3 * rank, busy=0.3 * rank, seed=rank)
        worker = RotatingWorker(shape, link, dist=dist)
        prepare(rank, worker)
        requests = make_requests(24, seed)
        lines: list[str] = []
        try:
            for turn in range(2_000):
                if turn < len(requests):
                    worker.enqueue(requests[turn])
                if turn % 7 == 3:
                    worker.executor.cancel(requests[turn // 7 % len(requests)].py_request_id)
                worker.step()
                worker.clock.time += rank * turn % 5 * MILLISECOND
                newest = worker.rotation.trace.newest
                lines.append(newest.line() if newest is not None else "")
                # The end, too, is agreed: a rank whose copies have landed goes on until all have.
                if turn >= len(requests) and worker.executor.idle and not worker.ledger.in_flight:
                    break
            worker.drain()
        except BaseException:
            ranks.leave()
            raise
        check_tokens(requests)
        return lines

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, rank) for rank in range(count)]
        errors = [future.exception() for future in futures]
    real = [e for e in errors if e is not None and not isinstance(e, threading.BrokenBarrierError)]
    if real:
        raise real[0]
    return [future.result() for future in futures]


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_with_other_clocks_and_links_plan_alike(count: int) -> None:
    turns = 0
    for seed in range(12):

        def skew(rank: int, worker: RotatingWorker) -> None:
            worker.clock.time += rank * 12_345_678_901

        plans = run_ranks(count, seed, skew)
        assert all(lines == plans[0] for lines in plans)
        assert any(" out=" in line for line in plans[0])
        turns += len(plans[0])
    assert turns > 1_000


def test_a_rank_that_plans_by_itself_is_found_out() -> None:
    def astray(rank: int, worker: RotatingWorker) -> None:
        if rank == 1:
            policy = worker.rotation.parts.policy

            class Hasty:
                name = policy.name
                order = policy.order

                def __call__(self, view: View) -> Plan:
                    plan = policy(view)
                    return replace(plan, decode=plan.decode[:-1]) if view.turn > 20 else plan

            worker.choose(Hasty())

    with pytest.raises(InvariantViolation, match="ranks have planned differently: turn=") as found:
        run_ranks(2, 3, astray)
    assert str(found.value).count("turn=") == 2


def test_what_is_agreed_is_what_holds_everywhere() -> None:
    one = Sample(7, ((1, True), (2, True), (4, True)), 5e9, 9e9, False, False)
    two = Sample(99, ((2, False), (3, True), (4, True)), 6e9, 8e9, True, False)
    agreed = AmongRanks(lambda sample: [sample, two])(one)
    assert agreed == Sample(7, ((2, False), (4, True)), 5e9, 8e9, True, False)


def test_plans_are_asked_for_rarely() -> None:
    asked: list[int] = []
    agreement = AmongRanks(lambda sample: [sample])
    for turn in range(1, 10 * CHECKED_TURNS + 1):
        agreement.planned(turn, lambda turn=turn: asked.append(turn) or "line")
    assert len(asked) == 10
