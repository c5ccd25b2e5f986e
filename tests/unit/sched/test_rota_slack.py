"""`rota-slack` by hand. Blocks of 4 tokens, times in ms; S_F 5,000 and S_B 100 unless said."""

from __future__ import annotations

from dataclasses import replace

from superinfer_trt.core.forecast import StepForecast
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.core.view import CandidateValue
from superinfer_trt.sched.registry import make_policy
from unit.sched.views import decode, line, plan_of, rotary, waiting

FREE = StepForecast(0.0, 0.0, 1.0, 0.0)  # a step that takes no time: no cap
PLAIN = make_policy(
    "rota-slack", min_stint_tokens=1, late_share=0, length_weight_ms=0, eager_sync=False, transfer_blocks=50
)


def stream(id: int, tokens: int, *, made: int, first: int, came: int = 0, stint: int = 9) -> CandidateValue:
    """A decoding request of `tokens` KV tokens that made `made` of its output since `first`: its reader
    has read all at first + 100 (made - 1)."""
    held = decode(id, tokens, since=first, stint=stint, came=came, left=8)
    return replace(held, first_token=first * MILLISECOND, produced_tokens=made)


def away(id: int, tokens: int, *, made: int, first: int, came: int = 0) -> CandidateValue:
    """The same in DRAM."""
    parked = rotary(id, tokens, silent_since=first, left=8)
    return replace(parked, arrival=came * MILLISECOND, first_token=first * MILLISECOND, produced_tokens=made)


def test_a_step_carries_what_the_tightest_objective_allows() -> None:
    # 85 ms less 10 and a row of 5: 70 ms, 2 ms a token: 35 prefill tokens.
    forecast = StepForecast(10e6, 5e6, 2e6, 0.0)
    asked = (stream(1, 6, made=3, first=0), waiting(2, 60, since=100))
    least = make_policy("rota-slack", prefill_tokens_min=3, eager_sync=False)
    plan = plan_of(least, *asked, now=200, device=40, forecast=forecast)
    assert line(plan) == "admit=2 prefill=2:0+35 decode=1"
    # Half the objective, less the context of 6 tokens that the row reads: 20.5 ms.
    tight = replace(asked[0], slo=Slo(tbt=50 * MILLISECOND))
    slow = StepForecast(10e6, 5e6, 2e6, 1e6)
    plan = plan_of(PLAIN, tight, asked[1], now=200, device=40, forecast=slow)
    assert line(plan) == "admit=2 prefill=2:0+60 decode=1", "never fewer than prefill_tokens_min, 64"
    plan = plan_of(least, tight, asked[1], now=200, device=40, forecast=slow)
    assert line(plan) == "admit=2 prefill=2:0+10 decode=1"


def test_without_a_stream_in_it_a_step_is_as_long_as_it_likes() -> None:
    plan = plan_of(PLAIN, waiting(1, 60, since=0), now=10, device=40, forecast=StepForecast(1e9))
    assert line(plan) == "admit=1 prefill=1:0+60"


def test_the_most_ahead_leave_for_a_prompt_that_has_waited() -> None:
    # Now 4,000. Request 1 is due at 8,900 (4.9 s ahead), 2 at 7,900, 3 at 6,900 (2.9 s: stays).
    inside = (
        stream(1, 6, made=50, first=4_000),
        stream(2, 6, made=40, first=4_000),
        stream(3, 6, made=30, first=4_000),
    )
    asked = waiting(4, 8, since=2_000)
    assert line(plan_of(PLAIN, *inside, asked, now=4_000, device=7, forecast=FREE)) == "decode=2,3 out=1"
    larger = waiting(4, 16, since=2_000)
    assert line(plan_of(PLAIN, *inside, larger, now=4_000, device=7, forecast=FREE)) == "decode=3 out=1,2"
    # Two blocks of the two ahead and one free are 5; 6 are too many, so nobody leaves.
    largest = waiting(4, 24, since=2_000)
    assert line(plan_of(PLAIN, *inside, largest, now=4_000, device=7, forecast=FREE)) == "decode=1,2,3"
    # Before 40 % of its objective has passed nobody leaves for it.
    fresh = waiting(4, 8, since=2_001)
    assert line(plan_of(PLAIN, *inside, fresh, now=4_000, device=7, forecast=FREE)) == "decode=1,2,3"


def test_a_stay_has_a_minimum() -> None:
    policy = make_policy("rota-slack", min_stint_tokens=4, eager_sync=False, transfer_blocks=50)
    asked = waiting(4, 8, since=2_000)
    for stint, expected in ((3, "decode=1"), (4, "out=1")):
        inside = stream(1, 6, made=50, first=4_000, stint=stint)
        assert line(plan_of(policy, inside, asked, now=4_000, device=3, forecast=FREE)) == expected


def test_who_is_away_comes_back_when_the_buffer_is_nearly_used() -> None:
    # Due at 4,400: 0.4 s from now. The resident is 4.9 s ahead and leaves for it.
    inside = stream(1, 6, made=50, first=4_000)
    soon = away(2, 6, made=45, first=0)
    assert line(plan_of(PLAIN, inside, soon, now=4_000, device=3, forecast=FREE)) == "out=1"
    # 0.6 s: not yet.
    later = away(2, 6, made=47, first=0)
    assert line(plan_of(PLAIN, inside, later, now=4_000, device=3, forecast=FREE)) == "decode=1"
    # Where there is room it comes at once, the sooner due first.
    both = (away(3, 6, made=80, first=0), away(2, 6, made=70, first=0))
    assert line(plan_of(PLAIN, inside, *both, now=4_000, device=30, forecast=FREE)) == "decode=1 in=2,3"


def test_a_lost_stream_is_the_first_victim_and_comes_back_last() -> None:
    # Request 1 is 1.1 s late, request 2 is 4.9 s ahead. Even a fresh prompt takes the late one's room.
    late, ahead = stream(1, 6, made=30, first=0), stream(2, 6, made=50, first=4_000)
    asked = waiting(3, 8, since=4_000)
    assert line(plan_of(PLAIN, late, ahead, asked, now=4_000, device=5, forecast=FREE)) == "decode=2 out=1"
    # Away: the live one that has 3 s left is brought back before the late one.
    outside = (away(1, 6, made=30, first=0), away(2, 6, made=71, first=0))
    assert line(plan_of(PLAIN, *outside, now=4_000, device=2, forecast=FREE)) == "in=2"


def test_a_first_token_out_of_time_is_lost_as_well() -> None:
    # First token after 5.2 s: late for good, though the stream is far ahead.
    late = stream(1, 6, made=50, first=5_200, came=0)
    asked = waiting(3, 8, since=5_000)
    assert line(plan_of(PLAIN, late, asked, now=5_300, device=3, forecast=FREE)) == "out=1"
    # Waiting since 0: its first token cannot come before 5,000 any more. The other is served first.
    old, new = waiting(1, 8, since=0, limit=1), waiting(2, 8, since=4_000, limit=1)
    assert line(plan_of(PLAIN, old, new, now=4_899, device=2, forecast=FREE)) == "admit=1 prefill=1:0+8"
    assert line(plan_of(PLAIN, old, new, now=4_900, device=2, forecast=FREE)) == "admit=2 prefill=2:0+8"


def test_the_late_have_a_right_to_some_hbm() -> None:
    policy = make_policy(
        "rota-slack", late_share=0.5, min_stint_tokens=1, eager_sync=False, transfer_blocks=50
    )
    old, new = waiting(1, 8, since=0, limit=1), waiting(2, 8, since=4_000, limit=1)
    plan = plan_of(policy, old, new, now=5_000, device=4, forecast=FREE)
    assert line(plan) == "admit=1,2 prefill=1:0+8,2:0+8"
    plan = plan_of(policy, old, new, now=5_000, device=2, forecast=FREE)
    assert line(plan) == "admit=1 prefill=1:0+8"
    # Of two late residents the older one stays, that is its right to half of 4 blocks.
    inside = (stream(1, 6, made=2, first=0), stream(2, 6, made=2, first=10, came=1))
    asked = waiting(3, 8, since=5_000)
    assert line(plan_of(policy, *inside, asked, now=5_000, device=4, forecast=FREE)) == "decode=1 out=2"


def test_of_the_late_who_has_begun_goes_first_but_age_counts() -> None:
    # The one in DRAM counts as 2 s older than it is.
    policy = make_policy(
        "rota-slack", late_share=0.5, begun_lead_s=2, min_stint_tokens=1, eager_sync=False, transfer_blocks=50
    )
    asked = waiting(2, 8, since=0, limit=1)
    for came, expected in ((1_999, "in=1"), (2_001, "admit=2 prefill=2:0+8")):
        outside = (away(1, 6, made=2, first=2_100, came=came), asked)
        assert line(plan_of(policy, *outside, now=9_000, device=2, forecast=FREE)) == expected


def test_short_prompts_go_first_but_age_counts() -> None:
    # 20 ms a token: 8 tokens count as 160 ms, 40 as 800.
    policy = make_policy("rota-slack", length_weight_ms=20, eager_sync=False)
    long = waiting(1, 40, since=0)
    for since, expected in ((639, "admit=2 prefill=2:0+8"), (641, "admit=1 prefill=1:0+8")):
        plan = plan_of(
            policy, long, waiting(2, 8, since=since), now=700, device=11, step_tokens=8, forecast=FREE
        )
        assert line(plan) == expected


def test_output_it_may_make_counts_where_told_to() -> None:
    # 20 ms an output token: 10 more count as 200 ms.
    policy = make_policy("rota-slack", length_weight_ms=0, output_weight_ms=20, eager_sync=False)
    long = replace(waiting(1, 8, since=0), remaining_tokens=20)
    for since, expected in ((199, "admit=2 prefill=2:0+8"), (201, "admit=1 prefill=1:0+8")):
        short = replace(waiting(2, 8, since=since), remaining_tokens=10)
        plan = plan_of(policy, long, short, now=700, device=11, step_tokens=8, forecast=FREE)
        assert line(plan) == expected


def test_the_tenant_with_least_for_its_weight_goes_first() -> None:
    policy = make_policy("rota-slack", weights={"big": 2.0}, eager_sync=False)
    inside = (
        replace(stream(1, 12, made=2, first=0), tenant="big"),
        replace(stream(2, 8, made=2, first=0), tenant="small"),
    )
    asked = [
        replace(waiting(3, 4, since=1), tenant="small"),
        replace(waiting(4, 4, since=2), tenant="big"),
        replace(waiting(5, 4, since=3), tenant="small"),
        replace(waiting(6, 4, since=4), tenant="third"),
    ]
    # Held for their weight: big 1.5, small 2, third 0. Then third 1, big 2 (4 / 2), small 2.
    plan = plan_of(policy, *inside, *asked, now=150, device=30, forecast=FREE)
    assert plan.admit == (6, 4, 3, 5)
    # Five seats: one of small's two has to wait.
    plan = plan_of(policy, *inside, *asked, now=150, device=30, seats=5, forecast=FREE)
    assert plan.admit == (6, 4, 3)


def test_somebody_who_does_not_fit_is_waited_for() -> None:
    inside = stream(1, 6, made=3, first=0)
    large, small = waiting(2, 16, since=0), waiting(3, 4, since=1)
    assert line(plan_of(PLAIN, inside, large, small, now=210, device=5, forecast=FREE)) == "decode=1"


def test_growth_takes_the_block_of_the_most_ahead() -> None:
    inside = (stream(1, 8, made=9, first=0), stream(2, 8, made=3, first=0), stream(3, 7, made=5, first=0))
    assert line(plan_of(PLAIN, *inside, now=100, device=6, forecast=FREE)) == "decode=3 out=1"


def test_full_blocks_are_copied_ahead_of_need() -> None:
    policy = make_policy("rota-slack")
    plan = plan_of(policy, stream(1, 9, made=3, first=0), now=100, device=9, link=1, forecast=FREE)
    assert line(plan) == "decode=1 sync=1:0+1"
