"""Overload over the wire: quotas, refusal in time, when to try again, deadlines, a drain in the middle of it.

The composition root's own service on the engine with modelled step times: real executor, ledger and policy.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from superinfer_trt import config
from superinfer_trt.build.service import Service, build_service
from superinfer_trt.core.request import FinishReason
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.server import Server, ServerOptions
from superinfer_trt.serve.streams import StreamOutbox
from support.wire import request, run, say, until

OK, EXHAUSTED = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
RETRY = "superinfer-retry-after-ms"


@dataclass
class Wire:
    server: Server
    service: Service
    stub: Any


@asynccontextmanager
async def serving(step_ms: float = 2.0, **flags: object) -> AsyncIterator[Wire]:
    """`flags` with two underscores for the dot; afterwards nothing is live, held or counted."""
    named = {name.replace("__", "."): value for name, value in flags.items()}
    fixed = {
        "engine.name": "sim",
        "engine.step_cost": {
            "base_ns": step_ms * 1e6,
            "row_ns": 0,
            "prefill_token_ns": 2e5,
            "context_token_ns": 0,
        },
        "scheduling.step_tokens": 64,
        "scheduling.seats": 8,
        "pools.hbm_blocks": 256,
    }
    outbox = StreamOutbox(asyncio.get_running_loop())
    service = build_service(config.load(None, {**fixed, **named}), outbox)
    server = Server(service, outbox, ServerOptions())
    try:
        await server.start()
        async with grpc.aio.insecure_channel(server.target) as channel:
            yield Wire(server, service, ExecutorServiceStub(channel))
            await until(lambda: service.executor.idle, "the last landing")
            now = service.executor.snapshot()
            assert (now.device_free, now.host_free) == (now.device_total, now.host_total)
            assert (len(outbox), server.calls.live, service.inbox.live) == (0, 0, 0)
    finally:
        await server.stop()
        await asyncio.to_thread(service.close)


def long(tenant: str = "", **fields: Any) -> pb.GenerateRequest:
    """Some seconds of it."""
    return request(1, 2, 3, max_tokens=3_000, tenant=tenant, **fields)


async def started(wire: Wire, message: pb.GenerateRequest, **options: Any) -> Any:
    call = wire.stub.Generate(message, **options)
    await call.initial_metadata()
    return call


def test_a_tenants_quota_is_its_own() -> None:
    quotas = {"acme": {"requests_max": 2}, "tiny": {"tokens_max": 100}, "flat": {"blocks_max": 10}}

    async def scenario() -> None:
        async with serving(tenants__named=quotas) as wire:
            live = [await started(wire, long("acme")) for _ in range(2)]
            said = await say(wire.stub.Generate(request(1, tenant="acme")))
            assert (said.code, said.trailers["superinfer-code"]) == (EXHAUSTED, "quota")
            assert said.trailers["superinfer-field"] == "tenant"
            assert int(said.trailers[RETRY]) >= 1
            assert "requests_max of tenants.named.acme is 2" in said.details
            for tenant in ("tiny", "", "others"):
                assert (await say(wire.stub.Generate(request(1, tenant=tenant)))).code is OK
            too_much = {
                "tiny": request(1, max_tokens=100, tenant="tiny"),
                "flat": request(1, max_tokens=161, tenant="flat"),
            }
            for tenant, message in too_much.items():
                said = await say(wire.stub.Generate(message))
                assert (said.code, said.trailers["superinfer-code"]) == (
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "too_large",
                )
                assert f"tenants.named.{tenant}" in said.details
                assert RETRY not in said.trailers
            live[0].cancel()
            await until(lambda: wire.service.inbox.live == 1, "the place given back")
            assert (await say(wire.stub.Generate(request(1, tenant="acme")))).code is OK
            live[1].cancel()

    run(scenario())


def test_a_full_queue_says_when_to_try_again() -> None:
    async def scenario() -> None:
        async with serving(service__requests_max=2) as wire:
            live = [await started(wire, long()) for _ in range(2)]
            said = await say(wire.stub.Generate(request(1)))
            assert (said.code, said.trailers["superinfer-code"]) == (EXHAUSTED, "queue_full")
            assert 1 <= int(said.trailers[RETRY]) <= 60_000
            for call in live:
                call.cancel()

    run(scenario())


def test_a_deadline_ends_the_request_within_a_token() -> None:
    async def scenario() -> None:
        async with serving(step_ms=20.0) as wire:
            call = await started(wire, long(), timeout=0.3)
            said = await say(call)
            assert said.code is grpc.StatusCode.DEADLINE_EXCEEDED
            totals = wire.service.executor.totals
            await until(lambda: wire.server.calls.live == 0, "the servicer's notice")
            noticed = totals.output_tokens
            await until(lambda: totals.finished.get(FinishReason.CANCELLED) == 1, "the executor's notice")
            # Of the batch in the air and the one planned behind it.
            assert len(said.token_ids) <= totals.output_tokens <= noticed + 2
            assert totals.output_tokens < 3_000

    run(scenario())


def test_what_would_come_too_late_is_refused_in_time() -> None:
    """64 tokens a step of 15 ms: a line of 40 prompts of 60 tokens takes half a second."""

    async def scenario() -> None:
        flags = {"scheduling__policy": "fcfs", "service__shed": "certain"}
        async with serving(**flags) as wire:
            for _ in range(10):  # it learns how fast prefill is
                assert (await say(wire.stub.Generate(request(*range(1, 65), max_tokens=1)))).code is OK
            slo = pb.Slo(ttft_ms=200)
            crowd = [request(*range(1, 61), max_tokens=2, slo=slo) for _ in range(40)]
            answers = await asyncio.gather(*(say(wire.stub.Generate(message)) for message in crowd))
            codes = Counter(said.code for said in answers)
            assert set(codes) == {OK, EXHAUSTED}
            assert codes[EXHAUSTED] >= 10
            for said in answers:
                if said.code is EXHAUSTED:
                    assert said.ending is not None
                    assert said.ending.finish_reason == pb.FINISH_REASON_REJECTED
                    assert "TTFT objective" in said.ending.message
                    assert int(said.trailers[RETRY]) >= 1
                    assert not said.token_ids

    run(scenario())


def test_draining_under_overload_finishes_what_was_taken() -> None:
    """A full house and refusals at both doors, then the drain: who is live ends by itself."""

    async def scenario() -> None:
        flags = {"service__requests_max": 24, "tenants__default": {"requests_max": 8}}
        async with serving(**flags) as wire:
            names = ("a", "b", "c", "d")
            calls = [wire.stub.Generate(request(1, 2, max_tokens=40, tenant=names[i % 4])) for i in range(80)]
            answering = [asyncio.create_task(say(call)) for call in calls]
            await until(lambda: wire.service.inbox.live == 24, "a full house")
            stopping = asyncio.create_task(wire.server.drain(30))
            await until(lambda: not wire.server.calls.serving, "the drain")
            answers = await asyncio.gather(*answering)
            assert await stopping
            codes = Counter(said.code for said in answers)
            assert codes[OK] >= 24
            assert set(codes) <= {OK, EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
            assert all(len(said.token_ids) == 40 for said in answers if said.code is OK)
            kinds = Counter(
                said.trailers.get("superinfer-code") for said in answers if said.code is EXHAUSTED
            )
            assert set(kinds) <= {"quota", "queue_full"}
            finished = wire.service.executor.totals.finished
            assert finished == {FinishReason.LENGTH: codes[OK]}

    run(scenario())
