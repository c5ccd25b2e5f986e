"""Options of an LLM, in TensorRT-LLM's format of `--extra_llm_api_options`: what rotation refuses in them.

Pure: a mapping in, a mapping out. A worker checks the same once it stands (`compat.worker_facts`); here it is
said before a model is loaded. What an option's own limits are is upstream's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.trtllm.llm_request import NATIVE_SAMPLER

Options = Mapping[str, Any]


def check_options(options: Options, source: str) -> None:
    """Raises ConfigError that names every option which cannot be, and what to write instead."""
    wrong = [f"{name}: {found} ({remedy})" for name, found, remedy in _wrong(options)]
    if wrong:
        raise ConfigError(f"{source}: rotation cannot be turned on: " + "; ".join(wrong))


def complete_options(options: Options, *, statistics: bool) -> dict[str, Any]:
    """The options with what rotation needs where they say nothing. `statistics`: ask for the statistics of
    each iteration, the only way to see a worker's blocks from another process."""
    made = dict(options)
    made["kv_cache_config"] = {"enable_block_reuse": False, **dict(options.get("kv_cache_config") or {})}
    made.pop("backend", None)  # the only one there is for us, and not every release takes its name
    if statistics:
        made.setdefault("enable_iter_perf_stats", True)
    if not _whole_prompts_fit(options):
        made.setdefault("enable_chunked_prefill", True)
    return made


def base_arguments(options: Options, *, model: str, tensor_parallel: int, source: str) -> dict[str, Any]:
    """The arguments that our own flags give. Raises ConfigError where the options say otherwise."""
    arguments: dict[str, Any] = {"model": model}
    if tensor_parallel > 1 or "tensor_parallel_size" not in options:
        arguments["tensor_parallel_size"] = tensor_parallel
    for name, flag in (("model", "--model"), ("tensor_parallel_size", "--tp")):
        given = options.get(name, arguments.get(name))
        if name in arguments and given != arguments[name]:
            raise ConfigError(
                f"{source}: {name} is {given!r}, {flag} says {arguments[name]!r}; leave it out of the file"
            )
    return arguments


def supported_sampling(options: Options) -> frozenset[str]:
    """Of core.request.OPTIONAL_SAMPLING, what the chosen sampler does and does not merely accept."""
    native = options.get("sampler_type") == "TRTLLMSampler" or options.get("enable_trtllm_sampler") is True
    return NATIVE_SAMPLER if native else frozenset()


def ranks_of(options: Options, tensor_parallel: int) -> int:
    """Tensor parallel ranks, by flag or by file."""
    found = options.get("tensor_parallel_size", tensor_parallel)
    return found if isinstance(found, int) else tensor_parallel


def _wrong(options: Options) -> Iterator[tuple[str, object, str]]:
    for name, allowed, remedy in _RULES:
        value: Any = options
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not allowed(value):
            yield name, _shown(value), remedy
    if options.get("enable_chunked_prefill") is False and not _whole_prompts_fit(options):
        yield (
            "enable_chunked_prefill",
            "false",
            "true, or max_num_tokens >= max_seq_len + max_batch_size: a long prompt would wait for ever",
        )


def _whole_prompts_fit(options: Options) -> bool:
    """Whether the file itself says that a step takes the longest prompt beside all that decode."""
    names = ("max_num_tokens", "max_seq_len", "max_batch_size")
    sizes = [size for name in names if isinstance(size := options.get(name), int)]
    return len(sizes) == len(names) and sizes[0] >= sizes[1] + sizes[2]


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)[:80]


def _absent(value: object) -> bool:
    return value is None


def _off(value: object) -> bool:
    return value is None or value is False


def _one(value: object) -> bool:
    return value is None or value == 1


def _same(value: object) -> bool:
    return value is None or not isinstance(value, list) or len(set(value)) <= 1


_RULES: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    ("backend", lambda value: value in (None, "pytorch"), "pytorch"),
    ("kv_cache_config.enable_block_reuse", _off, "false: blocks that requests share cannot leave with one"),
    ("kv_cache_config.max_attention_window", _same, "one attention window for all layers"),
    ("kv_cache_config.use_kv_cache_manager_v2", _off, "false: an adapter for it is not written"),
    ("scheduler_config.use_python_scheduler", _off, "false: rotation brings its own capacity scheduler"),
    ("pipeline_parallel_size", _one, "1; tensor parallelism is supported"),
    ("context_parallel_size", _one, "1; tensor parallelism is supported"),
    ("enable_attention_dp", _off, "false; tensor parallelism is supported"),
    ("max_beam_width", _one, "1"),
    ("speculative_config", _absent, "leave it out"),
    ("kv_connector_config", _absent, "leave it out"),
    ("cache_transceiver_config", _absent, "leave it out: disaggregated serving does not rotate"),
    (
        "num_postprocess_workers",
        lambda value: value in (None, 0),
        "0: text is made by this service, not by TensorRT-LLM",
    ),
)
