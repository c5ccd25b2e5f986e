"""The test of the tests: ledgers, policies and doors that are broken on purpose are caught within the box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from props.test_ledger_canaries import (
    copies_the_wrong_block,
    forgets_dirty_tail,
    frees_what_a_copy_reads,
    leaks_a_slot,
    lets_in_before_out,
    trusts_failed_copies,
    warms_up_too_early,
)
from superinfer_trt.build.chaos import drawn_policy, run_seed
from superinfer_trt.core.outcome import TokenEvent
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Chunk, Plan
from superinfer_trt.core.ports import Policy
from superinfer_trt.core.step import Copy, CopyDone
from superinfer_trt.core.view import Order, View
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.runtime.executor import Executor
from superinfer_trt.runtime.roster import Roster
from superinfer_trt.sim.chaos import ChaosOptions
from superinfer_trt.transfer.wrap import DelayedLink

WORLDS_MAX = 600
"""About what the box holds; most are caught within ten."""


def first_failure(**parts: object) -> str:
    for seed in range(WORLDS_MAX):
        report = run_seed(seed, **parts)  # type: ignore[arg-type]
        if report.failure:
            return report.failure
    return ""


@pytest.mark.parametrize(
    "mutate",
    [
        trusts_failed_copies,
        forgets_dirty_tail,
        frees_what_a_copy_reads,
        lets_in_before_out,
        leaks_a_slot,
        warms_up_too_early,
        copies_the_wrong_block,
    ],
)
def test_a_broken_ledger_is_caught(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    assert first_failure()


class Bent:
    """A policy whose plans are bent by `bend(view, plan)`."""

    def __init__(self, policy: Policy, bend: Callable[[View, Plan], Plan]) -> None:
        self._policy = policy
        self._bend = bend

    @property
    def name(self) -> str:
        return self._policy.name

    @property
    def order(self) -> Order:
        return self._policy.order

    def __call__(self, view: View) -> Plan:
        return self._bend(view, self._policy(view))


def never_brings_back(view: View, plan: Plan) -> Plan:
    return replace(plan, rotate_in=())


def forgets_the_third(view: View, plan: Plan) -> Plan:
    """Request 2 is never admitted."""
    return replace(
        plan,
        admit=tuple(id for id in plan.admit if id != 2),
        prefill=tuple(chunk for chunk in plan.prefill if chunk.id != 2 or chunk.start),
    )


def sleeps(view: View, plan: Plan) -> Plan:
    """Does nothing while more than three live."""
    return plan if len(view.live) <= 3 else Plan(plan.turn, plan.now)


def overdraws(view: View, plan: Plan) -> Plan:
    """Admits one more than fits."""
    left = [c for c in view.waiting if c.id not in plan.admit and c.id not in {r.id for r in plan.reject}]
    if not plan.admit or not left:
        return plan
    chunk = Chunk(left[0].id, 0, 1)
    return replace(plan, admit=(*plan.admit, left[0].id), prefill=(*plan.prefill, chunk))


def decodes_the_absent(view: View, plan: Plan) -> Plan:
    return replace(plan, decode=(*plan.decode, *(c.id for c in view.rotary)))


def looks_at_the_time(view: View, plan: Plan) -> Plan:
    """Does nothing in every other 5 s of the clock itself."""
    return plan if view.now // 5_000_000_000 % 2 == 0 else Plan(plan.turn, plan.now)


def writes(view: View, plan: Plan) -> Plan:
    for candidate in view.live.values():
        if isinstance(candidate.produced_tokens, int) and candidate.phase is Phase.DECODE:
            candidate.stint_tokens += 1  # type: ignore[misc]
    return plan


class Moody:
    """Every other call it does nothing."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, view: View, plan: Plan) -> Plan:
        self._calls += 1
        return plan if self._calls % 2 else Plan(plan.turn, plan.now)


@pytest.mark.parametrize(
    ("bend", "named"),
    [
        (never_brings_back, ("C9", "planned nothing")),
        (forgets_the_third, ("C9", "planned nothing")),
        (sleeps, ("C9", "planned nothing")),
        (overdraws, ("plan breaks a rule",)),
        (decodes_the_absent, ("plan breaks a rule",)),
        (looks_at_the_time, ("C10",)),
        (writes, ("C10", "FrozenInstanceError")),
        (Moody(), ("C10",)),
    ],
)
def test_a_broken_policy_is_caught(bend: Callable[[View, Plan], Plan], named: tuple[str, ...]) -> None:
    def policy(options: ChaosOptions) -> Policy:
        return Bent(drawn_policy(options), bend)

    failure = first_failure(policy=policy)
    assert any(name in failure for name in named), failure


def forgets_the_batch(patch: pytest.MonkeyPatch) -> None:
    """A victim's copy does not wait for the batch that writes its last token (C6)."""
    honest = KvLedger._copy

    def early(self: KvLedger, chain, kind, blocks, *, after: int) -> Copy:
        return honest(self, chain, kind, blocks, after=-1)

    patch.setattr(KvLedger, "_copy", early)


def tells_twice(patch: pytest.MonkeyPatch) -> None:
    """A landing is told again."""
    honest = DelayedLink.poll

    def again(self: DelayedLink) -> Sequence[CopyDone]:
        told = list(honest(self))
        return told + told[:1] if len(told) > 1 else told

    patch.setattr(DelayedLink, "poll", again)


def drops_an_event(patch: pytest.MonkeyPatch) -> None:
    """Where a turn has more than four events, one is lost (C3, C4)."""
    honest = Executor._emit

    def losing(self: Executor) -> None:
        if len(self._events) > 4:
            del self._events[2]
        honest(self)

    patch.setattr(Executor, "_emit", losing)


def says_it_twice(patch: pytest.MonkeyPatch) -> None:
    """A request that is cancelled while it rotates is told so twice (C4)."""
    honest = Roster.end

    def twice(self: Roster, sequence, reason, now, message=""):
        rotating = sequence.phase is Phase.ROTATING_OUT
        events: list[TokenEvent] = list(honest(self, sequence, reason, now, message))
        return iter(events * (2 if rotating else 1))

    patch.setattr(Roster, "end", twice)


def forgets_a_token(patch: pytest.MonkeyPatch) -> None:
    """An evicted request starts again from its prompt, without what it had said (C12)."""
    from superinfer_trt.runtime.sequence import Sequence as Record

    honest = Record.restart

    def restart(self: Record) -> None:
        honest(self)
        if self.output:
            self.output[-1] ^= 1

    patch.setattr(Record, "restart", restart)


@pytest.mark.parametrize(
    "mutate", [forgets_the_batch, tells_twice, drops_an_event, says_it_twice, forgets_a_token]
)
def test_a_broken_link_or_executor_is_caught(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    assert first_failure()
