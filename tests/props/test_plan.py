"""Properties of every policy over random consistent views (C7, C9, C10).

A view is drawn from what a ledger can really hold: requests get blocks by their token counts, while the
pools and the admission inequality last; whoever finds no room waits.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.core.check import check_plan
from superinfer_trt.core.phase import RUNNING, Phase
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import RequestId, div_ceil
from superinfer_trt.core.view import CandidateValue, Limits, Order, View, lanes_of
from superinfer_trt.sched.registry import POLICIES, AnyPolicy, make_policy

SECOND = 1_000_000_000
NOW = 100 * SECOND
ROTATING = [name for name, entry in POLICIES.items() if entry.policy.rotates]
PROACTIVE = ("rotasched", "rota-slack", "artifact")
BY_LANES = ("rota-slack",)
QUEUED = [name for name in POLICIES if name not in BY_LANES]
MOVING = (Phase.ROTATING_OUT, Phase.ROTATING_IN)


@dataclass(frozen=True)
class Situation:
    """All of a view but the order of its queues."""

    limits: Limits
    candidates: tuple[CandidateValue, ...]
    link_out_blocks: int
    link_in_blocks: int
    now: int = NOW
    spare: int = 0  # device slots that somehow are free as well

    def of(self, *phases: Phase) -> list[CandidateValue]:
        return [c for c in self.candidates if c.phase in phases]

    def view(self, order: Order) -> View:
        def queue(key: Callable[..., int], *phases: Phase) -> list[CandidateValue]:
            return sorted(self.of(*phases), key=lambda c: (key(c), c.id))

        waiting = queue(order.waiting, Phase.WAITING)
        rotary = queue(order.rotary, Phase.ROTARY)
        promised = [c.max_blocks for c in self.candidates if c.device_blocks or c.host_blocks]
        held = sum(c.device_blocks for c in self.candidates)
        return View(
            turn=7,
            now=self.now,
            limits=dataclasses.replace(self.limits, device_blocks=self.limits.device_blocks + self.spare),
            waiting=waiting,
            rotary=rotary,
            running=queue(order.running, *RUNNING),
            live={c.id: c for c in self.candidates},
            device_free=self.limits.device_blocks + self.spare - held,
            device_leaving=sum(c.device_blocks for c in self.of(Phase.ROTATING_OUT)),
            host_free=self.limits.host_blocks - sum(c.host_blocks for c in self.candidates),
            host_backing=sum(c.host_blocks for c in self.of(*RUNNING)),
            promised_blocks=sum(promised),
            promised_blocks_max=max(promised, default=0),
            waiting_blocks=sum(c.total_blocks for c in waiting),
            rotary_blocks=sum(c.total_blocks for c in rotary),
            link_out_blocks=self.link_out_blocks,
            link_in_blocks=self.link_in_blocks,
        )


class _Pools:
    """Hands out blocks while a real ledger could."""

    def __init__(self, limits: Limits, *, overcommit: bool) -> None:
        self.limits = limits
        self.overcommit = overcommit
        self.device, self.host = limits.device_blocks, limits.host_blocks
        self.promised = self.largest = 0

    def take(self, device: int, host: int, max_blocks: int) -> bool:
        limits = self.limits
        largest = max(self.largest, max_blocks)
        bound = max(limits.device_blocks, limits.device_blocks + limits.host_blocks - largest)
        fits = device <= self.device and host <= self.host and max_blocks <= limits.device_blocks
        if not fits or (not self.overcommit and self.promised + max_blocks > bound):
            return False
        self.device, self.host = self.device - device, self.host - host
        self.promised, self.largest = self.promised + max_blocks, largest
        return True


def _draw_limits(rng: random.Random, *, rotates: bool) -> Limits:
    device = rng.choice([2, 5, 12, 40])
    return Limits(
        step_tokens=rng.choice([1, 6, 30, 200]),
        seats=rng.choice([1, 2, 5, 30]),
        block_tokens=rng.choice([1, 3, 16]),
        device_blocks=device,
        host_blocks=rng.choice([0, device // 2, device, 3 * device]) if rotates else 0,
    )


def _draw_candidate(
    rng: random.Random, id: int, phase: Phase, pools: _Pools, *, settled: bool
) -> CandidateValue:
    """One request in `phase`, or waiting where the pools have no room for it."""
    limits = pools.limits
    room = limits.device_blocks * limits.block_tokens
    total = rng.randint(2, max(2, int(room * rng.choice([0.2, 0.5, 1, 1.3]))))
    prompt = rng.randint(1, total - 1)
    max_tokens = total - prompt + 1
    arrival = NOW - rng.choice([0, rng.randint(0, 20 * SECOND)])
    first = rng.randint(arrival, NOW)
    last = rng.randint(first, NOW)
    waiting = CandidateValue(
        id=RequestId(id),
        slo=Slo(ttft=rng.choice([1, 5]) * SECOND, tbt=SECOND // rng.choice([10, 20])),
        tenant=("", "a", "b")[id % 3],
        arrival=arrival,
        last_token=arrival,
        target_tokens=prompt,
        remaining_tokens=max_tokens,
        total_blocks=div_ceil(prompt, limits.block_tokens),
        max_blocks=div_ceil(total, limits.block_tokens),
    )
    begin = rng.randint(arrival, NOW)
    if phase is Phase.PREFILL:
        computed = rng.randint(0, prompt - 1)
        full = computed // limits.block_tokens
        synced = rng.randint(0, min(full, pools.host))
        if not pools.take(waiting.total_blocks, synced, waiting.max_blocks):
            return waiting
        return dataclasses.replace(
            waiting,
            phase=phase,
            run_start=begin,
            computed_tokens=computed,
            device_blocks=waiting.total_blocks,
            host_blocks=synced,
            synced_blocks=synced,
            full_blocks=full,
            total_blocks=div_ceil(computed, limits.block_tokens),
        )
    if phase is Phase.WAITING:
        return waiting
    # With nothing in flight nobody's last token is in the air.
    produced = rng.randint(1, max_tokens - 1 if settled or phase is not Phase.DECODE else max_tokens)
    computed = prompt + produced - 1
    blocks = div_ceil(computed, limits.block_tokens)
    full = (computed - (0 if settled else rng.randint(0, 1))) // limits.block_tokens
    inside = phase is Phase.DECODE
    host = rng.randint(0, min(full, pools.host)) if inside else blocks
    if not pools.take(0 if phase is Phase.ROTARY else blocks, host, waiting.max_blocks):
        return waiting
    return dataclasses.replace(
        waiting,
        phase=phase,
        first_token=first,
        last_token=last,
        run_start=rng.randint(first, NOW) if phase in (Phase.DECODE, Phase.ROTATING_OUT) else -1,
        computed_tokens=computed,
        produced_tokens=produced,
        remaining_tokens=max_tokens - produced,
        stint_tokens=rng.randint(0, produced),
        device_blocks=0 if phase is Phase.ROTARY else blocks,
        host_blocks=host,
        synced_blocks=host,
        full_blocks=full,
        total_blocks=blocks,
    )


def draw_situation(seed: int, *, rotates: bool, settled: bool = False) -> Situation:
    """`settled`: no copy and no batch is in flight."""
    rng = random.Random(seed)
    limits = _draw_limits(rng, rotates=rotates)
    pools = _Pools(limits, overcommit=not rotates)
    phases = [Phase.WAITING, Phase.PREFILL, Phase.DECODE, Phase.DECODE]
    if limits.host_blocks:
        phases += [Phase.ROTARY] if settled else [Phase.ROTARY, *MOVING]
    candidates = [
        _draw_candidate(rng, id, rng.choice(phases), pools, settled=settled)
        for id in range(1, 1 + rng.choice([1, 3, 8, 20]))
    ]
    least = 1 if settled else 0  # an idle lane has an allowance
    return Situation(
        limits=limits,
        candidates=tuple(candidates),
        link_out_blocks=rng.choice([least, 1, 4, 100]),
        link_in_blocks=rng.choice([least, 1, 4, 100]),
    )


def draw_watermark(rng: random.Random) -> dict[str, object]:
    return {"watermark": rng.choice([0, 0.01, 0.3])}


OTHER_PARAMETERS: dict[str, Callable[[random.Random], dict[str, object]]] = {
    "waiting-first": draw_watermark,
    "swapped-first": draw_watermark,
    "ltr": lambda rng: draw_watermark(rng) | {"noise": rng.choice([0, 0.9])},
    "artifact": lambda rng: {"transfer_blocks": rng.choice([1, 5, 2400])},
    "sarathi": lambda rng: {"chunk_tokens": rng.choice([1, 8, 512])},
    "fcfs-cap": lambda rng: {"prefill_tokens_min": rng.choice([1, 64])},
    "lightllm": lambda rng: {"history": rng.choice([(), (1, 2, 5, 9, 30)])},
    "neo": lambda rng: {
        "hbm_blocks": rng.choice([None, 1, 3, 8, 20]),
        "host_tokens_per_ms": rng.choice([1, 800]),
        "host_launch_ms": rng.choice([0, 3]),
        "narrow_tokens": rng.choice([1, 128]),
    },
}


def draw_policy(name: str, seed: int) -> AnyPolicy:
    rng = random.Random(seed)
    if name == "rotasched":
        return make_policy(
            name,
            alpha=rng.choice([0.5, 1, 3]),
            beta_ttft=rng.choice([-1, 0, 0.5]),
            beta_tbt=rng.choice([-10, 0, 2]),
            transfer_blocks=rng.choice([None, 1, 5, 2400]),
            min_stint_tokens=rng.choice([1, 3]),
            eager_sync=rng.choice([True, False]),
        )
    if name == "rota-slack":
        ahead_min_s = rng.choice([0.1, 3])
        return make_policy(
            name,
            step_share=rng.choice([0.3, 0.85]),
            prefill_tokens_min=rng.choice([1, 64]),
            ahead_min_s=ahead_min_s,
            guard_s=ahead_min_s / rng.choice([2, 6]),
            lost_s=rng.choice([0, 1, 10]),
            min_stint_tokens=rng.choice([1, 3]),
            late_share=rng.choice([0, 0.05, 0.5]),
            length_weight_ms=rng.choice([0, 20]),
            patience=rng.choice([0, 0.4]),
            weights=rng.choice([{}, {"a": 3, "b": 0.5}]),
            transfer_blocks=rng.choice([None, 1, 2400]),
            eager_sync=rng.choice([True, False]),
        )
    return make_policy(name, **OTHER_PARAMETERS.get(name, lambda _: {})(rng))


def situations(names: Sequence[str] = tuple(POLICIES), *, settled: bool = False):
    """(policy, situation) by two seeds: one structure, so that Hypothesis shrinks to a small number."""

    def build(name: str, seed: int, policy_seed: int) -> tuple[AnyPolicy, Situation]:
        policy = draw_policy(name, policy_seed)
        return policy, draw_situation(seed, rotates=policy.rotates, settled=settled)

    seeds = st.integers(0, 1 << 32)
    return st.builds(build, st.sampled_from(names), seeds, st.integers(0, 50))


@given(situations())
def test_plans_are_legal(drawn: tuple[AnyPolicy, Situation]) -> None:
    """C7."""
    policy, situation = drawn
    view = situation.view(policy.order)
    check_plan(policy(view), view)


@given(st.integers(0, 1 << 32))
def test_fcfs_is_legal_beside_a_host_pool(seed: int) -> None:
    policy = make_policy("fcfs")
    view = draw_situation(seed, rotates=True).view(policy.order)
    check_plan(policy(view), view)


@given(situations())
def test_same_view_same_plan(drawn: tuple[AnyPolicy, Situation]) -> None:
    """C10: the view's candidates are frozen, so a write would raise."""
    policy, situation = drawn
    view = situation.view(policy.order)
    plan = policy(view)
    assert policy(view) == plan
    assert type(policy)(policy.parameters)(view) == plan  # nothing is remembered between turns


@given(situations(), st.integers(-NOW // 2, 10 * NOW))
def test_a_shift_of_time_changes_nothing(drawn: tuple[AnyPolicy, Situation], shift: int) -> None:
    """C10."""
    policy, situation = drawn

    def later(candidate: CandidateValue) -> CandidateValue:
        return dataclasses.replace(
            candidate,
            arrival=candidate.arrival + shift,
            last_token=candidate.last_token + shift,
            first_token=candidate.first_token + shift if candidate.first_token >= 0 else -1,
            run_start=candidate.run_start + shift if candidate.run_start >= 0 else -1,
        )

    moved = dataclasses.replace(
        situation, now=NOW + shift, candidates=tuple(later(c) for c in situation.candidates)
    )
    plan, shifted = policy(situation.view(policy.order)), policy(moved.view(policy.order))
    assert dataclasses.replace(shifted, now=NOW) == plan


@given(situations(), st.randoms(use_true_random=False))
def test_order_of_input_changes_nothing(drawn: tuple[AnyPolicy, Situation], rng: random.Random) -> None:
    """C10: neither the order of `live` nor the type of the queues is an input."""
    policy, situation = drawn
    view = situation.view(policy.order)
    shuffled = list(situation.candidates)
    rng.shuffle(shuffled)
    other = dataclasses.replace(situation, candidates=tuple(shuffled)).view(policy.order)
    other = dataclasses.replace(
        other, waiting=deque(other.waiting), rotary=tuple(other.rotary), running=deque(other.running)
    )
    assert policy(other) == policy(view)


@given(situations(), st.integers(1, 50))
def test_more_room_never_makes_it_illegal(drawn: tuple[AnyPolicy, Situation], spare: int) -> None:
    policy, situation = drawn
    view = dataclasses.replace(situation, spare=spare).view(policy.order)
    check_plan(policy(view), view)


@given(situations(settled=True))
def test_somebody_always_moves(drawn: tuple[AnyPolicy, Situation]) -> None:
    """C9, one turn of it: with nothing in flight and somebody alive the plan is not idle."""
    policy, situation = drawn
    plan = policy(situation.view(policy.order))
    assert not plan.idle


@given(situations(ROTATING))
def test_minimum_stay(drawn: tuple[AnyPolicy, Situation]) -> None:
    """Who leaves has made a token in this stay, unless a decode would find no block otherwise; and
    then somebody stays."""
    policy, situation = drawn
    view = situation.view(policy.order)
    plan = policy(view)
    least = getattr(policy.parameters, "min_stint_tokens", 1)
    early = [id for id in plan.rotate_out if view.live[id].stint_tokens < least]
    if early:
        growing = [c for c in view.running if c.phase is Phase.DECODE and c.remaining_tokens > 0]
        wanted = sum(view.decode_needs_block(c) for c in growing)
        ending = sum(c.device_blocks for c in situation.of(Phase.DECODE) if not c.remaining_tokens)
        assert wanted > view.device_free + view.device_leaving + ending
        if policy.name not in PROACTIVE:  # they may also rotate the others in the same turn
            assert len(plan.rotate_out) < len(growing)
        assert len(early) < len(growing)


@given(situations(QUEUED))
def test_order_in_a_class_is_strict(drawn: tuple[AnyPolicy, Situation]) -> None:
    policy, situation = drawn
    view = situation.view(policy.order)
    plan = policy(view)
    refused = {r.id for r in plan.reject}
    waiting = [c.id for c in view.waiting if c.id not in refused]
    assert list(plan.admit) == waiting[: len(plan.admit)]
    assert list(plan.rotate_in) == [c.id for c in view.rotary][: len(plan.rotate_in)]
    assert [c.id for c in plan.prefill][-len(plan.admit) or len(plan.prefill) :] == list(plan.admit)


@given(situations(BY_LANES))
def test_order_in_a_lane_is_strict(drawn: tuple[AnyPolicy, Situation]) -> None:
    """In each part of a tenant's lane nobody is overtaken, and only those beyond a chunk's end wait."""
    policy, situation = drawn
    view = situation.view(policy.order)
    plan = policy(view)
    refused = {r.id for r in plan.reject}
    for lane in lanes_of(view, policy.order).values():
        for part in (lane.waiting, lane.waiting_late):
            ids = [c.id for c in part if c.id not in refused]
            admitted = [id for id in plan.admit if id in ids]
            assert admitted == ids[: len(admitted)]
        for part in (lane.rotary, lane.rotary_late):
            ids = [c.id for c in part]
            resumed = [id for id in plan.rotate_in if id in ids]
            assert resumed == ids[: len(resumed)]


def seeded_views(name: str) -> Iterator[tuple[AnyPolicy, View]]:
    """Views with somebody in both queues outside HBM; too rare for `assume`."""
    for seed in range(4_000):
        policy = draw_policy(name, seed)
        view = draw_situation(seed, rotates=True).view(policy.order)
        if view.waiting and view.rotary:
            yield policy, view


@pytest.mark.parametrize("name", ["rotasched", "rota-slack", "waiting-first"])
def test_a_closed_admission_blocks_no_resumption(name: str) -> None:
    seen = 0
    for policy, view in seeded_views(name):
        closed = dataclasses.replace(view, promised_blocks=10**6)
        plan = policy(closed)
        assert not plan.admit
        assert dataclasses.replace(plan, reject=()) == policy(dataclasses.replace(closed, waiting=()))
        seen += bool(plan.rotate_in)
    assert seen > 100


@pytest.mark.parametrize("name", ["rotasched", "waiting-first"])
def test_a_closed_resumption_blocks_no_admission(name: str) -> None:
    """Closed: there is room for the first rotary request, but the link is busy."""
    seen = 0
    for policy, drawn in seeded_views(name):
        view = dataclasses.replace(drawn, link_in_blocks=0)
        growing = sum(view.decode_needs_block(c) for c in view.running)
        if view.rotary[0].total_blocks + 1 + growing > view.device_free:
            continue
        plan = policy(view)
        assert not plan.rotate_in
        assert plan.admit == policy(dataclasses.replace(view, rotary=(), rotary_blocks=0)).admit
        seen += bool(plan.admit)
    assert seen > 20


@pytest.mark.parametrize("name", POLICIES)
def test_situations_are_not_all_alike(name: str) -> None:
    """Guards the generator: every field of a plan is used by those policies that may use it."""
    used: set[str] = set()
    for seed in range(400):
        policy = draw_policy(name, seed)
        plan = policy(draw_situation(seed, rotates=policy.rotates).view(policy.order))
        used |= {
            f.name
            for f in dataclasses.fields(plan)
            if isinstance(getattr(plan, f.name), tuple) and getattr(plan, f.name)
        }
    wanted = {"admit", "prefill", "decode", "reject"}
    wanted |= {"rotate_out", "rotate_in"} if name in ROTATING else {"evict"}
    wanted |= {"sync"} if name in PROACTIVE else set()
    assert used == wanted
