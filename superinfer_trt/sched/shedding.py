"""Any policy, and refusal of waiting requests that would certainly miss their TTFT objective.

A client that is refused early can go elsewhere, and no step is spent on what comes too late. Certainly:
the first token of a waiting request cannot come before

    now + prefill of (tokens before it + its own), at least

and that is after arrival + S_F. Tokens before it are counted where the policy's order is strict
(`Order.strict`): the prompts of those that wait before it, and what is left of prompts in prefill. Under a
policy that may let it overtake only its own count. What a prefill takes at least is measured
(`StepForecast.prefill_ns_least`: the less of the fitted line and of the fastest step so far), and only
`CERTAIN` of it is believed; before enough was measured nobody is refused.

Never refused: who could not make it on an idle machine either (an objective is no deadline, and trying
again would not help), who has made a token already, who is admitted in this turn. Those before a request
may still be cancelled: so much is not certain.

A pure function (C10), O(waiting + running) a turn on top of the policy's own. Stateless, any thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Plan, Rejection
from superinfer_trt.core.ports import Policy
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.core.view import Order, View

CERTAIN = 0.8
"""Part of the least time that is believed: a machine may become so much faster than it ever was."""


class Shedding:
    """core.ports.Policy around `policy`; see the module."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def name(self) -> str:
        """The policy's own."""
        return self._policy.name

    @property
    def order(self) -> Order:
        """The policy's own."""
        return self._policy.order

    def __call__(self, view: View) -> Plan:
        plan = self._policy(view)
        if not view.waiting or not view.forecast.fastest_token_ns:
            return plan
        named = {*plan.admit, *(rejection.id for rejection in plan.reject)}
        refused = tuple(one for one in _hopeless(view, self.order) if one.id not in named)
        return replace(plan, reject=plan.reject + refused) if refused else plan


def _hopeless(view: View, order: Order) -> Iterator[Rejection]:
    """In the policy's order; who is refused is not before anybody any more."""
    least = view.forecast.prefill_ns_least
    before = 0
    if order.strict:
        prefilling = (c for c in view.running if c.phase is Phase.PREFILL)
        before = sum(c.target_tokens - c.computed_tokens for c in prefilling)
    strict, now, forecast = order.strict, view.now, view.forecast
    # prefill_ns_least, spelled out for the long walk
    base, token, fastest = (
        CERTAIN * part for part in (forecast.base_ns, forecast.token_ns, forecast.fastest_token_ns)
    )
    for candidate in view.waiting:
        own, ttft = candidate.target_tokens, candidate.slo.ttft
        tokens, left = before + own, candidate.arrival + ttft - now
        if fastest * tokens > left and base + token * tokens > left and candidate.first_token < 0:
            late = int(least(tokens) * CERTAIN) - left
            if late > 0 and least(own) * CERTAIN <= ttft:
                late = late // MILLISECOND + 1
                yield Rejection(
                    candidate.id,
                    f"overloaded: its first token would come {late} ms or more after its TTFT objective",
                )
                continue
        if strict:
            before += own
