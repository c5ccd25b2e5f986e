"""`trt-max-util`: TensorRT-LLM's capacity scheduler MAX_UTILIZATION.

All requests, started or not, are walked in order of arrival; each needs the blocks of its next step only.
When one does not fit, the last started request that was not walked yet is paused: its KV is dropped and
computed again, and the walk tries once more. The one that finds nobody left to pause is paused itself if
it had started, and the walk ends.

Differs from its source in that a slot given up is used in a later turn: who is to have it is admitted then.

Source: TensorRT-LLM's capacity scheduler (main around v1.1). Knows no slot and no clock. Stateless, any
thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.view import Candidate, Order, View
from superinfer_trt.sched.budget import Budget
from superinfer_trt.sched.fcfs import arrival, may_overcommit


@dataclass(frozen=True, slots=True)
class TrtMaxUtilizationParameters:
    """It has none."""


class TrtMaxUtilization:
    """The policy; see the module."""

    name = "trt-max-util"
    rotates = False
    order = Order(waiting=arrival, rotary=arrival, running=arrival)

    def __init__(self, parameters: TrtMaxUtilizationParameters | None = None) -> None:
        self.parameters = parameters or TrtMaxUtilizationParameters()

    def __call__(self, view: View) -> Plan:
        budget = Budget(view)
        chosen = _walk(budget)
        budget.run()
        for candidate in chosen:
            if not may_overcommit(budget, candidate):
                break
            budget.admit(candidate)
        return budget.plan()


def _walk(budget: Budget) -> list[Candidate]:
    """Pauses whom it must; returns the waiting ones that are to come in."""
    view = budget.view
    # Who made its last token neither runs nor can be paused.
    started = [c for c in view.running if c.phase is not Phase.DECODE or c.remaining_tokens > 0]
    left = budget.free + budget.coming
    tokens = budget.tokens - len(started)
    waiting = budget.waiting()
    fresh = next(waiting, None)
    chosen: list[Candidate] = []
    walked = 0
    while walked < len(started) or (fresh is not None and tokens > 0):
        resident = started[walked] if walked < len(started) else None
        if resident is not None and (fresh is None or tokens <= 0 or _before(resident, fresh)):
            grows = resident.phase is Phase.DECODE and view.decode_needs_block(resident)
            need, walked = int(grows), walked + 1
        elif fresh is not None:
            resident, need = None, fresh.total_blocks
        while need > left and len(started) > walked:
            victim = started.pop()
            budget.evict(victim)
            left += victim.device_blocks
        if need > left:
            if resident is not None and budget.runners > 1:
                budget.evict(resident)
            break
        left -= need
        if resident is None and fresh is not None:
            chosen.append(fresh)
            tokens -= fresh.target_tokens
            fresh = next(waiting, None)
    return chosen


def _before(one: Candidate, other: Candidate) -> bool:
    return (one.arrival, one.id) < (other.arrival, other.id)
