"""Shedding in whole worlds: what is refused would have come too late, and nothing good is lost by it."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from sim.test_worlds import GEOMETRY
from superinfer_trt.core.ports import Policy
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, RequestId
from superinfer_trt.core.view import Limits
from superinfer_trt.engine.modelled import ModelledEngine, StepCost
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.sched.shedding import Shedding
from superinfer_trt.transfer.modelled import ModelledLink
from support.world import Box, BoxClock, Result

VOCABULARY = 97


def burst(seed: int, count: int = 150) -> list[Request]:
    """Prompts for about three times what can be prefilled while they arrive, after a calm start."""
    random = Random(seed)
    requests, at = [], 0
    for id in range(count):
        at += random.randrange(60 if id < 20 else 16) * MILLISECOND
        prompt = random.randrange(20, 200)
        requests.append(
            Request(
                RequestId(id),
                (1,) * prompt,
                Sampling(max_tokens=random.randrange(1, 12)),
                Slo(ttft=random.choice((150, 300, 600)) * MILLISECOND),
                arrival=at,
            )
        )
    return requests


def run(policy: Policy, requests: list[Request], rotates: bool) -> Result:
    limits = Limits(128, 16, 4, device_blocks=1_000, host_blocks=4_000 if rotates else 0)
    clock = BoxClock()
    cost = StepCost(2 * MILLISECOND, 10_000, 200_000, 0)
    engine = ModelledEngine(clock, GEOMETRY, cost, vocabulary=VOCABULARY)
    link = ModelledLink(clock, GEOMETRY.block_bytes, h2d_bytes_per_s=1e8, d2h_bytes_per_s=1e8)
    return Box(policy, engine, link, limits, depth=2, clock=clock).run(requests, audit=False)


def met(result: Result, request: Request) -> bool:
    ending = result.endings[request.id]
    return 0 <= ending.first_token <= request.arrival + request.slo.ttft


@pytest.mark.parametrize("policy", ["fcfs", "sarathi", "trt-no-evict", "fcfs-cap"])
@pytest.mark.parametrize("seed", range(4))
def test_whoever_is_refused_would_have_missed(policy: str, seed: int) -> None:
    """Strict orders: as much or more is before it in the run that refuses nobody."""
    requests = burst(seed)
    plain = run(make_policy(policy), requests, rotates=False)
    shed = run(Shedding(make_policy(policy)), requests, rotates=False)
    refused = [r for r in requests if shed.endings[r.id].reason is FinishReason.REJECTED]
    assert len(refused) > 20
    assert not [r.id for r in refused if met(plain, r)]
    good, better = (sum(met(result, r) for r in requests) for result in (plain, shed))
    assert better > good
    assert all(shed.endings[r.id].output_tokens == 0 for r in refused)


@pytest.mark.parametrize("policy", ["rota-slack", "rotasched"])
def test_it_costs_other_policies_nothing(policy: str) -> None:
    """One by one the worlds go apart after the first refusal; all together they are no worse."""
    good = better = refused = 0
    for seed in range(6):
        requests = burst(seed)
        plain = run(make_policy(policy), requests, rotates=True)
        shed = run(Shedding(make_policy(policy)), requests, rotates=True)
        good += sum(met(plain, r) for r in requests)
        better += sum(met(shed, r) for r in requests)
        refused += sum(e.reason is FinishReason.REJECTED for e in shed.endings.values())
    assert refused > 100
    assert better >= good


def test_without_overload_nobody_is_refused() -> None:
    requests = [replace(r, arrival=r.id * 100 * MILLISECOND) for r in burst(1)]
    for policy in ("fcfs", "rota-slack"):
        inner = make_policy(policy)
        result = run(Shedding(inner), requests, inner.rotates)
        assert all(e.reason is FinishReason.LENGTH for e in result.endings.values())
