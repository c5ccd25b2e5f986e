"""Clients that vanish, say nothing, say nonsense, or come in thousands; and memory, which comes back."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from superinfer_trt.serve import server as server_module
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from support.wire import Said, request, run, say, serving, until

OK, UNAVAILABLE, EXHAUSTED = (
    grpc.StatusCode.OK,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
ALONE = [("grpc.use_local_subchannel_pool", 1)]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Wireway:
    """A connection's way to the server, that can be cut with a reset, or fall silent in both directions."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._silent = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.port = 0

    async def open(self) -> asyncio.Server:
        listener = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        return listener

    def reset(self) -> None:
        """RST to the server, at once."""
        for writer in self._writers:
            self._linger_not(writer)
            writer.transport.abort()

    def fall_silent(self) -> None:
        """As a cable that is pulled: nothing arrives, nothing is closed."""
        self._silent.set()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.reset()

    @staticmethod
    def _linger_not(writer: asyncio.StreamWriter) -> None:
        raw = writer.get_extra_info("socket")
        if raw is not None and raw.fileno() >= 0:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._writers += [writer, up_writer]
        for one, other in ((reader, up_writer), (up_reader, writer)):
            self._tasks.append(asyncio.create_task(self._pump(one, other)))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                if self._silent.is_set():
                    continue
                writer.write(data)
                await writer.drain()
        except OSError:
            return  # the other side was cut


@asynccontextmanager
async def way_to(port: int) -> AsyncIterator[tuple[Wireway, Any]]:
    """The way, and a stub at its end."""
    way = Wireway(port)
    listener = await way.open()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{way.port}", options=ALONE) as channel:
            yield way, ExecutorServiceStub(channel)
    finally:
        way.close()
        listener.close()


def test_a_connection_that_is_reset_ends_its_requests_and_no_other() -> None:
    async def scenario() -> None:
        async with serving() as wire, way_to(wire.server.port) as (way, stub):
            wire.service.driver.hold()
            theirs = [stub.Generate(request(1, max_tokens=500)) for _ in range(20)]
            ours = wire.stub.Generate(request(2, max_tokens=50))
            for call in (*theirs, ours):
                await call.initial_metadata()
            assert wire.server.calls.live == 21
            way.reset()
            await until(lambda: wire.server.calls.live == 1, "the end of the reset connection's requests")
            wire.service.driver.release()
            assert (await say(ours)).token_ids == [2] * 50
            for call in theirs:
                assert (await say(call)).code is UNAVAILABLE

    run(scenario())


def test_a_client_that_falls_silent_is_found_by_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = server_module._channel_options

    def hurried(options: Any) -> list[tuple[str, int]]:
        found = dict(usual(options))
        assert found["grpc.keepalive_time_ms"] <= 60_000
        limits = ("grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
        assert all(found[name] <= 20_000 for name in limits)
        return list({**found, "grpc.keepalive_time_ms": 300, **dict.fromkeys(limits, 300)}.items())

    monkeypatch.setattr(server_module, "_channel_options", hurried)

    async def scenario() -> None:
        async with serving() as wire, way_to(wire.server.port) as (way, stub):
            wire.service.driver.hold()
            call = stub.Generate(request(1, max_tokens=500))
            await call.initial_metadata()
            way.fall_silent()
            await until(lambda: wire.server.calls.live == 0, "the end of the silent client's request")
            wire.service.driver.release()
            assert (await say(wire.stub.Generate(request(1)))).code is OK
            call.cancel()

    run(scenario())


def nonsense(dice: random.Random) -> bytes:
    """What is no HTTP/2, or stops being it."""
    noise = dice.randbytes(dice.randint(1, 400))
    huge = struct.pack(">I", 0xFFFFFF)[1:] + b"\x00\x00" + struct.pack(">I", 1)  # a DATA frame of 16 MiB
    return dice.choice(
        [
            noise,
            PREFACE,
            PREFACE[: dice.randint(1, 23)],
            PREFACE + noise,
            PREFACE + huge,
            PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + noise,  # SETTINGS, then noise
            PREFACE + b"\x00\x00\x06\x04\x00\x00\x00\x00\x00" * 50,
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00" + noise,  # the beginning of TLS
        ]
    )


def test_nonsense_on_the_port_is_nobodys_trouble() -> None:
    dice = random.Random(11)

    async def speak(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(nonsense(dice))
            await writer.drain()
            if dice.random() < 0.5:
                Wireway._linger_not(writer)  # resets when it closes
        except OSError:
            pass  # the server was quicker
        finally:
            del reader
            writer.close()

    async def scenario() -> None:
        async with serving() as wire:
            for _ in range(20):
                await asyncio.gather(*(speak(wire.server.port) for _ in range(10)))
                said = await say(wire.stub.Generate(request(3, max_tokens=5)))
                assert said.token_ids == [3] * 5

    run(scenario())


def test_ten_thousand_idle_streams_are_held_and_let_go() -> None:
    """All of them accepted and silent; the server still answers, and refuses the next."""
    count, channels = 10_000, 20

    async def scenario() -> None:
        async with serving(requests_max=count) as wire:
            wire.service.driver.hold()
            ways = [grpc.aio.insecure_channel(wire.server.target, options=ALONE) for _ in range(channels)]
            stubs = [ExecutorServiceStub(way) for way in ways]
            calls = [stubs[at % channels].Generate(request(1, max_tokens=9)) for at in range(count)]
            await until(lambda: wire.server.calls.live == count, "the streams")
            assert (await say(wire.stub.Generate(request(1)))).code is EXHAUSTED
            stats = (await wire.stub.GetStats(pb.GetStatsRequest())).stats
            assert stats.refused == 1
            for at, call in enumerate(calls):
                if at % 2:
                    call.cancel()
            await until(lambda: wire.server.calls.live == count // 2, "half of them to go")
            for way in ways:
                await way.close()  # the others' connections go
            await until(lambda: wire.server.calls.live == 0, "the others to go")
            wire.service.driver.release()
            assert (await say(wire.stub.Generate(request(1)))).code is OK

    run(scenario())


def test_metadata_of_all_kinds_is_read_or_refused() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            for metadata, code in (
                ([("x" * 100, "y" * 4000)], OK),
                ([(f"k{at}", "v") for at in range(100)], OK),
                ([("superinfer-ttft-slo-ms", "soon")], grpc.StatusCode.INVALID_ARGUMENT),
                ([("superinfer-ttft-slo-ms", "nan")], grpc.StatusCode.INVALID_ARGUMENT),
                ([("superinfer-tbt-slo-ms", "-1")], grpc.StatusCode.INVALID_ARGUMENT),
                ([("superinfer-tenant", "a b")], grpc.StatusCode.INVALID_ARGUMENT),
                ([("superinfer-nonsense-bin", b"\xff\x00")], OK),
                ([("superinfer-x", "v" * 200_000)], EXHAUSTED),  # gRPC's own limit on metadata
            ):
                said = await say(wire.stub.Generate(request(1), metadata=metadata))
                assert said.code is code, (metadata[0][0], said.details)
            assert (await say(wire.stub.Generate(request(1)))).code is OK

    run(scenario())


# ---- a server of its own process ------------------------------------------------------------------


@contextmanager
def server(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    command = [sys.executable, "-c", "from superinfer_trt.cli.main import main; main()"]
    command += ["serve", "--engine", "sim", "--hbm-blocks", "256", "--dram-blocks", "2048", "--port", "0"]
    # one arena: else how much is kept depends on which thread asked last
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0"}
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            yield process, str(json.loads(process.stdout.readline())["target"])
        finally:
            process.kill()
            process.communicate()


def test_a_signal_under_load_gives_every_stream_a_status_in_time() -> None:
    """Forty streams, some that can end in time and some that cannot."""

    async def scenario(process: subprocess.Popen[bytes], target: str) -> list[Said]:
        async with grpc.aio.insecure_channel(target) as channel:
            stub = ExecutorServiceStub(channel)
            calls = [stub.Generate(request(1, max_tokens=4 if at % 2 else 3000)) for at in range(40)]
            for call in calls:
                await call.initial_metadata()
            process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*(say(call) for call in calls))

    with server("--drain-timeout-s", "1") as (process, target):
        answers = run(scenario(process, target))
        assert process.wait(timeout=30) == 1  # not all had finished
        codes = Counter(said.code for said in answers)
        assert set(codes) == {OK, UNAVAILABLE}
        assert codes[UNAVAILABLE] >= 20
        for said in answers:
            assert said.ending is not None  # of those that were cut as well


def test_a_killed_server_ends_its_streams_as_unavailable() -> None:
    async def scenario(process: subprocess.Popen[bytes], target: str) -> list[Said]:
        async with grpc.aio.insecure_channel(target) as channel:
            stub = ExecutorServiceStub(channel)
            calls = [stub.Generate(request(1, max_tokens=3000)) for _ in range(10)]
            for call in calls:
                await call.initial_metadata()
            process.kill()
            return await asyncio.gather(*(say(call) for call in calls))

    with server() as (process, target):
        assert {said.code for said in run(scenario(process, target))} == {UNAVAILABLE}


ROUNDS, ROUND_REQUESTS = 16, 600
GROWTH_MAX = 4 << 20
"""A leak of 1 KiB a request would be 5.4 MiB in the nine rounds between the two looks."""


def resident(pid: int) -> int:
    """Bytes of anonymous memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


async def churn(target: str, dice: random.Random) -> None:
    """A round of every kind of client, on connections of its own."""

    async def one(stub: Any, raw: Any) -> None:
        kind = dice.random()
        if kind < 0.05:
            await say(raw(dice.randbytes(300)))
        elif kind < 0.15:
            await say(stub.Generate(request(1, max_tokens=100_000)))
        elif kind < 0.3:
            call = stub.Generate(request(*range(1, 200), max_tokens=400))
            await call.initial_metadata()
            call.cancel()
        else:
            await say(stub.Generate(request(1, 2, 3, max_tokens=dice.randint(1, 6))))

    channels = [grpc.aio.insecure_channel(target, options=ALONE) for _ in range(6)]
    raws = [channel.unary_stream("/superinfer.v1.ExecutorService/Generate") for channel in channels]
    stubs = [ExecutorServiceStub(channel) for channel in channels]
    tasks = [one(stubs[at % 6], raws[at % 6]) for at in range(ROUND_REQUESTS)]
    await asyncio.gather(*tasks)
    for channel in channels:
        await channel.close()
    host, port = target.split(":")
    for _ in range(20):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(nonsense(dice))
        writer.transport.abort()


def test_memory_returns_to_its_level() -> None:
    """It goes up and down by some MiB with what gRPC keeps; its low points do not rise."""
    dice, sizes = random.Random(5), []

    with server("--log-level", "error") as (process, target):
        for _ in range(ROUNDS):
            run(churn(target, dice))
            sizes.append(resident(process.pid))
    growth = min(sizes[-4:]) - min(sizes[3:7])
    assert growth < GROWTH_MAX, f"{growth >> 10} KiB more: {[size >> 10 for size in sizes]}"
