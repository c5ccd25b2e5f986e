"""Streamed tokens a second through the service, against a bare grpc.aio servicer, in one run.

Server and client are two processes; all modes send the same messages of the same proto.

bare      a servicer that yields one token a message and does nothing else: the transport's own limit
lockstep  the service, a token for each stream a turn, the next turn when all were written: one token a
          message, so the price of one message through outbox, servicer and text can be seen
free      the service, turns as fast as they go: what piles up behind the transport is one message
paced     the service, one turn every --pace-ms: how steady a stream is at an engine's pace

`tokens_ratio` and `cpu_ratio` are against bare with as many streams. On a machine that does other things
too, look at the CPU a message of lockstep costs: it is the steadiest.

    python benchmarks/fanout.py [--json] [--streams 32,256] [--tokens 200]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import grpc

from superinfer_trt.core.attainment import percentile
from superinfer_trt.core.model import ModelConfig
from superinfer_trt.core.outcome import Ending, Sampled, TokenEvent, Totals
from superinfer_trt.core.request import FinishReason
from superinfer_trt.core.view import Limits
from superinfer_trt.runtime.clock import SystemClock
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Snapshot
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import executor_pb2_grpc as pb_grpc
from superinfer_trt.serve.server import Server, ServerOptions
from superinfer_trt.serve.streams import StreamOutbox

MODES = ("bare", "lockstep", "free", "paced")


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
        self.server: Server | None = None
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
            due = time.perf_counter()
            sent = self._messages()
            while live and self.alive:
                due += self._pace_s
                before = len(live)
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
            while self._messages() < messages and self.alive:
                time.sleep(0.0001)
        elif self._mode == "paced":
            time.sleep(max(0.0, due - time.perf_counter()))

    def _messages(self) -> int:
        return self.server.calls.messages if self.server is not None else 0


class Bare(pb_grpc.ExecutorServiceServicer):
    """Nothing but the transport."""

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> Any:  # noqa: N802
        del context
        for index in range(request.sampling.max_tokens):
            yield pb.GenerateResponse(delta=pb.Delta(first_index=index, token_ids=[index]))
        yield pb.GenerateResponse(ending=pb.Ending(finish_reason=pb.FINISH_REASON_LENGTH))


def serve(mode: str, streams: int, pace_s: float, pipe: Connection) -> None:
    """The server process: tells its port, then its CPU seconds whenever asked, until told `None`."""
    asyncio.run(_serve(mode, streams, pace_s, pipe))


async def _serve(mode: str, streams: int, pace_s: float, pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    if mode == "bare":
        bare = grpc.aio.server()
        pb_grpc.add_ExecutorServiceServicer_to_server(Bare(), bare)
        pipe.send(bare.add_insecure_port("127.0.0.1:0"))
        await bare.start()
        await loop.run_in_executor(None, _answer, pipe)
        await bare.stop(0)
        return
    outbox = StreamOutbox(loop)
    service = Turns(outbox, mode, streams, pace_s)
    server = Server(service, outbox, ServerOptions(default_max_tokens=1, reflection=False))
    await server.start()
    service.server = server
    pipe.send(server.port)
    await loop.run_in_executor(None, _answer, pipe)
    await server.stop()
    service.close()


def _answer(pipe: Connection) -> None:
    while pipe.recv() is not None:
        pipe.send(time.process_time())


async def client(port: int, streams: int, tokens: int) -> tuple[float, int, list[int]]:
    """(seconds, messages, gaps between messages of a stream in ns)."""
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1]), sampling=pb.Sampling(max_tokens=tokens))
    gaps: list[int] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.ExecutorServiceStub(channel)

        async def one() -> int:
            messages = received = last = 0
            async for response in stub.Generate(request):
                now = time.perf_counter_ns()
                messages += 1
                assert not response.delta.token_ids or response.delta.first_index == received
                received += len(response.delta.token_ids)
                if last:
                    gaps.append(now - last)
                last = now
            assert received == tokens
            return messages

        await channel.channel_ready()
        start = time.perf_counter()
        messages = sum(await asyncio.gather(*(one() for _ in range(streams))))
        return time.perf_counter() - start, messages, gaps


def measure(mode: str, streams: int, tokens: int, pace_s: float) -> dict[str, Any]:
    """One mode in a fresh server process; the better of two rounds, as the first warms up."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(mode, streams, pace_s, theirs))
    process.start()
    port = ours.recv()
    rounds = []
    for _ in range(2):
        ours.send(0)
        cpu = ours.recv()
        seconds, messages, gaps = asyncio.run(client(port, streams, tokens))
        ours.send(0)
        cpu = ours.recv() - cpu
        gaps.sort()
        rounds.append(
            {
                "mode": mode,
                "streams": streams,
                "tokens_per_s": round(streams * tokens / seconds),
                "messages_per_s": round(messages / seconds),
                "tokens_per_message": round(streams * tokens / messages, 2),
                "server_cpu_us_per_message": round(cpu / messages * 1e6, 1),
                "gap_ms_p50": round(percentile(gaps, 50) / 1e6, 2) if gaps else 0.0,
                "gap_ms_p99": round(percentile(gaps, 99) / 1e6, 2) if gaps else 0.0,
            }
        )
    ours.send(None)
    process.join()
    return max(rounds, key=lambda one: one["tokens_per_s"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one line")
    parser.add_argument("--streams", default="32,256", help="numbers of streams")
    parser.add_argument("--tokens", type=int, default=200, help="a stream")
    parser.add_argument("--pace-ms", type=float, default=20.0, help="of the mode paced")
    options = parser.parse_args()
    rows = [
        measure(mode, streams, options.tokens, options.pace_ms / 1000)
        for streams in map(int, options.streams.split(","))
        for mode in MODES
    ]
    bare = {row["streams"]: row for row in rows if row["mode"] == "bare"}
    for row in rows:
        twin = bare[row["streams"]]
        row["tokens_ratio"] = round(row["tokens_per_s"] / twin["tokens_per_s"], 2)
        row["cpu_ratio"] = round(row["server_cpu_us_per_message"] / twin["server_cpu_us_per_message"], 2)
    if options.json:
        print(json.dumps({"benchmark": "fanout", "tokens": options.tokens, "rows": rows}))
    else:
        print("  ".join(f"{name:>12}" for name in rows[0]))
        for row in rows:
            print("  ".join(f"{value:>{max(12, len(name))}}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
