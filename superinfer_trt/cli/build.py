"""`superinfer-trt build`: what a deployment is made of: a model, options of TensorRT-LLM, a TensorRT plan.

The native plugins are built by `scripts/build native`, which needs no package.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import yaml

from superinfer_trt.core.errors import ConfigError, ModelError

GIB = 1 << 30
_new_file = click.Path(dir_okay=False, path_type=Path)


@click.group("build")
def build_group() -> None:
    """Make a model folder, options of TensorRT-LLM, or a TensorRT plan ready."""


@build_group.command("model")
@click.argument("name_or_path")
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write it as a Hugging Face folder (a GGUF file becomes one).",
)
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    default="bf16",
    show_default=True,
    help="Of the weights in --to.",
)
@click.option("--check-weights", is_flag=True, help="Read every tensor: all values must be finite.")
@click.option("--hbm-gib", type=click.FloatRange(0, min_open=True), help="Memory of the device.")
@click.option("--dram-gib", type=click.FloatRange(0, min_open=True), help="Host memory for rotated KV.")
@click.option("--block-tokens", type=click.IntRange(1, 4096), default=16, show_default=True)
@click.option("--kv-dtype", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of fetched models  [default: ~/.cache/superinfer-trt]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def model(
    *,
    name_or_path: str,
    folder: Path | None,
    dtype: str,
    check_weights: bool,
    hbm_gib: float | None,
    dram_gib: float | None,
    block_tokens: int,
    kv_dtype: str,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Fetch, check, describe and convert a model: NAME, a .gguf file, a Hugging Face folder, or a hub id.

    With --hbm-gib and --dram-gib it says how many KV blocks fit beside the weights, and how many requests.
    """
    from superinfer_trt.cli.model import describe, print_table
    from superinfer_trt.model.cache import KNOWN_MODELS, ModelCache
    from superinfer_trt.model.export import write_folder
    from superinfer_trt.model.open import open_model

    if name_or_path in KNOWN_MODELS:
        ModelCache(cache_dir).fetch(KNOWN_MODELS[name_or_path])
    opened = open_model(name_or_path, cache_dir)
    if check_weights:
        _check_weights(opened)
    facts = describe(opened, block_tokens, {"bf16": 2, "fp32": 4}[kv_dtype])
    facts["fits"] = fits(facts, dtype, hbm_gib, dram_gib)
    if folder is not None:
        facts["written_bytes"] = write_folder(opened, folder, dtype)
        facts["folder"] = str(folder)
        open_model(str(folder))  # what was written is what is read
    if as_json:
        click.echo(json.dumps(facts))
        return
    print_table(facts)
    for name, value in facts["fits"].items():
        click.echo(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")
    if folder is not None:
        click.echo(f"wrote {folder} ({facts['written_bytes'] / 1e6:,.1f} MB of weights, {dtype})")


def _check_weights(opened: Any) -> None:
    import numpy as np

    from superinfer_trt.model.shapes import tensor_shapes

    for name, _ in tensor_shapes(opened.config):
        if not np.isfinite(opened.weights.tensor(name)).all():
            raise ModelError(f"{opened.source}: {name} has values that are not finite")


def fits(facts: dict[str, Any], dtype: str, hbm_gib: float | None, dram_gib: float | None) -> dict[str, Any]:
    """KV blocks of each tier, and whole requests by length, beside weights of `dtype`.

    A tenth of the device is left for activations and the runtime. Raises ConfigError when nothing fits.
    """
    weights = facts["parameters"] * {"bf16": 2, "fp16": 2, "fp32": 4}[dtype]
    made: dict[str, Any] = {"weight_bytes": weights}
    if hbm_gib is not None:
        room = int(hbm_gib * GIB * 0.9) - weights
        if room < facts["block_bytes"]:
            raise ConfigError(
                f"--hbm-gib: {hbm_gib:g} GiB do not hold the weights ({weights / GIB:,.1f} GiB as {dtype}), "
                "one KV block, and a tenth for activations"
            )
        made["hbm_blocks"] = room // facts["block_bytes"]
    if dram_gib is not None:
        made["dram_blocks"] = int(dram_gib * GIB) // facts["block_bytes"]
    blocks = made.get("hbm_blocks", 0) + made.get("dram_blocks", 0)
    if blocks:
        by_length = facts["blocks_for_tokens"].items()
        made["requests_by_tokens"] = {length: blocks // each for length, each in by_length}
    return made


@build_group.command("trtllm")
@click.argument("output", type=_new_file)
@click.option("--model", "model_name", required=True, help="As `serve --model` gets it.")
@click.option(
    "--options",
    "base",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="LLM arguments to begin with, YAML in the format of --extra_llm_api_options.",
)
@click.option("--tp", type=click.IntRange(1, 1024), default=1, show_default=True, help="Ranks.")
@click.option(
    "--max-batch-size", type=click.IntRange(1), help="Requests in TensorRT-LLM's list of active ones."
)
@click.option("--max-num-tokens", type=click.IntRange(1), help="Tokens of one step.")
@click.option("--max-seq-len", type=click.IntRange(2), help="Prompt and output of one request.")
@click.option(
    "--kv-fraction",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the free device memory for KV.",
)
@click.option("--dram-gib", type=click.FloatRange(0, min_open=True), help="Host pool of each rank.")
@click.option("--force", is_flag=True, help="Write over OUTPUT.")
def trtllm(
    *,
    output: Path,
    model_name: str,
    base: Path | None,
    tp: int,
    max_batch_size: int | None,
    max_num_tokens: int | None,
    max_seq_len: int | None,
    kv_fraction: float | None,
    dram_gib: float | None,
    force: bool,
) -> None:
    """Write OUTPUT, options for `serve --engine trtllm --trtllm-options OUTPUT`.

    Checked for what rotation refuses, and completed by what it needs.

    Needs no TensorRT-LLM. What an option's own limits are is TensorRT-LLM's business, at start.
    """
    from superinfer_trt import config
    from superinfer_trt.build.llm import read_options
    from superinfer_trt.trtllm.llm_options import base_arguments, check_options, complete_options

    options = read_options(base)
    source = str(base or "the options")
    given = {"max_batch_size": max_batch_size, "max_num_tokens": max_num_tokens, "max_seq_len": max_seq_len}
    options |= {name: value for name, value in given.items() if value is not None}
    if kv_fraction is not None:
        options["kv_cache_config"] = {
            **(options.get("kv_cache_config") or {}),
            "free_gpu_memory_fraction": kv_fraction,
        }
    check_options(options, source)
    base_arguments(options, model=model_name, tensor_parallel=tp, source=source)
    if max_batch_size is not None and max_num_tokens is not None and max_num_tokens < max_batch_size:
        raise ConfigError(
            f"--max-num-tokens: {max_num_tokens} is less than --max-batch-size ({max_batch_size}); each "
            "running request makes one token a step"
        )
    made = complete_options(options, statistics=tp > 1)
    config.load(None, {"engine.name": "trtllm", "engine.tp": tp, "trtllm.dram_gib": dram_gib})
    write_text(output, yaml.safe_dump(made, sort_keys=True), force=force)
    check_options(read_options(output), str(output))
    command = ["superinfer-trt serve --engine trtllm", f"--model {model_name}", f"--trtllm-options {output}"]
    command += [f"--tp {tp}"] * (tp > 1) + [f"--dram-gib {dram_gib:g}"] * (dram_gib is not None)
    click.echo(f"wrote {output}")
    click.echo("start with: " + " ".join(command))


@build_group.command("tensorrt")
@click.argument("network", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="ONNX")
@click.argument("output", type=_new_file, metavar="PLAN")
@click.option(
    "--plugins",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="libsuperinfer_tensorrt.so, of `scripts/build native`.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=MIN:OPT:MAX",
    help="Shapes of an input with open dimensions, as 1x64:8x64:64x64.",
)
@click.option(
    "--capability",
    "capabilities",
    multiple=True,
    metavar="SM",
    help="Build ahead of time for this GPU, as SM90 (TensorRT-RTX).",
)
@click.option("--alias", is_flag=True, help="Allow outputs that are inputs (alias = 1, SiKvRotate).")
@click.option("--force", is_flag=True, help="Write over PLAN.")
def tensorrt(
    *,
    network: Path,
    output: Path,
    plugins: Path,
    shapes: tuple[str, ...],
    capabilities: tuple[str, ...],
    alias: bool,
    force: bool,
) -> None:
    """Build PLAN from ONNX, a network with our plugins, by TensorRT or TensorRT-RTX of this environment."""
    from superinfer_trt.cli.build_plan import Profile, build_plan, open_tensorrt

    profiles = [Profile.parse(shape) for shape in shapes]
    _check_new(output, force=force)
    library = open_tensorrt()
    plan = build_plan(library, network, plugins, profiles, capabilities, alias=alias)
    write_bytes(output, plan)
    click.echo(f"wrote {output} ({len(plan):,} bytes, {library.__name__} {library.__version__})")


def write_text(path: Path, text: str, *, force: bool) -> None:
    """At once or not at all. Raises ConfigError when it is there and not `force`."""
    _check_new(path, force=force)
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """At once or not at all. Raises ConfigError."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None


def _check_new(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise ConfigError(f"{path}: is there already; --force writes over it")
