"""The composition root of simulations: a setup becomes a world of production parts and modelled ones.

Everything the executor meets is what serves, but for clock, link and engine. Knows no file format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.view import Limits
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Executor, Parts
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.sim.clock import SimClock
from superinfer_trt.sim.cost import HostCost, TimedPolicy
from superinfer_trt.sim.engine import SimEngine
from superinfer_trt.sim.link import SimLink
from superinfer_trt.sim.peaks import Peaks, WatchedPolicy
from superinfer_trt.sim.perfetto import RunTrace
from superinfer_trt.sim.profiles import Hardware, ModelShape, link_model, pool_blocks, step_model
from superinfer_trt.sim.workload import Item, check_lengths
from superinfer_trt.sim.world import Journal, World

SYNCHRONOUS = frozenset({"fcfs", "fcfs-cap", "waiting-first", "swapped-first", "lightllm", "ltr", "sarathi"})
"""Policies of engines that schedule between two steps; the others plan while a step runs."""

COPIES = {"waiting-first": "naive-blocking", "swapped-first": "naive-blocking", "ltr": "naive-blocking"}
"""Links of the engines some policies come from (vLLM V0); the others get duplex."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated. None: what the policy's own engine has, or what the hardware leaves."""

    hardware: Hardware
    model: ModelShape
    policy: str = "rotasched"
    parameters: Mapping[str, object] = field(default_factory=dict)
    depth: int | None = None
    link: str | None = None
    unlimited_allowance: bool = False
    block_tokens: int = 16
    step_tokens: int = 16_384
    seats: int = 16_384
    hbm_blocks: int | None = None
    dram_blocks: int | None = None
    host_cost: HostCost = field(default_factory=HostCost)

    @property
    def turns_in_air(self) -> int:
        """1: synchronous; 2: pipelined."""
        return self.depth if self.depth is not None else 1 if self.policy in SYNCHRONOUS else 2

    @property
    def link_kind(self) -> str:
        """One of sim.profiles.LINKS."""
        return self.link if self.link is not None else COPIES.get(self.policy, "duplex")


@dataclass(frozen=True, slots=True)
class Built:
    """A world and what it was given."""

    world: World
    clock: SimClock
    limits: Limits
    block_bytes: int
    trace: RunTrace | None
    peaks: Peaks


def build_world(setup: Setup, items: Sequence[Item], source: str, *, traced: bool = False) -> Built:
    """A world for `items` (`source` names them in refusals). Raises ConfigError."""
    policy = make_policy(setup.policy, **setup.parameters)
    limits = _limits(setup, rotates=policy.rotates)
    model = setup.model
    check_lengths(items, model.context_tokens_max, limits.device_blocks * limits.block_tokens, source)
    geometry = model.geometry(limits.block_tokens)
    clock = SimClock()
    trace = RunTrace(clock) if traced else None
    link = SimLink(
        clock,
        link_model(setup.hardware, setup.link_kind, unlimited_allowance=setup.unlimited_allowance),
        geometry.block_bytes,
        model.layers,
        watch=trace,
    )
    engine = SimEngine(
        clock,
        geometry,
        step_model(setup.hardware, model),
        model.context_tokens_max,
        watch=trace.batch if trace else None,
    )
    inbox = BoundedInbox(clock, requests_max=1 << 62)
    journal = Journal()
    peaks = Peaks()
    parts = Parts(
        clock=clock,
        policy=WatchedPolicy(TimedPolicy(policy, setup.host_cost, clock.advance), peaks),
        ledger=KvLedger(limits),
        transfers=link,
        engine=engine,
        inbox=inbox,
        outbox=journal,
        limits=limits,
    )
    executor = Executor(parts, depth=setup.turns_in_air)
    look = (lambda: trace.look(executor.live)) if trace else None
    world = World(executor, clock, link, inbox, journal, look)
    return Built(world, clock, limits, geometry.block_bytes, trace, peaks)


def _limits(setup: Setup, *, rotates: bool) -> Limits:
    """A policy that never rotates gets no DRAM pool, as in build.limits_of."""
    if setup.depth not in (None, 1, 2):
        raise ConfigError(f"depth: {setup.depth}; expected 1 or 2")
    for name in ("block_tokens", "step_tokens", "seats"):
        if getattr(setup, name) < 1:
            raise ConfigError(f"{name}: {getattr(setup, name)}; expected a whole number >= 1")
    hbm_blocks, dram_blocks = pool_blocks(setup.hardware, setup.model, setup.block_tokens)
    return Limits(
        step_tokens=setup.step_tokens,
        seats=setup.seats,
        block_tokens=setup.block_tokens,
        device_blocks=hbm_blocks if setup.hbm_blocks is None else setup.hbm_blocks,
        host_blocks=0 if not rotates else dram_blocks if setup.dram_blocks is None else setup.dram_blocks,
    )
