"""`ltr` by hand: shortest predicted output first. Blocks of 4 tokens, an oracle unless said."""

from __future__ import annotations

from dataclasses import replace

from superinfer_trt.core.units import RequestId
from superinfer_trt.core.view import CandidateValue
from superinfer_trt.sched.registry import make_policy
from unit.sched.views import decode, line, plan_of, prefill, rotary, waiting

POLICY = make_policy("ltr", noise=0, watermark=0)


def of(output: int, candidate: CandidateValue) -> CandidateValue:
    """The same request, with `output` tokens in all."""
    return replace(candidate, remaining_tokens=output - candidate.produced_tokens)


def test_everybody_runs_while_there_is_room_shortest_first() -> None:
    asked = (
        of(50, decode(1, 6, since=0)),
        of(20, decode(2, 6, since=0)),
        of(40, rotary(3, 3, silent_since=0)),
        of(30, rotary(4, 3, silent_since=5)),
        of(10, waiting(5, 8, since=9)),
        of(60, waiting(6, 8, since=1)),
    )
    plan = plan_of(POLICY, *asked, now=10, device=30)
    assert line(plan) == "admit=5,6 prefill=5:0+8,6:0+8 decode=2,1 in=4,3"


def test_a_short_newcomer_swaps_the_longest_out() -> None:
    # 1 free and 2 wanted. The tail of the order, request 1, is let go and leaves.
    asked = (
        of(50, decode(1, 6, since=0, stint=3)),
        of(20, decode(2, 6, since=0, stint=3)),
        of(10, waiting(3, 8, since=9)),
    )
    assert line(plan_of(POLICY, *asked, now=10, device=5)) == "decode=2 out=1"
    # A long newcomer swaps nobody.
    long = of(90, asked[2])
    assert line(plan_of(POLICY, asked[0], asked[1], long, now=10, device=5)) == "decode=2,1"


def test_those_that_tokens_leave_out_go_before_the_pinned() -> None:
    # 9 tokens: requests 3 (8) and 2 (1) are pinned, 1 is not.
    asked = (
        of(50, decode(1, 6, since=0, stint=3)),
        of(20, decode(2, 6, since=0, stint=3)),
        of(10, waiting(3, 8, since=9)),
    )
    plan = plan_of(POLICY, *asked, now=10, device=5, step_tokens=9)
    assert line(plan) == "decode=2 out=1"


def test_slots_on_their_way_are_for_the_one_they_were_made_for() -> None:
    # Two blocks are leaving, for 3. Request 4, of lower rank, would fit the free one and must not take it.
    asked = (
        of(20, decode(2, 6, since=0, stint=3)),
        of(10, waiting(3, 12, since=9)),
        of(70, waiting(4, 4, since=1)),
    )
    assert line(plan_of(POLICY, *asked, now=10, device=5, leaving=2)) == "decode=2"


def test_the_watermark_stays_free() -> None:
    policy = make_policy("ltr", noise=0, watermark=0.25)
    asked = (of(20, decode(2, 6, since=0, stint=3)), of(30, waiting(3, 8, since=9)))
    assert line(plan_of(policy, *asked, now=10, device=4)) == "decode=2"
    assert line(plan_of(policy, *asked, now=10, device=5)) == "admit=3 prefill=3:0+8 decode=2"


def test_prefill_and_who_has_just_come_stay() -> None:
    asked = (
        of(90, prefill(1, 8, 4, since=0)),
        of(50, decode(2, 6, since=0, stint=0)),
        of(10, waiting(3, 8, since=9)),
    )
    assert line(plan_of(POLICY, *asked, now=10, device=4)) == "prefill=1:4+4 decode=2"


def test_the_error_is_fixed_by_seed_and_request() -> None:
    candidates = [replace(waiting(id, 4, since=0), remaining_tokens=100) for id in range(1, 300)]
    scores = [[make_policy("ltr", seed=seed).score(c) for c in candidates] for seed in (1, 1, 2)]
    assert scores[0] == scores[1] != scores[2]
    one = replace(candidates[0], produced_tokens=40, remaining_tokens=60)
    assert make_policy("ltr", seed=1).score(one) == scores[0][0], "a score does not move as tokens come"
    mean = sum(scores[0]) / len(scores[0])
    deviation = (sum((s - mean) ** 2 for s in scores[0]) / len(scores[0])) ** 0.5
    assert 0.8e6 < deviation < 1.0e6
    assert candidates[0].id == RequestId(1)
