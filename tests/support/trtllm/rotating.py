"""Puts rotation into a fake worker, as the installer does it, over a link that is late and rude."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import cast

import numpy as np

from superinfer_trt.build.trtllm import Link, RotationSettings, install
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import Policy
from superinfer_trt.core.units import MILLISECOND, Ticket
from superinfer_trt.core.view import Order, View
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.trtllm.resources import RESOURCE_KEY, DuplexKvResources
from superinfer_trt.trtllm.rotation import Rotation
from superinfer_trt.trtllm.scheduler import RotaCapacityScheduler
from support.legal_plans import RandomPolicy
from support.trtllm.executor import Dist, PyExecutor
from support.trtllm.gpu import Stream
from support.trtllm.link import LateLink
from support.trtllm.package import open_fake_package
from support.trtllm.request import LlmRequest
from support.trtllm.worker import WorkerShape, make_worker
from support.virtual_clock import VirtualClock


class FakeOrder:
    """StreamOrder over the fake stream."""

    def __init__(self, stream: Stream, link: LateLink, *, busy: float = 0.0) -> None:
        self._random = Random(0)
        self._busy = busy
        self._owed = -1
        self._stream = stream
        self._link = link
        self.waits = 0

    def mark(self, turn: int) -> bool:
        self._owed = turn
        if self._random.random() < self._busy:
            return False
        self._owed = -1
        self._stream.enqueue(lambda: self._link.mark(turn))
        return True

    def wait(self, ticket: Ticket) -> None:
        self.waits += 1
        if self._owed >= 0:  # the copy may be behind a mark that was refused
            owed, self._owed = self._owed, -1
            self._stream.enqueue(lambda: self._link.mark(owed))
        self._stream.enqueue(lambda: self._link.land_now(ticket))


@dataclass(frozen=True)
class RotationShape:
    """How a worker rotates, and how bad its link is."""

    policy: str = "rotasched"
    parameters: dict[str, object] = field(default_factory=dict)
    host_blocks: int = 64
    polls_max: int = 3
    busy: float = 0.0
    failing: float = 0.0
    seed: int = 0  # of the link, beside the worker's


class WatchedResources(DuplexKvResources):
    """Tells a test of each ending before the adapter hears of it."""

    on_freed: Callable[[LlmRequest], None] | None = None

    def free_resources(self, request: LlmRequest) -> None:
        if self.on_freed is not None:
            self.on_freed(request)
        super().free_resources(request)


class RotatingWorker:
    """A fake worker with rotation in it. `step` is one iteration of its loop, a step of 20 ms."""

    def __init__(self, shape: WorkerShape, rotation: RotationShape, dist: Dist | None = None) -> None:
        self.executor: PyExecutor = make_worker(shape, dist=dist)
        impl = self.executor.kv_cache_manager.impl
        host = np.zeros((rotation.host_blocks, *impl.pool.shape[1:]), np.uint64)
        self.link = LateLink(
            impl.pool,
            host,
            shape.seed * 31 + rotation.seed,
            polls_max=rotation.polls_max,
            busy=rotation.busy,
            failing=rotation.failing,
        )
        self.order = FakeOrder(self.executor.execution_stream, self.link, busy=rotation.busy)
        self.clock = VirtualClock()
        settings = RotationSettings(
            policy=rotation.policy,
            parameters=rotation.parameters,
            dram_bytes=host.nbytes,
            spare_blocks=0,
        )
        self.rotation = install(
            self.executor, open_fake_package(), settings, lambda *_: Link(self.link, self.order), self.clock
        )
        self.ledger = cast("KvLedger", self.rotation.parts.ledger)
        self._watch()

    def choose(self, policy: Policy) -> None:
        """Another policy than one of the registry; before the first step."""
        self.rotation = Rotation(replace(self.rotation.parts, policy=policy))
        self.executor.scheduler.capacity_scheduler = RotaCapacityScheduler(self.rotation)
        self._watch()

    def _watch(self) -> None:
        host_blocks = self.rotation.parts.limits.host_blocks
        self.duplex = WatchedResources(self.rotation, self.link, host_blocks)
        resources = self.executor.resource_manager.resource_managers
        assert isinstance(resources[RESOURCE_KEY], DuplexKvResources)
        resources[RESOURCE_KEY] = self.duplex

    def enqueue(self, request: LlmRequest) -> None:
        self.executor.enqueue(request)

    def step(self) -> None:
        """One iteration, and the invariants that hold after each."""
        self.executor.step()
        self.clock.time += 20 * MILLISECOND
        self.ledger.audit()
        impl = self.executor.kv_cache_manager.impl
        assert impl.get_kv_cache_stats().free_num_blocks >= self.ledger.device_free
        assert impl.reusable_too_early == 0

    def drain(self, steps_max: int = 5_000) -> None:
        """Until nobody is left and every copy has landed; then both tiers are empty."""
        for _ in range(steps_max):
            if self.executor.idle and not self.ledger.in_flight:
                break
            self.step()
        else:
            raise AssertionError(f"not drained: {self.rotation.trace.newest}")
        assert self.ledger.empty
        assert self.executor.kv_cache_manager.impl.sequences == set()
        assert self.link.idle


class RandomMoves:
    """Any legal plan at random, without evictions and rejections."""

    name = "random moves"
    rotates = True

    def __init__(self, seed: int) -> None:
        self._inner = RandomPolicy(seed)
        self.order: Order = self._inner.order

    def __call__(self, view: View) -> Plan:
        plan = self._inner(view)
        return Plan(
            plan.turn, plan.now, plan.admit, plan.prefill, plan.decode,
            plan.rotate_out, plan.rotate_in, plan.sync,
        )  # fmt: skip
