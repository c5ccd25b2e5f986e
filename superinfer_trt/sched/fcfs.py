"""`fcfs`: vLLM V1's scheduler (v0.6.6.post1), first come, first served with recomputation.

Running requests go in order of arrival; a decode that finds no block evicts the newest running
request, whose KV is dropped and computed again. In a turn that evicts nobody is admitted; otherwise
waiting requests are admitted strictly from the head while tokens, seats and blocks last. There is no
watermark and no look at what outputs will need, which is the source of eviction storms under load.
Never rotates: it is run without a host pool.

Differs from its source where the design says so: blocks of a whole prompt are taken at admission, and
nothing is preallocated. Evicted slots come free in a later turn.

Source: vLLM `v1/core/scheduler.py` at that version. Knows no slot and no clock. Stateless, any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from superinfer_trt.core.plan import Plan
from superinfer_trt.core.units import Nanos
from superinfer_trt.core.view import Candidate, Order, View
from superinfer_trt.sched.budget import Budget


@dataclass(frozen=True, slots=True)
class FcfsParameters:
    """It has none."""


def arrival(candidate: Candidate) -> Nanos:
    """Order key: first come, first served."""
    return candidate.arrival


class Fcfs:
    """The policy; see the module."""

    name = "fcfs"
    rotates = False
    # Whoever was evicted came before all that still wait: in order of arrival it stands at the head.
    order = Order(waiting=arrival, rotary=arrival, running=arrival, strict=True)

    def __init__(self, parameters: FcfsParameters | None = None) -> None:
        self.parameters = parameters or FcfsParameters()

    def __call__(self, view: View) -> Plan:
        return first_come_first_served(Budget(view))


def first_come_first_served(budget: Budget) -> Plan:
    """The plan of this policy within a budget; its kin only cap the tokens first."""
    if budget.shortage > 0:
        budget.evict_newest(budget.shortage)
    budget.run()
    if not budget.moved_out and not budget.starved:
        for candidate in budget.waiting():
            if not may_overcommit(budget, candidate):
                break
            budget.admit(candidate)
    return budget.plan()


def may_overcommit(budget: Budget, candidate: Candidate) -> bool:
    """Whether tokens, seats and free blocks let it in now; what it will grow to does not matter unless
    there is a host pool: then the rules forbid overcommit, whoever plans (core.check)."""
    if budget.tokens <= 0 or budget.seats <= 0 or candidate.total_blocks > budget.free:
        return False
    return not budget.view.limits.host_blocks or budget.admission_open(candidate)
