"""`trt-no-evict`: TensorRT-LLM's capacity scheduler GUARANTEED_NO_EVICT, its default.

A started request stays until it ends. Waiting ones are admitted first come, first served while the blocks
that all started ones need to *complete* (prompt and the most they may produce) leave room for the blocks
that the next one needs to complete; at the first that does not fit admission stops. So nobody is ever
evicted, and HBM is reserved for tokens that are made much later.

Source: TensorRT-LLM's capacity scheduler (main around v1.1). Knows no slot and no clock. Stateless, any
thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from superinfer_trt.core.plan import Plan
from superinfer_trt.core.view import Order, View
from superinfer_trt.sched.budget import Budget
from superinfer_trt.sched.fcfs import arrival


@dataclass(frozen=True, slots=True)
class TrtNoEvictParameters:
    """It has none."""


class TrtNoEvict:
    """The policy; see the module."""

    name = "trt-no-evict"
    rotates = False
    order = Order(waiting=arrival, rotary=arrival, running=arrival, strict=True)

    def __init__(self, parameters: TrtNoEvictParameters | None = None) -> None:
        self.parameters = parameters or TrtNoEvictParameters()

    def __call__(self, view: View) -> Plan:
        budget = Budget(view)
        if budget.shortage > 0:
            # Only where it did not plan the turns before: its own reservation leaves no shortage.
            budget.evict_newest(budget.shortage)
        budget.run()
        for candidate in budget.waiting():
            complete = budget.promised + candidate.max_blocks
            if complete > view.limits.device_blocks or candidate.total_blocks > budget.free:
                break
            if budget.tokens <= 0 or budget.seats <= 0:
                break
            budget.admit(candidate)
        return budget.plan()
