"""`swapped-first`: vLLM V0's default with swap, swapped requests before new ones.

A running request is swapped out only when a decode finds no block: newest stay first, never the last
one. Swapped requests come back oldest first, unless somebody left in this turn; new prompts are
admitted only when nothing is swapped. Good TBT, poor TTFT: close to `fcfs`.

A prompt and a swap-in leave a watermark of free blocks, as in V0. Differs from its source in that the
copies are asynchronous, and admission keeps the no-deadlock inequality.

Source: vLLM V0 `core/scheduler.py` and `core/block_manager.py`; the name is from the paper's Fig. 1.
Knows no slot and no clock. Stateless, any thread.
"""

from __future__ import annotations

from superinfer_trt.core.plan import Plan
from superinfer_trt.core.view import Order, View
from superinfer_trt.sched.budget import Budget
from superinfer_trt.sched.fcfs import arrival
from superinfer_trt.sched.lag import THOUSAND, fraction, stay_began
from superinfer_trt.sched.waiting_first import WatermarkParameters, last_token


class SwappedFirst:
    """The policy; see the module."""

    name = "swapped-first"
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
        if budget.moved_out or budget.starved:
            return budget.plan()
        for candidate in budget.rotary():
            blocks = budget.blocks_back(candidate)
            if not budget.fits(blocks, reserve) or not budget.resumption_open(candidate):
                break
            budget.resume(candidate)
        if not view.rotary and not view.device_leaving:
            for candidate in budget.waiting():
                if not budget.may_admit(candidate) or not budget.fits(candidate.total_blocks, reserve):
                    break
                budget.admit(candidate)
        return budget.plan()
