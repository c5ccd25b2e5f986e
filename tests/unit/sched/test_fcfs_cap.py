"""`fcfs-async`, `fcfs-cap` and `sarathi`: the decisions of `fcfs`, and a bound on what a step carries."""

from __future__ import annotations

from dataclasses import replace

from superinfer_trt.core.forecast import StepForecast
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.sched.registry import make_policy
from unit.sched.views import decode, line, plan_of, prefill, waiting

# 10 ms a step, 5 a row, 2 a prefill token, 1 a context token.
FORECAST = StepForecast(10e6, 5e6, 2e6, 1e6)
BEGUN = (decode(1, 6, since=0), prefill(2, 40, 4, since=1), waiting(3, 20, since=2))


def test_fcfs_async_decides_as_fcfs() -> None:
    for device in (13, 17, 18, 40):
        plans = [
            plan_of(make_policy(name), *BEGUN, now=10, device=device, host=0)
            for name in ("fcfs", "fcfs-async")
        ]
        assert plans[0] == plans[1]


def test_the_cap_is_the_tightest_objective_of_those_that_run() -> None:
    policy = make_policy("fcfs-cap", prefill_tokens_min=1)
    # 85 - 10 - 5 - 6 = 64 ms: 32 tokens, all for the prompt that was begun.
    plan = plan_of(policy, *BEGUN, now=10, device=40, host=0, forecast=FORECAST)
    assert line(plan) == "prefill=2:4+32 decode=1"
    # 50 ms for request 2: 42.5 - 21 = 21.5 ms, 10 tokens.
    tight = replace(BEGUN[1], slo=Slo(tbt=50 * MILLISECOND))
    plan = plan_of(policy, BEGUN[0], tight, BEGUN[2], now=10, device=40, host=0, forecast=FORECAST)
    assert line(plan) == "prefill=2:4+10 decode=1"


def test_the_cap_has_a_floor_and_needs_a_decode() -> None:
    policy = make_policy("fcfs-cap", prefill_tokens_min=38, step_share=0.1)
    plan = plan_of(policy, *BEGUN, now=10, device=40, host=0, forecast=FORECAST)
    assert line(plan) == "admit=3 prefill=2:4+36,3:0+2 decode=1"
    plan = plan_of(policy, *BEGUN[1:], now=10, device=40, host=0, forecast=FORECAST)
    assert line(plan) == "admit=3 prefill=2:4+36,3:0+20"


def test_sarathi_fills_a_chunk_decodes_first() -> None:
    policy = make_policy("sarathi", chunk_tokens=40)
    # 1 decode, 36 tokens of the prompt that was begun, 3 of the new one.
    plan = plan_of(policy, *BEGUN, now=10, device=40, host=0)
    assert line(plan) == "admit=3 prefill=2:4+36,3:0+3 decode=1"
    # The new one needs room for all of it: 5 blocks.
    plan = plan_of(policy, *BEGUN, now=10, device=16, host=0)
    assert line(plan) == "prefill=2:4+36 decode=1"


def test_sarathi_stalls_no_decode() -> None:
    policy = make_policy("sarathi", chunk_tokens=1)
    inside = (decode(1, 6, since=0), decode(2, 6, since=0), prefill(3, 8, 4, since=1))
    assert line(plan_of(policy, *inside, now=10, device=40, host=0)) == "decode=1,2"


def test_sarathi_evicts_the_newest() -> None:
    inside = (decode(1, 8, since=0, came=0), decode(2, 8, since=1, came=1))
    plan = plan_of(make_policy("sarathi"), *inside, waiting(3, 1, since=5), now=10, device=4, host=0)
    assert line(plan) == "evict=2"
