"""Puts rotation into a fake worker, as the installer does it, over a link that is late and rude."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from superinfer_trt.core.ports import Policy
from superinfer_trt.core.units import MILLISECOND, Ticket
from superinfer_trt.core.view import Limits
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.trtllm.resources import RESOURCE_KEY, DuplexKvResources
from superinfer_trt.trtllm.rotation import Rotation, RotationParts
from superinfer_trt.trtllm.scheduler import RotaCapacityScheduler
from support.trtllm.executor import PyExecutor
from support.trtllm.gpu import Stream
from support.trtllm.link import LateLink
from support.trtllm.request import LlmRequest
from support.trtllm.worker import KV_CACHE_MANAGER, SEQ_SLOT_MANAGER, WorkerShape, make_worker
from support.virtual_clock import VirtualClock


class FakeOrder:
    """StreamOrder over the fake stream."""

    def __init__(self, stream: Stream, link: LateLink) -> None:
        self._stream = stream
        self._link = link
        self.waits = 0

    def mark(self, turn: int) -> None:
        self._stream.enqueue(lambda: self._link.mark(turn))

    def wait(self, ticket: Ticket) -> None:
        self.waits += 1
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


class WatchedResources(DuplexKvResources):
    """Tells a test of each ending before the adapter hears of it."""

    on_freed: Callable[[LlmRequest], None] | None = None

    def free_resources(self, request: LlmRequest) -> None:
        if self.on_freed is not None:
            self.on_freed(request)
        super().free_resources(request)


class RotatingWorker:
    """A fake worker with rotation in it. `step` is one iteration of its loop, a step of 20 ms."""

    def __init__(self, shape: WorkerShape, rotation: RotationShape) -> None:
        self.executor: PyExecutor = make_worker(shape)
        impl = self.executor.kv_cache_manager.impl
        host = np.zeros((rotation.host_blocks, *impl.pool.shape[1:]), np.uint64)
        self.link = LateLink(
            impl.pool,
            host,
            shape.seed + 1,
            polls_max=rotation.polls_max,
            busy=rotation.busy,
            failing=rotation.failing,
        )
        self.order = FakeOrder(self.executor.execution_stream, self.link)
        self.clock = VirtualClock()
        limits = Limits(
            step_tokens=shape.max_num_tokens,
            seats=shape.max_batch_size,
            block_tokens=shape.block_tokens,
            device_blocks=shape.blocks,
            host_blocks=rotation.host_blocks,
        )
        self.ledger = KvLedger(limits)
        self._parts = RotationParts(
            policy=make_policy(rotation.policy, **rotation.parameters),
            ledger=self.ledger,
            transfers=self.link,
            order=self.order,
            cache=impl,
            clock=self.clock,
            limits=limits,
            block_bytes=impl.pool[0].nbytes,
            window_tokens=shape.max_seq_len,
            sequence_tokens_max=shape.max_seq_len,
        )
        self._install(Rotation(self._parts))

    def choose(self, policy: Policy) -> None:
        """Another policy than one of the registry; before the first step."""
        self._install(Rotation(replace(self._parts, policy=policy)))

    def _install(self, rotation: Rotation) -> None:
        self.rotation = rotation
        self.executor.scheduler.capacity_scheduler = RotaCapacityScheduler(rotation)
        resources = self.executor.resource_manager
        self.duplex = WatchedResources(rotation, self.link, self._parts.limits.host_blocks)
        resources.register_resource_manager(RESOURCE_KEY, self.duplex)
        resources.reorder_pipeline([SEQ_SLOT_MANAGER, RESOURCE_KEY, KV_CACHE_MANAGER])

    def enqueue(self, request: LlmRequest) -> None:
        self.executor.enqueue(request)

    def step(self) -> None:
        """One iteration, and the invariants that hold after each."""
        self.executor.step()
        self.clock.time += 20 * MILLISECOND
        self.ledger.audit()
        impl = self.executor.kv_cache_manager.impl
        assert impl.get_kv_cache_stats().free_num_blocks >= self.ledger.device_free

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
