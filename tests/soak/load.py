"""The clients of a soak: requests of all kinds from a seed, each compared with what it gave when alone.

Counts are kept by tenant, so that they can be compared with the server's own exactly: those who leave in the
middle are a tenant of their own, since nobody can say how far the server got before it noticed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from superinfer_trt.core.errors import RefusalCode
from superinfer_trt.serve.errors import CODE_TRAILER
from superinfer_trt.serve.pb import executor_pb2 as pb

KINDS = {"whole": 80, "slow": 5, "abort": 5, "leave": 5, "invalid": 5}
"""In 100 requests. slow: reads late; abort: ended by its id behind the first message; leave: call is cut."""

LEAVERS = "leavers"
TENANTS = ("red", "green", "blue")
PATIENCE_S = 240.0
"""Without an end for so long: stuck. The longest that was needed is among the figures."""
LIVE_MAX = 2_000
"""Open calls of the open loop, several times what the server takes: clients and server share two cores, and a
crowd that neither can even refuse is another test (tests/wire/test_limits.py)."""
LONG_EVERY = 10
"""One in so many of the pool; the others make six tokens at most, and wait behind these."""

SLOW_READ_S = 0.02
REFUSALS = frozenset(code.value for code in RefusalCode)


@dataclass
class Job:
    """A request of the pool, and what it gave when nobody else was there."""

    message: pb.GenerateRequest
    alone: list[int] = field(default_factory=list)


@dataclass
class Counts:
    """What the clients know. `ended`: by (tenant, finish reason); `tokens` by tenant; `unsent`: due while
    LIVE_MAX were open; `took_s_max`: from sending to the end, of those that got a token."""

    sent: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    left: int = 0
    unsent: int = 0
    stuck: int = 0
    took_s_max: float = 0.0
    wrong: list[str] = field(default_factory=list)
    """What no client may ever see; the first hundred."""

    def saw(self, what: str) -> None:
        if len(self.wrong) < 100:
            self.wrong.append(what)


def pool(seed: int, count: int, prompt_tokens_max: int, tokens_max: int, vocabulary: int) -> list[Job]:
    """Greedy and sampled requests with seeds, some with ids to stop at."""
    dice, jobs = random.Random(seed), []
    for number in range(count):
        message = pb.GenerateRequest()
        tokens = dice.randint(1, prompt_tokens_max)
        message.token_ids.ids.extend(dice.randrange(vocabulary) for _ in range(tokens))
        long = number % LONG_EVERY == 0
        message.sampling.max_tokens = (
            dice.randint(tokens_max // 2, tokens_max) if long else dice.randint(1, 6)
        )
        if dice.random() < 0.5:
            message.sampling.temperature = dice.uniform(0.2, 1.2)
            message.sampling.seed = dice.randrange(1 << 32)
            message.sampling.top_k = dice.choice([0, 5, 40])
        if dice.random() < 0.3:
            message.sampling.stop_token_ids.append(dice.randrange(vocabulary))
        jobs.append(Job(message))
    return jobs


class Clients:
    """Sends requests over a few connections and counts what comes."""

    def __init__(self, stubs: Sequence[Any], jobs: Sequence[Job], seed: int) -> None:
        self._stubs, self._jobs = stubs, jobs
        self._dice = random.Random(seed)
        self._kinds = list(KINDS)
        self._weights = list(KINDS.values())
        self._names = 0
        self.counts = Counts()
        self.live = 0
        self.lag_s_max = 0.0
        """How late a request was sent at most, in the open loop."""

    async def learn(self) -> None:
        """Each job alone. They count as everybody else's."""
        for job in self._jobs:
            job.alone = await self._one("whole", job, TENANTS[0])

    async def closed(self, callers: int, seconds: float) -> float:
        """So many callers, each one request after the other; requests/s that ended in the second half."""
        until = time.monotonic() + seconds

        async def caller() -> None:
            while time.monotonic() < until:
                await self._next()

        callers_tasks = [asyncio.create_task(caller()) for _ in range(callers)]
        await asyncio.sleep(seconds / 2)
        before, start = self._done(), time.monotonic()
        await asyncio.sleep(until - start)
        rate = (self._done() - before) / (time.monotonic() - start)
        await asyncio.gather(*callers_tasks)
        return rate

    async def open(self, rate: float, seconds: float) -> None:
        """Poisson arrivals, `rate` a second, whatever the answers do up to LIVE_MAX; waits for the last."""
        due = time.monotonic()
        until, tasks = due + seconds, set()
        while due < until:
            due += self._dice.expovariate(rate)
            late = time.monotonic() - due
            if late < 0:
                await asyncio.sleep(-late)
            else:
                await asyncio.sleep(0)  # behind: the answers are to be read all the same
            if self.live >= LIVE_MAX:
                self.counts.unsent += 1
                continue
            self.lag_s_max = max(self.lag_s_max, late)
            task = asyncio.create_task(self._next())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    def _done(self) -> int:
        return sum(self.counts.ended.values()) + self.counts.left

    async def _next(self) -> None:
        (kind,) = self._dice.choices(self._kinds, self._weights)
        tenant = LEAVERS if kind == "leave" else self._dice.choice(TENANTS)
        await self._one(kind, self._dice.choice(self._jobs), tenant)

    async def _one(self, kind: str, job: Job, tenant: str) -> list[int]:
        """Sends it and reads it to its end; returns its tokens."""
        counts = self.counts
        counts.sent += 1
        self._names += 1
        message = pb.GenerateRequest()
        message.CopyFrom(job.message)
        message.request_id, message.tenant = f"r{self._names}", tenant
        if kind == "invalid":
            message.token_ids.ids.append(1 << 31)
        stub = self._stubs[self._names % len(self._stubs)]
        self.live += 1
        sent = time.monotonic()
        call, ids = stub.Generate(message), list[int]()
        try:
            await asyncio.wait_for(self._read(kind, call, message, ids), PATIENCE_S)
        except asyncio.TimeoutError:
            counts.stuck += 1
            counts.saw(f"{message.request_id}: no end in {PATIENCE_S} s")
            call.cancel()
        finally:
            self.live -= 1
        if ids:
            counts.took_s_max = max(counts.took_s_max, time.monotonic() - sent)
        counts.tokens[tenant] += len(ids)
        if job.alone and ids != job.alone[: len(ids)]:
            counts.saw(f"{message.request_id}: tokens {ids}, alone {job.alone}")
        return ids

    async def _read(self, kind: str, call: Any, message: pb.GenerateRequest, ids: list[int]) -> None:
        """Reads to the end of the call, or as far as this kind of client does."""
        ending: pb.Ending | None = None
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                if not ids and response.delta.token_ids:
                    if kind == "abort":
                        await self._stubs[0].Abort(pb.AbortRequest(request_id=message.request_id))
                    elif kind == "leave":
                        call.cancel()
                        self.counts.accepted[message.tenant] += 1
                        self.counts.left += 1
                        return
                self._take(response, message, ids)
                if response.HasField("ending"):
                    ending = response.ending
                if kind == "slow":
                    await asyncio.sleep(SLOW_READ_S)
        except grpc.aio.AioRpcError as error:
            self._failed(kind, message, ending, error)
        else:
            if ending is None:
                self.counts.saw(f"{message.request_id}: OK without an ending")

    def _take(self, response: pb.GenerateResponse, message: pb.GenerateRequest, ids: list[int]) -> None:
        counts, name = self.counts, message.request_id
        if response.delta.token_ids and response.delta.first_index != len(ids):
            counts.saw(f"{name}: token {response.delta.first_index} after {len(ids)}")
        ids += response.delta.token_ids
        if response.HasField("ending"):
            ending = response.ending
            counts.accepted[message.tenant] += 1
            counts.ended[message.tenant, pb.FinishReason.Name(ending.finish_reason)] += 1
            if ending.usage.output_tokens != len(ids):
                counts.saw(f"{name}: {ending.usage.output_tokens} told, {len(ids)} came")

    def _failed(
        self,
        kind: str,
        message: pb.GenerateRequest,
        ending: pb.Ending | None,
        error: grpc.aio.AioRpcError,
    ) -> None:
        """A status that is not OK: of a refusal, or behind the ending of what the policy rejected."""
        if ending is not None and ending.finish_reason == pb.FINISH_REASON_REJECTED:
            return
        refusal = str(dict(error.trailing_metadata() or ()).get(CODE_TRAILER))  # type: ignore[arg-type]
        expected = {"queue_full", "invalid"} if kind == "invalid" else {"queue_full"}
        if ending is None and refusal in REFUSALS:
            self.counts.refused[refusal] += 1
        if ending is not None or refusal not in expected:
            self.counts.saw(f"{message.request_id}: {error.code().name} {error.details()}")
