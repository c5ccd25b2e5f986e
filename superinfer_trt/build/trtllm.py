"""How rotation is put into a TensorRT-LLM worker: the only place that knows policy, ledger, link and adapter.

`install` runs when everything of the worker exists and its loop does not run yet. The link is given: on a
GPU it is `cuda_link`, in tests another one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.ports import Clock, TransferEngine
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import SECOND
from superinfer_trt.core.view import Limits
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.runtime.clock import SystemClock
from superinfer_trt.sched.registry import AnyPolicy, make_policy
from superinfer_trt.trtllm.agreement import Agreement, Alone, AmongRanks
from superinfer_trt.trtllm.compat import (
    PACKAGE,
    Package,
    WorkerFacts,
    open_package,
    require,
    worker_facts,
)
from superinfer_trt.trtllm.cuda_order import CudaOrder, pool_bytes, stream_handle
from superinfer_trt.trtllm.hook import keep_scheduling_parameters
from superinfer_trt.trtllm.resources import RESOURCE_KEY, DuplexKvResources
from superinfer_trt.trtllm.rotation import Rotation, RotationParts
from superinfer_trt.trtllm.scheduler import RotaCapacityScheduler
from superinfer_trt.trtllm.slo import ServiceTerms
from superinfer_trt.trtllm.upstream import StreamOrder

if TYPE_CHECKING:
    from superinfer_trt.transfer.cuda import CudaLink


@dataclass(frozen=True, slots=True)
class RotationSettings:
    """What a user chooses. `dram_bytes`: of the host pool on each rank. `seats`: requests that run at once;
    0: upstream's max_batch_size (give upstream a larger one, so that it admits those that wait and are
    away). `spare_blocks`: HBM blocks left to upstream for itself; None: one a seat, at most 5 %."""

    policy: str = "rota-slack"
    parameters: Mapping[str, object] = field(default_factory=dict)
    dram_bytes: int = 16 << 30
    seats: int = 0
    spare_blocks: int | None = None
    terms: ServiceTerms = field(default_factory=ServiceTerms)


@dataclass(frozen=True, slots=True)
class Link:
    """A transfer engine over a worker's pool and a host pool of `host_blocks`, and its order with the
    execution stream."""

    transfers: TransferEngine
    order: StreamOrder


LinkMaker = Callable[[WorkerFacts, int], Link]
"""(facts, host blocks) -> link."""


def install(
    executor: Any,
    package: Package,
    settings: RotationSettings,
    make_link: LinkMaker,
    clock: Clock | None = None,
) -> Rotation:
    """Puts rotation into a worker whose loop does not run yet. Raises ConfigError, and then has changed
    nothing, when package, worker or settings are not what it needs."""
    require(package.findings)
    policy = rotating_policy(settings)
    facts = worker_facts(executor, package, spare_blocks=settings.spare_blocks)
    require(facts.findings)
    host_blocks = settings.dram_bytes // facts.block_bytes
    if host_blocks < 1:
        raise ConfigError(
            f"trtllm: dram_bytes {settings.dram_bytes} is less than a block, {facts.block_bytes}"
        )
    limits = Limits(
        step_tokens=facts.step_tokens,
        seats=min(settings.seats, facts.seats) if settings.seats else facts.seats,
        block_tokens=facts.block_tokens,
        device_blocks=facts.free_blocks,
        host_blocks=host_blocks,
    )
    link = make_link(facts, host_blocks)
    rotation = Rotation(
        RotationParts(
            policy=policy,
            ledger=KvLedger(limits, places=False),
            transfers=link.transfers,
            order=link.order,
            cache=executor.resource_manager.get_resource_manager(package.kv_key).impl,
            clock=clock if clock is not None else SystemClock(),
            limits=limits,
            block_bytes=facts.block_bytes,
            window_tokens=facts.window_tokens,
            sequence_tokens_max=facts.sequence_tokens_max,
            terms=settings.terms,
            states=package.states,
            agreement=_agreement(executor, facts),
        )
    )
    _put_in(executor, package, rotation, link.transfers, host_blocks)
    return rotation


def cuda_link(executor: Any, choice: CudaLink) -> LinkMaker:
    """A link over the worker's own GPU pool and page-locked memory, in order with its execution stream.
    Raises ConfigError, when made, where memory, driver or stream are not to be had."""

    def make(facts: WorkerFacts, host_blocks: int) -> Link:
        from superinfer_trt.transfer.cuda import PinnedMemory
        from superinfer_trt.transfer.native import DuplexLink

        memory = PinnedMemory(host_blocks * facts.block_bytes, device=choice.device)
        memory.finish()
        host_pool = memory.pool(host_blocks, facts.block_bytes)
        link = DuplexLink(
            pool_bytes(facts.pool, facts.pool.shape[0], facts.block_bytes),
            host_pool,
            h2d_bytes_per_s=0,
            d2h_bytes_per_s=0,
            cuda=replace(choice, host_chunk_bytes=memory.chunk_bytes),
        )
        stream = stream_handle(executor.execution_stream)
        try:
            link.mark_stream(0, stream)
        except ValueError as error:
            link.close()
            raise ConfigError(f"trtllm: the execution stream cannot be waited for: {error}") from error
        return Link(link, CudaOrder(link, stream))

    return make


SETTINGS: Mapping[str, type | tuple[type, ...]] = {
    "policy": str,
    "parameters": dict,
    "dram_gib": (int, float),
    "seats": int,
    "spare_blocks": int,
    "ttft_slo_s": (int, float),
    "tbt_slo_s": (int, float),
    "tenant": str,
}
"""What a settings file may hold: YAML, every field optional."""


def read_settings(path: Path) -> RotationSettings:
    """Settings of a YAML file. Raises ConfigError that names the file and the field."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    values: dict[str, Any] = {} if found is None else found
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not a mapping of fields to values")
    for name, value in values.items():
        if name not in SETTINGS:
            raise ConfigError(f"{path}: {name!r} is unknown; known: {', '.join(SETTINGS)}")
        if not isinstance(value, SETTINGS[name]) or isinstance(value, bool):
            raise ConfigError(f"{path}: {name}: {value!r} is of the wrong kind")
        if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{path}: {name}: {value!r} must be >= 0")
    first = RotationSettings()
    slo = Slo(
        ttft=round(values.get("ttft_slo_s", first.terms.slo.ttft / SECOND) * SECOND),
        tbt=round(values.get("tbt_slo_s", first.terms.slo.tbt / SECOND) * SECOND),
    )
    return RotationSettings(
        policy=values.get("policy", first.policy),
        parameters=values.get("parameters", {}),
        dram_bytes=int(values["dram_gib"] * (1 << 30)) if "dram_gib" in values else first.dram_bytes,
        seats=values.get("seats", first.seats),
        spare_blocks=values.get("spare_blocks", first.spare_blocks),
        terms=ServiceTerms(slo, values.get("tenant", "")),
    )


def install_from_file(executor: Any, path: str, make_link: LinkMaker | None = None) -> None:
    """What a worker does before its loop begins: everything `install` needs, from one settings file.
    `make_link` None: over the GPU that has the pool. An executor that rotates already is left alone."""
    if RESOURCE_KEY in executor.resource_manager.resource_managers:
        return
    from superinfer_trt.transfer.cuda import CudaLink

    settings = read_settings(Path(path))
    package = open_package()
    if make_link is None:
        device = getattr(executor, "device_id", 0)
        make_link = cuda_link(executor, CudaLink(device=device))
    install(executor, package, settings, make_link)
    conversion = package.names["request conversion"]
    loaded = [module for name, module in list(sys.modules.items()) if name.startswith(PACKAGE)]
    keep_scheduling_parameters(conversion, loaded)


def rotating_policy(settings: RotationSettings) -> AnyPolicy:
    """The policy, unless it is one that evicts: what it would do upstream does already."""
    policy = make_policy(settings.policy, **settings.parameters)
    if not policy.rotates:
        raise ConfigError(
            f"trtllm: policy {policy.name} recomputes instead of rotating; TensorRT-LLM has that built in: "
            "SchedulerConfig(capacity_scheduler_policy=MAX_UTILIZATION or GUARANTEED_NO_EVICT)"
        )
    return policy


def _agreement(executor: Any, facts: WorkerFacts) -> Agreement:
    if facts.tensor_parallel == 1:
        return Alone()
    return AmongRanks(executor.dist.tp_allgather)


def _put_in(
    executor: Any, package: Package, rotation: Rotation, transfers: TransferEngine, host_blocks: int
) -> None:
    """The scheduler keeps its micro batches; the resource comes before the KV manager, which stays last."""
    executor.scheduler = package.names["simple scheduler"](
        capacity_scheduler=RotaCapacityScheduler(rotation),
        micro_batch_scheduler=executor.scheduler.micro_batch_scheduler,
    )
    resources = executor.resource_manager
    resources.register_resource_manager(RESOURCE_KEY, DuplexKvResources(rotation, transfers, host_blocks))
    order = [key for key in resources.resource_managers if key not in (RESOURCE_KEY, package.kv_key)]
    resources.reorder_pipeline([*order, RESOURCE_KEY, package.kv_key])
