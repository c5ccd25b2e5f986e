"""`sarathi`: Sarathi-Serve's stall-free batching.

A step carries a fixed number of tokens: all decodes, one each, then pieces of prompts already begun, then
new prompts, first come, first served, each cut to what is left of `chunk_tokens`. The cap bounds the time
of a step and so every gap. A new prompt must find room for all of it. A decode that finds no block evicts
the newest running request, whose KV is computed again; in such a turn nobody is admitted.

Differs from its source in that the share of a step does not shrink along a long prompt (an option there).

Source: Sarathi-Serve, OSDI 2024, and its scheduler. Knows no slot and no clock. Stateless, any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from superinfer_trt.core.plan import Plan
from superinfer_trt.core.view import Order, View
from superinfer_trt.sched.budget import Budget
from superinfer_trt.sched.fcfs import arrival, first_come_first_served
from superinfer_trt.sched.lag import whole


@dataclass(frozen=True, slots=True)
class SarathiParameters:
    """`chunk_tokens`: tokens of a step, prefill and decode together, >= 1; more decodes than that all run
    and leave no room for prefill. Raises ConfigError otherwise."""

    chunk_tokens: int = 512

    def __post_init__(self) -> None:
        whole("chunk_tokens", self.chunk_tokens, 1)


class Sarathi:
    """The policy; see the module."""

    name = "sarathi"
    rotates = False
    order = Order(waiting=arrival, rotary=arrival, running=arrival, strict=True)

    def __init__(self, parameters: SarathiParameters | None = None) -> None:
        self.parameters = parameters or SarathiParameters()

    def __call__(self, view: View) -> Plan:
        budget = Budget(view)
        budget.cap_tokens(max(self.parameters.chunk_tokens, budget.decoding))
        return first_come_first_served(budget)
