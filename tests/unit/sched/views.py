"""Short words for hand-made views: one line a request, times in milliseconds, blocks of 4 tokens."""

from __future__ import annotations

from superinfer_trt.core.check import check_plan
from superinfer_trt.core.forecast import StepForecast
from superinfer_trt.core.phase import RUNNING, Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import Policy
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, RequestId, div_ceil
from superinfer_trt.core.view import CandidateValue, Limits, View

BLOCK = 4


def waiting(id: int, tokens: int, *, since: int, limit: int = 4, ttft: int = 5_000) -> CandidateValue:
    """A new request of `tokens` prompt tokens that arrived at `since`."""
    return CandidateValue(
        id=RequestId(id),
        slo=Slo(ttft=ttft * MILLISECOND),
        arrival=since * MILLISECOND,
        last_token=since * MILLISECOND,
        target_tokens=tokens,
        remaining_tokens=limit,
        total_blocks=div_ceil(tokens, BLOCK),
        max_blocks=div_ceil(tokens + limit - 1, BLOCK),
    )


def prefill(id: int, tokens: int, done: int, *, since: int, limit: int = 4) -> CandidateValue:
    """A request with `done` of `tokens` prompt tokens computed."""
    return CandidateValue(
        id=RequestId(id),
        phase=Phase.PREFILL,
        arrival=since * MILLISECOND,
        run_start=since * MILLISECOND,
        target_tokens=tokens,
        computed_tokens=done,
        remaining_tokens=limit,
        device_blocks=div_ceil(tokens, BLOCK),
        full_blocks=done // BLOCK,
        total_blocks=div_ceil(done, BLOCK),
        max_blocks=div_ceil(tokens + limit - 1, BLOCK),
    )


def decode(
    id: int, tokens: int, *, since: int, left: int = 4, stint: int = 1, synced: int = 0, came: int = 0
) -> CandidateValue:
    """A running request with `tokens` computed tokens whose stay in HBM began at `since`; it arrived
    at `came`, and `synced` of its full blocks are in DRAM."""
    blocks = div_ceil(tokens, BLOCK)
    return CandidateValue(
        id=RequestId(id),
        phase=Phase.DECODE,
        arrival=came * MILLISECOND,
        first_token=came * MILLISECOND,
        last_token=since * MILLISECOND,
        run_start=since * MILLISECOND,
        target_tokens=1,
        computed_tokens=tokens,
        produced_tokens=tokens,
        remaining_tokens=left,
        stint_tokens=stint,
        device_blocks=blocks,
        host_blocks=synced,
        synced_blocks=synced,
        full_blocks=tokens // BLOCK,
        total_blocks=blocks,
        max_blocks=div_ceil(tokens + left, BLOCK),
    )


def rotary(id: int, tokens: int, *, silent_since: int, left: int = 4, tbt: int = 100) -> CandidateValue:
    """A request with `tokens` computed tokens in DRAM, whose last token came at `silent_since`."""
    blocks = div_ceil(tokens, BLOCK)
    return CandidateValue(
        id=RequestId(id),
        phase=Phase.ROTARY,
        slo=Slo(tbt=tbt * MILLISECOND),
        first_token=0,
        last_token=silent_since * MILLISECOND,
        target_tokens=1,
        computed_tokens=tokens,
        produced_tokens=tokens,
        remaining_tokens=left,
        host_blocks=blocks,
        synced_blocks=blocks,
        total_blocks=blocks,
        max_blocks=div_ceil(tokens + left, BLOCK),
    )


def plan_of(
    policy: Policy,
    *candidates: CandidateValue,
    now: int,
    device: int,
    host: int = 100,
    step_tokens: int = 64,
    seats: int = 16,
    link: int = 100,
    link_out: int = -1,
    link_in: int = -1,
    leaving: int = 0,
    forecast: StepForecast | None = None,
) -> Plan:
    """The checked plan for these requests at `now` ms; pools in blocks. `leaving`: device slots on their
    way out (they are neither free nor anybody's here)."""

    def queue(key, *phases: Phase) -> list[CandidateValue]:
        return sorted((c for c in candidates if c.phase in phases), key=lambda c: (key(c), c.id))

    order = policy.order
    outside, back = queue(order.waiting, Phase.WAITING), queue(order.rotary, Phase.ROTARY)
    promised = [c.max_blocks for c in candidates if c.phase is not Phase.WAITING]
    view = View(
        turn=1,
        now=now * MILLISECOND,
        limits=Limits(step_tokens, seats, BLOCK, device, host),
        waiting=outside,
        rotary=back,
        running=queue(order.running, *RUNNING),
        live={c.id: c for c in candidates},
        device_free=device - leaving - sum(c.device_blocks for c in candidates),
        device_leaving=leaving,
        host_free=host - sum(c.host_blocks for c in candidates),
        host_backing=sum(c.host_blocks for c in candidates if c.phase in RUNNING),
        promised_blocks=sum(promised),
        promised_blocks_max=max(promised, default=0),
        waiting_blocks=sum(c.total_blocks for c in outside),
        rotary_blocks=sum(c.total_blocks for c in back),
        link_out_blocks=link if link_out < 0 else link_out,
        link_in_blocks=link if link_in < 0 else link_in,
        forecast=forecast or StepForecast(),
    )
    assert view.device_free >= 0, "the script holds more blocks than there are"
    return check_plan(policy(view), view)


def line(plan: Plan) -> str:
    """The plan's line without turn and time."""
    return plan.line().split(" ", 2)[2]
