"""How a service over TensorRT-LLM is put together: configuration -> LLM with rotating workers -> service.

The LLM is made before there is any event loop, as TensorRT-LLM's own server does; everything that can be
refused is refused before a model is loaded. The only place that knows both the configuration and the LLM API.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from superinfer_trt.build.trtllm import RotationSettings, rotating_policy
from superinfer_trt.config import Config
from superinfer_trt.core.errors import ConfigError, EngineFailed, ModelError, SuperInferError
from superinfer_trt.core.model import ModelConfig, Tokenizer
from superinfer_trt.core.ports import Outbox
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, SECOND, div_ceil
from superinfer_trt.core.view import Limits
from superinfer_trt.ranks.comm import Comm
from superinfer_trt.runtime.clock import SystemClock
from superinfer_trt.serve.service import Service
from superinfer_trt.trtllm.compat import open_package, require
from superinfer_trt.trtllm.executor import LlmCalls, Served, TrtllmExecutor
from superinfer_trt.trtllm.llm_compat import (
    LlmNames,
    argument_of,
    message_of,
    model_folder,
    open_llm_names,
)
from superinfer_trt.trtllm.llm_options import (
    base_arguments,
    check_options,
    complete_options,
    ranks_of,
    supported_sampling,
)
from superinfer_trt.trtllm.slo import ServiceTerms
from superinfer_trt.trtllm_startup import startup_file, turn_off, turn_on

log = logging.getLogger(__name__)

OPTIONS_BYTES_MAX = 1 << 20
BLOCK_TOKENS = 32
"""TensorRT-LLM's default."""

ServiceMaker = Callable[[Outbox], Service]


def service_maker(config: Config, stack: ExitStack, comm: Comm | None = None) -> ServiceMaker:
    """Outbox -> running service, of any engine. What is slow and wants no event loop around it happens here;
    `stack` frees it, should no service be made. `comm`: this is rank 0 of several (build.ranks). Raises
    ConfigError, EngineFailed, ModelError."""
    if config.engine.name == "trtllm":
        opened = open_llm(config)
        stack.callback(opened.close)
        return opened.serve
    from superinfer_trt.build.service import build_service

    return partial(build_service, config, comm=comm)


def build_any_service(config: Config, outbox: Outbox) -> Service:
    """A running service of any engine, for callers without an event loop. Raises as `service_maker`."""
    with ExitStack() as stack:
        service = service_maker(config, stack)(outbox)
        stack.pop_all()  # its own `close` frees it
        return service


@dataclass(frozen=True, slots=True)
class OpenLlm:
    """An LLM whose workers rotate, and what is known of it."""

    calls: LlmCalls
    served: Served
    config: Config
    _stack: ExitStack = field(repr=False)

    def serve(self, outbox: Outbox) -> TrtllmExecutor:
        """The running service. Raises EngineFailed when the worker cannot generate."""
        from superinfer_trt.build.service import quotas_of

        made = TrtllmExecutor(
            self.calls,
            self.served,
            outbox,
            SystemClock(),
            requests_max=self.config.service.requests_max,
            quotas=quotas_of(self.config, self.served.limits.block_tokens),
            silence_max=round(self.config.trtllm.silence_max_s * SECOND),
            on_close=self.close,
        )
        made.start()
        return made

    def close(self) -> None:
        """Ends the LLM if it still lives. Idempotent."""
        self._stack.close()


def open_llm(config: Config) -> OpenLlm:
    """Checks everything, makes the LLM with rotation in its workers, looks into its model."""
    source = str(config.trtllm.options or "the options")
    options = read_options(config.trtllm.options)
    check_options(options, source)
    ranks = ranks_of(options, config.engine.tp)
    base = base_arguments(options, model=config.model.name, tensor_parallel=config.engine.tp, source=source)
    settings = settings_of(config)
    rotating_policy(settings)
    _tell_unused(config)
    inside = _worker_is_inside(ranks)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="superinfer-trt-")))
        turn_on(write_settings(settings, folder / "rotation.yaml"), single_process=inside)
        stack.callback(turn_off)
        require(open_package().findings)
        names = open_llm_names()
        require(names.findings)
        llm = _make_llm(names, base, complete_options(options, statistics=not inside), source)
        stack.callback(_end_llm, llm)
        calls = LlmCalls(llm, names.names["sampling parameters"], _scheduling_parameters())
        return OpenLlm(
            calls, _served(llm, config, settings, supported_sampling(options)), config, stack.pop_all()
        )


def read_options(path: Path | None) -> dict[str, Any]:
    """The mapping of a YAML file; none is an empty one. Raises ConfigError."""
    if path is None:
        return {}
    try:
        if path.stat().st_size > OPTIONS_BYTES_MAX:
            raise ConfigError(f"trtllm.options: {path} is larger than {OPTIONS_BYTES_MAX} bytes")
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"trtllm.options: {path} cannot be read: {' '.join(str(error).split())}") from None
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"trtllm.options: {path} is not a mapping of LLM arguments to values")
    return found


def settings_of(config: Config) -> RotationSettings:
    """How workers rotate. Seats count when they were asked for: the default is the embedded engine's."""
    scheduling = config.scheduling
    return RotationSettings(
        policy=scheduling.policy,
        parameters=dict(scheduling.parameters),
        dram_bytes=int(config.trtllm.dram_gib * (1 << 30)),
        seats=scheduling.seats if "seats" in scheduling.model_fields_set else 0,
        spare_blocks=config.trtllm.spare_blocks,
        terms=ServiceTerms(
            Slo(round(scheduling.ttft_slo_ms * MILLISECOND), round(scheduling.tbt_slo_ms * MILLISECOND))
        ),
    )


UNUSED: Mapping[str, frozenset[str] | None] = {
    "pools": None,
    "engine": frozenset({"dtype", "kernels", "threads", "vocabulary", "context_tokens_max", "step_cost"}),
    "scheduling": frozenset({"depth", "step_tokens", "trace_file"}),
}
"""Fields that are about the embedded engines; None: the whole section."""


def _tell_unused(config: Config) -> None:
    """What was set and means nothing here is said, so that nobody waits for it to work."""
    found = []
    for section, names in UNUSED.items():
        given = getattr(config, section).model_fields_set
        found += [f"{section}.{name}" for name in sorted(given) if names is None or name in names]
    if found:
        log.warning("the engine trtllm has its own: %s (see trtllm.options)", ", ".join(found))


def write_settings(settings: RotationSettings, path: Path) -> Path:
    """As the file that workers read (`build.trtllm.read_settings`)."""
    values: dict[str, object] = {
        "policy": settings.policy,
        "parameters": dict(settings.parameters),
        "dram_gib": settings.dram_bytes / (1 << 30),
        "seats": settings.seats,
        "ttft_slo_s": settings.terms.slo.ttft / SECOND,
        "tbt_slo_s": settings.terms.slo.tbt / SECOND,
        "tenant": settings.terms.tenant,
    }
    if settings.spare_blocks is not None:
        values["spare_blocks"] = settings.spare_blocks
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def _worker_is_inside(ranks: int) -> bool:
    """Whether the worker has to live in this process: nothing reaches one elsewhere. Raises ConfigError."""
    if startup_file().is_file():
        return False
    if ranks > 1:
        raise ConfigError(
            f"engine.tp: {ranks} ranks are processes of their own, and nothing makes them rotate: run "
            "`superinfer-trt trtllm enable SETTINGS` once in this environment"
        )
    return True


def _make_llm(names: LlmNames, base: dict[str, Any], options: dict[str, Any], source: str) -> Any:
    """Raises ConfigError for arguments that upstream refuses, EngineFailed when no worker comes up."""
    try:
        return names.names["LLM"](**names.merge(base, options))
    except SuperInferError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{source}: TensorRT-LLM refuses its arguments: {message_of(error)}") from error
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ConfigError):  # said by rotation, in a worker
                raise ConfigError(str(cause)) from error
            cause = cause.__cause__
        raise EngineFailed(f"TensorRT-LLM did not come up: {message_of(error)}") from error


def _end_llm(llm: Any) -> None:
    try:
        llm.shutdown()
    except Exception as error:
        log.warning("the LLM's shutdown: %s", message_of(error))


def _scheduling_parameters() -> Callable[..., Any]:
    from superinfer_trt.trtllm import params

    made: Callable[..., Any] = params.SloSchedulingParams
    return made


# -- what is served ----------------------------------------------------------------------------------


def _served(llm: Any, config: Config, settings: RotationSettings, supports: frozenset[str]) -> Served:
    """Sizes before the worker has said its own: at least one whole sequence fits the pool, as it checks."""
    folder = model_folder(llm, config.model.name)
    if folder is None:
        raise ModelError(
            f"model.name: {config.model.name}: no folder with its config.json was found; give the folder"
        )
    model = _model_of(folder)
    context = min(
        (length for length in (argument_of(llm, "max_seq_len"), model.context_tokens_max) if length > 0),
        default=0,
    )
    batch = argument_of(llm, "max_batch_size")
    limits = Limits(
        step_tokens=argument_of(llm, "max_num_tokens"),
        seats=min(settings.seats, batch) if settings.seats and batch else settings.seats or batch,
        block_tokens=BLOCK_TOKENS,
        device_blocks=div_ceil(context, BLOCK_TOKENS),
        host_blocks=0,
    )
    tokenizer = _tokenizer(folder)
    return Served(limits, model.vocabulary, context, settings.policy, model, tokenizer, supports)


def _tokenizer(folder: Path) -> Tokenizer | None:
    from superinfer_trt.model.folder import folder_tokenizer

    try:
        return folder_tokenizer(folder)
    except ModelError as error:
        log.warning("requests must bring token ids: %s", error)
        return None


def _model_of(folder: Path) -> ModelConfig:
    """What a door needs of config.json, whatever the architecture: TensorRT-LLM knows more than we do."""
    values = _json(folder / "config.json")
    text = values.get("text_config")
    values = {**values, **text} if isinstance(text, dict) else values
    generation = folder / "generation_config.json"
    ends = _json(generation).get("eos_token_id") if generation.is_file() else None
    ends = values.get("eos_token_id") if ends is None else ends
    stop_ids = ends if isinstance(ends, list) else [ends]

    def whole(name: str, default: int = 0) -> int:
        value = values.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    vocabulary = whole("vocab_size")
    if vocabulary < 1:
        raise ModelError(f"{folder / 'config.json'}: no vocab_size")
    heads = whole("num_attention_heads", 1)
    return ModelConfig(
        name=folder.resolve().name,
        architecture=str(values.get("model_type", "")),
        layers=whole("num_hidden_layers"),
        hidden=whole("hidden_size"),
        intermediate=whole("intermediate_size"),
        heads=heads,
        kv_heads=whole("num_key_value_heads", heads),
        head_dim=whole("head_dim", whole("hidden_size") // max(1, heads)),
        vocabulary=vocabulary,
        context_tokens_max=whole("max_position_embeddings"),
        rope_theta=0.0,
        norm_eps=0.0,
        tied_embedding=values.get("tie_word_embeddings") is True,
        stop_ids=frozenset(id for id in stop_ids if isinstance(id, int) and not isinstance(id, bool)),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: not a JSON object")
    return found
