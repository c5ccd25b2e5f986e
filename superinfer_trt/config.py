"""The configuration of a service: six frozen sections, read from YAML and flags, checked once.

Knows no engine, policy or server: names of policies and their parameters are checked where they are
built. Every refusal is a ConfigError that names field, limit and allowed values.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from superinfer_trt.config_versions import VERSION, told, upgraded
from superinfer_trt.core.errors import ConfigError

CONFIG_BYTES_MAX = 1 << 20


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )


class ModelSection(_Section):
    """What is served."""

    name: str = Field(
        default="smollm2",
        min_length=1,
        max_length=4096,
        description="a known model (`superinfer-trt model get`), a .gguf file, a Hugging Face folder, or a "
        "hub id; not used by the engines sim and pattern",
    )
    cache_dir: Path | None = Field(
        default=None, description="folder of fetched models; none: the user's cache"
    )


class EngineSection(_Section):
    """What runs a batch."""

    name: Literal["native", "sim", "pattern", "trtllm"] = Field(
        default="native",
        description="native: the embedded CPU engine; sim: modelled step times, no model; pattern: writes "
        "and verifies KV patterns, no model; trtllm: TensorRT-LLM, whose workers rotate",
    )
    dtype: Literal["bf16", "fp32"] = Field(default="bf16", description="of weights and KV (native)")
    kernels: str = Field(
        default="auto",
        pattern=r"^[a-z0-9_]{1,32}$",
        description="kernel set (native); auto: the best this CPU has",
    )
    threads: int = Field(
        default=0, ge=0, le=1024, description="compute threads (native); 0: one for each core"
    )
    tp: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="ranks that share each layer (native and pattern: as `mpiexec -n N` starts them; trtllm)",
    )
    rank_timeout_s: float = Field(
        default=60.0,
        ge=1,
        le=86_400,
        description="a rank that does not answer for so long is lost, and all end (native, pattern)",
    )
    vocabulary: int = Field(default=32_000, ge=2, le=1 << 24, description="of the engines sim and pattern")
    context_tokens_max: int = Field(
        default=8192,
        ge=2,
        le=1 << 24,
        description="prompt and output together, of the engines sim and pattern",
    )
    step_cost: dict[str, float] = Field(
        default_factory=dict,
        description="terms of the modelled step time (sim), by the names the engine knows",
    )
    seed: int = Field(
        default=0, ge=0, lt=1 << 64, description="where the seeds of requests come from that bring none"
    )


class PoolsSection(_Section):
    """The KV pools of the two tiers and the link between them."""

    hbm_blocks: int = Field(default=1024, ge=1, le=1 << 31, description="blocks of the HBM pool")
    dram_blocks: int = Field(
        default=4096, ge=0, le=1 << 31, description="blocks of the DRAM pool; 0: nothing can rotate"
    )
    block_tokens: int = Field(default=16, ge=1, le=1024, description="tokens of one block")
    d2h_bytes_per_s: float = Field(
        default=2e9, ge=0, le=1e13, description="rate of the link HBM -> DRAM; 0: as fast as it goes"
    )
    h2d_bytes_per_s: float = Field(
        default=2e9, ge=0, le=1e13, description="rate of the link DRAM -> HBM; 0: as fast as it goes"
    )


class SchedulingSection(_Section):
    """Who runs when."""

    policy: str = Field(
        default="rota-slack", pattern=r"^[a-z0-9_-]{1,64}$", description="name of the scheduling policy"
    )
    parameters: dict[str, bool | int | float | str | None] = Field(
        default_factory=dict, description="of the policy, by the names it knows"
    )
    depth: Literal[1, 2] = Field(
        default=2, description="turns in the air: 2 plans and copies while a batch runs"
    )
    step_tokens: int = Field(default=512, ge=1, le=1 << 20, description="tokens of one batch, at most")
    seats: int = Field(default=64, ge=1, le=1 << 16, description="requests of one batch, at most")
    ttft_slo_ms: float = Field(
        default=5000.0, gt=0, le=86_400_000, description="time to first token, for requests that give none"
    )
    tbt_slo_ms: float = Field(
        default=100.0, gt=0, le=86_400_000, description="time between tokens, for requests that give none"
    )
    trace_file: Path | None = Field(
        default=None, description="writes every plan to this file, one line a turn"
    )


class TrtllmSection(_Section):
    """What only the engine trtllm wants. Its pool in HBM, block size and batch are TensorRT-LLM's own."""

    options: Path | None = Field(
        default=None, description="YAML file of LLM arguments, in the format of --extra_llm_api_options"
    )
    dram_gib: float = Field(
        default=16.0, gt=0, le=1 << 16, description="page-locked host pool of each rank, in GiB"
    )
    spare_blocks: int | None = Field(
        default=None,
        ge=0,
        le=1 << 31,
        description="HBM blocks left to TensorRT-LLM itself; none: one a seat, at most 5 %",
    )
    silence_max_s: float = Field(
        default=300.0,
        ge=0,
        le=86_400,
        description="the worker counts as dead after so long without any token while requests are live; "
        "0: never",
    )


class SloClass(_Section):
    """Objectives of one class of requests."""

    ttft_ms: float | None = Field(default=None, gt=0, le=86_400_000)
    tbt_ms: float | None = Field(default=None, gt=0, le=86_400_000)


class QuotaSection(_Section):
    """What one tenant may have in flight, and its share."""

    weight: float = Field(
        default=1.0,
        ge=0.001,
        le=1000,
        description="share of HBM under contention, beside the others' (policy rota-slack)",
    )
    requests_max: int | None = Field(default=None, ge=1, description="live requests; none: no limit")
    tokens_max: int | None = Field(
        default=None, ge=2, description="prompt and max_tokens of its live requests; none: no limit"
    )
    blocks_max: int | None = Field(
        default=None, ge=1, description="KV blocks of as many tokens, in either tier; none: no limit"
    )


class TenantsSection(_Section):
    """Quotas, enforced at the door: the next request is refused with RESOURCE_EXHAUSTED."""

    default: QuotaSection = Field(
        default=QuotaSection(), description="of each tenant not named, and of requests that name none"
    )
    named: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9._:/-]{1,64}$")], QuotaSection] = Field(
        default_factory=dict, description="by tenant, with the fields of default"
    )


class ServiceSection(_Section):
    """How clients reach it."""

    host: str = Field(default="127.0.0.1", min_length=1, max_length=255, description="address to listen on")
    port: int = Field(default=50051, ge=0, le=65535, description="port to listen on; 0: any free one")
    requests_max: int = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="live requests; the next is refused with RESOURCE_EXHAUSTED",
    )
    shed: Literal["off", "certain"] = Field(
        default="off",
        description="certain: refuses a waiting request, with RESOURCE_EXHAUSTED, as soon as it would "
        "certainly miss its objective for the first token",
    )
    max_tokens_default: int = Field(
        default=128, ge=1, le=1 << 24, description="output tokens of a request that gives no max_tokens"
    )
    message_bytes_max: int = Field(
        default=4 << 20, ge=1024, le=1 << 30, description="of one message from a client"
    )
    drain_timeout_s: float = Field(
        default=30.0, ge=0, le=86_400, description="for live requests to finish after SIGTERM"
    )
    reader_timeout_s: float = Field(
        default=120.0, ge=1, le=86_400, description="a call whose reader takes nothing for so long is ended"
    )
    tls_cert: Path | None = Field(
        default=None, description="PEM file of the server's certificate and those above it; none: no TLS"
    )
    tls_key: Path | None = Field(default=None, description="PEM file of its private key, not encrypted")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file of who signs clients' certificates, which are then required"
    )
    auth_file: Path | None = Field(
        default=None,
        description="hashes of bearer tokens, with tenants (`superinfer-trt token`); none: nobody is asked",
    )
    insecure: bool = Field(
        default=False,
        description="true: beyond loopback also without TLS or without tokens or clients' certificates",
    )
    reflection: bool = Field(default=False, description="gRPC reflection")
    metrics_host: str = Field(
        default="127.0.0.1", min_length=1, max_length=255, description="address of the metrics endpoint"
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="port of the metrics endpoint (Prometheus); none: there is none; 0: any free port",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="warning", description="what is logged to stderr; info: a line for each request that ends"
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="of the log: for people, or one JSON object a line"
    )
    facade: bool = Field(
        default=True, description="the service that gateways for TensorRT-LLM speak, on the same port"
    )
    slo_classes: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,32}$")], SloClass] = Field(
        default_factory=dict,
        description="objectives by class, {gold: {ttft_ms: 500, tbt_ms: 50}}, for requests of the facade "
        "whose id begins with the class and a dot; left out: those of everybody",
    )

    @model_validator(mode="after")
    def _secure(self) -> ServiceSection:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert, tls_key: one without the other")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca: needs tls_cert and tls_key")
        asks = self.auth_file is not None or self.tls_client_ca is not None
        hosts = {
            "host": self.host,
            **({"metrics_host": self.metrics_host} if self.metrics_port is not None else {}),
        }
        for name, host in hosts.items():
            if not _is_loopback(host) and not (self.tls_cert is not None and asks) and not self.insecure:
                raise ValueError(
                    f"{name}: {host} is beyond loopback; that needs tls_cert and tls_key, and auth_file or "
                    "tls_client_ca, or the word that it is meant: insecure: true"
                )
        return self


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Config(_Section):
    """Everything a service is started from."""

    model: ModelSection = ModelSection()
    engine: EngineSection = EngineSection()
    pools: PoolsSection = PoolsSection()
    scheduling: SchedulingSection = SchedulingSection()
    trtllm: TrtllmSection = TrtllmSection()
    service: ServiceSection = ServiceSection()
    tenants: TenantsSection = TenantsSection()

    @model_validator(mode="after")
    def _together(self) -> Config:
        if self.scheduling.step_tokens < self.scheduling.seats:
            raise ValueError(
                f"scheduling.step_tokens: {self.scheduling.step_tokens} is less than scheduling.seats "
                f"({self.scheduling.seats}); each running request makes one token a step"
            )
        if self.engine.tp > 1 and self.engine.name == "sim":
            raise ValueError(f"engine.tp: {self.engine.tp} ranks have nothing to share in the engine sim")
        weights = {one.weight for one in (self.tenants.default, *self.tenants.named.values())}
        if self.engine.name == "trtllm" and (self.service.shed != "off" or len(weights) > 1):
            field = "tenants: weights" if len(weights) > 1 else "service.shed: certain"
            raise ValueError(f"{field} need an embedded engine, not trtllm")
        return self


def load(path: Path | None = None, flags: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a YAML file, overridden by flags ("pools.hbm_blocks": 64).

    Either may be absent. A flag that is None counts as not given. A file may be of an older version, and
    use its names; flags have today's. Raises ConfigError.
    """
    tree = upgraded(_read(path)) if path is not None else {}
    for name, value in (flags or {}).items():
        if value is not None:
            _put(tree, name, value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(detail) for detail in error.errors())) from None


def dump(config: Config) -> str:
    """As YAML that `load` reads back to an equal configuration."""
    text: str = yaml.safe_dump({"version": VERSION, **config.model_dump(mode="json")}, sort_keys=False)
    return text


def describe() -> Iterator[tuple[str, str, str, str]]:
    """(field, default, limits, description) of every field, for people."""
    for section, info in Config.model_fields.items():
        yield from _described(section, _kind(info))


def _described(prefix: str, section: type[_Section]) -> Iterator[tuple[str, str, str, str]]:
    for name, one in section.model_fields.items():
        if isinstance(one.annotation, type) and issubclass(one.annotation, _Section):
            yield from _described(f"{prefix}.{name}", one.annotation)
        else:
            yield f"{prefix}.{name}", _default(one), _limits(one), one.description or ""


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise ConfigError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes")
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a mapping of sections ({', '.join(Config.model_fields)})")
    return tree


def _put(tree: dict[str, Any], name: str, value: object) -> None:
    """Sets a dotted name; sections in between are made."""
    *parents, last = name.split(".")
    at = tree
    for parent in parents:
        below = at.get(parent)
        if below is None:
            below = at[parent] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"{name}: {parent} is not a section")
        at = below
    at[last] = value


def _explain(detail: ErrorDetails) -> str:
    """One line for one finding of pydantic: field, what was found, what is allowed."""
    location = [str(part) for part in detail["loc"]]
    name = ".".join(location)
    if detail["type"] == "extra_forbidden":
        return told(name) or f"{name}: unknown field; known here: {', '.join(_siblings(location))}"
    message = detail["msg"].removeprefix("Value error, ")
    if not name:
        return message
    found = detail.get("input")
    shown = f", not {found!r}" if found is None or isinstance(found, (str, int, float, bool)) else ""
    return f"{name}: {message[:1].lower()}{message[1:]}{shown[:120]}"


def _siblings(location: list[str]) -> list[str]:
    if location[0] == "tenants" and len(location) > 2:
        return sorted(QuotaSection.model_fields)
    if len(location) > 1 and location[0] in Config.model_fields:
        return sorted(_kind(Config.model_fields[location[0]]).model_fields)
    return sorted(Config.model_fields)


def _kind(section: FieldInfo) -> type[_Section]:
    kind = section.annotation
    assert isinstance(kind, type)
    assert issubclass(kind, _Section)
    return kind


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True, validated_data={})
    return "none" if value is None else str(value)


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=", "max_length": "length <="}


def _limits(info: FieldInfo) -> str:
    literal = getattr(info.annotation, "__args__", ())
    if getattr(info.annotation, "__origin__", None) is Literal:
        return " | ".join(str(value) for value in literal)
    found = []
    for mark in info.metadata:
        for name, sign in _SIGNS.items():
            limit = getattr(mark, name, None)
            if limit is not None:
                found.append(f"{sign} {limit}")
    return ", ".join(found)
