"""What the benchmarks share: an executor on a real engine in this thread, timed, and one JSON line.

Machines are noisy, so every figure that counts is a ratio of two things measured in one run.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from superinfer_trt.core.model import Weights
from superinfer_trt.core.outcome import Ending, TokenEvent, Totals
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.request import Request
from superinfer_trt.core.units import MILLISECOND, Nanos, RequestId
from superinfer_trt.core.view import Limits, View
from superinfer_trt.engine.native import NativeEngine, element_bytes_for
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.runtime.clock import SystemClock
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Executor, Parts
from superinfer_trt.sched.registry import AnyPolicy, make_policy
from superinfer_trt.transfer.native import DuplexLink
from superinfer_trt.transfer.pools import allocate_pool


@dataclass
class Sink:
    """An outbox that keeps tokens and endings, and when the last event came."""

    tokens: dict[RequestId, list[int]] = field(default_factory=dict)
    times: dict[RequestId, list[Nanos]] = field(default_factory=dict)
    endings: dict[RequestId, Ending] = field(default_factory=dict)

    def emit(self, events: Sequence[TokenEvent]) -> None:
        """One turn's events."""
        for event in events:
            if event.sampled is not None:
                self.tokens.setdefault(event.id, []).append(event.sampled.token)
                self.times.setdefault(event.id, []).append(event.now)
            if event.ending is not None:
                self.endings[event.id] = event.ending


@dataclass(frozen=True)
class Ran:
    """One executor's run to its end."""

    wall_s: float
    tokens: dict[RequestId, list[int]]
    times: dict[RequestId, list[Nanos]]
    totals: Totals

    @property
    def output_tokens(self) -> int:
        return sum(len(tokens) for tokens in self.tokens.values())

    @property
    def tokens_per_s(self) -> float:
        return self.output_tokens / self.wall_s

    def decode(self) -> tuple[float, float]:
        """(tokens/s, rows of a step on average) while all decode: from the last first token to the first
        last one."""
        start = max(times[0] for times in self.times.values())
        end = min(times[-1] for times in self.times.values())
        assert start < end, "somebody ended before the last had begun: give them more tokens"
        made = [at for times in self.times.values() for at in times if start < at <= end]
        return len(made) / ((end - start) / 1e9), len(made) / len(set(made))


@dataclass(frozen=True)
class Setting:
    """How an executor is set up; bytes per second of each direction of the link, 0: unlimited."""

    policy: str = "fcfs"
    parameters: dict[str, object] = field(default_factory=dict)
    hbm_blocks: int = 512
    dram_blocks: int = 0
    seats: int = 64
    step_tokens: int = 512
    depth: int = 2
    link_bytes_per_s: float = 2e9
    threads: int | None = None
    dtype: str = "bf16"
    block_tokens: int = 16


class Recorded:
    """A policy that keeps the plans it has made."""

    def __init__(self, setting: Setting) -> None:
        self._policy = make_policy(setting.policy, **setting.parameters)
        self.name, self.order, self.rotates = self._policy.name, self._policy.order, self._policy.rotates
        self.plans: list[Plan] = []

    def __call__(self, view: View) -> Plan:
        plan = self._policy(view)
        if not plan.idle:
            self.plans.append(plan)
        return plan


class Replayed:
    """The batches of recorded plans, row by row, with nobody rotated: for an HBM that holds everybody."""

    name, rotates = "replayed", False

    def __init__(self, recorded: Recorded) -> None:
        self.order = recorded.order
        self._plans = [plan for plan in recorded.plans if plan.runs]

    def __call__(self, view: View) -> Plan:
        if view.turn >= len(self._plans):
            return Plan(view.turn, view.now)
        plan = self._plans[view.turn]
        return Plan(view.turn, view.now, plan.admit, plan.prefill, plan.decode)


def run(
    weights: Weights,
    setting: Setting,
    requests: Sequence[Request],
    policy: AnyPolicy | Recorded | Replayed | None = None,
) -> Ran:
    """Runs the requests, all there from the start, through the whole executor; under `policy` instead of
    the setting's if there is one. The pools' pages exist before the clock starts: to touch one for the first
    time takes longer than a copy into it, and a server does that once."""
    policy = policy or make_policy(setting.policy, **setting.parameters)
    limits = Limits(
        setting.step_tokens,
        setting.seats,
        setting.block_tokens,
        setting.hbm_blocks,
        setting.dram_blocks if policy.rotates else 0,
    )
    block_bytes = weights.config.geometry(setting.block_tokens, element_bytes_for(setting.dtype)).block_bytes
    device = allocate_pool(limits.device_blocks, block_bytes)
    host = allocate_pool(max(1, limits.host_blocks), block_bytes)
    device[:], host[:] = 0, 0
    rate = setting.link_bytes_per_s
    link = DuplexLink(device, host, h2d_bytes_per_s=rate, d2h_bytes_per_s=rate)
    engine = NativeEngine(
        weights, device, block_tokens=setting.block_tokens, dtype=setting.dtype, threads=setting.threads
    )
    clock, sink = SystemClock(), Sink()
    inbox = BoundedInbox(clock, len(requests))
    executor = Executor(
        Parts(clock, policy, KvLedger(limits), link, engine, inbox, sink, limits), depth=setting.depth
    )
    try:
        start = time.perf_counter()
        for request in requests:
            inbox.submit(request)
        executor.turn()
        while not executor.idle:
            if not executor.turn():
                clock.park(clock.now() + MILLISECOND // 5)
        wall_s = time.perf_counter() - start
    finally:
        link.close()
        engine.close()
    assert len(sink.endings) == len(requests)
    return Ran(wall_s, sink.tokens, sink.times, executor.totals)


def machine() -> dict[str, object]:
    """What it ran on, for the record."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def report(figures: dict[str, object], *, as_json: bool) -> None:
    """One JSON line, or one figure a line for people."""
    figures = {**figures, **machine()}
    if as_json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        shown = f"{value:,.3f}" if isinstance(value, float) else str(value)
        print(f"{name:<44} {shown}", file=sys.stdout)
