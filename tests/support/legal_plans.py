"""Draws a random plan that `check_plan` accepts: whatever it accepts, the ledger must be able to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from random import Random

from superinfer_trt.core.check import check_plan
from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Chunk, Plan, Rejection, SyncRun
from superinfer_trt.core.view import Candidate, Order, View

Draw = Callable[[int], int]
"""draw(n) is an integer in 0 .. n - 1."""


def random_legal_plan(view: View, draw: Draw) -> Plan:
    """Tries a random action for every live request, and keeps those that leave the plan legal."""
    plan = Plan(view.turn, view.now)
    candidates = list(view.live.values())
    for index in range(len(candidates)):  # a random order: actions compete for the same room
        other = index + draw(len(candidates) - index)
        candidates[index], candidates[other] = candidates[other], candidates[index]
    for candidate in candidates:
        attempt = _with_action(plan, view, candidate, draw)
        if attempt is not None and _legal(attempt, view):
            plan = attempt
    return plan


def _legal(plan: Plan, view: View) -> bool:
    try:
        check_plan(plan, view)
    except InvariantViolation:
        return False
    return True


def _with_action(plan: Plan, view: View, candidate: Candidate, draw: Draw) -> Plan | None:
    id = candidate.id
    if candidate.phase is Phase.WAITING:
        if draw(20) == 0:
            return dataclasses.replace(plan, reject=(*plan.reject, Rejection(id, "unlucky")))
        length = 1 + draw(candidate.target_tokens)
        return dataclasses.replace(
            plan, admit=(*plan.admit, id), prefill=(*plan.prefill, Chunk(id, 0, length))
        )
    if candidate.phase is Phase.PREFILL:
        if draw(8) == 0:
            return dataclasses.replace(plan, evict=(*plan.evict, id))
        left = candidate.target_tokens - candidate.computed_tokens
        chunk = Chunk(id, candidate.computed_tokens, 1 + draw(left))
        return dataclasses.replace(plan, prefill=(*plan.prefill, chunk))
    if candidate.phase is Phase.DECODE:
        return _decoding(plan, candidate, draw)
    if candidate.phase is Phase.ROTARY and draw(3):
        return dataclasses.replace(plan, rotate_in=(*plan.rotate_in, id))
    return None


def _decoding(plan: Plan, candidate: Candidate, draw: Draw) -> Plan | None:
    id = candidate.id
    action = draw(10)
    if action == 0:
        return dataclasses.replace(plan, evict=(*plan.evict, id))
    if action <= 3:
        return dataclasses.replace(plan, rotate_out=(*plan.rotate_out, id))
    ready = candidate.full_blocks - candidate.synced_blocks
    if action <= 6 and ready > 0:
        run = SyncRun(id, candidate.synced_blocks, 1 + draw(ready))
        plan = dataclasses.replace(plan, sync=(*plan.sync, run))
    if candidate.remaining_tokens > 0:
        return dataclasses.replace(plan, decode=(*plan.decode, id))
    return plan


class RandomPolicy:
    """Any legal plan, at random: not pure, not fair, but the ledger has to be able to do it."""

    name = "random"
    rotates = True

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.order = Order(
            waiting=lambda c: c.arrival, rotary=lambda c: c.last_token, running=lambda c: c.run_start
        )

    def __call__(self, view: View) -> Plan:
        """The best of a few draws, so that an idle plan with work to do is rare."""
        for _ in range(50):
            plan = random_legal_plan(view, self._random.randrange)
            if not plan.idle:
                return plan
        return plan
