"""The real executor behind the wire: rotating or not, a client cannot tell (C1-C4, C12).

The pattern engine verifies every KV cell it has written before each step, so a lost or crossed block ends
a request as failed, and its tokens depend on the prompt alone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from superinfer_trt import config
from superinfer_trt.build.service import Service, build_service
from superinfer_trt.core.request import FinishReason
from superinfer_trt.sched.registry import POLICIES
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.server import Server, ServerOptions
from superinfer_trt.serve.streams import StreamOutbox
from support.wire import Said, run, say, until
from support.world import RESERVING

pytest.importorskip("superinfer_trt._duplexkv", reason="the native lanes are not built")

BLOCK_TOKENS = 4
REQUESTS = 40


@dataclass
class Wire:
    """A server over a service from the composition root."""

    server: Server
    service: Service
    stub: Any


@asynccontextmanager
async def serving(policy: str, hbm_blocks: int, dram_blocks: int, depth: int) -> AsyncIterator[Wire]:
    flags = {
        "engine.name": "pattern",
        "scheduling.policy": policy,
        "scheduling.depth": depth,
        "scheduling.step_tokens": 48,
        "scheduling.seats": 16,
        "pools.hbm_blocks": hbm_blocks,
        "pools.dram_blocks": dram_blocks,
        "pools.block_tokens": BLOCK_TOKENS,
    }
    outbox = StreamOutbox(asyncio.get_running_loop())
    service = build_service(config.load(None, flags), outbox)
    server = Server(service, outbox, ServerOptions())
    try:
        await server.start()
        async with grpc.aio.insecure_channel(server.target) as channel:
            yield Wire(server, service, ExecutorServiceStub(channel))
            await until(lambda: service.executor.idle, "the last landing")
            assert service.driver.alive
            check_nothing_left(service)
            assert (len(outbox), server.calls.live) == (0, 0)
    finally:
        await server.stop()
        await asyncio.to_thread(service.close)


def check_nothing_left(service: Service) -> None:
    """Every slot of both tiers is free, and every accepted request has ended once (C1, C2, C3)."""
    now, totals = service.executor.snapshot(), service.executor.totals
    assert (now.device_free, now.host_free) == (now.device_total, now.host_total)
    assert sum(totals.finished.values()) == totals.accepted
    assert totals.finished.get(FinishReason.FAILED, 0) == 0
    service.executor._parts.ledger.audit()


def requests(seed: int) -> list[pb.GenerateRequest]:
    source = random.Random(seed)
    made = []
    for _ in range(REQUESTS):
        request = pb.GenerateRequest()
        request.token_ids.ids.extend(source.randrange(32_000) for _ in range(source.randint(1, 40)))
        request.sampling.max_tokens = source.randint(1, 40)
        request.slo.ttft_ms = source.choice([1, 50, 5000])
        request.slo.tbt_ms = source.choice([0.1, 5, 100])
        made.append(request)
    return made


async def answers(wire: Wire, asked: list[pb.GenerateRequest]) -> list[Said]:
    return await asyncio.gather(*(say(wire.stub.Generate(request)) for request in asked))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_rotation_cannot_be_seen_from_outside(policy: str, depth: int) -> None:
    async def scenario() -> None:
        asked = requests(seed=5)
        async with serving("fcfs", 40 * REQUESTS, 0, 1) as wire:
            expected = await answers(wire, asked)
        async with serving(policy, 24, 40 * REQUESTS, depth) as wire:
            got = await answers(wire, asked)
            totals = wire.service.executor.totals
            left = totals.rotations_out + totals.evictions
            assert (left == 0) == (policy in RESERVING), "who has to leave follows from the policy"
            told = (await wire.stub.GetStats(pb.GetStatsRequest())).stats
            assert told.rotations_out == totals.rotations_out
        for before, after in zip(expected, got, strict=True):
            assert after.code is before.code is grpc.StatusCode.OK
            assert after.token_ids == before.token_ids
            assert after.ending is not None
        assert sum(said.ending.rotations for said in got if said.ending) == totals.rotations_out

    run(scenario())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policy", ["rotasched", "fcfs"])
def test_clients_that_leave_in_any_phase_leave_nothing_behind(policy: str, seed: int) -> None:
    source = random.Random(seed)

    async def client(wire: Wire, request: pb.GenerateRequest, name: str) -> None:
        request.request_id = name
        await asyncio.sleep(source.random() * 0.05)
        call = wire.stub.Generate(request)
        habit = source.random()
        if habit < 0.4:
            await asyncio.sleep(source.random() * 0.05)
            call.cancel()
            return
        if habit < 0.6:
            await asyncio.sleep(source.random() * 0.05)
            await wire.stub.Abort(pb.AbortRequest(request_id=name))
        said = await say(call)
        assert said.code is grpc.StatusCode.OK
        assert said.ending is not None

    async def scenario() -> None:
        async with serving(policy, 24, 40 * REQUESTS, 2) as wire:
            clients = (client(wire, one, f"c{index}") for index, one in enumerate(requests(seed)))
            await asyncio.gather(*clients)

    run(scenario())


def test_what_never_fits_the_hbm_pool_is_refused_at_the_door() -> None:
    async def scenario() -> None:
        async with serving("rotasched", 24, 100, 2) as wire:
            request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1] * 90))
            request.sampling.max_tokens = 7
            said = await say(wire.stub.Generate(request))
            assert said.code is grpc.StatusCode.INVALID_ARGUMENT
            assert "96 tokens of the HBM pool" in said.details
            request.sampling.max_tokens = 6
            assert len((await say(wire.stub.Generate(request))).token_ids) == 6

    run(scenario())
