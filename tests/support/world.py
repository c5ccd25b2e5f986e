"""An executor in a box: scripted arrivals, a clock that moves by itself, and a check of every ending.

The production executor, roster, ledger and policy run unchanged; engine and link are given. Each turn the
ledger is audited (C1, C5, L1, L6) and every stream is checked (C3, C4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from superinfer_trt.core.outcome import Ending, Outcome, TokenEvent
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import ModelEngine, Policy, TransferEngine
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.step import Batch
from superinfer_trt.core.units import MILLISECOND, Nanos, RequestId
from superinfer_trt.core.view import Limits
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Executor, Parts
from superinfer_trt.runtime.quotas import Quotas

RESERVING = frozenset({"lightllm", "trt-no-evict"})
"""Policies that reserve HBM to a request's last token: under them nobody ever has to leave."""


class BoxClock:
    """Each look costs a microsecond; a park jumps. Deterministic."""

    def __init__(self) -> None:
        self.time: Nanos = 0

    def now(self) -> Nanos:
        self.time += 1_000
        return self.time

    def park(self, until: Nanos | None) -> None:
        if until is not None:
            self.time = max(self.time, until)

    def wake(self) -> None:
        pass


@dataclass
class Streams:
    """An outbox that checks what it is told (C3, C4)."""

    tokens: dict[RequestId, list[int]] = field(default_factory=dict)
    endings: dict[RequestId, Ending] = field(default_factory=dict)

    def emit(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            assert event.id not in self.endings, f"request {event.id} was told something after its end"
            if event.sampled is not None:
                tokens = self.tokens.setdefault(event.id, [])
                assert event.index == len(tokens), f"request {event.id} has a gap or a repeat"
                tokens.append(event.sampled.token)
            if event.ending is not None:
                self.endings[event.id] = event.ending


class HashingEngine:
    """Wraps an engine: keeps a hash of each block of KV at the moment its last token was written, and
    demands that it still hashes the same at every later step of its request."""

    def __init__(self, engine: ModelEngine, pool: NDArray[np.uint8], clock: BoxClock, step_ns: Nanos) -> None:
        self._engine = engine
        self._pool = pool
        self._clock = clock
        self._step_ns = step_ns
        self._air: Batch | None = None
        self._slots: list[list[int]] = []
        self.hashes: dict[tuple[RequestId, int], str] = {}
        self.geometry = engine.geometry
        self.vocabulary = engine.vocabulary
        self.context_tokens_max = engine.context_tokens_max
        self.supports = engine.supports

    def launch(self, batch: Batch) -> None:
        self._air = batch
        self._slots = [list(row.slots) for row in batch.rows]
        self._engine.launch(batch)

    def collect(self) -> Outcome:
        outcome = self._engine.collect()
        self._clock.time += self._step_ns
        assert self._air is not None
        block_tokens = self.geometry.block_tokens
        for row, slots in zip(self._air.rows, self._slots, strict=True):
            for index in range((row.start + len(row.tokens)) // block_tokens):
                digest = hashlib.blake2b(self._pool[slots[index]], digest_size=8).hexdigest()
                first = self.hashes.setdefault((row.id, index), digest)
                assert first == digest, f"block {index} of request {row.id} changed"
        return outcome

    def close(self) -> None:
        self._engine.close()


@dataclass(frozen=True)
class Result:
    """What a world came to."""

    tokens: dict[RequestId, list[int]]
    endings: dict[RequestId, Ending]
    turns: int
    rotations: int
    evictions: int
    lines: list[str]


class Box:
    """One executor and everything around it."""

    def __init__(
        self,
        policy: Policy,
        engine: ModelEngine,
        transfers: TransferEngine,
        limits: Limits,
        *,
        depth: int = 1,
        clock: BoxClock | None = None,
        requests_max: int = 100_000,
        quotas: Quotas | None = None,
    ) -> None:
        self.clock = clock or BoxClock()
        self.streams = Streams()
        self.ledger = KvLedger(limits)
        self.inbox = BoundedInbox(self.clock, requests_max, quotas)
        self.transfers = transfers
        self.executor = Executor(
            Parts(self.clock, policy, self.ledger, transfers, engine, self.inbox, self.streams, limits),
            depth=depth,
        )
        self.lines: list[str] = []
        self._newest: Plan | None = None

    def run(
        self,
        requests: Iterable[Request],
        *,
        turns_max: int = 100_000,
        each_turn: Callable[[Box], None] | None = None,
        audit: bool = True,
    ) -> Result:
        """Submits each request at its arrival time, turns until all is idle, and checks the end (C2)."""
        todo = sorted(requests, key=lambda r: (r.arrival, r.id))
        count = len(todo)
        todo.reverse()
        turns = 0
        while todo or not self.executor.idle:
            while todo and todo[-1].arrival <= self.clock.time:
                self.inbox.submit(todo.pop())
            if not self.executor.turn():
                until = self.clock.time + MILLISECOND // 5
                self.clock.park(max(until, todo[-1].arrival) if todo and self.executor.idle else until)
            newest = self.executor.trace.newest
            if newest is not None and newest is not self._newest:
                self._newest = newest
                self.lines.append(newest.line())
            if audit:
                self.ledger.audit()
            if each_turn is not None:
                each_turn(self)
            turns += 1
            assert turns < turns_max, f"not drained after {turns} turns; newest: {self.lines[-5:]}"
        self.ledger.land(())  # what the last turn evicted comes free with the next
        self.ledger.audit()
        assert self.ledger.empty, "slots leaked (C2)"
        assert len(self.streams.endings) == count, "a request was lost (C3)"
        totals = self.executor.totals
        return Result(
            self.streams.tokens,
            self.streams.endings,
            turns,
            totals.rotations_out,
            totals.evictions,
            self.lines,
        )


def all_done(result: Result) -> bool:
    """Whether every request ended by its own means."""
    return all(e.reason in {FinishReason.STOP, FinishReason.LENGTH} for e in result.endings.values())
