"""How a simulation is put together: a setup becomes a world of production parts and modelled ones.

Everything the executor meets is what serves, but for clock, link and engine. Knows no file format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import Policy
from superinfer_trt.core.step import Batch
from superinfer_trt.core.units import Nanos, RequestId
from superinfer_trt.core.view import Limits, View
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Executor, Parts
from superinfer_trt.runtime.run_trace import RunTrace
from superinfer_trt.sched.neo import Neo
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.sim.clock import SimClock
from superinfer_trt.sim.cost import HostCost, StepModel, TimedPolicy
from superinfer_trt.sim.engine import SimEngine
from superinfer_trt.sim.link import SimLink
from superinfer_trt.sim.offload import OffloadStep
from superinfer_trt.sim.peaks import Peaks, WatchedPolicy
from superinfer_trt.sim.profiles import (
    Hardware,
    ModelShape,
    cpu_attention,
    link_model,
    pool_blocks,
    step_model,
)
from superinfer_trt.sim.workload import Item, check_lengths
from superinfer_trt.sim.world import Journal, World

SYNCHRONOUS = frozenset(
    {"fcfs", "fcfs-cap", "waiting-first", "swapped-first", "lightllm", "ltr", "sarathi", "neo"}
)
"""Policies of engines that schedule between two steps; the others plan while a step runs."""

COPIES = {"waiting-first": "naive-blocking", "swapped-first": "naive-blocking", "ltr": "naive-blocking"}
"""Links of the engines some policies come from (vLLM V0); the others get duplex."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated. None: what the policy's own engine has, or what the hardware leaves."""

    hardware: Hardware
    model: ModelShape
    policy: str = "rota-slack"
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
    limits, pools, policy, cost = _scheduling(setup)
    model = setup.model
    check_lengths(items, model.context_tokens_max, pools.device_blocks * limits.block_tokens, source)
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
        cost,
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
    return Built(world, clock, pools, geometry.block_bytes, trace, peaks)


def _scheduling(setup: Setup) -> tuple[Limits, Limits, Policy, Callable[[Batch], Nanos]]:
    """(limits of the executor, the same with HBM and DRAM apart, policy, step times). Raises ConfigError."""
    cost = step_model(setup.hardware, setup.model)
    if setup.policy == Neo.name:
        return _offloading(setup, cost)
    policy = make_policy(setup.policy, **setup.parameters)
    limits = _limits(setup, rotates=policy.rotates)
    return limits, limits, policy, cost


def _offloading(setup: Setup, model: StepModel) -> tuple[Limits, Limits, Policy, Callable[[Batch], Nanos]]:
    """Parts for decodes in DRAM: the device pool is HBM and DRAM, and both know who is where."""
    if setup.model.dense_share < 1.0:
        raise ConfigError(
            f"policy {Neo.name}: model {setup.model.name} is a mixture of experts; expected a dense one "
            "(the engine it comes from has no experts)"
        )
    pools = _limits(setup, rotates=True)
    cpu = cpu_attention(setup.hardware, setup.model)
    known = {
        "hbm_blocks": pools.device_blocks,
        "host_tokens_per_ms": cpu.bytes_per_s / model.kv_token_bytes / 1e3,
        "host_row_us": cpu.row_s * 1e6,
        "host_launch_ms": cpu.launch_s * 1e3,
    }
    policy = make_policy(Neo.name, **{**known, **setup.parameters})
    assert isinstance(policy, Neo)
    step = OffloadStep(model, cpu, link_model(setup.hardware, setup.link_kind))
    limits = replace(pools, device_blocks=pools.device_blocks + pools.host_blocks, host_blocks=0)
    return limits, pools, Telling(policy, step), step


class Telling:
    """`neo` as a policy whose engine hears beside each plan what a plan cannot say; keeps the places."""

    name = Neo.name
    order = Neo.order

    def __init__(self, policy: Neo, step: OffloadStep) -> None:
        self._policy = policy
        self._step = step
        self._in_dram: Mapping[RequestId, int] = {}

    def __call__(self, view: View) -> Plan:
        """The plan."""
        composition = self._policy.compose(view, self._in_dram)
        self._in_dram = composition.in_dram
        self._step.tell(composition.plan.turn, composition.in_dram, composition.second)
        return composition.plan


def _limits(setup: Setup, *, rotates: bool) -> Limits:
    """A policy that never rotates gets no DRAM pool, as in build.service.limits_of."""
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
