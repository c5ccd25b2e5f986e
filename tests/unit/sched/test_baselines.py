"""The baselines by hand: fcfs (vLLM V1), waiting-first and swapped-first (vLLM V0 with swap)."""

from __future__ import annotations

from superinfer_trt.sched.registry import make_policy
from unit.sched.views import decode, line, plan_of, prefill, rotary, waiting

FCFS = make_policy("fcfs")
WAITING_FIRST = make_policy("waiting-first", watermark=0)
SWAPPED_FIRST = make_policy("swapped-first", watermark=0)


def test_fcfs_decodes_then_chunks_then_admits() -> None:
    candidates = (
        decode(1, 6, since=0, came=0),
        prefill(2, 16, 4, since=1),
        waiting(3, 8, since=2),
        waiting(4, 8, since=3),
    )
    # 1 + 12 tokens for the old ones; 3 of request 3's 8 in the rest of 16; nothing left for 4.
    plan = plan_of(FCFS, *candidates, now=10, device=20, host=0, step_tokens=16)
    assert line(plan) == "admit=3 prefill=2:4+12,3:0+3 decode=1"


def test_fcfs_stops_at_the_first_that_does_not_fit() -> None:
    candidates = (decode(1, 6, since=0), waiting(2, 16, since=1), waiting(3, 4, since=2))
    assert line(plan_of(FCFS, *candidates, now=10, device=5, host=0)) == "decode=1"


def test_fcfs_evicts_the_newest_and_admits_nobody_then() -> None:
    # 1 free: request 1 takes it, 2 finds none; 3 (newest) is dropped, its slots come free for 2 later.
    candidates = (
        decode(1, 8, since=0, came=0),
        decode(2, 8, since=1, came=1),
        prefill(3, 8, 4, since=2),
        waiting(4, 1, since=3),
    )
    assert line(plan_of(FCFS, *candidates, now=10, device=7, host=0)) == "decode=1 evict=3"


def test_fcfs_evicts_one_that_wanted_to_grow_itself() -> None:
    candidates = (decode(1, 8, since=0, came=0), decode(2, 8, since=1, came=1))
    assert line(plan_of(FCFS, *candidates, now=10, device=5, host=0)) == "decode=1 evict=2"


def test_fcfs_does_not_evict_again_for_slots_on_their_way() -> None:
    candidates = (decode(1, 8, since=0, came=0), decode(2, 7, since=1, came=1))
    assert line(plan_of(FCFS, *candidates, now=10, device=6, host=0, leaving=2)) == "decode=2"


def test_fcfs_promises_nothing() -> None:
    # 2 + 2 blocks now, 8 at the end, of 4: admitted all the same, that is its way.
    candidates = (waiting(1, 8, since=0, limit=8), waiting(2, 8, since=1, limit=8))
    assert line(plan_of(FCFS, *candidates, now=10, device=4, host=0)) == "admit=1,2 prefill=1:0+8,2:0+8"


def test_waiting_first_swaps_the_newest_out_for_a_prompt() -> None:
    candidates = (
        decode(1, 6, since=0, stint=3),
        decode(2, 6, since=1, stint=3),
        rotary(3, 3, silent_since=0),
        waiting(4, 8, since=3),
    )
    # 1 free, the prompt wants 2: request 2 leaves. The swapped one would fit and must not come.
    assert line(plan_of(WAITING_FIRST, *candidates, now=10, device=5)) == "decode=1 out=2"


def test_waiting_first_resumes_when_nobody_waits() -> None:
    candidates = (
        decode(1, 6, since=0, stint=3),
        rotary(2, 7, silent_since=5),
        rotary(3, 3, silent_since=4),
    )
    assert line(plan_of(WAITING_FIRST, *candidates, now=10, device=5)) == "decode=1 in=3,2"


def test_waiting_first_makes_room_for_what_one_step_can_start() -> None:
    # 12 tokens a step, 2 of them decodes: the first prompt of 8 and a piece of the second; not the third.
    candidates = (
        decode(1, 6, since=0, stint=3),
        decode(2, 6, since=1, stint=3),
        *(waiting(id, 8, since=id) for id in (3, 4, 5)),
    )
    assert line(plan_of(WAITING_FIRST, *candidates, now=10, device=4, step_tokens=12)) == "out=2,1"
    assert line(plan_of(WAITING_FIRST, *candidates, now=10, device=4, step_tokens=8)) == "decode=1 out=2"


def test_waiting_first_leaves_the_watermark() -> None:
    policy = make_policy("waiting-first", watermark=0.1)
    running, prompt = decode(1, 6, since=0, stint=3), waiting(2, 32, since=1)
    # 20 blocks, 2 of them the watermark: 12 - 2 free, the prompt wants 8: goes. With 9 free it does not,
    # and the only running request leaves for it; an empty HBM needs no watermark.
    assert line(plan_of(policy, running, prompt, now=10, device=20)) == "admit=2 prefill=2:0+32 decode=1"
    tight = decode(3, 36, since=0, stint=3, left=8)
    assert line(plan_of(policy, tight, prompt, now=10, device=20)) == "admit=2 prefill=2:0+32 decode=3"
    tighter = decode(3, 38, since=0, stint=3, left=8)
    assert line(plan_of(policy, tighter, waiting(2, 36, since=1), now=10, device=20)) == "out=3"
    assert line(plan_of(policy, waiting(2, 76, since=1), now=10, device=20, step_tokens=76)) == (
        "admit=2 prefill=2:0+76"
    )


def test_swapped_first_admits_nobody_while_anybody_is_swapped() -> None:
    candidates = (
        decode(1, 6, since=0, stint=3),
        rotary(2, 7, silent_since=5),
        waiting(3, 4, since=3),
    )
    assert line(plan_of(SWAPPED_FIRST, *candidates, now=10, device=9)) == "decode=1 in=2"
    assert line(plan_of(SWAPPED_FIRST, *candidates, now=10, device=3)) == "decode=1"
    assert (
        line(plan_of(SWAPPED_FIRST, candidates[0], candidates[2], now=10, device=9, leaving=2)) == "decode=1"
    )
    assert line(plan_of(SWAPPED_FIRST, candidates[0], candidates[2], now=10, device=9)) == (
        "admit=3 prefill=3:0+4 decode=1"
    )


def test_swapped_first_never_swaps_for_a_prompt() -> None:
    candidates = (decode(1, 6, since=0, stint=3), waiting(2, 8, since=1))
    assert line(plan_of(SWAPPED_FIRST, *candidates, now=10, device=3)) == "decode=1"


def test_swapped_first_swaps_the_newest_when_growth_finds_no_block() -> None:
    candidates = (
        decode(1, 8, since=0, stint=3),
        decode(2, 6, since=1, stint=3),
        decode(3, 3, since=2, stint=0),
        rotary(4, 3, silent_since=0),
    )
    assert line(plan_of(SWAPPED_FIRST, *candidates, now=10, device=5)) == "decode=2 out=3"


def test_a_swap_copies_all_its_blocks() -> None:
    # vLLM V0 copies nothing ahead of need.
    candidates = (decode(1, 15, since=0, stint=3), decode(2, 6, since=1, stint=3))
    for policy in (WAITING_FIRST, SWAPPED_FIRST):
        assert not plan_of(policy, *candidates, now=10, device=20).sync
