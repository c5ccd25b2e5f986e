"""Flags that name fields of the configuration, shared by `serve` and `config`; and small parsers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

Command = TypeVar("Command", bound=Callable[..., Any])

# flag -> (field of the configuration, type, help)
FIELDS: dict[str, tuple[str, Any, str]] = {
    "--model": ("model.name", str, "Known model, .gguf file, Hugging Face folder or hub id."),
    "--cache-dir": ("model.cache_dir", str, "Folder of fetched models."),
    "--engine": ("engine.name", str, "native | sim | pattern | trtllm."),
    "--dtype": ("engine.dtype", str, "bf16 | fp32."),
    "--kernels": ("engine.kernels", str, "Kernel set; auto takes the best."),
    "--threads": ("engine.threads", int, "Compute threads; 0: one for each core."),
    "--seed": ("engine.seed", int, "Where the seeds of requests come from that bring none."),
    "--hbm-blocks": ("pools.hbm_blocks", int, "Blocks of the HBM pool."),
    "--dram-blocks": ("pools.dram_blocks", int, "Blocks of the DRAM pool."),
    "--block-tokens": ("pools.block_tokens", int, "Tokens of one block."),
    "--d2h-bytes-per-s": ("pools.d2h_bytes_per_s", float, "Link HBM -> DRAM; 0: unlimited."),
    "--h2d-bytes-per-s": ("pools.h2d_bytes_per_s", float, "Link DRAM -> HBM; 0: unlimited."),
    "--policy": ("scheduling.policy", str, "Scheduling policy."),
    "--depth": ("scheduling.depth", int, "Turns in the air: 1 or 2."),
    "--step-tokens": ("scheduling.step_tokens", int, "Tokens of one batch, at most."),
    "--seats": ("scheduling.seats", int, "Requests of one batch, at most."),
    "--ttft-slo-ms": ("scheduling.ttft_slo_ms", float, "Time to first token, unless a request says."),
    "--tbt-slo-ms": ("scheduling.tbt_slo_ms", float, "Time between tokens, unless a request says."),
    "--trace-file": ("scheduling.trace_file", str, "Write every plan to this file."),
    "--tp": ("engine.tp", int, "Ranks that share each layer; native: as `mpiexec -n N`."),
    "--trtllm-options": ("trtllm.options", str, "LLM arguments for the engine trtllm, YAML."),
    "--dram-gib": ("trtllm.dram_gib", float, "Host pool of each rank, for the engine trtllm."),
    "--host": ("service.host", str, "Address to listen on."),
    "--port": ("service.port", int, "Port to listen on; 0: any free one."),
    "--requests-max": ("service.requests_max", int, "Live requests; the next is refused."),
    "--drain-timeout-s": ("service.drain_timeout_s", float, "For live requests to finish on SIGTERM."),
    "--metrics-host": ("service.metrics_host", str, "Address of the metrics endpoint."),
    "--metrics-port": ("service.metrics_port", int, "Prometheus endpoint; 0: any free port (default: none)."),
    "--log-level": ("service.log_level", str, "debug | info | warning | error."),
    "--log-format": ("service.log_format", str, "text | json."),
    "--tls-cert": ("service.tls_cert", str, "PEM file of the server's certificate."),
    "--tls-key": ("service.tls_key", str, "PEM file of its key."),
    "--tls-client-ca": ("service.tls_client_ca", str, "PEM file of who signs clients' certificates."),
    "--auth-file": ("service.auth_file", str, "Hashes of tokens, see `superinfer-trt token`."),
    "--insecure/--no-insecure": ("service.insecure", bool, "Beyond loopback also in clear, to everybody."),
    "--reflection/--no-reflection": ("service.reflection", bool, "gRPC reflection (default: off)."),
}


def config_options(command: Command) -> Command:
    """Adds --config, one flag a field, --policy-param and --set."""
    assign = click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="FIELD=VALUE",
        help="Any field, e.g. --set service.message_bytes_max=65536.",
    )
    parameter = click.option(
        "--policy-param",
        "policy_parameters",
        multiple=True,
        metavar="NAME=VALUE",
        help="A parameter of the policy, e.g. alpha=3.",
    )
    command = parameter(assign(command))
    for flag, (name, kind, text) in reversed(FIELDS.items()):
        command = click.option(flag, name.replace(".", "__"), type=kind, default=None, help=text)(command)
    file = click.option(
        "--config",
        "config_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="YAML file; flags win over it.",
    )
    return file(command)


def flags_of(
    values: dict[str, Any], assignments: tuple[str, ...], policy_parameters: tuple[str, ...]
) -> dict[str, Any]:
    """What the flags say, by dotted field name; absent ones are None."""
    flags = {name.replace("__", "."): value for name, value in values.items()}
    for text in policy_parameters:
        name, value = assignment(text, "--policy-param")
        flags[f"scheduling.parameters.{name}"] = value
    for text in assignments:
        name, value = assignment(text, "--set")
        flags[name] = value
    return flags


def assignment(text: str, option: str) -> tuple[str, Any]:
    """NAME=VALUE, the value read as YAML (so 3 is a number and true a truth)."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        return name, value


def token_range(value: str) -> tuple[int, int]:
    """`8:64` or `8`: whole numbers, both ends included."""
    low, _, high = value.partition(":")
    try:
        pair = int(low), int(high or low)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not LOW[:HIGH]") from None
    if not 1 <= pair[0] <= pair[1]:
        raise click.BadParameter(f"{value!r}: 1 <= LOW <= HIGH is required")
    return pair
