"""`trt-no-evict` and `trt-max-util`: schedules of TensorRT-LLM's capacity schedulers.

Golden cases worked by its own code with blocks of 32 tokens: P is the prompt, N the most new tokens.
"""

from __future__ import annotations

from superinfer_trt.core.check import check_plan
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.units import RequestId, div_ceil
from superinfer_trt.core.view import CandidateValue, Limits, View
from superinfer_trt.sched.registry import make_policy
from unit.sched.views import line

BLOCK = 32


def running(id: int, prompt: int, new: int, done: int) -> CandidateValue:
    """A decoding request with `done` computed tokens; ids are the order of arrival."""
    blocks = div_ceil(done, BLOCK)
    return CandidateValue(
        id=RequestId(id),
        phase=Phase.DECODE,
        arrival=id,
        first_token=id,
        run_start=id,
        target_tokens=prompt,
        computed_tokens=done,
        produced_tokens=done - prompt + 1,
        remaining_tokens=prompt + new - 1 - done,
        device_blocks=blocks,
        total_blocks=blocks,
        max_blocks=div_ceil(prompt + new - 1, BLOCK),
    )


def pending(id: int, prompt: int, new: int) -> CandidateValue:
    return CandidateValue(
        id=RequestId(id),
        arrival=id,
        target_tokens=prompt,
        remaining_tokens=new,
        total_blocks=div_ceil(prompt, BLOCK),
        max_blocks=div_ceil(prompt + new - 1, BLOCK),
    )


def plan_of(name: str, blocks: int, *candidates: CandidateValue, tokens: int = 8192, seats: int = 8) -> Plan:
    inside = [c for c in candidates if c.phase is Phase.DECODE]
    outside = [c for c in candidates if c.phase is Phase.WAITING]
    view = View(
        turn=1,
        now=100,
        limits=Limits(tokens, seats, BLOCK, blocks, 0),
        waiting=outside,
        rotary=[],
        running=inside,
        live={c.id: c for c in candidates},
        device_free=blocks - sum(c.device_blocks for c in inside),
        device_leaving=0,
        host_free=0,
        host_backing=0,
        promised_blocks=sum(c.max_blocks for c in inside),
        promised_blocks_max=max((c.max_blocks for c in inside), default=0),
        waiting_blocks=sum(c.total_blocks for c in outside),
        rotary_blocks=0,
        link_out_blocks=0,
        link_in_blocks=0,
    )
    return check_plan(make_policy(name)(view), view)


# r1, r2 run P64 N128 with 128 tokens each; r3 waits with P256 N64.
CASE = (running(1, 64, 128, 128), running(2, 64, 128, 128), pending(3, 256, 64))


def test_no_evict_reserves_what_completes_everybody() -> None:
    # 6 + 6 blocks complete r1 and r2, 10 complete r3.
    assert line(plan_of("trt-no-evict", 20, *CASE)) == "decode=1,2"
    assert line(plan_of("trt-no-evict", 22, *CASE)) == "admit=3 prefill=3:0+256 decode=1,2"


def test_no_evict_holds_the_line() -> None:
    # r4 would fit behind r3.
    assert line(plan_of("trt-no-evict", 20, *CASE, pending(4, 32, 32))) == "decode=1,2"


def test_max_util_looks_at_one_step_only() -> None:
    for blocks in (18, 20):
        assert line(plan_of("trt-max-util", blocks, *CASE)) == "admit=3 prefill=3:0+256 decode=1,2"
    assert line(plan_of("trt-max-util", 17, *CASE)) == "decode=1,2"
    assert line(plan_of("trt-max-util", 10, *CASE)) == "decode=1,2"


def test_max_util_pauses_the_last_started() -> None:
    assert line(plan_of("trt-max-util", 9, *CASE[:2])) == "decode=1 evict=2"
    # With nothing free r1 finds its block only when r2's have come.
    assert line(plan_of("trt-max-util", 8, *CASE[:2])) == "evict=2"


def test_max_util_pauses_for_an_older_prompt() -> None:
    # r1 P256 waits, r2 r3 r4 run P64 with 64 tokens, 12 blocks: r4 leaves for r1, r3 for r2's growth.
    inside = [running(id, 64, 32, 64) for id in (2, 3, 4)]
    plan = plan_of("trt-max-util", 12, pending(1, 256, 32), *inside)
    assert line(plan) == "decode=2 evict=4,3"
    # The slots are free a turn later, and r1 comes in beside r2.
    again = (pending(1, 256, 32), running(2, 64, 32, 65), pending(3, 65, 31), pending(4, 64, 32))
    assert line(plan_of("trt-max-util", 12, *again)) == "admit=1 prefill=1:0+256 decode=2"


def test_both_hold_the_line_for_a_prompt_in_front() -> None:
    # r1 P256 does not fit beside r0; r2 P32 would. Nobody after r0 can be paused for it.
    first = running(0, 64, 16, 64)
    asked = (pending(1, 256, 32), pending(2, 32, 32))
    for name in ("trt-no-evict", "trt-max-util"):
        assert line(plan_of(name, 10, first, *asked)) == "decode=0"


def test_what_no_pool_holds_is_refused() -> None:
    # There r1 P512 N64 of 10 blocks would hold the line for ever; here it is refused.
    for name in ("trt-no-evict", "trt-max-util"):
        plan = plan_of(name, 10, pending(1, 512, 64), pending(2, 32, 32))
        assert [r.id for r in plan.reject] == [1]
        assert plan.admit == (2,)


def test_tokens_are_shared_first_come_first_served() -> None:
    # r1 runs, r2 and r3 of P80, 100 tokens: r2 whole, 19 of r3 (the source's unit is a block: none).
    asked = (running(1, 64, 16, 65), pending(2, 80, 16), pending(3, 80, 16))
    plan = plan_of("trt-max-util", 20, *asked, tokens=100)
    assert line(plan) == "admit=2,3 prefill=2:0+80,3:0+19 decode=1"
