"""Rotation in the fake worker is invisible: token for token what the model says, in both loops (C12).

In every world the ledger is audited after each iteration, upstream never has fewer free blocks than are
counted, and at the end both tiers are empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from superinfer_trt.core.errors import TransferFailed
from superinfer_trt.core.phase import Phase
from support.trtllm.request import LlmRequest, LlmRequestState
from support.trtllm.rotating import RandomMoves, RotatingWorker
from support.trtllm.worlds import run_world

POLICIES = ("rotasched", "rota-slack", "waiting-first", "swapped-first", "ltr", "artifact")
LOOPS = pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])


@LOOPS
@pytest.mark.parametrize("policy", POLICIES)
def test_rotation_is_invisible(policy: str, overlap: bool) -> None:
    assert sum(run_world(seed, overlap=overlap, policy=policy).rotations for seed in range(6)) > 10


@LOOPS
def test_without_chunked_prefill(overlap: bool) -> None:
    assert sum(run_world(seed, overlap=overlap, chunk_unit=0).rotations for seed in range(6)) > 10


@LOOPS
def test_a_request_may_end_in_any_phase(overlap: bool) -> None:
    phases: Counter[Phase] = Counter()
    for seed in range(40):
        phases += run_world(seed, overlap=overlap, cancels=0.3, step_tokens=12).cancelled_in
    assert set(phases) == set(Phase) - {Phase.FINISHED}


@LOOPS
def test_a_busy_and_failing_link_costs_time_only(overlap: bool) -> None:
    failures = 0
    for seed in range(8):
        world = run_world(seed, overlap=overlap, busy=0.4, failing=0.1, cancels=0.1)
        failures += world.worker.link.failures
    assert failures > 10


def test_a_link_that_always_fails_ends_the_worker() -> None:
    with pytest.raises(TransferFailed, match="8 rotations of this request failed"):
        run_world(1, failing=1.0)


def at_random(seed: int) -> Callable[[RotatingWorker], None]:
    def change(worker: RotatingWorker) -> None:
        worker.choose(RandomMoves(seed))

    return change


@LOOPS
def test_any_legal_plan_can_be_carried_out(overlap: bool) -> None:
    rotations = 0
    for seed in range(12):
        world = run_world(seed, overlap=overlap, cancels=0.05, failing=0.05, change=at_random(seed))
        rotations += world.rotations
    assert rotations > 50


def test_strangers_among_the_active_ones_are_let_through() -> None:
    """Dummies, and requests that were under way before rotation began, are upstream's own business."""
    dummy, started = LlmRequest(900, [1, 2], 5), LlmRequest(901, [1, 2, 3], 5)
    dummy.is_dummy = True
    started.state = LlmRequestState.GENERATION_IN_PROGRESS

    def change(worker: RotatingWorker) -> None:
        schedule = worker.rotation.schedule
        seen = {"turns": 0}

        def among(active: list[LlmRequest]) -> list[LlmRequest]:
            seen["turns"] += 1
            at = seen["turns"] % (len(active) + 1)
            fitting = schedule([*active[:at], dummy, started, *active[at:]])
            assert {dummy, started} <= set(fitting)
            assert not {900, 901} & set(worker.rotation.live)
            return [request for request in fitting if request not in (dummy, started)]

        worker.rotation.schedule = among

    assert sum(run_world(seed, change=change).rotations for seed in range(4)) > 5
