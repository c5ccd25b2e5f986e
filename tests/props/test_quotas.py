"""Quotas of tenants: never beyond, and every accepted request gives back what it took, exactly once."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.test_worlds import GEOMETRY, VOCABULARY, FlakyEngine, limits_for
from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.units import MILLISECOND, RequestId, div_ceil
from superinfer_trt.engine.modelled import ModelledEngine, StepCost
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.quotas import InFlight, Quota, Quotas
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.transfer.modelled import ModelledLink
from superinfer_trt.transfer.wrap import FailingLink
from support.requests import random_requests
from support.virtual_clock import VirtualClock
from support.world import Box, BoxClock

BLOCK = 4
limit = st.none() | st.integers(1, 40)
quota = st.builds(Quota, limit, limit, limit)


def made(id: int, tenant: str, prompt: int, tokens: int) -> Request:
    return Request(RequestId(id), (1,) * prompt, Sampling(max_tokens=tokens), tenant=tenant)


def naive(tenant: str, live: dict[int, Request]) -> InFlight:
    """The account, counted anew."""
    mine = [r for r in live.values() if r.tenant == tenant]
    tokens = [len(r.prompt) + r.sampling.max_tokens for r in mine]
    return InFlight(len(mine), sum(tokens), sum(div_ceil(count - 1, BLOCK) for count in tokens))


@given(
    quota,
    st.dictionaries(st.sampled_from("abc"), quota, max_size=2),
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", ""]), st.integers(1, 12), st.integers(1, 12), st.booleans())
    ),
    st.randoms(use_true_random=False),
)
def test_the_accounts_equal_a_recount(
    default: Quota, named: dict[str, Quota], asked: list[tuple[str, int, int, bool]], random: Random
) -> None:
    quotas = Quotas(BLOCK, default, named)
    inbox = BoundedInbox(VirtualClock(), 1_000, quotas)
    live: dict[int, Request] = {}
    for tenant, prompt, tokens, somebody_ends in asked:
        request = made(inbox.next_id(), tenant, prompt, tokens)
        mine = named.get(tenant, default)
        after = naive(tenant, {**live, request.id: request})
        pairs = (
            (after.requests, mine.requests_max),
            (after.tokens, mine.tokens_max),
            (after.blocks, mine.blocks_max),
        )
        fits = all(most is None or count <= most for count, most in pairs)
        if fits:
            inbox.submit(request)
            live[request.id] = request
        else:
            with pytest.raises(Refused) as caught:
                inbox.submit(request)
            served_alone = Quotas(BLOCK, mine).refusal(request) is None
            assert caught.value.code is (RefusalCode.QUOTA if served_alone else RefusalCode.TOO_LARGE)
            assert (caught.value.retry_after is not None) == served_alone
            assert caught.value.field == "tenant"
        if live and somebody_ends:
            gone = random.choice(sorted(live))
            del live[gone]
            inbox.ended([RequestId(gone)])
            quotas.give(RequestId(gone))  # a second time changes nothing
        for name in ("a", "b", "c", ""):
            has, most = naive(name, live), named.get(name, default).requests_max
            assert quotas.in_flight(name) == has
            assert (quotas.full(name) is not None) == (most is not None and has.requests >= most)
        assert len(quotas) == len({request.tenant for request in live.values()})
        assert inbox.live == len(live)
    inbox.ended([RequestId(id) for id in live])
    assert (len(quotas), inbox.live) == (0, 0)


def test_any_number_of_names_may_come_and_go() -> None:
    """Memory is that of the live ones: 100,000 tenants leave nothing behind."""
    quotas = Quotas(BLOCK, Quota(requests_max=1))
    inbox = BoundedInbox(VirtualClock(), 10, quotas)
    for id in range(100_000):
        inbox.submit(made(id, f"tenant-{id}", 3, 3))
        if id >= 5:
            inbox.ended([RequestId(id - 5)])
        assert len(quotas) <= 6
    inbox.ended([RequestId(id) for id in range(99_995, 100_000)])
    assert len(quotas) == 0


@pytest.mark.parametrize("seed", range(6))
def test_cancels_failures_and_refusals_give_back_everything(seed: int) -> None:
    """The real executor with failing steps and copies, cancels at any moment and a policy that rejects."""
    random = Random(seed)
    policy = make_policy(("rota-slack", "rotasched", "fcfs")[seed % 3])
    requests = random_requests(
        seed, 60, vocabulary=VOCABULARY, prompt_max=40, output_max=20, span_ms=random.choice((1, 200))
    )
    too_large = made(60, "a", 4_000, 4)  # it is accepted, and rejected by the policy
    limits = limits_for(random, requests, policy.rotates)
    clock = BoxClock()
    engine = ModelledEngine(clock, GEOMETRY, StepCost(3 * MILLISECOND, 0, 0, 0), vocabulary=VOCABULARY)
    link = FailingLink(
        ModelledLink(clock, GEOMETRY.block_bytes, h2d_bytes_per_s=1e6, d2h_bytes_per_s=1e6),
        probability=0.05,
        seed=seed,
    )
    quotas = Quotas(BLOCK)
    flaky = FlakyEngine(engine, random, 0.03)
    box = Box(policy, flaky, link, limits, depth=1 + seed % 2, clock=clock, quotas=quotas)

    def each_turn(box: Box) -> None:
        live = {sequence.id: sequence.request for sequence in box.executor.live}
        if box.inbox.live == len(live):  # nobody at the door
            for name in ("a", "b"):
                assert quotas.in_flight(name) == naive(name, dict(live))
        others = sorted(live.keys() - {too_large.id})
        if others and random.random() < 0.05:
            box.inbox.cancel(random.choice(others))

    result = box.run([*requests, too_large], each_turn=each_turn)
    reasons = {ending.reason for ending in result.endings.values()}
    assert {FinishReason.CANCELLED, FinishReason.FAILED, FinishReason.REJECTED} <= reasons
    assert (len(quotas), box.inbox.live) == (0, 0)


def test_when_to_try_again_follows_how_requests_end() -> None:
    clock = VirtualClock()
    inbox = BoundedInbox(clock, 100, Quotas(BLOCK, Quota(requests_max=2)))
    assert inbox.retry_after() == 1_000 * MILLISECOND  # nothing is known
    for id in range(80):
        inbox.submit(made(id, f"t{id // 2}", 1, 1))
    for id in range(60):
        clock.time += 20 * MILLISECOND
        inbox.ended([RequestId(id)])
    assert inbox.retry_after() == pytest.approx(20 * MILLISECOND, rel=0.05)
    with pytest.raises(Refused) as caught:
        inbox.submit(made(100, "t35", 1, 1))
    # It has 2 of 20 live requests: one of its own ends every 200 ms.
    assert caught.value.retry_after == pytest.approx(200 * MILLISECOND, rel=0.05)
    clock.time += 10**15
    inbox.ended([RequestId(60)])
    assert inbox.retry_after() == 60_000 * MILLISECOND
