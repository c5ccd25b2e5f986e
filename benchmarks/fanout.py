"""Streamed tokens a second through the service, against a bare grpc.aio servicer with the same batching.

Server and client are two processes; each mode runs on both servers in alternation, the same turns, proto
and outbox, so that a pair differs by what the service itself does: acceptance, checks, counts by tenant,
message, ending. The better of the rounds counts.

free      turns as fast as they go: what piles up behind the transport is one message
lockstep  a token for each stream a turn, the next turn when all were written: the price of a message
paced     one turn every --pace-ms: how long after its turn a token reaches its client, and how much of
          that the service adds

`tokens_ratio`, `cpu_ratio` (CPU of the server a message) and `added_ms_p99` are against the bare servicer.
`request_us` is CPU of the server a request, messages included, the least of the rounds: with `--modes free
--tokens 1` the price of a request alone.
The client is a Python program on the other core: where it is the slower one, `cpu_ratio` still tells.

    python benchmarks/fanout.py [--json] [--streams 1,32,256,1000] [--tokens 200]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import multiprocessing.process
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import grpc

from superinfer_trt.core.attainment import percentile
from superinfer_trt.core.model import ModelConfig
from superinfer_trt.core.outcome import Ending, Sampled, TokenEvent, Totals
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.view import Limits
from superinfer_trt.runtime.clock import SystemClock
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Snapshot
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import executor_pb2_grpc as pb_grpc
from superinfer_trt.serve.server import Server, ServerOptions, settle
from superinfer_trt.serve.streams import StreamOutbox

MODES = ("free", "lockstep", "paced")
SERVERS = ("bare", "service")


class Turns:
    """A Service whose executor is a thread that gives every live request the next token."""

    def __init__(self, outbox: StreamOutbox, mode: str, streams: int, pace_s: float) -> None:
        self.clock = SystemClock()
        self.inbox = BoundedInbox(self.clock, 1 << 20)
        self.totals = Totals()
        self.tokenizer = None
        self.model: ModelConfig | None = None
        self.limits = Limits(512, streams, 16, 1 << 20, 0)
        self.vocabulary, self.context_tokens_max = 32_000, 1 << 20
        self.supports: frozenset[str] = frozenset()
        self.engine, self.policy = "echo", "none"
        self.executor = self.driver = self
        self.alive = True
        self.messages: Callable[[], int] = lambda: 0  # written so far
        self.turned_at: list[int] = []  # ns of time.perf_counter, a turn each
        self._outbox, self._mode, self._streams, self._pace_s = outbox, mode, streams, pace_s
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def snapshot(self) -> Snapshot:
        return Snapshot(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)

    def close(self) -> None:
        self.alive = False
        self.clock.wake()
        self._thread.join()

    def _run(self) -> None:
        live: dict[Any, list[Any]] = {}
        while self.alive:
            for request in self.inbox.drain()[0]:
                live[request.id] = [request, 0]
            if len(live) < self._streams:  # all start together
                self.clock.park(self.clock.now() + 1_000_000)
                continue
            due, sent = time.perf_counter(), self.messages()
            self.turned_at = []
            while live and self.alive:
                due += self._pace_s
                before = len(live)
                self.turned_at.append(time.perf_counter_ns())
                self._outbox.emit(self._turn(live))
                self._wait(sent + before, due)
                sent += before

    def _turn(self, live: dict[Any, list[Any]]) -> list[TokenEvent]:
        now = self.clock.now()
        events = []
        for id, state in list(live.items()):
            request, index = state
            state[1] += 1
            ending = None
            if state[1] == request.sampling.max_tokens:
                del live[id]
                self.inbox.ended([id])
                ending = Ending(FinishReason.LENGTH, "", 1, index + 1, 0, 0, now, now, now, now)
            events.append(TokenEvent(id, now, index, Sampled(index), ending))
        return events

    def _wait(self, messages: int, due: float) -> None:
        if self._mode == "lockstep":
            while self.messages() < messages and self.alive:
                time.sleep(0.0001)
        elif self._mode == "paced":
            time.sleep(max(0.0, due - time.perf_counter()))


class Bare(pb_grpc.ExecutorServiceServicer):
    """The same turns with nothing around them: each take of the outbox is one message."""

    def __init__(self, service: Turns, outbox: StreamOutbox) -> None:
        self._service, self._outbox = service, outbox
        self.messages = 0

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        id = self._service.inbox.next_id()
        stream = self._outbox.open(id)
        sampling = Sampling(max_tokens=request.sampling.max_tokens)
        self._service.inbox.submit(Request(id, (1,), sampling, self._service.clock.now()))
        sent = 0
        while sent < request.sampling.max_tokens:
            ids = [event.sampled.token for event in await stream.take() if event.sampled is not None]
            await context.write(pb.GenerateResponse(delta=pb.Delta(first_index=sent, token_ids=ids)))
            sent += len(ids)
            self.messages += 1
        self._outbox.close(id)


def serve(kind: str, mode: str, streams: int, pace_s: float, pipe: Connection) -> None:
    """The server process: tells its port, then its CPU seconds and turns when asked, until told `None`."""
    asyncio.run(_serve(kind, mode, streams, pace_s, pipe))


async def _serve(kind: str, mode: str, streams: int, pace_s: float, pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    outbox = StreamOutbox(loop)
    service = Turns(outbox, mode, streams, pace_s)
    if kind == "bare":
        servicer, plain = Bare(service, outbox), grpc.aio.server()
        service.messages = lambda: servicer.messages
        pb_grpc.add_ExecutorServiceServicer_to_server(servicer, plain)
        pipe.send(plain.add_insecure_port("127.0.0.1:0"))
        await plain.start()
        settle()
        await loop.run_in_executor(None, _answer, pipe, service)
        await plain.stop(0)
    else:
        server = Server(service, outbox, ServerOptions(default_max_tokens=1, reflection=False))
        await server.start()
        service.messages = lambda: server.calls.messages
        pipe.send(server.port)
        settle()
        await loop.run_in_executor(None, _answer, pipe, service)
        await server.stop()
    service.close()


def _answer(pipe: Connection, service: Turns) -> None:
    while pipe.recv() is not None:
        pipe.send((time.process_time(), service.turned_at))


async def client(port: int, streams: int, tokens: int) -> tuple[float, list[tuple[int, int]]]:
    """(seconds, for each message the index of its newest token and when it came)."""
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1]), sampling=pb.Sampling(max_tokens=tokens))
    came: list[tuple[int, int]] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.ExecutorServiceStub(channel)

        async def one() -> None:
            received = 0
            async for response in stub.Generate(request):
                now = time.perf_counter_ns()
                assert not response.delta.token_ids or response.delta.first_index == received
                received += len(response.delta.token_ids)
                came.append((received - 1, now))
            assert received == tokens

        await channel.channel_ready()
        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(streams)))
        return time.perf_counter() - start, came


@dataclass
class Process:
    """One server in a process of its own, and its best round."""

    mode: str
    streams: int
    pipe: Connection
    process: multiprocessing.process.BaseProcess
    port: int
    best: dict[str, Any] = field(default_factory=dict)
    request_us: float = math.inf

    @classmethod
    def start(cls, kind: str, mode: str, streams: int, pace_s: float) -> Process:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(kind, mode, streams, pace_s, theirs))
        process.start()
        return cls(mode, streams, ours, process, ours.recv())

    def stop(self) -> None:
        self.pipe.send(None)
        self.process.join()

    def round(self, tokens: int) -> None:
        """One round of all streams; the better one is kept."""
        before, _ = self._asked()
        seconds, came = asyncio.run(client(self.port, self.streams, tokens))
        after, turned_at = self._asked()
        late = sorted(now - turned_at[index] for index, now in came)
        made = {
            "tokens_per_s": round(self.streams * tokens / seconds),
            "tokens_per_message": round(self.streams * tokens / len(came), 2),
            "cpu_us": round((after - before) / len(came) * 1e6, 1),
            "request_us": round((after - before) / self.streams * 1e6, 1),
            "late_ms_p50": round(percentile(late, 50) / 1e6, 2),
            "late_ms_p99": round(percentile(late, 99) / 1e6, 2),
        }
        self.request_us = min(self.request_us, made["request_us"])
        paced = self.mode == "paced"
        if not self.best or (
            made["late_ms_p99"] < self.best["late_ms_p99"]
            if paced
            else made["tokens_per_s"] > self.best["tokens_per_s"]
        ):
            self.best = made
        self.best["request_us"] = self.request_us

    def _asked(self) -> tuple[float, list[int]]:
        self.pipe.send(0)
        cpu, turned_at = self.pipe.recv()
        return cpu, turned_at


def measure(mode: str, streams: int, tokens: int, pace_s: float, rounds: int) -> dict[str, Any]:
    """Both servers, round by round in alternation after one to warm up."""
    pair = [Process.start(kind, mode, streams, pace_s) for kind in SERVERS]
    try:
        for one in pair:
            one.round(tokens)
            one.best, one.request_us = {}, math.inf
        for _ in range(rounds):
            for one in pair:
                one.round(tokens)
    finally:
        for one in pair:
            one.stop()
    bare, ours = (one.best for one in pair)
    return {
        "mode": mode,
        "streams": streams,
        **ours,
        "bare_tokens_per_s": bare["tokens_per_s"],
        "bare_cpu_us": bare["cpu_us"],
        "bare_request_us": bare["request_us"],
        "tokens_ratio": round(ours["tokens_per_s"] / bare["tokens_per_s"], 2),
        "cpu_ratio": round(ours["cpu_us"] / bare["cpu_us"], 2),
        "added_ms_p99": round(ours["late_ms_p99"] - bare["late_ms_p99"], 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one line")
    parser.add_argument("--streams", default="1,32,256,1000", help="numbers of streams")
    parser.add_argument("--modes", default=",".join(MODES), help="of free, lockstep, paced")
    parser.add_argument("--tokens", type=int, default=200, help="a stream; with 1,000 streams a quarter")
    parser.add_argument("--pace-ms", type=float, default=40.0, help="of the mode paced")
    parser.add_argument("--rounds", type=int, default=3, help="of each server")
    options = parser.parse_args()
    rows = [
        measure(
            mode,
            streams,
            options.tokens // 4 if streams >= 1000 else options.tokens,
            options.pace_ms / 1000,
            options.rounds,
        )
        for streams in map(int, options.streams.split(","))
        for mode in options.modes.split(",")
    ]
    figures = {"benchmark": "fanout", "tokens": options.tokens, "pace_ms": options.pace_ms}
    if options.json:
        print(json.dumps({**figures, "load": os.getloadavg(), "rows": rows}))
    else:
        print("load average", *os.getloadavg())
        print("  ".join(f"{name:>10}" for name in rows[0]))
        for row in rows:
            print("  ".join(f"{value:>{max(10, len(name))}}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
