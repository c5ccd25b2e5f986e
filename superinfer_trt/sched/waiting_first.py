"""`waiting-first`: vLLM V0 with swap, new prompts before everything else.

Running decodes are swapped out from the tail, newest stay first, until the new prompts that one step
can start fit; swapped requests come back, oldest first, only when nobody waits (or none of them may be
admitted) and nobody left in this turn. Good TTFT, poor TBT: the other end of the scale from
`swapped-first`.

A prompt and a swap-in leave a watermark of free blocks, as in V0. Differs from its source in that the
copies are asynchronous, a stay lasts at least one token, and admission keeps the no-deadlock
inequality instead of a look at the swap space.

Source: vLLM V0 `core/scheduler.py` and `core/block_manager.py`; the name is from the paper's Fig. 1.
Knows no slot and no clock. Stateless, any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from superinfer_trt.core.plan import Plan
from superinfer_trt.core.units import Nanos
from superinfer_trt.core.view import Candidate, Order, View
from superinfer_trt.sched.budget import Budget
from superinfer_trt.sched.fcfs import arrival
from superinfer_trt.sched.lag import THOUSAND, fraction, stay_began


@dataclass(frozen=True, slots=True)
class WatermarkParameters:
    """`watermark`: part of HBM that an admission or a swap-in leaves free, 0 <= watermark < 1,
    rounded to thousandths. Raises ConfigError otherwise."""

    watermark: float = 0.01

    def __post_init__(self) -> None:
        fraction("watermark", self.watermark)


def last_token(candidate: Candidate) -> Nanos:
    """Order key of the swapped ones: silent for longest first."""
    return candidate.last_token


class WaitingFirst:
    """The policy; see the module."""

    name = "waiting-first"
    rotates = True
    order = Order(waiting=arrival, rotary=last_token, running=stay_began)

    def __init__(self, parameters: WatermarkParameters | None = None) -> None:
        self.parameters = parameters or WatermarkParameters()
        self._watermark = fraction("watermark", self.parameters.watermark)

    def __call__(self, view: View) -> Plan:
        reserve = self._watermark * view.limits.device_blocks // THOUSAND
        budget = Budget(view)
        if budget.shortage > 0:
            budget.rotate_out(budget.shortage, stint_tokens=0, keep=1, newest=True)
        budget.run()
        if self._admit(budget, reserve) and not budget.moved_out and not budget.starved:
            for candidate in budget.rotary():
                blocks = budget.blocks_back(candidate)
                if not budget.fits(blocks, reserve) or not budget.resumption_open(candidate):
                    break
                budget.resume(candidate)
        return budget.plan()

    def _admit(self, budget: Budget, reserve: int) -> bool:
        """Admits, makes room; returns whether the swapped ones have their turn."""
        owed = 0  # blocks of prompts that must wait for slots
        swapped_next = True
        for candidate in budget.waiting():
            if not budget.admission_open(candidate):
                break
            swapped_next = False
            if budget.tokens <= 0:
                break
            if owed or not budget.fits(candidate.total_blocks, reserve):
                owed += candidate.total_blocks
                budget.await_slots(candidate)
            elif budget.seats > 0:
                budget.admit(candidate)
            else:
                break
        shortfall = owed + reserve - budget.free - budget.coming
        if owed and shortfall > 0:
            budget.rotate_out(shortfall, stint_tokens=1, newest=True)
        return swapped_next
