"""The check of what is installed: whatever differs from the contract is refused by name, with a remedy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from superinfer_trt.build.trtllm import Link, RotationSettings, install
from superinfer_trt.cli import main as command
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.trtllm.compat import PYEXECUTOR, open_package, require
from superinfer_trt.trtllm.resources import RESOURCE_KEY
from support.trtllm.executor import Dist, PyExecutor
from support.trtllm.gpu import Tensor
from support.trtllm.link import LateLink
from support.trtllm.package import fake_modules, open_fake_package
from support.trtllm.resources import KvCacheOwner, Types
from support.trtllm.rotating import FakeOrder
from support.trtllm.scheduling import SimpleScheduler
from support.trtllm.worker import WorkerShape, make_worker

Modules = dict[str, ModuleType]
SCHEDULER, RESOURCES = f"{PYEXECUTOR}.scheduler", f"{PYEXECUTOR}.resource_manager"


def test_the_fake_is_what_the_adapter_was_written_for() -> None:
    package = open_fake_package()
    assert [finding.line() for finding in package.findings if finding.ok is False] == []
    require(package.findings)
    assert package.states.generation_to_complete == 14
    assert package.kv_key is Types.KV_CACHE_MANAGER


class NewerOutput(NamedTuple):
    encoder_requests: list[object]
    context_requests: list[object]


class NewerStates(Enum):
    CONTEXT_INIT = 10
    GENERATION_IN_PROGRESS = 12
    GENERATION_TO_COMPLETE = 14
    GENERATION_COMPLETE = 20


class WithoutReorder:
    def prepare_resources(self) -> None: ...


def renamed(module: str, name: str) -> Callable[[Modules], None]:
    def change(modules: Modules) -> None:
        delattr(modules[module], name)

    return change


def other(module: str, name: str, value: object) -> Callable[[Modules], None]:
    def change(modules: Modules) -> None:
        setattr(modules[module], name, value)

    return change


PACKAGES = {
    "a newer release": (other("tensorrt_llm", "__version__", "1.3.0rc4"), "KVCacheManagerV2"),
    "an older release": (other("tensorrt_llm", "__version__", "0.21.0"), "version: 0.21.0, expected 1.2.x"),
    "no simple scheduler": (renamed(SCHEDULER, "SimpleScheduler"), "simple scheduler: missing"),
    "other output": (other(SCHEDULER, "SchedulerOutput", NewerOutput), "encoder_requests"),
    "another abstract method": (
        other(SCHEDULER, "RequestScheduler", type("R", (), {"__abstractmethods__": frozenset({"x"})})),
        "request scheduler: abstract methods: x",
    ),
    "another constructor": (
        other(SCHEDULER, "SimpleScheduler", type("S", (), {"__init__": lambda self, capacity: None})),
        "missing: capacity_scheduler, micro_batch_scheduler",
    ),
    "no order of resources": (
        other(RESOURCES, "ResourceManager", WithoutReorder),
        "missing: register_resource_manager",
    ),
    "other states": (
        other(f"{PYEXECUTOR}.llm_request", "LlmRequestState", NewerStates),
        "generation_in_progress 12",
    ),
    "no start_worker": (
        other(f"{PYEXECUTOR}.py_executor", "PyExecutor", type("P", (), {})),
        "executor: methods: missing: start_worker",
    ),
}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_differs_is_refused_by_name(name: str) -> None:
    change, words = PACKAGES[name]
    modules = fake_modules()
    change(modules)
    package = open_fake_package(modules)
    with pytest.raises(ConfigError, match="rotation cannot be turned on") as refusal:
        require(package.findings)
    assert words in str(refusal.value)


def test_scheduling_parameters_may_be_missing() -> None:
    modules = fake_modules()
    del modules["tensorrt_llm.scheduling_params"]
    package = open_fake_package(modules)
    assert [f.ok for f in package.findings if f.what == "scheduling parameters"] == [None]
    require(package.findings)


def test_a_package_that_breaks_on_import_is_one_clear_error() -> None:
    def broken(name: str) -> ModuleType:
        raise OSError("libcuda.so.1:\n cannot open")

    def half(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'mpi4py'", name="mpi4py")

    with pytest.raises(ConfigError, match="cannot be imported: libcuda"):
        open_package(broken)
    with pytest.raises(ConfigError, match="cannot be imported: No module named 'mpi4py'"):
        open_package(half)


# -- a worker ----------------------------------------------------------------------------------------


def kv_of(worker: PyExecutor) -> Any:
    return worker.kv_cache_manager


def layer_first(worker: PyExecutor) -> None:
    pool = worker.kv_cache_manager.impl.pool
    swapped = np.swapaxes(np.ascontiguousarray(np.swapaxes(pool, 0, 1)), 0, 1)
    worker.kv_cache_manager.impl.get_unique_primary_pool = lambda: Tensor(swapped)


class OtherKv(KvCacheOwner):
    pass


def another_kv_manager(worker: PyExecutor) -> None:
    kv = worker.kv_cache_manager
    worker.resource_manager.resource_managers[Types.KV_CACHE_MANAGER] = OtherKv(kv.impl, max_seq_len=40)


def another_scheduler(worker: PyExecutor) -> None:
    worker.scheduler = type("Unified", (SimpleScheduler,), {})(
        worker.scheduler.capacity_scheduler, worker.scheduler.micro_batch_scheduler
    )


WORKERS: dict[str, tuple[Callable[[PyExecutor], object], str]] = {
    "pipeline": (lambda w: setattr(w.dist, "pp_size", 2), "pipeline_parallel_size=1"),
    "context parallel": (lambda w: setattr(w.dist, "cp_size", 2), "context_parallel_size=1"),
    "attention dp": (lambda w: setattr(w, "enable_attention_dp", True), "enable_attention_dp=False"),
    "beams": (lambda w: setattr(w, "max_beam_width", 4), "max_beam_width=1"),
    "reuse": (lambda w: setattr(kv_of(w), "enable_block_reuse", True), "enable_block_reuse=False"),
    "windows": (lambda w: setattr(kv_of(w), "max_attention_window_vec", [40, 16]), "attention windows: 2"),
    "drafter": (lambda w: setattr(w, "drafter", object()), "no speculative_config"),
    "draft tokens": (lambda w: setattr(kv_of(w), "max_draft_len", 3), "draft tokens: 3"),
    "extra tokens": (lambda w: setattr(kv_of(w), "num_extra_kv_tokens", 1), "extra KV tokens: 1"),
    "transceiver": (lambda w: setattr(w, "kv_cache_transceiver", object()), "cache_transceiver_config"),
    "connector": (lambda w: setattr(w, "kv_connector_manager", object()), "kv_connector_config"),
    "ranks": (lambda w: setattr(w, "dist", Dist(tp_size=2, tp_allgather=None)), "tp_allgather"),  # type: ignore[arg-type]
    "V2": (another_kv_manager, "KV manager: OtherKv"),
    "scheduler": (another_scheduler, "scheduler: Unified"),
    "layers first": (layer_first, "pool: strides"),
    "long sequences": (lambda w: setattr(kv_of(w), "max_seq_len", 4096), "a smaller max_seq_len"),
    "no chunks": (
        lambda w: setattr(w.model_engine.attn_runtime_features, "chunked_prefill", False),
        "enable_chunked_prefill=True",
    ),
}


def installed(worker: PyExecutor, **settings: Any) -> object:
    impl = worker.kv_cache_manager.impl
    host = np.zeros_like(impl.pool)
    link = LateLink(impl.pool, host, 0)
    settings.setdefault("dram_bytes", host.nbytes)
    made = Link(link, FakeOrder(worker.execution_stream, link))
    return install(worker, open_fake_package(), RotationSettings(**settings), lambda *_: made)


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_that_cannot_rotate_is_refused_and_left_as_it_was(name: str) -> None:
    change, words = WORKERS[name]
    worker = make_worker(WorkerShape(blocks=24, max_num_tokens=40))
    change(worker)
    scheduler = worker.scheduler
    with pytest.raises(ConfigError) as refusal:
        installed(worker)
    assert words in str(refusal.value)
    assert worker.scheduler is scheduler
    assert RESOURCE_KEY not in worker.resource_manager.resource_managers


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policy": "nobody"}, "'nobody' is unknown"),
        ({"policy": "fcfs"}, "recomputes instead of rotating"),
        ({"policy": "trt-max-util"}, "MAX_UTILIZATION"),
        ({"parameters": {"alpha": "x"}, "policy": "rotasched"}, "alpha"),
        ({"dram_bytes": 10}, "dram_bytes 10 is less than a block, 128"),
        ({"spare_blocks": 20}, "blocks: 4, expected >= 10"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        installed(make_worker(WorkerShape(blocks=24)), **settings)
    assert words in str(refusal.value)


def test_what_is_installed_keeps_the_micro_batches_and_the_order() -> None:
    worker = make_worker(WorkerShape(blocks=100, max_batch_size=8))
    micro = worker.scheduler.micro_batch_scheduler
    rotation: Any = installed(worker, seats=4)
    assert worker.scheduler.micro_batch_scheduler is micro
    order = list(worker.resource_manager.resource_managers)
    assert order == [Types.SEQ_SLOT_MANAGER, RESOURCE_KEY, Types.KV_CACHE_MANAGER]
    limits = rotation.parts.limits
    assert (limits.device_blocks, limits.seats, limits.block_tokens) == (95, 4, 4)


# -- the command -------------------------------------------------------------------------------------


def test_probe_without_the_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    assert command.run(["trtllm", "probe"]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: trtllm: tensorrt_llm is not installed; ")
    assert told.err.count("\n") == 1
    assert told.out == ""


@pytest.mark.parametrize(("version", "code"), [("1.2.1", 0), ("1.3.0", 2)])
def test_probe_reports(
    version: str,
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, module in fake_modules(version).items():
        monkeypatch.setitem(sys.modules, name, module)
    path = tmp_path / "report.json"
    assert command.run(["trtllm", "probe", "--output", str(path)]) == code
    assert "simple scheduler" in capsys.readouterr().out
    report = json.loads(path.read_text())
    assert report["tensorrt_llm"] == version
    assert report["ok"] is (code == 0)
    assert command.run(["trtllm", "probe", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == report
    assert command.run(["trtllm", "probe", "--output", str(tmp_path)]) == 2
