"""Info, statistics, health, reflection, and what is not there."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.server import SERVICE_NAME
from superinfer_trt.serve.servicer import WATCHERS_MAX
from support.wire import Wire, request, run, say, serving, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    code: grpc.StatusCode = caught.value.code()
    return code


async def health(wire: Wire, name: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(wire.channel)
    status: int = (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status
    return status


def test_model_info() -> None:
    async def scenario() -> None:
        async with serving(requests_max=77, default_max_tokens=9) as wire:
            info = await wire.stub.GetModelInfo(pb.GetModelInfoRequest())
            assert (info.engine, info.policy, info.model, info.architecture) == (
                "echo",
                "none",
                "echo",
                "llama",
            )
            assert (info.vocabulary, info.context_tokens_max, info.request_tokens_max) == (256, 4096, 1024)
            assert (info.block_tokens, info.device_blocks, info.host_blocks) == (16, 64, 128)
            assert (info.default_slo.ttft_ms, info.default_slo.tbt_ms) == (5000, 100)
            assert (info.requests_max, info.default_max_tokens, info.has_tokenizer) == (77, 9, True)
            assert list(info.stop_token_ids) == [0]

    run(scenario())


def test_statistics_count_what_happened() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            await say(wire.stub.Generate(request(1, max_tokens=5)))
            await say(wire.stub.Generate(request(1, max_tokens=5000)))
            stats = (await wire.stub.GetStats(pb.GetStatsRequest())).stats
            assert stats.serving
            assert (stats.accepted, stats.finished_length, stats.refused) == (1, 1, 1)
            assert (stats.output_tokens, stats.streams, stats.device_blocks) == (5, 0, 64)
            assert 1 <= stats.messages <= 6
            assert stats.uptime_s > 0

    run(scenario())


def test_watchers_get_one_at_once_and_one_a_period() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            watch = wire.stub.WatchStats(pb.WatchStatsRequest(period_ms=10))
            uptimes = [(await watch.read()).stats.uptime_s for _ in range(4)]
            assert uptimes == sorted(set(uptimes))
            slow = wire.stub.WatchStats(pb.WatchStatsRequest(period_ms=3_600_000))
            assert (await slow.read()).stats.serving
            await wire.server.stop()  # ends the watchers, does not wait an hour
            assert await slow.code() is grpc.StatusCode.OK

    run(scenario())


@pytest.mark.parametrize("period_ms", [9, 3_600_001])
def test_a_period_outside_the_limits_is_refused(period_ms: int) -> None:
    async def scenario() -> None:
        async with serving() as wire:
            watch = wire.stub.WatchStats(pb.WatchStatsRequest(period_ms=period_ms))
            assert await code_of(watch.read()) is grpc.StatusCode.INVALID_ARGUMENT

    run(scenario())


def test_health() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            assert await health(wire) == SERVING
            assert await health(wire, SERVICE_NAME) == SERVING
            assert await code_of(health(wire, "nobody")) is grpc.StatusCode.NOT_FOUND
            stub = health_pb2_grpc.HealthStub(wire.channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
            assert (await watch.read()).status == SERVING
            wire.service.driver.kill()
            assert (await watch.read()).status == NOT_SERVING
            watch.cancel()

    run(scenario())


def test_a_dead_driver_ends_the_streams_and_refuses_new_ones() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            wire.service.driver.hold()
            call = wire.stub.Generate(request(1, max_tokens=900))
            await call.initial_metadata()
            wire.service.driver.kill()
            said = await say(call)
            assert (said.code, said.details) == (grpc.StatusCode.UNAVAILABLE, "the engine loop has ended")
            said = await say(wire.stub.Generate(request(1)))
            assert said.code is grpc.StatusCode.UNAVAILABLE
            assert said.trailers["superinfer-code"] == "draining"
            await until(lambda: not wire.server.calls.serving)
            stats = (await wire.stub.GetStats(pb.GetStatsRequest())).stats
            assert not stats.serving
            wire.service.executor.abandon("closed by the test")

    run(scenario())


async def reflected(wire: Wire) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(wire.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    return {service.name for service in (await call.read()).list_services_response.service}


def test_reflection_by_flag() -> None:
    async def scenario() -> None:
        async with serving(reflection=True) as wire:
            names = await reflected(wire)
            assert {SERVICE_NAME, "grpc.health.v1.Health"} <= names
        async with serving(reflection=False) as wire:
            assert await code_of(reflected(wire)) is grpc.StatusCode.UNIMPLEMENTED

    run(scenario())


def test_what_is_not_there_and_what_cannot_be_read() -> None:
    async def scenario() -> None:
        async with serving(message_bytes_max=1024) as wire:
            unknown = wire.channel.unary_unary("/superinfer.v1.ExecutorService/Nope")
            assert await code_of(unknown(b"")) is grpc.StatusCode.UNIMPLEMENTED
            garbage = wire.channel.unary_stream("/superinfer.v1.ExecutorService/Generate")
            # gRPC's own answer to bytes that are no message
            assert await code_of(garbage(b"\x0a\xff\xff\xff").read()) is grpc.StatusCode.UNKNOWN
            said = await say(wire.stub.Generate(request(*[200] * 2000)))
            assert said.code is grpc.StatusCode.RESOURCE_EXHAUSTED  # gRPC's own, by message_bytes_max
            assert (await say(wire.stub.Generate(request(1, 2)))).code is grpc.StatusCode.OK

    run(scenario())


def test_many_statistics_readers_do_not_disturb() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            watchers = [wire.stub.WatchStats(pb.WatchStatsRequest(period_ms=50)) for _ in range(WATCHERS_MAX)]
            await asyncio.gather(*(watch.read() for watch in watchers))
            one_more = wire.stub.WatchStats(pb.WatchStatsRequest())
            assert await code_of(one_more.read()) is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert len((await say(wire.stub.Generate(request(1, max_tokens=100)))).token_ids) == 100

    run(scenario())
