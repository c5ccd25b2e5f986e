"""Profile: a recording of a real server, in pieces, one at a time, and off when nobody looks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest

from superinfer_trt.runtime.recording import Recording
from superinfer_trt.serve import profiling
from superinfer_trt.serve.pb import executor_pb2 as pb
from support.modelled import Modelled, modelled
from support.wire import request, run, say, until


async def chunks(wire: Modelled, duration_ms: int = 0) -> list[bytes]:
    stream = wire.stub.Profile(pb.ProfileRequest(duration_ms=duration_ms))
    return [message.chunk async for message in stream]


def slices(found: list[bytes]) -> list[dict[str, Any]]:
    return [e for e in json.loads(b"".join(found))["traceEvents"] if e["ph"] == "X"]


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    code: grpc.StatusCode = caught.value.code()
    return code


def observers(wire: Modelled) -> int:
    return len(wire.service.executor._observers)


def test_a_recording_has_turns_phases_and_both_lanes() -> None:
    async def scenario() -> None:
        async with modelled(make_recording=Recording) as wire:
            calls = [
                asyncio.create_task(say(wire.stub.Generate(request(*range(1, 50), max_tokens=40))))
                for _ in range(30)
            ]
            found = await chunks(wire, 1500)
            await asyncio.gather(*calls)
            assert observers(wire) == 0
            assert len(found) > 1
            assert all(len(chunk) <= 64 * 1024 for chunk in found)
            names = {event["name"] for event in slices(found)}
            assert {"plan", "apply", "decode", "waiting", "rotary", "d2h", "h2d"} <= names
            assert all(event["ts"] >= 0 for event in slices(found))

    run(scenario())


def test_an_idle_server_gives_an_empty_record() -> None:
    async def scenario() -> None:
        async with modelled(make_recording=Recording) as wire:
            assert slices(await chunks(wire, 1)) == []

    run(scenario())


def test_there_is_one_recording_at_a_time() -> None:
    async def scenario() -> None:
        async with modelled(make_recording=Recording) as wire:
            first = wire.stub.Profile(pb.ProfileRequest(duration_ms=60_000))
            await until(lambda: observers(wire) == 1, "the first recording")
            second = wire.stub.Profile(pb.ProfileRequest(duration_ms=1))
            assert await code_of(second) is grpc.StatusCode.RESOURCE_EXHAUSTED
            first.cancel()  # a caller that goes away ends its recording
            await until(lambda: observers(wire) == 0, "its end")
            assert await chunks(wire, 1)

    run(scenario())


def test_a_server_that_stops_ends_a_recording_early() -> None:
    async def scenario() -> None:
        async with modelled(make_recording=Recording) as wire:
            task = asyncio.create_task(chunks(wire, 60_000))
            await until(lambda: observers(wire) == 1, "the recording")
            await wire.server.stop()
            assert slices(await task) == []

    run(scenario())


def test_what_cannot_be_recorded_is_refused() -> None:
    async def scenario() -> None:
        async with modelled() as wire:
            call = wire.stub.Profile(pb.ProfileRequest())
            assert await code_of(call) is grpc.StatusCode.UNIMPLEMENTED
        async with modelled(make_recording=Recording) as wire:
            call = wire.stub.Profile(pb.ProfileRequest(duration_ms=60_001))
            assert await code_of(call) is grpc.StatusCode.INVALID_ARGUMENT

    run(scenario())


def test_a_reader_that_takes_nothing_gives_the_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "READER_TIMEOUT_S", 0.01)

    async def scenario() -> None:
        async with modelled() as wire:
            profiler = profiling.Profiler(wire.service, Recording)
            never = asyncio.Event()

            async def write(chunk: bytes) -> None:
                assert chunk
                await never.wait()

            for _ in range(2):
                with pytest.raises(asyncio.TimeoutError):
                    await profiler.record(1, never, write)

    run(scenario())
