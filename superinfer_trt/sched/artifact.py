"""`artifact`: what the scheduler in SuperInfer's published code does, which is not its Algorithm 1.

There is no VLT, alpha or beta in it:

1. if free HBM covers the growth of all that run and everybody outside, plain first come, first served;
2. else, while less than `transfer_blocks` are free and DRAM is less than 95 % full, the decodes of longest
   present stay leave, as many as stay below `transfer_blocks` together;
3. a decode that finds no block rotates the newest stay out;
4. new and rotary requests come in by the time since when they wait, until the first that does not fit; no new
   prompt while DRAM is more than 90 % full.

So it is a round robin: alpha 1, both betas 0. Full blocks are copied ahead of need. Differs from its source
where the design says so: slots that leave are used in a later turn and counted as on their way until then,
a stay lasts at least one token, admission keeps the no-deadlock inequality and a closed gate never blocks the
other one. A rotary request waits since its last token, the moment of its rotation not being in a view.

Source: SuperInfer's artifact. Knows no slot and no clock. Stateless, any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.view import Candidate, Order, View
from superinfer_trt.sched.budget import Budget
from superinfer_trt.sched.fcfs import arrival
from superinfer_trt.sched.lag import stay_began, whole
from superinfer_trt.sched.waiting_first import last_token

DRAM_FULL_TO_LEAVE_PERCENT = 95
DRAM_FULL_TO_ADMIT_PERCENT = 90


@dataclass(frozen=True, slots=True)
class ArtifactParameters:
    """`transfer_blocks`: blocks that leave in one turn stay below it, >= 1. Raises ConfigError otherwise."""

    transfer_blocks: int = 2400

    def __post_init__(self) -> None:
        whole("transfer_blocks", self.transfer_blocks, 1)


class Artifact:
    """The policy; see the module."""

    name = "artifact"
    rotates = True
    order = Order(waiting=arrival, rotary=last_token, running=stay_began)

    def __init__(self, parameters: ArtifactParameters | None = None) -> None:
        self.parameters = parameters or ArtifactParameters()

    def __call__(self, view: View) -> Plan:
        budget = Budget(view, eager=True)
        wanted = view.waiting_blocks + view.rotary_blocks
        if (view.waiting or view.rotary) and -budget.shortage < wanted:
            self._leave(budget)
        if budget.shortage > 0:
            budget.rotate_out(budget.shortage, stint_tokens=0, keep=1, newest=True)
        budget.run()
        self._enter(budget)
        budget.sync()
        return budget.plan()

    def _leave(self, budget: Budget) -> None:
        view, most = budget.view, self.parameters.transfer_blocks
        if budget.free + budget.coming >= most or _dram_full(view, DRAM_FULL_TO_LEAVE_PERCENT):
            return
        leaving: list[Candidate] = []
        blocks = 0
        for candidate in view.running:
            if candidate.phase is not Phase.DECODE or candidate.remaining_tokens <= 0:
                continue
            if blocks + candidate.device_blocks >= most:
                break
            if candidate.stint_tokens > 0:
                blocks += candidate.device_blocks
                leaving.append(candidate)
        budget.rotate_out(blocks, stint_tokens=1, among=leaving)

    @staticmethod
    def _enter(budget: Budget) -> None:
        waiting, rotary = budget.waiting(), budget.rotary()
        fresh, back = next(waiting, None), next(rotary, None)
        if _dram_full(budget.view, DRAM_FULL_TO_ADMIT_PERCENT):
            fresh = None
        while fresh is not None or back is not None:
            if back is not None and (fresh is None or back.last_token <= fresh.arrival):
                if not budget.resumption_open(back):
                    back = None  # this gate is closed; the other one is not
                    continue
                if budget.blocks_back(back) > budget.free:
                    break
                budget.resume(back)
                back = next(rotary, None)
            elif fresh is not None:
                if not budget.may_admit(fresh):
                    fresh = None
                    continue
                if fresh.total_blocks > budget.free:
                    break
                budget.admit(fresh)
                fresh = next(waiting, None)


def _dram_full(view: View, percent: int) -> bool:
    """Blocks that only back resident ones are reclaimable and no load."""
    host_blocks = view.limits.host_blocks
    used = host_blocks - view.host_free - view.host_backing
    return used * 100 > host_blocks * percent
