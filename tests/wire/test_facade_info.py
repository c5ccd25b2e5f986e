"""What gateways are told beside requests, and objectives that come beside them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import zipfile
from dataclasses import replace

import grpc
import pytest

from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.serve.pb import trtllm_common_pb2 as common
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from support.facade import ask, facing, read, watch
from support.wire import request, run, say, serving, until


def slo(ttft_ms: float, tbt_ms: float) -> Slo:
    return Slo(round(ttft_ms * MILLISECOND), round(tbt_ms * MILLISECOND))


def test_objectives_by_metadata_and_by_class() -> None:
    async def scenario() -> None:
        default = slo(5000, 100)
        async with facing(slo_classes={"gold": slo(500, 50)}, default_slo=default) as (wire, stub):
            seen = watch(wire)
            told = (
                ("superinfer-ttft-slo-ms", "750.5"),
                ("superinfer-tenant", "acme"),
                ("openengine-priority", "7"),
            )
            for name, metadata in (
                ("plain", ()), ("gold.1", ()), ("gold.2", told), ("goldfish.3", told), ("gold", ()),
                ("a.gold.b", ()),
            ):  # fmt: skip
                got = await read(stub.Generate(ask(1, request_id=name), metadata=metadata))
                assert got.code is grpc.StatusCode.OK, got.details
            assert [one.slo for one in seen] == [
                default, slo(500, 50), slo(750.5, 50), slo(750.5, 100), default, default,
            ]  # fmt: skip
            assert [one.tenant for one in seen] == ["", "", "acme", "acme", "", ""]
            for value in ("soon", "nan", "0", "-1"):
                wrong = (("superinfer-tbt-slo-ms", value),)
                got = await read(stub.Generate(ask(1), metadata=wrong))
                assert got.code is grpc.StatusCode.INVALID_ARGUMENT
                assert "tbt" in got.trailers["superinfer-field"]
            assert wire.server.calls.refused == 4

    run(scenario())


def test_the_executor_service_takes_the_same_metadata_where_the_message_says_nothing() -> None:
    async def scenario() -> None:
        async with serving(default_slo=slo(5000, 100), slo_classes={"gold": slo(500, 50)}) as wire:
            seen = watch(wire)
            told = (
                ("superinfer-ttft-slo-ms", "750"),
                ("superinfer-tbt-slo-ms", "75"),
                ("superinfer-tenant", "m"),
            )
            asked = request(1, tenant="own", request_id="gold.1")
            asked.slo.tbt_ms = 20
            for one in (asked, request(1)):
                said = await say(wire.stub.Generate(one, metadata=told))
                assert said.code is grpc.StatusCode.OK
            assert [one.slo for one in seen] == [slo(750, 20), slo(750, 75)]
            assert [one.tenant for one in seen] == ["own", "m"]
            said = await say(wire.stub.Generate(request(1), metadata=(("superinfer-ttft-slo-ms", "x"),)))
            assert (said.code, said.trailers["superinfer-field"]) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "superinfer-ttft-slo-ms",
            )

    run(scenario())


def test_what_is_served() -> None:
    async def scenario() -> None:
        async with facing(model_name="served") as (_, stub):
            info = await stub.GetModelInfo(trt.GetModelInfoRequest())
            assert (info.model_id, info.vocab_size, info.max_batch_size) == ("served", 256, 64)
            assert (info.max_seq_len, info.max_input_len) == (1024, 1023)  # the HBM pool: 64 blocks of 16
            assert "stop_strings" in info.supported_features
            server = await stub.GetServerInfo(trt.GetServerInfoRequest())
            assert (server.backend, server.world_size) == ("superinfer-echo", 1)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Embed(trt.EmbedRequest())
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        async with facing({"text": False}) as (_, stub):
            info = await stub.GetModelInfo(trt.GetModelInfoRequest())
            assert (info.model_id, "stop_strings" in info.supported_features) == ("echo", False)

    run(scenario())


def test_the_tokenizer_comes_in_pieces_and_whole() -> None:
    async def scenario() -> None:
        async with facing() as (wire, stub):
            assert wire.service.tokenizer is not None
            kept = {"a.json": b"{}", "b.bin": hashlib.shake_256(b"").digest(1_200_000)}  # does not compress
            wire.service.tokenizer.files = lambda: kept
            archives = []
            for _ in range(2):
                pieces = [piece async for piece in stub.GetTokenizer(common.GetTokenizerRequest())]
                whole = b"".join(piece.data for piece in pieces)
                assert [piece.sha256 for piece in pieces[:-1]] == [""] * 2
                assert pieces[-1].sha256 == hashlib.sha256(whole).hexdigest()
                archives.append(whole)
            assert archives[0] == archives[1]
            with zipfile.ZipFile(io.BytesIO(archives[0])) as archive:
                assert {name: archive.read(name) for name in archive.namelist()} == kept
        async with facing({"text": False}) as (_, stub):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetTokenizer(common.GetTokenizerRequest()).read()
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(scenario())


def test_load_comes_at_once_and_again() -> None:
    async def scenario() -> None:
        async with facing() as (wire, stub):
            wire.service.driver.hold()
            running = stub.Generate(ask(1, max_tokens=2))
            await until(lambda: wire.server.calls.live == 1)
            wire.service.driver.step()
            await running.read()
            call = stub.SubscribeKvEvents(common.SubscribeKvEventsRequest())
            first, second = await call.read(), await call.read()
            for at, batch in enumerate((first, second), start=1):
                assert (batch.sequence_number, len(batch.events)) == (0, 0)
                assert (batch.load.sample, batch.load.load_only) == (at, True)
                assert (batch.load.running_requests, batch.load.waiting_requests) == (1, 0)
                assert (batch.load.max_running_requests, batch.load.max_total_num_tokens) == (64, 1024)
            assert second.load.gen_throughput == 0
            call.cancel()
            other = stub.SubscribeKvEvents(common.SubscribeKvEventsRequest())
            await other.read()
            wire.service.driver.release()
            await read(running)
            stopping = asyncio.create_task(wire.server.stop())
            while await other.read() is not grpc.aio.EOF:
                pass
            await stopping

    run(scenario())


def test_who_was_rotated_out_waits() -> None:
    async def scenario() -> None:
        async with facing() as (wire, stub):
            seen = wire.service.executor.snapshot()
            wire.service.executor.snapshot = lambda: replace(
                seen, waiting=3, prefill=2, decode=5, rotating_out=1, rotary=7, rotating_in=2, device_free=16
            )
            load = (await stub.SubscribeKvEvents(common.SubscribeKvEventsRequest()).read()).load
            assert (load.running_requests, load.waiting_requests) == (7, 13)
            assert (load.queues.waiting, load.queues.paused) == (3, 10)
            assert (load.token_usage, load.num_used_tokens) == (0.75, 48 * 16)

    run(scenario())


def test_it_can_be_left_out() -> None:
    async def scenario() -> None:
        async with facing(facade=False) as (_, stub):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.HealthCheck(trt.HealthCheckRequest())
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(scenario())
