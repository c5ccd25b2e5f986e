"""`fcfs-cap`: `fcfs` with a bound on the time of a step.

As `fcfs`, but a step carries only as many prefill tokens as keep it, by the forecast in the view, under
`step_share` of the tightest TBT objective among those that run. Shows how much of `rota-slack`'s gain is
the cap alone.

Source: this project, after Sarathi-Serve's idea. Knows no slot and no clock. Stateless, any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.view import Order, View
from superinfer_trt.sched.budget import Budget
from superinfer_trt.sched.fcfs import arrival, first_come_first_served
from superinfer_trt.sched.lag import THOUSAND, fraction, whole


@dataclass(frozen=True, slots=True)
class FcfsCapParameters:
    """`step_share`: part of the tightest TBT objective that a step may take, 0 < share < 1.
    `prefill_tokens_min`: prefill tokens that a step may carry even so. Raises ConfigError."""

    step_share: float = 0.85
    prefill_tokens_min: int = 64

    def __post_init__(self) -> None:
        if not fraction("step_share", self.step_share):
            raise ConfigError(f"step_share: {self.step_share!r} is not more than 0")
        whole("prefill_tokens_min", self.prefill_tokens_min, 1)


class FcfsCap:
    """The policy; see the module."""

    name = "fcfs-cap"
    rotates = False
    order = Order(waiting=arrival, rotary=arrival, running=arrival, strict=True)

    def __init__(self, parameters: FcfsCapParameters | None = None) -> None:
        self.parameters = parameters or FcfsCapParameters()
        self._step_share = fraction("step_share", self.parameters.step_share)

    def __call__(self, view: View) -> Plan:
        budget = Budget(view)
        decoding = [c for c in view.running if c.phase is Phase.DECODE]
        if decoding:
            within = min(c.slo.tbt for c in view.running) * self._step_share // THOUSAND
            context_tokens = sum(c.computed_tokens for c in decoding)
            allowed = view.forecast.prefill_tokens(within, len(decoding), context_tokens)
            budget.cap_tokens(budget.decoding + max(allowed, self.parameters.prefill_tokens_min))
        return first_come_first_served(budget)
