"""`superinfer-trt triton repo`: a model repository for Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from superinfer_trt import config
from superinfer_trt.build.triton import FACE, IN_PROCESS, MODE, PROXY, TARGET, TLS_CA, TOKEN_FILE
from superinfer_trt.cli.options import config_options, flags_of
from superinfer_trt.config import Config
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.triton.repository import Model, write_repository
from superinfer_trt.triton.tensors import IDS, LLMAPI, TEXT, Face

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
LAYOUTS = {"inflight": (IDS, TEXT), "llmapi": (LLMAPI,)}


@click.group("triton")
def triton_group() -> None:
    """Models for Triton Inference Server."""


@triton_group.command("repo")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of the repository; models of it that this command wrote are written anew.",
)
@click.option(
    "--mode",
    type=click.Choice([PROXY, IN_PROCESS]),
    default=PROXY,
    show_default=True,
    help="proxy: to an executor that runs elsewhere; in-process: the model runs one.",
)
@click.option("--target", metavar="HOST:PORT", help="The executor [127.0.0.1:50051]; proxy only.")
@click.option("--tls-ca", type=_FILE, help="PEM file of who vouches for an executor with TLS.")
@click.option("--token-file", type=_FILE, help="File with the token for an executor that wants one.")
@click.option(
    "--layout",
    type=click.Choice(list(LAYOUTS)),
    default="inflight",
    show_default=True,
    help="inflight: tensorrt_llm (ids) and ensemble (text); llmapi: tensorrt_llm with the LLM API's tensors.",
)
@click.option("--name", "names", multiple=True, metavar="MODEL=NAME", help="Another name for a model.")
@click.option("--max-batch-size", type=click.IntRange(1, 4096), default=64, show_default=True)
@click.option(
    "--max-queue-size",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Triton's own queue before the model; 0: no batcher, the executor alone queues.",
)
@click.option(
    "--cancel-period-ms",
    type=click.FloatRange(1, 1000),
    default=10,
    show_default=True,
    help="Between two looks whether a caller has gone.",
)
@click.option(
    "--stats-period-ms",
    type=click.FloatRange(0, 3_600_000),
    default=500,
    show_default=True,
    help="Between two readings for Triton's metrics; 0: none.",
)
@config_options
def repo(
    *,
    out: Path,
    mode: str,
    target: str | None,
    tls_ca: Path | None,
    token_file: Path | None,
    layout: str,
    names: tuple[str, ...],
    max_batch_size: int,
    max_queue_size: int,
    cancel_period_ms: float,
    stats_period_ms: float,
    config_file: Path | None,
    assignments: tuple[str, ...],
    policy_parameters: tuple[str, ...],
    **values: Any,
) -> None:
    """Write a model repository with the tensors of TensorRT-LLM's own Triton models.

    The other flags configure the executor of --mode in-process; its --host and --port are where the text
    model, and other clients, reach it.
    """
    flags = flags_of(values, assignments, policy_parameters)
    if mode == PROXY and (config_file is not None or any(value is not None for value in flags.values())):
        raise ConfigError("--mode proxy: the executor has its own configuration; only --target is used")
    if mode == IN_PROCESS and target is not None:
        raise ConfigError("--target: the executor of --mode in-process listens at --host and --port")
    made = config.load(config_file, flags) if mode == IN_PROCESS else None
    renamed = _renamed(names, LAYOUTS[layout])
    models = []
    for at, face in enumerate(LAYOUTS[layout]):
        runs = made is not None and at == 0
        parameters = {
            FACE: face.name,
            MODE: IN_PROCESS if runs else PROXY,
            TARGET: "" if runs else _target(made, target),
            "cancellation_check_period_ms": f"{cancel_period_ms:g}",
            # one model reports: a sum over models is then the executor's
            "stats_check_period_ms": f"{stats_period_ms if at == 0 else 0:g}",
        }
        files = {} if runs else {TLS_CA: tls_ca, TOKEN_FILE: token_file}
        parameters |= {name: str(path.resolve()) for name, path in files.items() if path is not None}
        models.append(
            Model(
                face=face,
                name=renamed[face.model],
                parameters=parameters,
                max_batch_size=max_batch_size,
                max_queue_size=max_queue_size,
                executor_yaml=config.dump(_anywhere(made)) if runs and made is not None else "",
            )
        )
    for path in write_repository(out, models):
        click.echo(path)


def _target(made: Config | None, target: str | None) -> str:
    """Where a model that runs no executor finds one. Raises ConfigError."""
    if made is None:
        return target or "127.0.0.1:50051"
    host, port = made.service.host, made.service.port
    if port == 0:
        raise ConfigError("service.port: 0; the models of a repository must know the port beforehand")
    if host in {"0.0.0.0", "::"}:  # noqa: S104  # where others reach it; we are on the same machine
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _anywhere(made: Config) -> Config:
    """The configuration with whole paths: Triton may run in another folder."""
    sections: dict[str, Any] = {}
    for name, section in made:
        whole: dict[str, Any] = {
            field: value.resolve() for field, value in section if isinstance(value, Path)
        }
        if name == "model" and Path(section.name).exists():
            whole["name"] = str(Path(section.name).resolve())
        sections[name] = section.model_copy(update=whole)
    return made.model_copy(update=sections)


def _renamed(names: tuple[str, ...], faces: tuple[Face, ...]) -> dict[str, str]:
    """Model -> the name it gets. Raises ConfigError."""
    found = {face.model: face.model for face in faces}
    for text in names:
        model, _, name = text.partition("=")
        if model not in found or not name or "/" in name or name.startswith("."):
            raise ConfigError(f"--name: {text!r} is not MODEL=NAME with MODEL one of {', '.join(found)}")
        found[model] = name
    if len(set(found.values())) < len(found):
        raise ConfigError(f"--name: two models would be named {', '.join(sorted(found.values()))}")
    return found
