"""`artifact` by hand: a round robin by waiting time. Blocks of 4 tokens."""

from __future__ import annotations

from superinfer_trt.sched.registry import make_policy
from unit.sched.views import decode, line, plan_of, rotary, waiting

POLICY = make_policy("artifact", transfer_blocks=5)


def test_with_room_for_all_it_is_first_come_first_served() -> None:
    asked = (
        decode(1, 6, since=0, stint=3),
        rotary(2, 3, silent_since=4),
        waiting(3, 4, since=3),
        rotary(4, 3, silent_since=2),
    )
    plan = plan_of(POLICY, *asked, now=10, device=20)
    assert line(plan) == "admit=3 prefill=3:0+4 decode=1 in=4,2 sync=1:0+1"


def test_longest_stays_leave_while_their_sum_is_below_the_budget() -> None:
    # 0 free and 2 wanted: 1 and 2 leave (2 + 2 < 5); with 3 it would be 6.
    inside = [decode(id, 6, since=id, stint=3) for id in (1, 2, 3)]
    plan = plan_of(POLICY, *inside, waiting(4, 8, since=5), now=10, device=6)
    assert line(plan) == "decode=3 out=1,2 sync=3:0+1"
    # With 4 blocks on their way less than 5 are free, so two more leave; with 5 nobody does.
    plan = plan_of(POLICY, *inside, waiting(4, 24, since=5), now=10, device=10, leaving=4)
    assert line(plan) == "decode=3 out=1,2 sync=3:0+1"
    plan = plan_of(POLICY, *inside, waiting(4, 28, since=5), now=10, device=11, leaving=5)
    assert line(plan) == "decode=1,2,3 sync=1:0+1,2:0+1,3:0+1"


def test_the_first_that_does_not_fit_ends_it() -> None:
    inside = decode(1, 6, since=0, stint=0)  # has just come: it stays
    asked = (rotary(2, 11, silent_since=1), waiting(3, 4, since=2))
    assert line(plan_of(POLICY, inside, *asked, now=10, device=4)) == "decode=1 sync=1:0+1"
    asked = (rotary(2, 11, silent_since=3), waiting(3, 4, since=2))
    plan = plan_of(POLICY, inside, *asked, now=10, device=4)
    assert line(plan) == "admit=3 prefill=3:0+4 decode=1 sync=1:0+1"


def test_a_full_dram_takes_nobody() -> None:
    inside = decode(1, 6, since=0, stint=3)
    asked = (rotary(2, 39, silent_since=3), waiting(3, 4, since=2))
    # 10 of 10 host blocks are used, beyond 95 and 90 %: nobody leaves, no prompt comes.
    plan = plan_of(POLICY, inside, *asked, now=10, device=11, host=10)
    assert line(plan) == "decode=1"
    plan = plan_of(POLICY, inside, *asked, now=10, device=13, host=20)
    assert plan.admit == (3,)


def test_growth_takes_the_newest_stay() -> None:
    inside = (decode(1, 8, since=0, stint=3), decode(2, 6, since=1, stint=3))
    assert line(plan_of(POLICY, *inside, now=10, device=4)) == "out=2 sync=1:0+2"
