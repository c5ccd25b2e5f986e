"""Config -> a running service of an embedded engine, with all its parts.

Heavy libraries are imported by the parts that need them, so a service without a model loads none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from superinfer_trt.config import Config, dump
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.model import ModelConfig, Tokenizer, Weights
from superinfer_trt.core.ports import Clock, ModelEngine, Outbox, TransferEngine
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.core.view import Limits
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.ranks.comm import Comm
from superinfer_trt.ranks.leader import Leader
from superinfer_trt.ranks.start import together
from superinfer_trt.runtime.clock import SystemClock
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.driver import Driver
from superinfer_trt.runtime.executor import Executor, Parts
from superinfer_trt.runtime.quotas import Quota, Quotas
from superinfer_trt.runtime.trace import PlanTrace
from superinfer_trt.sched.registry import AnyPolicy, make_policy
from superinfer_trt.sched.rota_slack import RotaSlack
from superinfer_trt.sched.shedding import Shedding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from superinfer_trt.serve.server import ServerOptions

PATTERN_SHAPE = {"layers": 2, "kv_heads": 2, "head_dim": 32, "element_bytes": 2}
"""Small blocks (4 KiB at 16 tokens): the pattern engine is about who owns what, not about bytes."""

SIM_SHAPE = {"layers": 32, "kv_heads": 8, "head_dim": 128, "element_bytes": 2}
"""Llama-3-8B's: what the modelled engine and link calculate with."""


@dataclass(frozen=True, slots=True)
class Service:
    """One served model (serve.service.Service). The driver runs; `close` frees everything."""

    inbox: BoundedInbox
    driver: Driver
    executor: Executor
    clock: Clock
    tokenizer: Tokenizer | None
    model: ModelConfig | None
    limits: Limits
    vocabulary: int
    context_tokens_max: int
    supports: frozenset[str]
    engine: str
    policy: str
    _stack: ExitStack = field(repr=False)

    def close(self) -> None:
        """Stops the driver, then the link and the engine it used. Idempotent."""
        self._stack.close()


@dataclass(frozen=True, slots=True)
class World:
    """What depends on the choice of engine."""

    engine: ModelEngine
    transfers: TransferEngine
    model: ModelConfig | None = None
    tokenizer: Tokenizer | None = None


def build_service(config: Config, outbox: Outbox, comm: Comm | None = None) -> Service:
    """Opens the model, takes the pools, starts the driver. Raises ConfigError, ModelError. Of the embedded
    engines; `build.llm` makes a service of any. `comm`: this is rank 0 of several (`build.ranks`)."""
    if config.engine.name not in _WORLDS:
        raise ConfigError(f"engine.name: {config.engine.name} is not embedded; here: {', '.join(_WORLDS)}")
    ranks = 1 if comm is None else comm.ranks
    if config.engine.tp != ranks:
        how = f"`mpiexec -n {config.engine.tp} superinfer-trt serve`"
        raise ConfigError(f"engine.tp: {config.engine.tp} ranks are for {how}; this is a service of {ranks}")
    clock = SystemClock()
    with ExitStack() as stack:

        def make() -> _Opened:
            return _open(config, outbox, clock, stack, comm)

        opened = make() if comm is None else together(comm, make, dump(config))
        world, parts, inbox = opened.world, opened.parts, opened.inbox
        if comm is not None:
            leader = Leader(parts, comm)
            stack.callback(lambda: leader.close(driver.failure))
            parts = leader.parts
        executor = Executor(parts, depth=config.scheduling.depth, trace=opened.trace)
        driver = Driver(executor, inbox, parts.clock)
        stack.callback(driver.stop)
        driver.start()
        return Service(
            inbox=inbox,
            driver=driver,
            executor=executor,
            clock=clock,
            tokenizer=world.tokenizer,
            model=world.model,
            limits=parts.limits,
            vocabulary=world.engine.vocabulary,
            context_tokens_max=world.engine.context_tokens_max,
            supports=world.engine.supports,
            engine=config.engine.name,
            policy=parts.policy.name,
            _stack=stack.pop_all(),
        )


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a service is made of, before it runs."""

    world: World
    parts: Parts
    inbox: BoundedInbox
    trace: PlanTrace


def _open(config: Config, outbox: Outbox, clock: Clock, stack: ExitStack, comm: Comm | None) -> _Opened:
    """All that can fail for want of a model, of memory or of a file."""
    policy = policy_of(config)
    limits = limits_of(config, policy)
    world = open_world(config, limits, clock, stack, comm)
    trace = PlanTrace()
    if config.scheduling.trace_file is not None:
        trace = PlanTrace(sink=stack.enter_context(_open_trace(config)))
    inbox = BoundedInbox(clock, config.service.requests_max, quotas_of(config, limits.block_tokens))
    parts = Parts(
        clock=clock,
        policy=Shedding(policy) if config.service.shed == "certain" else policy,
        ledger=KvLedger(limits),
        transfers=world.transfers,
        engine=world.engine,
        inbox=inbox,
        outbox=outbox,
        limits=limits,
    )
    return _Opened(world, parts, inbox, trace)


def policy_of(config: Config) -> AnyPolicy:
    """The policy, with the tenants' weights where any differ. Raises ConfigError where it has no weights."""
    name, parameters = config.scheduling.policy, dict(config.scheduling.parameters)
    tenants = config.tenants
    common = tenants.default.weight
    weights = {tenant: q.weight / common for tenant, q in tenants.named.items() if q.weight != common}
    if not weights:
        return make_policy(name, **parameters)
    if name != RotaSlack.name or "weights" in parameters:
        why = "are in scheduling.parameters already" if name == RotaSlack.name else f"are unknown to {name}"
        raise ConfigError(f"tenants.named: weights {why}; {RotaSlack.name} takes them from here alone")
    return make_policy(name, **parameters, weights=weights)


def quotas_of(config: Config, block_tokens: int) -> Quotas:
    """The accounts of the tenants."""
    default, *named = (
        Quota(one.requests_max, one.tokens_max, one.blocks_max)
        for one in (config.tenants.default, *config.tenants.named.values())
    )
    return Quotas(block_tokens, default, dict(zip(config.tenants.named, named, strict=True)))


def limits_of(config: Config, policy: AnyPolicy) -> Limits:
    """A policy that never rotates gets no DRAM pool: nothing could use it, and the admission
    inequality would bind a policy that has eviction as its escape."""
    return Limits(
        step_tokens=config.scheduling.step_tokens,
        seats=config.scheduling.seats,
        block_tokens=config.pools.block_tokens,
        device_blocks=config.pools.hbm_blocks,
        host_blocks=config.pools.dram_blocks if policy.rotates else 0,
    )


def open_world(
    config: Config, limits: Limits, clock: Clock, stack: ExitStack, comm: Comm | None = None
) -> World:
    """Engine and link as configured; of one rank with `comm`. `stack` frees them."""
    return _WORLDS[config.engine.name](config, limits, clock, stack, comm)


def _open_trace(config: Config) -> TextIO:
    path = config.scheduling.trace_file
    assert path is not None
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"scheduling.trace_file: cannot write {path} ({error.strerror})") from error


def _native(config: Config, limits: Limits, clock: Clock, stack: ExitStack, comm: Comm | None) -> World:
    """A real model on the embedded engine, over native pools and lanes."""
    from superinfer_trt.engine.native import NativeEngine, element_bytes_for
    from superinfer_trt.model.open import open_model

    del clock
    model = open_model(config.model.name, config.model.cache_dir)
    weights: Weights = model.weights
    threads = config.engine.threads
    if comm is not None:
        from superinfer_trt.ranks.split import SplitWeights

        weights = SplitWeights(weights, comm.rank, comm.ranks)
        threads = threads or max(1, len(os.sched_getaffinity(0)) // comm.neighbours)
    geometry = weights.config.geometry(limits.block_tokens, element_bytes_for(config.engine.dtype))
    transfers, device_pool = _native_link(config, limits, geometry, stack)
    engine = NativeEngine(
        weights,
        device_pool,
        block_tokens=limits.block_tokens,
        dtype=config.engine.dtype,
        threads=threads or None,
        kernels=config.engine.kernels,
        reduce=None if comm is None else comm.add,
    )
    stack.callback(engine.close)
    return World(engine, transfers, model.config, model.tokenizer)


def _pattern(config: Config, limits: Limits, clock: Clock, stack: ExitStack, comm: Comm | None) -> World:
    """No model: KV patterns that are verified at each step, over native pools and lanes."""
    from superinfer_trt.engine.pattern import PatternEngine

    del clock, comm  # each rank writes and verifies patterns of its own
    geometry = Geometry(block_tokens=limits.block_tokens, **PATTERN_SHAPE)
    transfers, device_pool = _native_link(config, limits, geometry, stack)
    engine = PatternEngine(
        geometry,
        device_pool,
        vocabulary=config.engine.vocabulary,
        context_tokens_max=config.engine.context_tokens_max,
        requests_max=config.service.requests_max + 1,
    )
    stack.callback(engine.close)
    return World(engine, transfers)


def _sim(config: Config, limits: Limits, clock: Clock, stack: ExitStack, comm: Comm | None) -> World:
    """No model, no bytes: modelled step and copy times, in real time."""
    from superinfer_trt.engine.modelled import ModelledEngine, step_cost
    from superinfer_trt.transfer.modelled import ModelledLink

    assert comm is None, "config: sim is for one rank"
    geometry = Geometry(block_tokens=limits.block_tokens, **SIM_SHAPE)
    engine = ModelledEngine(
        clock,
        geometry,
        step_cost(terms=config.engine.step_cost),
        vocabulary=config.engine.vocabulary,
        context_tokens_max=config.engine.context_tokens_max,
        requests_max=config.service.requests_max + 1,
    )
    link = ModelledLink(
        clock,
        geometry.block_bytes,
        h2d_bytes_per_s=config.pools.h2d_bytes_per_s,
        d2h_bytes_per_s=config.pools.d2h_bytes_per_s,
    )
    stack.callback(link.close)
    stack.callback(engine.close)
    return World(engine, link)


def _native_link(
    config: Config, limits: Limits, geometry: Geometry, stack: ExitStack
) -> tuple[TransferEngine, NDArray[np.uint8]]:
    """The two pools and the lanes between them; returns the link and the HBM pool."""
    from superinfer_trt.transfer.native import DuplexLink
    from superinfer_trt.transfer.pools import allocate_pool

    device_pool = allocate_pool(limits.device_blocks, geometry.block_bytes)
    host_pool = allocate_pool(max(1, limits.host_blocks), geometry.block_bytes)
    link = DuplexLink(
        device_pool,
        host_pool,
        h2d_bytes_per_s=config.pools.h2d_bytes_per_s,
        d2h_bytes_per_s=config.pools.d2h_bytes_per_s,
    )
    stack.callback(link.close)
    return link, device_pool


_WORLDS: dict[str, Callable[[Config, Limits, Clock, ExitStack, Comm | None], World]] = {
    "native": _native,
    "pattern": _pattern,
    "sim": _sim,
}


def server_options(made: Config) -> ServerOptions:
    """The part of the configuration that the server wants."""
    from superinfer_trt.runtime.recording import Recording
    from superinfer_trt.serve.security import SecurityFiles
    from superinfer_trt.serve.server import ServerOptions

    service, scheduling = made.service, made.scheduling
    return ServerOptions(
        host=service.host,
        port=service.port,
        requests_max=service.requests_max,
        message_bytes_max=service.message_bytes_max,
        drain_timeout_s=service.drain_timeout_s,
        reader_timeout_s=service.reader_timeout_s,
        reflection=service.reflection,
        security=SecurityFiles(service.tls_cert, service.tls_key, service.tls_client_ca, service.auth_file),
        metrics_host=service.metrics_host,
        metrics_port=service.metrics_port,
        tenants=tuple(made.tenants.named),
        make_recording=None if made.engine.name == "trtllm" else Recording,  # its turns are in workers
        facade=service.facade,
        model_name="" if made.engine.name in ("sim", "pattern") else made.model.name,
        default_max_tokens=service.max_tokens_default,
        default_slo=_slo(scheduling.ttft_slo_ms, scheduling.tbt_slo_ms),
        slo_classes={
            name: _slo(one.ttft_ms or scheduling.ttft_slo_ms, one.tbt_ms or scheduling.tbt_slo_ms)
            for name, one in service.slo_classes.items()
        },
        seed=made.engine.seed,
    )


def _slo(ttft_ms: float, tbt_ms: float) -> Slo:
    return Slo(round(ttft_ms * MILLISECOND), round(tbt_ms * MILLISECOND))
