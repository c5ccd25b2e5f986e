"""The ledger machine must catch a broken ledger: each mutant breaks one rule, and is caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from props.test_ledger_machine import LedgerMachine
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.step import Copy, CopyKind
from superinfer_trt.kv import ledger as ledger_module
from superinfer_trt.kv.chain import Chain
from superinfer_trt.kv.ledger import KvLedger

SEARCH = settings(
    max_examples=3_000,
    derandomize=True,  # the same worlds every time: a canary is either caught or not
    stateful_step_count=60,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # finding it is enough, a short story is not needed
    suppress_health_check=list(HealthCheck),
)


def trusts_failed_copies(patch: pytest.MonkeyPatch) -> None:
    """Breaks L5: a block counts as synced although its copy failed."""
    honest = KvLedger._take_down

    def lying(self: KvLedger, flight, *, ok: bool) -> None:
        honest(self, flight, ok=True)
        flight.chain.failed = flight.chain.failed or not ok

    patch.setattr(KvLedger, "_take_down", lying)


def forgets_dirty_tail(patch: pytest.MonkeyPatch) -> None:
    """Breaks L5: what was synced once is taken for clean although tokens were added."""
    patch.setattr(Chain, "will_fill", lambda self, index: 1)


def frees_what_a_copy_reads(patch: pytest.MonkeyPatch) -> None:
    """Breaks L2: a released request's slots are handed out while copies still use them."""
    honest = KvLedger._dismiss

    def hasty(self: KvLedger, chain: Chain, *, cool: bool) -> None:
        flights, chain.flights = chain.flights, 0
        honest(self, chain, cool=cool)
        chain.flights = flights
        chain.device, chain.host = chain.device[:0], chain.host[:0]

    patch.setattr(KvLedger, "_dismiss", hasty)


def lets_in_before_out(patch: pytest.MonkeyPatch) -> None:
    """Breaks L3: device slots of a victim are given back before its copies have landed."""
    honest = KvLedger._rotate_out

    def early(self: KvLedger, chain: Chain) -> list[Copy]:
        copies = honest(self, chain)
        self._device.give(chain.device)
        return copies

    patch.setattr(KvLedger, "_rotate_out", early)


def leaks_a_slot(patch: pytest.MonkeyPatch) -> None:
    """Breaks C1: one slot of a released chain never comes back."""
    patch.setattr(ledger_module, "chain_host_slots", lambda chain: [s for s in chain.host if s > 0])


def warms_up_too_early(patch: pytest.MonkeyPatch) -> None:
    """Breaks C6: an evicted request's slots are handed out while the batch in the air writes them."""
    honest = KvLedger.apply

    def warm(self: KvLedger, plan: Plan) -> list[Copy]:
        for id in plan.evict:
            self._evict(self._chains[id])
        self._device.give(self._cooling)
        self._cooling.clear()
        rest = Plan(plan.turn, plan.now, **{f: getattr(plan, f) for f in FIELDS})
        return honest(self, rest)

    patch.setattr(KvLedger, "apply", warm)


FIELDS = ("admit", "prefill", "decode", "rotate_out", "rotate_in", "sync", "reject")


def copies_the_wrong_block(patch: pytest.MonkeyPatch) -> None:
    """Breaks C5: blocks of a request that comes back are crossed."""
    honest = KvLedger._copy

    def crossed(self: KvLedger, chain: Chain, kind: CopyKind, blocks, *, after: int) -> Copy:
        copy = honest(self, chain, kind, blocks, after=after)
        if kind is CopyKind.IN:
            copy.target.reverse()
        return copy

    patch.setattr(KvLedger, "_copy", crossed)


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
    with pytest.raises((Exception, AssertionError)):
        run_state_machine_as_test(LedgerMachine, settings=SEARCH)
