"""`superinfer-trt simulate`: one run of the production scheduler on modelled hardware."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from superinfer_trt.cli.simulation import job_options, make_job, run_job
from superinfer_trt.core.errors import ConfigError

SHARES = (
    "ttft_attainment",
    "tbt_attainment",
    "joint_mean",
    "joint_p99",
    "joint_stall",
    "ttft_attainment_longest_prompts",
)


@click.command("simulate")
@job_options
@click.option(
    "--perfetto",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a Chrome trace of the run; ui.perfetto.dev opens it.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def simulate(*, perfetto: Path | None, as_json: bool, **values: Any) -> int:
    """Run the production scheduler, ledger and executor on modelled hardware.

    Example: superinfer-trt simulate --hardware gh200-144gb --model qwen2.5-32b --trace sharegpt
    --rps 20 --seed 42 --policy rota-slack --json
    """
    job = make_job(values)
    if perfetto is not None and not perfetto.parent.is_dir():
        raise ConfigError(f"--perfetto: {perfetto.parent} is no folder")
    finished = run_job(job, traced=perfetto is not None)
    if perfetto is not None:
        _write_trace(perfetto, finished.trace)
    if as_json:
        click.echo(json.dumps(finished.figures))
    else:
        print_figures(finished.figures)
    return 0


def _write_trace(path: Path, trace: Any) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            trace.write(file)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"--perfetto: cannot write {path} ({error.strerror})") from None


def print_figures(figures: dict[str, Any]) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.table import Table

    title = f"{figures['policy']}: {figures['model']} on {figures['hardware']}, {figures['trace']}"
    table = Table("figure", "value", title=title, title_justify="left")
    for name, value in figures.items():
        if name in {"policy", "model", "hardware", "trace"} or value == {}:
            continue
        table.add_row(name, _shown(name, value))
    Console().print(table)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return "  ".join(f"{key} {_shown(key, one)}" for key, one in value.items())
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
