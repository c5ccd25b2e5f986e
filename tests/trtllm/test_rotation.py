"""Rotation in the fake worker is invisible: token for token what the model says, in both loops (C12).

In every world the ledger is audited after each iteration, upstream never has fewer free blocks than are
counted, and at the end both tiers are empty. A rule of the contract that is taken out is missed by a world.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from superinfer_trt.core.errors import InvariantViolation, TransferFailed
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.trtllm.crossing import Crossing
from superinfer_trt.trtllm.rotation import Rotation
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


# What is taken out of the adapter, and must be missed. Each takes `monkeypatch` and may change classes.
Mutation = Callable[[pytest.MonkeyPatch], None]


def keeps_the_batch_index(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rotation, "_leave_out", staticmethod(lambda request: None))


def gives_blocks_back_before_the_landing(patch: pytest.MonkeyPatch) -> None:
    move = Rotation._move

    def early(self: Rotation, plan: Plan) -> None:
        move(self, plan)
        for id in plan.rotate_out:
            self.parts.cache.remove_sequence(id)

    patch.setattr(Rotation, "_move", early)


def lets_copies_in_run_beside_the_batch(patch: pytest.MonkeyPatch) -> None:
    hand_over = Crossing.hand_over
    patch.setattr(
        Crossing, "hand_over", lambda self, copies, blocks, launched: hand_over(self, copies, blocks, -1)
    )


def lets_copies_out_run_beside_the_batch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("support.trtllm.rotating.FakeOrder.mark", lambda self, turn: self._link.mark(turn) or True)


def forgets_the_orphans(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Crossing, "_ready", lambda self, unsent: list(unsent))


def does_not_wait_behind_an_orphan(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("support.trtllm.rotating.FakeOrder.wait", lambda self, ticket: None)


def does_not_hear_of_endings(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rotation, "freed", lambda self, request: None)


def rotates_through_pauses(patch: pytest.MonkeyPatch) -> None:
    def schedule_request(self, active):  # type: ignore[no-untyped-def]
        fitting = self._rotation.schedule(active)
        leaving = self._rotation._plan.rotate_out
        return fitting, [], [request for request in active if request.py_request_id in leaving]

    patch.setattr("superinfer_trt.trtllm.scheduler.RotaCapacityScheduler.schedule_request", schedule_request)


def counts_the_newest_token(patch: pytest.MonkeyPatch) -> None:
    def returned(self: Rotation, id: int) -> None:
        self.parts.cache.add_sequence(id, self._requests[id].get_num_tokens(0), 1)

    patch.setattr(Rotation, "_return_to_cache", returned)


MUTATIONS: Iterable[Mutation] = (
    keeps_the_batch_index,
    gives_blocks_back_before_the_landing,
    lets_copies_in_run_beside_the_batch,
    lets_copies_out_run_beside_the_batch,
    forgets_the_orphans,
    does_not_wait_behind_an_orphan,
    does_not_hear_of_endings,
    rotates_through_pauses,
    counts_the_newest_token,
)


def many_worlds() -> None:
    for seed in range(60):
        run_world(seed, cancels=0.25, blocks=20)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_rule_taken_out_is_missed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    with pytest.raises((AssertionError, InvariantViolation, RuntimeError, KeyError, ValueError)):
        many_worlds()
