"""Every name of TensorRT-LLM in one place, and the check that it is what the adapter was written for.

Two checks: of the package (`package_findings`: names, fields, signatures; what `superinfer-trt trtllm probe`
shows) and of a worker just before its loop starts (`worker_findings`: features that must be off, the pool's
layout, sizes). Each finding says what was expected, what was found and what to do; `require` refuses with all
that are wrong. Written for 1.2.x with the PyTorch backend and its first KV cache manager. Nothing is imported
before it is asked for.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.units import div_ceil
from superinfer_trt.trtllm.upstream import StateValues

PACKAGE = "tensorrt_llm"
VERSIONS = "1.2"
PYEXECUTOR = f"{PACKAGE}._torch.pyexecutor"

# Our name -> (modules that may have it, attribute).
NAMES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "scheduler output": ((f"{PYEXECUTOR}.scheduler",), "SchedulerOutput"),
    "request scheduler": ((f"{PYEXECUTOR}.scheduler",), "RequestScheduler"),
    "capacity scheduler": ((f"{PYEXECUTOR}.scheduler",), "CapacityScheduler"),
    "simple scheduler": ((f"{PYEXECUTOR}.scheduler",), "SimpleScheduler"),
    "base resource": ((f"{PYEXECUTOR}.resource_manager",), "BaseResourceManager"),
    "resources": ((f"{PYEXECUTOR}.resource_manager",), "ResourceManager"),
    "resource types": ((f"{PYEXECUTOR}.resource_manager",), "ResourceManagerType"),
    "KV manager": ((f"{PYEXECUTOR}.resource_manager",), "KVCacheManager"),
    "request states": ((f"{PYEXECUTOR}.llm_request",), "LlmRequestState"),
    "executor": ((f"{PYEXECUTOR}.py_executor",), "PyExecutor"),
    "request conversion": (
        (f"{PYEXECUTOR}.request_utils", f"{PYEXECUTOR}.executor_request_queue"),
        "executor_request_to_llm_request",
    ),
    "scheduling parameters": (
        (f"{PACKAGE}.scheduling_params", f"{PACKAGE}.llmapi"),
        "SchedulingParams",
    ),
}

OUTPUT_FIELDS = (
    "context_requests",
    "generation_requests",
    "paused_requests",
    "fitting_disagg_gen_init_requests",
    "num_fitting_requests",
)
ABSTRACT = {
    "request scheduler": {"schedule_request", "can_schedule"},
    "capacity scheduler": {"schedule_request"},
    "base resource": {"get_max_resource_count", "get_needed_resource_to_completion"},
}
PARAMETERS = {
    "simple scheduler": ("__init__", ("capacity_scheduler", "micro_batch_scheduler")),
    "executor": ("__init__", ("resource_manager", "scheduler", "model_engine", "dist", "execution_stream")),
}
METHODS = {
    "resources": (
        *("register_resource_manager", "get_resource_manager", "reorder_pipeline"),
        *("prepare_resources", "update_resources", "free_resources"),
    ),
    "KV manager": ("prepare_resources", "update_resources", "free_resources"),
    "executor": ("start_worker",),
}
IMPL_METHODS = ("add_sequence", "remove_sequence", "get_cache_block_ids", "get_kv_cache_stats")
SPARE_SHARE = 20
"""At most one block in so many is set aside for upstream itself (dummies that pad CUDA graphs)."""

UPGRADE = f"install {PACKAGE} {VERSIONS}.x, or attach this report to an issue"

Importer = Callable[[str], ModuleType]


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact. `ok` None: noted only. `remedy`: what to do when it is not ok."""

    what: str
    expected: str
    found: str
    ok: bool | None
    remedy: str = ""

    def line(self) -> str:
        """What is wrong and what to do about it."""
        return f"{self.what}: {self.found}, expected {self.expected} ({self.remedy})"


@dataclass(frozen=True, slots=True)
class Package:
    """The names that were found, by our name for them; a missing one is in the findings."""

    version: str
    names: Mapping[str, Any]
    findings: tuple[Finding, ...]

    @property
    def states(self) -> StateValues:
        """The numbers of the request states."""
        states = self.names["request states"]
        return StateValues(
            **{name: _value(getattr(states, name.upper())) for name in StateValues.__dataclass_fields__}
        )

    @property
    def kv_key(self) -> Any:
        """Under which the KV manager is registered."""
        return self.names["resource types"].KV_CACHE_MANAGER


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker's sizes are, as found. `pool`: the primary pool, {blocks, layers, K and V, elements}."""

    findings: tuple[Finding, ...]
    pool: Any = None
    block_bytes: int = 0
    block_tokens: int = 0
    free_blocks: int = 0
    window_tokens: int = 0
    sequence_tokens_max: int = 0
    seats: int = 0
    step_tokens: int = 0
    tensor_parallel: int = 1


def require(findings: Iterable[Finding]) -> None:
    """Raises ConfigError naming everything that is not ok, with the remedies."""
    wrong = [finding.line() for finding in findings if finding.ok is False]
    if wrong:
        raise ConfigError("trtllm: rotation cannot be turned on: " + "; ".join(wrong))


# -- the package -------------------------------------------------------------------------------------


def open_package(importer: Importer = importlib.import_module) -> Package:
    """Imports TensorRT-LLM and looks it over. Raises ConfigError when it is not installed or cannot be
    imported; everything else is in the findings."""
    try:
        root = importer(PACKAGE)
    except ModuleNotFoundError as error:
        if error.name != PACKAGE:
            raise ConfigError(f"trtllm: {PACKAGE} cannot be imported: {error}") from error
        raise ConfigError(
            f"trtllm: {PACKAGE} is not installed; it needs Linux and an NVIDIA GPU: "
            "pip install 'superinfer-trt[trtllm]'"
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"trtllm: {PACKAGE} cannot be imported: {reason}") from error
    version = str(getattr(root, "__version__", "unknown"))
    names: dict[str, Any] = {}
    findings = [_version(version)]
    for name, (modules, attribute) in NAMES.items():
        findings.append(_resolve(name, modules, attribute, importer, names))
    findings += _shape(names)
    return Package(version, names, tuple(findings))


def _version(version: str) -> Finding:
    ok = version == VERSIONS or version.startswith(f"{VERSIONS}.")
    remedy = f"install {PACKAGE}>={VERSIONS},<1.3"
    if not ok and _newer(version):
        remedy += "; later releases keep KV in KVCacheManagerV2, which needs another adapter (docs/trtllm.md)"
    return Finding("version", f"{VERSIONS}.x", version, ok, remedy)


def _newer(version: str) -> bool:
    parts = version.split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        return False
    return (int(parts[0]), int(parts[1])) > (1, 2)


def _resolve(
    name: str, modules: Sequence[str], attribute: str, importer: Importer, names: dict[str, Any]
) -> Finding:
    expected = " or ".join(f"{module}.{attribute}" for module in modules)
    optional = name == "scheduling parameters"
    for module in modules:
        try:
            found = getattr(importer(module), attribute)
        except (ImportError, AttributeError):
            continue
        names[name] = found
        return Finding(name, expected, f"{module}.{attribute}", True)
    return Finding(name, expected, "missing", None if optional else False, UPGRADE)


def _shape(names: Mapping[str, Any]) -> Iterable[Finding]:
    """Fields, abstract methods and signatures of what was found."""
    if "scheduler output" in names:
        fields = tuple(getattr(names["scheduler output"], "_fields", ()))
        yield _equal("scheduler output: fields", OUTPUT_FIELDS, fields)
    for name, methods in ABSTRACT.items():
        if name in names:
            abstract: Iterable[str] = getattr(names[name], "__abstractmethods__", ())
            yield _equal(f"{name}: abstract methods", sorted(methods), sorted(abstract))
    for name, (method, parameters) in PARAMETERS.items():
        if name in names:
            present = _parameters(getattr(names[name], method))
            missing = [parameter for parameter in parameters if parameter not in present]
            yield _nothing(f"{name}: parameters", parameters, missing)
    for name, wanted in METHODS.items():
        if name in names:
            missing = [method for method in wanted if not callable(getattr(names[name], method, None))]
            yield _nothing(f"{name}: methods", wanted, missing)
    if "request states" in names:
        states = names["request states"]
        expected = StateValues()
        values = {state: getattr(expected, state) for state in StateValues.__dataclass_fields__}
        found = {state: _value(getattr(states, state.upper(), None)) for state in values}
        yield _equal("request states: values", values, found)
    if "resource types" in names:
        yield _equal(
            "resource types: KV_CACHE_MANAGER", True, hasattr(names["resource types"], "KV_CACHE_MANAGER")
        )


def _parameters(callable_: Any) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(callable_).parameters)
    except (TypeError, ValueError):  # a binding without a signature: nothing can be said
        return ()


def _value(state: Any) -> Any:
    """The number of a state, whether it is a Python enum, a binding's, or a number."""
    return getattr(state, "value", state)


def _equal(what: str, expected: object, found: object, remedy: str = UPGRADE) -> Finding:
    return Finding(what, _shown(expected), _shown(found), expected == found, remedy)


def _nothing(what: str, expected: Sequence[str], missing: Sequence[str]) -> Finding:
    return Finding(
        what, _shown(expected), f"missing: {_shown(missing)}" if missing else "all", not missing, UPGRADE
    )


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return str(value)


# -- a worker ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Check:
    """Collects findings; an attribute that cannot be read is a finding, not an error."""

    findings: list[Finding] = field(default_factory=list)

    def off(self, what: str, value: object, off: object, remedy: str) -> None:
        self.findings.append(Finding(what, _shown(off), _shown(value), value == off, remedy))

    def true(self, what: str, expected: str, found: object, ok: bool, remedy: str) -> None:
        self.findings.append(Finding(what, expected, _shown(found), ok, remedy))


def worker_facts(executor: Any, package: Package, *, spare_blocks: int | None = None) -> WorkerFacts:
    """Looks over a worker whose loop has not begun. Reads, changes nothing. `spare_blocks` are not counted
    as free; None: one a seat, at most a 20th of all."""
    check = _Check()
    kv = executor.resource_manager.get_resource_manager(package.kv_key)
    kv_class = package.names["KV manager"]
    check.true(
        "KV manager", kv_class.__name__, type(kv).__name__, type(kv) is kv_class, "use the default KV manager"
    )
    scheduler = executor.scheduler
    simple = package.names["simple scheduler"]
    check.true(
        "scheduler", simple.__name__, type(scheduler).__name__, type(scheduler) is simple,
        "unset TLLM_USE_PYTHON_SCHEDULER and other schedulers",
    )  # fmt: skip
    _features(check, executor, kv)
    if any(finding.ok is False for finding in check.findings):
        return WorkerFacts(tuple(check.findings))
    return _sizes(check, executor, kv, spare_blocks)


def _features(check: _Check, executor: Any, kv: Any) -> None:
    """What must be off."""
    dist = getattr(executor, "dist", None)
    check.off("pipeline parallelism", getattr(dist, "pp_size", 1), 1, "pipeline_parallel_size=1")
    check.off("context parallelism", getattr(dist, "cp_size", 1), 1, "context_parallel_size=1")
    attention_dp = bool(getattr(executor, "enable_attention_dp", False))
    check.off("attention data parallelism", attention_dp, False, "enable_attention_dp=False")
    check.off("beam width", getattr(executor, "max_beam_width", 1), 1, "max_beam_width=1")
    reuse = bool(getattr(kv, "enable_block_reuse", True))
    check.off("block reuse", reuse, False, "KvCacheConfig(enable_block_reuse=False)")
    windows = len(set(getattr(kv, "max_attention_window_vec", None) or (0,)))
    check.off("attention windows", windows, 1, "a model with one attention window")
    check.off("draft model", getattr(executor, "drafter", None), None, "no speculative_config")
    check.off("draft tokens", getattr(kv, "max_draft_len", 0) or 0, 0, "no speculative_config")
    check.off("extra KV tokens", getattr(kv, "num_extra_kv_tokens", 0) or 0, 0, "no speculative_config")
    transceiver = getattr(executor, "kv_cache_transceiver", None)
    check.off("disaggregated serving", transceiver, None, "no cache_transceiver_config")
    connector = getattr(executor, "kv_connector_manager", None)
    check.off("KV connector", connector, None, "no kv_connector_config")
    if getattr(dist, "tp_size", 1) > 1:
        gathers = callable(getattr(dist, "tp_allgather", None))
        check.true("tensor parallelism", "tp_allgather", "there" if gathers else "missing", gathers, UPGRADE)
    missing = [name for name in IMPL_METHODS if not callable(getattr(kv.impl, name, None))]
    check.findings.append(_nothing("KV manager: binding", IMPL_METHODS, missing))


def _sizes(check: _Check, executor: Any, kv: Any, spare_blocks: int | None) -> WorkerFacts:
    """The pool's layout, and whether the longest sequence and prompt fit."""
    pool = kv.impl.get_unique_primary_pool()
    shape, strides = tuple(pool.shape), tuple(pool.stride())
    inner = math.prod(shape[1:])
    total = int(kv.impl.get_kv_cache_stats().max_num_blocks)
    contiguous = _contiguous(shape)
    check.true("pool: blocks", str(total), shape[:1], shape[:1] == (total,), UPGRADE)
    check.true("pool: strides", _shown(contiguous), strides, strides == contiguous, UPGRADE)
    block_tokens = int(kv.tokens_per_block)
    micro = executor.scheduler.micro_batch_scheduler
    seats, step_tokens = int(micro.max_batch_size), int(micro.max_num_tokens)
    free = int(kv.impl.get_kv_cache_stats().free_num_blocks)
    free -= min(seats, free // SPARE_SHARE) if spare_blocks is None else spare_blocks
    sequence_tokens_max = int(kv.max_seq_len)
    needed = div_ceil(sequence_tokens_max, block_tokens)
    check.true(
        "blocks",
        f">= {needed} for one sequence",
        free,
        free >= needed,
        "a smaller max_seq_len or a larger KV cache",
    )
    features = getattr(executor.model_engine, "attn_runtime_features", None)
    chunked = bool(getattr(features, "chunked_prefill", False))
    fits = chunked or step_tokens >= sequence_tokens_max + seats
    check.true(
        "chunked prefill",
        f"on, or max_num_tokens >= {sequence_tokens_max + seats}",
        f"{'on' if chunked else 'off'}, max_num_tokens {step_tokens}",
        fits,
        "enable_chunked_prefill=True, or a long prompt waits for ever while others decode",
    )
    windows = getattr(kv, "max_attention_window_vec", None) or [sequence_tokens_max]
    return WorkerFacts(
        findings=tuple(check.findings),
        pool=pool,
        block_bytes=inner * int(pool.element_size()),
        block_tokens=block_tokens,
        free_blocks=free,
        window_tokens=int(windows[0]),
        sequence_tokens_max=sequence_tokens_max,
        seats=seats,
        step_tokens=step_tokens,
        tensor_parallel=int(getattr(getattr(executor, "dist", None), "tp_size", 1)),
    )


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in elements of a dense row-major tensor: block-first means exactly this."""
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))
