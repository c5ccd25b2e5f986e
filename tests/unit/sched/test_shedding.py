"""Refusal of what would certainly miss its first token, in numbers made to be checked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from superinfer_trt.core.forecast import StepForecast
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.sched.registry import POLICIES, make_policy
from superinfer_trt.sched.shedding import CERTAIN, Shedding
from unit.sched.views import decode, plan_of, prefill, waiting

# 1 ms a prefill token and nothing else, and as much was seen: 800 us of it are certain.
MS_A_TOKEN = StepForecast(0.0, 0.0, 1e6, 0.0, 100, 1e6)


def refused(plan: Plan) -> list[int]:
    return [rejection.id for rejection in plan.reject]


def crowded(policy: str, *candidates, now: int, forecast: StepForecast = MS_A_TOKEN) -> Plan:
    """HBM of 120 blocks, of which a running request leaves 2: nobody comes in."""
    runner = decode(99, 471, since=0)
    return plan_of(Shedding(make_policy(policy)), runner, *candidates, now=now, device=120, forecast=forecast)


def test_tokens_before_it_count_where_the_order_is_strict() -> None:
    """100 tokens each, 400 ms: 80, 160, .. ms are certain, so five fit and the others do not."""
    line = [waiting(id, 100, since=0, ttft=400) for id in range(8)]
    plan = plan_of(
        Shedding(make_policy("fcfs")), decode(99, 15, since=0), *line, now=1, device=40, forecast=MS_A_TOKEN
    )
    assert refused(plan) == [4, 5, 6, 7]
    assert "ms or more after its TTFT objective" in plan.reject[0].reason


def test_who_was_refused_is_not_before_the_next() -> None:
    line = [
        waiting(0, 100, since=0, ttft=5_000),
        waiting(1, 300, since=1, ttft=300),  # 320 ms are certain, alone 240 would do
        waiting(2, 100, since=2, ttft=400),  # 160 without it
    ]
    assert refused(crowded("fcfs", *line, now=2)) == [1]


def test_prompts_in_prefill_are_before_it_too() -> None:
    late = waiting(0, 200, since=0, ttft=190)
    for first, expected in ((prefill(5, 60, 10, since=0), [0]), (decode(5, 59, since=0), [])):
        plan = plan_of(Shedding(make_policy("fcfs")), first, late, now=0, device=60, forecast=MS_A_TOKEN)
        assert refused(plan) == expected  # 250 * 0.8 ms, or 200 * 0.8
        assert not plan.admit


@pytest.mark.parametrize("policy", ["rota-slack", "rotasched", "swapped-first", "lightllm"])
def test_only_its_own_prompt_counts_where_it_may_overtake(policy: str) -> None:
    line = [waiting(id, 100, since=0, ttft=400) for id in range(8)]
    assert refused(crowded(policy, *line, now=300)) == []
    late = crowded(policy, *line, now=321)
    assert refused(late) == list(range(8))  # 80 ms are certain, 79 are left


def test_nobody_is_refused_before_enough_was_measured() -> None:
    line = [waiting(id, 100, since=0, ttft=400) for id in range(8)]
    unmeasured = replace(MS_A_TOKEN, fastest_token_ns=0.0)
    assert refused(crowded("fcfs", *line, now=1_000, forecast=unmeasured)) == []


def test_the_faster_of_line_and_fastest_step_is_believed() -> None:
    assert replace(MS_A_TOKEN, base_ns=5e6).prefill_ns_least(10) == 10 * MILLISECOND
    assert replace(MS_A_TOKEN, fastest_token_ns=3e6).prefill_ns_least(10) == 10 * MILLISECOND
    assert StepForecast().prefill_ns_least(10) == 0


def test_the_long_walk_says_what_the_forecast_says() -> None:
    """The spelled-out line and fastest step, at the edge of each, against the formula itself."""
    for forecast in (
        MS_A_TOKEN,
        StepForecast(7e6, 0.0, 0.9e6, 0.0, 9, 1.3e6),
        StepForecast(0, 0, 2e6, 0, 9, 0.7e6),
    ):
        for tokens in (20, 100, 333):
            certain = int(forecast.prefill_ns_least(tokens) * CERTAIN)
            for left in (certain - MILLISECOND, certain - 1, certain, certain + MILLISECOND):
                asks = Slo(ttft=certain + 2 * MILLISECOND)
                one = replace(waiting(0, tokens, since=0), slo=asks, arrival=left - asks.ttft)
                assert refused(crowded("rota-slack", one, now=0, forecast=forecast)) == [0] * (left < certain)


def test_who_could_never_make_it_is_served_late() -> None:
    """An objective is no deadline: on an idle machine too it would be missed."""
    hopeless = waiting(0, 100, since=0, ttft=int(100 * CERTAIN) - 1)
    assert refused(crowded("fcfs", hopeless, now=10)) == []
    assert refused(crowded("fcfs", waiting(0, 100, since=0, ttft=81), now=10)) == [0]


def test_who_has_made_a_token_is_never_refused() -> None:
    evicted = replace(waiting(0, 100, since=0, ttft=200), first_token=5, produced_tokens=3)
    assert refused(crowded("fcfs", evicted, now=10_000)) == []


def test_who_is_admitted_in_this_turn_is_not_refused() -> None:
    plan = plan_of(
        Shedding(make_policy("fcfs")),
        waiting(0, 20, since=0, ttft=100),
        now=99,
        device=40,
        forecast=MS_A_TOKEN,
    )
    assert (list(plan.admit), refused(plan)) == ([0], [])


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_it_is_the_policy_otherwise(policy: str) -> None:
    """The same plan but for refusals, and the same again for the same view (C10)."""
    inner = make_policy(policy)
    line = [waiting(id, 12 + id, since=10 * id, ttft=1_000) for id in range(5)]
    world = [decode(99, 15, since=0), prefill(98, 12, 4, since=0), *line]
    assert Shedding(inner).name == policy
    assert Shedding(inner).order is inner.order
    bare = plan_of(inner, *world, now=60, device=12, forecast=MS_A_TOKEN)
    assert plan_of(Shedding(inner), *world, now=60, device=12, forecast=MS_A_TOKEN) == bare
