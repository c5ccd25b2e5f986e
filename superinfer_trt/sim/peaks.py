"""What a run needed at most: host slots, what admission asks of DRAM, rows and tokens of a batch.

Seen through the policy's own eyes: a wrapper that looks at every view and every plan, and changes neither.
Knows no clock, ledger or engine. One thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import Policy
from superinfer_trt.core.view import View


@dataclass(slots=True)
class Peaks:
    """The largest of each, over all turns so far."""

    dram_blocks: int = 0  # host slots in use, those left out that only back resident blocks
    dram_blocks_promised: int = 0  # a smaller DRAM pool would have closed the door (View.admission_fits)
    seats: int = 0  # rows of a batch
    step_tokens: int = 0  # tokens of a batch

    def note(self, view: View, plan: Plan) -> None:
        """One turn."""
        limits = view.limits
        held = limits.host_blocks - view.host_free - view.host_backing
        beyond_hbm = 0
        if view.promised_blocks > limits.device_blocks:
            beyond_hbm = view.promised_blocks + view.promised_blocks_max - limits.device_blocks
        decodes = len(plan.decode)
        self.dram_blocks = max(self.dram_blocks, held)
        self.dram_blocks_promised = max(self.dram_blocks_promised, beyond_hbm)
        self.seats = max(self.seats, decodes + len(plan.prefill))
        self.step_tokens = max(self.step_tokens, decodes + sum(chunk.length for chunk in plan.prefill))


class WatchedPolicy:
    """A policy whose turns are noted in `peaks`; it decides as it always did."""

    def __init__(self, policy: Policy, peaks: Peaks) -> None:
        self._policy = policy
        self._note = peaks.note
        self.name = policy.name
        self.order = policy.order

    def __call__(self, view: View) -> Plan:
        """The policy's plan."""
        plan = self._policy(view)
        self._note(view, plan)
        return plan
