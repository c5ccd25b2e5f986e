"""Every name of TensorRT-LLM's LLM API in one place, as `compat` has those of its worker.

What is asked of the package to serve through `LLM.generate_async`: classes, parameters, and where an LLM
shows that its worker has died, where its worker is, and what its iterations say of themselves. Source:
`llmapi/llm.py`, `sampling_params.py` and in `executor/` executor, proxy and result, of about 1.2. Nothing is
imported before it is asked for. Pure reading; any thread.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superinfer_trt.trtllm.compat import PACKAGE, UPGRADE, Finding, Importer
from superinfer_trt.trtllm.resources import RESOURCE_KEY

# Our name -> (modules that may have it, attribute, whether it can be done without).
LLM_NAMES: Mapping[str, tuple[tuple[str, ...], str, bool]] = {
    "LLM": ((PACKAGE, f"{PACKAGE}.llmapi"), "LLM", False),
    "sampling parameters": (
        (PACKAGE, f"{PACKAGE}.llmapi", f"{PACKAGE}.sampling_params"),
        "SamplingParams",
        False,
    ),
    "request error": ((f"{PACKAGE}.executor", f"{PACKAGE}.executor.utils"), "RequestError", True),
    "options merge": ((f"{PACKAGE}.llmapi.llm_args",), "update_llm_args_with_extra_dict", True),
}
GENERATE_PARAMETERS = ("inputs", "sampling_params", "streaming", "scheduling_params")
SAMPLING_PARAMETERS = (
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "min_tokens"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logprobs"),
    *("end_id", "pad_id", "stop_token_ids", "ignore_eos", "include_stop_str_in_output", "detokenize"),
)
MESSAGE_CHARS_MAX = 400


@dataclass(frozen=True, slots=True)
class LlmNames:
    """What was found, by our name for it; `findings` say what is missing."""

    names: Mapping[str, Any]
    findings: tuple[Finding, ...]

    @property
    def merge(self) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
        """Upstream's own merge of arguments and a file of options, which wins; else a plain one."""
        found: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] | None
        found = self.names.get("options merge")
        return found if found is not None else lambda arguments, options: {**arguments, **options}


def open_llm_names(importer: Importer = importlib.import_module) -> LlmNames:
    """Looks the names up in a package that `compat.open_package` has opened."""
    names: dict[str, Any] = {}
    findings = [
        _resolve(name, modules, attribute, optional, importer, names)
        for name, (modules, attribute, optional) in LLM_NAMES.items()
    ]
    if "LLM" in names:
        findings.append(
            _takes("LLM.generate_async", getattr(names["LLM"], "generate_async", None), GENERATE_PARAMETERS)
        )
    if "sampling parameters" in names:
        findings.append(_takes("sampling parameters", names["sampling parameters"], SAMPLING_PARAMETERS))
    return LlmNames(names, tuple(findings))


def _resolve(
    name: str,
    modules: Iterable[str],
    attribute: str,
    optional: bool,
    importer: Importer,
    names: dict[str, Any],
) -> Finding:
    expected = " or ".join(f"{module}.{attribute}" for module in modules)
    for module in modules:
        try:
            names[name] = getattr(importer(module), attribute)
        except (ImportError, AttributeError):
            continue
        return Finding(name, expected, f"{module}.{attribute}", True)
    return Finding(name, expected, "missing", None if optional else False, UPGRADE)


def _takes(what: str, function: Any, wanted: tuple[str, ...]) -> Finding:
    """Whether a callable has these parameters, by name or as any keyword."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return Finding(f"{what}: parameters", ", ".join(wanted), "not to be seen", None)
    missing = [name for name in wanted if name not in parameters]
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        missing = []
    found = f"missing: {', '.join(missing)}" if missing else "all"
    return Finding(f"{what}: parameters", ", ".join(wanted), found, not missing, UPGRADE)


# -- a living LLM ------------------------------------------------------------------------------------


def failure_of(llm: Any) -> str:
    """Why this LLM will serve nothing more; empty while it lives.

    Upstream notices the death of a worker when the next answer or request comes by, so what its threads
    have left for that moment is looked at here: nobody waits for an answer that will not come.
    """
    executor = getattr(llm, "_executor", None)
    if executor is None:
        return "the LLM has been shut down"
    error = _left_error(executor)
    if error is not None:
        return message_of(error)
    fatal = getattr(executor, "_fatal_error", None)
    if fatal is not None:
        return message_of(fatal)
    for future in getattr(executor, "mpi_futures", None) or ():
        if future.done():
            return "a worker process has ended"
    is_shutdown = getattr(executor, "is_shutdown", None)
    if callable(is_shutdown) and is_shutdown():
        return "the LLM has shut itself down"
    engine = getattr(executor, "engine", None)
    if getattr(engine, "is_shutdown", False) is True:
        return "the worker's loop has ended"
    healthy = getattr(llm, "_check_health", None)
    if callable(healthy) and not healthy():
        return "the LLM says that it is not healthy"
    return ""


def _left_error(executor: Any) -> BaseException | None:
    """The first error that a background thread has left, without taking it."""
    waiting = getattr(getattr(executor, "_error_queue", None), "queue", None)
    try:
        first = waiting[0] if waiting else None
    except IndexError:
        return None
    return first if isinstance(first, BaseException) else None


def message_of(error: object) -> str:
    """One line of an error, its causes behind it; upstream's stack traces stay out."""
    lines: list[str] = []
    at: object | None = error
    while at is not None and len(lines) < 4:
        text = getattr(at, "message", None) or str(at) or type(at).__name__
        line = " ".join(str(text).split("Stack trace:")[0].split())
        if line and line not in lines:
            lines.append(line)
        at = getattr(at, "__cause__", None)
    return ": ".join(lines)[:MESSAGE_CHARS_MAX]


def rotation_in(llm: Any) -> Any | None:
    """The `Rotation` of a worker that lives in this process; None where workers are elsewhere."""
    engine = getattr(getattr(llm, "_executor", None), "engine", None)
    resources = getattr(getattr(engine, "resource_manager", None), "resource_managers", None) or {}
    return getattr(resources.get(RESOURCE_KEY), "rotation", None)


def model_folder(llm: Any, name: str) -> Path | None:
    """The folder that has the model's config.json: a hub id has been fetched by upstream."""
    arguments = getattr(llm, "args", None)
    for place in (getattr(llm, "_hf_model_dir", None), getattr(arguments, "model", None), name):
        if isinstance(place, (str, Path)) and str(place):
            folder = Path(place).expanduser()
            if (folder / "config.json").is_file():
                return folder
    return None


def argument_of(llm: Any, name: str) -> int:
    """A whole number of the LLM's arguments; 0 where it is not given."""
    value = getattr(getattr(llm, "args", None), name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


# -- what an iteration says of itself ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Iteration:
    """Of one iteration of a worker's loop. Blocks are those of upstream's own manager, in HBM."""

    number: int
    blocks: int
    free_blocks: int
    block_tokens: int


def iteration_of(stats: object) -> Iteration | None:
    """None where the statistics hold no numbers of blocks."""
    if not isinstance(stats, Mapping):
        return None
    cache = stats.get("kvCacheStats")
    if not isinstance(cache, Mapping):
        return None
    names = ("maxNumBlocks", "freeNumBlocks", "tokensPerBlock")
    numbers = [stats.get("iter", 0), *(cache.get(name) for name in names)]
    if not all(isinstance(number, int) for number in numbers):
        return None
    return Iteration(*map(int, numbers))
