"""Tensor parallel ranks plan alike, whatever their clocks and links do; one that does not is found out."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random

import pytest

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import Policy
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.core.view import View
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.trtllm.agreement import AmongRanks, Sample
from support.trtllm.executor import Dist, ModelEngine, SampleState
from support.trtllm.request import LlmRequest
from support.trtllm.rotating import RandomMoves, RotatingWorker, RotationShape
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


class Quiet(ModelEngine):
    """Tokens without KV: a number for each place, now and then the end."""

    def _context(self, request: LlmRequest, state: SampleState) -> Callable[[], None]:
        if not request.is_last_context_chunk:
            return lambda: None
        return self._generation(request, state, overlap=False)

    def _generation(self, request: LlmRequest, state: SampleState, *, overlap: bool) -> Callable[[], None]:
        place = request.py_request_id * 7919 + request.py_decoding_iter * 104_729
        return lambda: state.tokens.__setitem__(request.py_request_id, place % 61)


def run_turns(rank: int, ranks: Ranks, turns: int, policy: Policy) -> list[int]:
    """One rank of two: arrivals and cancels by a seed, a clock and a link of its own. A hash of each plan."""
    dist = Dist(rank=rank, tp_size=2, tp_allgather=ranks.gather_for(rank))
    shape = WorkerShape(blocks=24, max_num_sequences=64, eager=0.3 * rank)
    worker = RotatingWorker(shape, RotationShape(polls_max=1 + 3 * rank, busy=0.2, seed=rank), dist=dist)
    worker.choose(policy)
    executor, random = worker.executor, Random(7)
    executor.model_engine = Quiet(executor.kv_cache_manager.impl, executor.execution_stream, 64)
    hashes = []
    try:
        for turn in range(turns):
            if len(executor.active_requests) < 24 and random.random() < 0.5:
                (request,) = make_requests(1, turn)
                request.py_request_id = request.request_id = turn
                worker.enqueue(request)
            if random.random() < 0.02:
                executor.cancel(random.randrange(turn + 1))
            executor.step()
            worker.clock.time += 20 * MILLISECOND + rank * random.randrange(9) * MILLISECOND
            hashes.append(hash(worker.rotation.trace.newest))
    except BaseException:
        ranks.leave()
        raise
    worker.ledger.audit()
    assert worker.rotation.totals.rotations_in > turns / 50
    return hashes


def run_two(turns: int, policies: tuple[Policy, Policy]) -> list[list[int]]:
    ranks = Ranks(2)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run_turns, rank, ranks, turns, policies[rank]) for rank in range(2)]
        errors = [future.exception() for future in futures]
    real = [e for e in errors if e is not None and not isinstance(e, threading.BrokenBarrierError)]
    if real:
        raise real[0]
    return [future.result() for future in futures]


@pytest.mark.parametrize("name", ["random", "rota-slack"])
def test_five_thousand_turns_of_two_ranks_are_the_same(name: str) -> None:
    """Ten thousand together."""
    policies = (
        (RandomMoves(5), RandomMoves(5)) if name == "random" else (make_policy(name), make_policy(name))
    )
    here, there = run_two(5_000, policies)
    assert here == there
    assert len(set(here)) > 4_000


class Astray:
    """A policy that once, at `turn` or as soon as it can, does one thing otherwise."""

    rotates = True

    def __init__(self, inner: Policy, turn: int, field: str) -> None:
        self._inner, self._turn, self._field = inner, turn, field
        self.name, self.order = inner.name, inner.order

    def __call__(self, view: View) -> Plan:
        plan = self._inner(view)
        if view.turn >= self._turn and getattr(plan, self._field):
            self._turn = 1 << 62
            return replace(plan, **{self._field: getattr(plan, self._field)[:-1]})
        return plan


@pytest.mark.parametrize("field", ["decode", "rotate_out", "rotate_in", "sync"])
@pytest.mark.parametrize("seed", range(4))
def test_a_rank_that_once_plans_otherwise_is_found_out_in_the_next_turn(seed: int, field: str) -> None:
    policy = make_policy("rotasched")
    with pytest.raises(InvariantViolation, match="ranks have planned differently: rank 0: turn=") as found:
        run_two(400, (policy, Astray(policy, 20 + 17 * seed, field)))
    first, second = re.findall(r"rank \d: turn=(\d+)", str(found.value))
    assert first == second
    here, there = str(found.value).split(" | ")
    assert here.removeprefix("rank 0") != there.removeprefix("rank 1")


def test_what_is_agreed_is_what_holds_everywhere() -> None:
    one = Sample(7, ((1, True), (2, True), (4, True)), 5e9, 9e9, False, False)
    two = Sample(99, ((2, False), (3, True), (4, True)), 6e9, 8e9, True, False)
    agreed = AmongRanks(lambda sample: [sample, two])(one)
    assert agreed == Sample(7, ((2, False), (4, True)), 5e9, 8e9, True, False)
