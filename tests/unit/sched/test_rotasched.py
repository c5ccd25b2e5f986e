"""Algorithm 1 by hand. Blocks of 4 tokens; alpha 3, beta_F 0.5 x 5 s, beta_B 0 unless said."""

from __future__ import annotations

from collections.abc import Iterator

from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Rejection
from superinfer_trt.core.units import MILLISECOND, RequestId
from superinfer_trt.core.view import CandidateValue, Limits, View
from superinfer_trt.sched.registry import make_policy
from unit.sched.views import decode, line, plan_of, prefill, rotary, waiting

ROTA = make_policy("rotasched", min_stint_tokens=1, transfer_blocks=100, eager_sync=False)


def test_room_for_all_is_first_come_first_served() -> None:
    # 20 - 2 = 18 free; rotary wants 2, the two prompts 2 and 1: nobody leaves.
    plan = plan_of(
        ROTA,
        decode(1, 6, since=0),
        rotary(2, 7, silent_since=5),
        waiting(3, 8, since=10),
        waiting(4, 4, since=11),
        now=20,
        device=20,
    )
    assert line(plan) == "admit=3,4 prefill=3:0+8,4:0+4 decode=1 in=2"


def test_largest_lag_goes_first() -> None:
    # 2 free. Rotary lag 3 x 400 = 1,200; waiting 3,700 - 0 - 2,500 = 1,200: a tie, rotary first. Then the
    # prompt has to wait for slots, and the longest stay (request 1, since 100) leaves for it.
    candidates = (
        decode(1, 8, since=100, left=4, stint=3),
        decode(2, 6, since=200, left=4, stint=3),
        rotary(3, 7, silent_since=3_300),
        waiting(4, 8, since=0),
    )
    assert line(plan_of(ROTA, *candidates, now=3_700, device=7)) == "decode=2 out=1 in=3"


def test_a_later_rotary_lags_less_than_an_old_prompt() -> None:
    # Rotary 3 x 300 = 900 < 1,200: the prompt goes now, the rotary one waits for the victim's slots.
    candidates = (
        decode(1, 6, since=100, stint=3),
        decode(2, 6, since=200, stint=3),
        rotary(3, 7, silent_since=3_400),
        waiting(4, 8, since=0),
    )
    assert line(plan_of(ROTA, *candidates, now=3_700, device=6)) == "admit=4 prefill=4:0+8 decode=2 out=1"


def test_nobody_of_less_lag_takes_the_slots_of_one_who_waits() -> None:
    # 1 free: the rotary one wants 2 (more lag), the small prompt would fit and must not go.
    candidates = (
        decode(1, 6, since=100, stint=3),
        rotary(2, 7, silent_since=100),
        waiting(3, 4, since=3_000),
    )
    plan = plan_of(ROTA, *candidates, now=3_700, device=3, link=2)
    assert line(plan) == "out=1"


def test_slots_on_their_way_are_not_paid_twice() -> None:
    candidates = (decode(1, 6, since=100, stint=3), rotary(2, 7, silent_since=100))
    plan = plan_of(ROTA, *candidates, now=3_700, device=4, leaving=2)
    assert line(plan) == "decode=1"


def test_an_ending_request_counts_as_leaving() -> None:
    # Request 1 has its last token in the air: its 2 blocks will do, request 2 stays.
    candidates = (
        decode(1, 6, since=0, left=0, stint=9),
        decode(2, 6, since=100, stint=3),
        rotary(3, 7, silent_since=100),
    )
    assert line(plan_of(ROTA, *candidates, now=3_700, device=4)) == "decode=2"


def test_transfer_blocks_bound_who_is_taken() -> None:
    # 0 free and B_xfer 2: only the first rotary one is taken, so one victim of 2 blocks is enough.
    policy = make_policy("rotasched", min_stint_tokens=1, transfer_blocks=2, eager_sync=False)
    candidates = (
        decode(1, 6, since=100, stint=3),
        decode(2, 6, since=200, stint=3),
        rotary(3, 7, silent_since=100),
        rotary(4, 7, silent_since=200),
    )
    assert line(plan_of(policy, *candidates, now=3_700, device=4)) == "decode=2 out=1"
    assert line(plan_of(ROTA, *candidates, now=3_700, device=4)) == "out=1,2"


def test_auto_is_what_the_links_hide_and_a_part_of_hbm() -> None:
    # 40 blocks: 15 % are 6, of the three rotary ones of 3 blocks two are taken, each for one victim.
    auto = make_policy("rotasched", min_stint_tokens=1, eager_sync=False)
    candidates = (
        *(decode(id, 31, since=100 + id, stint=3) for id in range(1, 6)),
        *(rotary(id, 11, silent_since=100) for id in (7, 8, 9)),
    )
    assert line(plan_of(auto, *candidates, now=3_700, device=40)) == "decode=2,3,4,5 out=1"
    literal = line(plan_of(ROTA, *candidates, now=3_700, device=40))
    assert literal == "decode=3,4,5 out=1,2"
    # A link with an allowance of 2 blocks takes only the most urgent one. Nobody is larger than it here.
    small = (decode(1, 3, since=100, stint=3), decode(2, 3, since=101, stint=3))
    candidates = (*small, *(rotary(id, 3, silent_since=100) for id in (7, 8)))
    assert line(plan_of(ROTA, *candidates, now=3_700, device=2)) == "out=1,2"
    assert line(plan_of(auto, *candidates, now=3_700, device=2, link_in=1)) == "decode=2 out=1"


def test_the_most_urgent_may_exceed_transfer_blocks_alone() -> None:
    policy = make_policy("rotasched", min_stint_tokens=1, transfer_blocks=1, eager_sync=False)
    candidates = (
        decode(1, 6, since=100, stint=3),
        decode(2, 6, since=200, stint=3),
        rotary(3, 15, silent_since=100),
        rotary(4, 3, silent_since=200),
    )
    assert line(plan_of(policy, *candidates, now=3_700, device=4)) == "out=1,2"


def test_a_stay_lasts_a_token() -> None:
    candidates = (
        decode(1, 6, since=100, stint=0),
        decode(2, 6, since=200, stint=1),
        rotary(3, 7, silent_since=100),
    )
    assert line(plan_of(ROTA, *candidates, now=3_700, device=4)) == "decode=1 out=2"
    longer = make_policy("rotasched", transfer_blocks=100, min_stint_tokens=2, eager_sync=False)
    assert line(plan_of(longer, *candidates, now=3_700, device=4)) == "decode=1,2"


def test_prefill_never_leaves() -> None:
    candidates = (prefill(1, 8, 4, since=100), rotary(2, 7, silent_since=100))
    assert line(plan_of(ROTA, *candidates, now=3_700, device=2)) == "prefill=1:4+4"


def test_growth_takes_free_blocks_before_anybody_comes() -> None:
    # 1 free, request 1 is at a block's end: the block is its own, the small prompt waits for a victim.
    candidates = (decode(1, 8, since=100, stint=1), waiting(2, 4, since=3_690))
    plan = plan_of(make_policy("rotasched", min_stint_tokens=9), *candidates, now=3_700, device=3, link=0)
    assert line(plan) == "decode=1"


def test_growth_without_a_block_rotates_the_longest_stay_out() -> None:
    # Nothing free; 2 and 3 need a block. Request 1 leaves, the two grow when its slots have come.
    candidates = (
        decode(1, 6, since=100, stint=3),
        decode(2, 8, since=200, stint=3),
        decode(3, 4, since=300, stint=3),
        decode(4, 3, since=400, stint=3),
    )
    assert line(plan_of(ROTA, *candidates, now=500, device=6)) == "decode=4 out=1"


def test_forced_rotation_ignores_the_stay_but_leaves_one() -> None:
    candidates = (decode(1, 8, since=100, stint=0), decode(2, 8, since=200, stint=0))
    assert line(plan_of(ROTA, *candidates, now=500, device=4)) == "out=2"  # the newest, so that 1 goes on
    assert line(plan_of(ROTA, candidates[0], now=500, device=2, leaving=0, host=1)) == "idle"


def test_a_closed_admission_does_not_stop_a_rotary_one() -> None:
    # Host pool 2, HBM 6: promises 2 + 3 are in, bound max(6, 8 - 3) = 6; the prompt's 2 do not fit.
    candidates = (
        decode(1, 3, since=100, left=4, stint=1),
        rotary(2, 7, silent_since=3_690),
        waiting(3, 4, since=0, limit=5),
    )
    assert line(plan_of(ROTA, *candidates, now=3_700, device=6, host=2)) == "decode=1 in=2"


def test_a_closed_resumption_does_not_stop_an_admission() -> None:
    candidates = (rotary(1, 7, silent_since=0), waiting(2, 4, since=3_690))
    plan = plan_of(ROTA, *candidates, now=3_700, device=4, link_in=0)
    assert line(plan) == "admit=2 prefill=2:0+4"


def test_a_rotation_larger_than_the_link_goes_alone() -> None:
    candidates = (
        decode(1, 15, since=100, stint=3),
        decode(2, 15, since=200, stint=3),
        rotary(3, 15, silent_since=100),
        rotary(4, 15, silent_since=200),
    )
    assert line(plan_of(ROTA, *candidates, now=3_700, device=8, link=3)) == "decode=2 out=1"
    assert line(plan_of(ROTA, *candidates[2:], now=3_700, device=8, link=3)) == "in=3"
    assert line(plan_of(ROTA, *candidates, now=3_700, device=8, link=0)) == "decode=1,2"  # busy: later


def test_only_dirty_blocks_count_on_the_link() -> None:
    candidates = (
        decode(1, 15, since=100, stint=3),  # 4 dirty: passed over
        decode(2, 15, since=200, stint=3, synced=3),  # 1 dirty
        rotary(3, 7, silent_since=100),
    )
    assert line(plan_of(ROTA, *candidates, now=3_700, device=8, link=3)) == "decode=1 out=2"


def test_a_victims_own_host_slots_are_no_room_for_it() -> None:
    # Host 4: rotary holds 2, request 1's own synced block 1, so 1 is free: its 2 dirty ones do not fit.
    candidates = (decode(1, 11, since=100, left=1, stint=3, synced=1), rotary(2, 7, silent_since=100, left=1))
    assert line(plan_of(ROTA, *candidates, now=3_700, device=3, host=4)) == "decode=1"
    assert line(plan_of(ROTA, *candidates, now=3_700, device=3, host=5)) == "out=1"


def test_prompts_beyond_a_steps_tokens_make_nobody_leave() -> None:
    # 8 tokens a step: one decode and 7 for the first prompt of 8; the second prompt can wait.
    candidates = (
        decode(1, 7, since=100, stint=3),
        decode(2, 7, since=200, stint=3),
        waiting(3, 8, since=0),
        waiting(4, 8, since=1),
    )
    assert line(plan_of(ROTA, *candidates, now=3_700, device=4, step_tokens=8)) == "decode=2 out=1"


def test_eager_sync_spends_what_is_left_oldest_stay_first() -> None:
    eager = make_policy("rotasched")
    candidates = (
        prefill(1, 16, 8, since=300),
        decode(2, 15, since=200, stint=3, synced=1),
        decode(3, 15, since=100, stint=3),
    )
    plan = plan_of(eager, *candidates, now=500, device=20, link=4, step_tokens=4)
    assert line(plan) == "prefill=1:8+2 decode=3,2 sync=3:0+3,2:1+1"
    # Only free host slots are taken: 3 here.
    plan = plan_of(eager, *candidates, now=500, device=20, host=4, step_tokens=4)
    assert line(plan) == "prefill=1:8+2 decode=3,2 sync=3:0+3"


def test_one_that_never_fits_is_refused_with_the_numbers() -> None:
    plan = plan_of(ROTA, waiting(1, 16, since=0, limit=2), waiting(2, 4, since=1), now=10, device=4)
    assert plan.admit == (2,)
    reason = "needs 5 KV blocks at its end, the HBM pool has 4"
    assert plan.reject == (Rejection(RequestId(1), reason),)


def test_the_backlog_is_not_walked() -> None:
    """O(running + moved): of 100,000 waiting ones, only those are looked at who could go, and one more."""
    looked = 0

    class Backlog(list[CandidateValue]):
        def __iter__(self) -> Iterator[CandidateValue]:
            nonlocal looked
            for item in super().__iter__():
                looked += 1
                yield item

    one = CandidateValue(id=RequestId(1), phase=Phase.DECODE, run_start=0, computed_tokens=3, device_blocks=1)
    backlog = Backlog([waiting(2, 8, since=0)] * 100_000)
    view = View(
        turn=1,
        now=9_000 * MILLISECOND,
        limits=Limits(step_tokens=33, seats=64, block_tokens=4, device_blocks=10, host_blocks=1_000),
        waiting=backlog,
        rotary=(),
        running=(one,),
        live={one.id: one},
        device_free=9,
        device_leaving=0,
        host_free=1_000,
        host_backing=0,
        promised_blocks=2,
        promised_blocks_max=2,
        waiting_blocks=200_000,
        rotary_blocks=0,
        link_out_blocks=100,
        link_in_blocks=100,
    )
    assert len(ROTA(view).prefill) == 4
    assert looked == 5
