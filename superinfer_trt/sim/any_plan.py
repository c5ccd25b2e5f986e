"""A policy that does anything that is allowed: no aim, but every legal plan has a chance.

Whatever `check_plan` accepts, ledger and executor must be able to do; policies with an aim visit only a part
of that. Pure: its dice are thrown anew from (seed, turn) for each view, so it stands the test of C10. Any
thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from superinfer_trt.core.check import check_plan
from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Chunk, Plan, Rejection, SyncRun
from superinfer_trt.core.view import Candidate, Order, View

Dice = Callable[[int], int]
"""dice(n) is an integer in 0 .. n - 1."""

ATTEMPTS = 8
"""Draws before somebody is evicted; most turns need one."""


CYCLE_TURNS, WILD_TURNS = 512, 128
"""In each cycle, after so many wild turns, the oldest request is left to run: or nobody might end (C9)."""


class AnyPlan:
    """core.ports.Policy. `restless`: how readily it moves those who could run, 0 .. 10."""

    name = "any-plan"
    rotates = True

    def __init__(self, seed: int, restless: int) -> None:
        self._seed = seed
        self._restless = restless
        self.order = Order(
            waiting=lambda c: c.arrival, rotary=lambda c: c.last_token, running=lambda c: c.run_start
        )

    def __call__(self, view: View) -> Plan:
        """A legal plan; rather one that is not idle."""
        dice = Random(self._seed * 1_000_003 + view.turn).randrange
        for _ in range(ATTEMPTS):
            plan = self._draw(view, dice)
            if not plan.idle:
                return plan
        # Perhaps everybody wants a block that another one has. The same view gives the same plan, and a turn
        # of nothing is not counted: waiting would be for ever.
        plan = Plan(view.turn, view.now)
        for attempt in (
            *(replace(plan, rotate_in=(candidate.id,)) for candidate in view.rotary),
            *(replace(plan, admit=(c.id,), prefill=(Chunk(c.id, 0, 1),)) for c in view.waiting),
            *(replace(plan, evict=(id,)) for id in sorted((c.id for c in view.running), reverse=True)),
        ):
            if _legal(attempt, view):
                return attempt
        return Plan(view.turn, view.now)

    def _draw(self, view: View, dice: Dice) -> Plan:
        """Tries one action for each live request, in any order, and keeps those that leave it legal."""
        plan = Plan(view.turn, view.now)
        candidates = list(view.live.values())
        for index in range(len(candidates)):
            other = index + dice(len(candidates) - index)
            candidates[index], candidates[other] = candidates[other], candidates[index]
        favoured = min(view.live, default=None) if view.turn % CYCLE_TURNS >= WILD_TURNS else None
        candidates.sort(key=lambda candidate: candidate.id != favoured)  # stable: the others as they are
        for candidate in candidates:
            restless = 0 if candidate.id == favoured else self._restless
            attempt = self._with_action(plan, candidate, view.limits.step_tokens, restless, dice)
            if attempt is not plan and _legal(attempt, view):
                plan = attempt
        return plan

    @staticmethod
    def _with_action(plan: Plan, candidate: Candidate, tokens_max: int, restless: int, dice: Dice) -> Plan:
        id, phase = candidate.id, candidate.phase
        if phase is Phase.WAITING:
            if dice(100) == 0:
                return replace(plan, reject=(*plan.reject, Rejection(id, "no luck")))
            chunk = Chunk(id, 0, 1 + dice(min(tokens_max, candidate.target_tokens)))
            return replace(plan, admit=(*plan.admit, id), prefill=(*plan.prefill, chunk))
        if phase is Phase.PREFILL:
            if dice(40) < restless:
                return replace(plan, evict=(*plan.evict, id))
            length = 1 + dice(min(tokens_max, candidate.target_tokens - candidate.computed_tokens))
            return replace(plan, prefill=(*plan.prefill, Chunk(id, candidate.computed_tokens, length)))
        if phase is Phase.ROTARY and dice(12) >= restless // 2:
            return replace(plan, rotate_in=(*plan.rotate_in, id))
        return _decoding(plan, candidate, restless, dice) if phase is Phase.DECODE else plan


def _decoding(plan: Plan, candidate: Candidate, restless: int, dice: Dice) -> Plan:
    id, action = candidate.id, dice(40)
    if action * 4 < restless:
        return replace(plan, evict=(*plan.evict, id))
    if action < restless:
        return replace(plan, rotate_out=(*plan.rotate_out, id))
    ready = candidate.full_blocks - candidate.synced_blocks
    if ready > 0 and dice(2):
        plan = replace(plan, sync=(*plan.sync, SyncRun(id, candidate.synced_blocks, 1 + dice(ready))))
    if candidate.remaining_tokens > 0:
        return replace(plan, decode=(*plan.decode, id))
    return plan


def _legal(plan: Plan, view: View) -> bool:
    try:
        check_plan(plan, view)
    except InvariantViolation:
        return False
    return True
