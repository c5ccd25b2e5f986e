"""`superinfer-trt report`: result files of `sweep` become one page of plots and tables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from superinfer_trt.cli.simulation import FLAGS, Job

if TYPE_CHECKING:
    from superinfer_trt.sim.report.panel import Wish
    from superinfer_trt.sim.report.study import Knobs, Study


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for report.html, report.md and the PNGs.",
)
@click.option("--metrics", metavar="NAME,NAME", help="Figures to have a table of.")
def report(*, runs: tuple[Path, ...], output: Path, metrics: str | None) -> int:
    """Turn the RUNS of sweeps (.jsonl or .parquet) into one HTML page, its tables as Markdown, and PNGs.

    Panels appear when their runs are there: attainment over load, the ablation, each swept parameter, the
    frontier. For the others the page has the sweep to run.
    """
    from superinfer_trt.sim.report.metric import TABLES, find_metrics
    from superinfer_trt.sim.report.page import make_report, write_files
    from superinfer_trt.sim.report.runs import read_runs
    from superinfer_trt.sim.report.study import studies

    chosen = find_metrics([name.strip() for name in metrics.split(",")] if metrics is not None else TABLES)
    found = studies(read_runs(runs), policy_defaults())

    def command(study: Study, wish: Wish) -> str:
        return sweep_command(study.world, study.seeds, wish, runs[0])

    write_files(output, make_report(found, chosen, asdict(Job()), command))
    click.echo(output / "report.html")
    return 0


def policy_defaults() -> dict[str, Knobs]:
    """Of each policy the parameters it has without any given, and the engine it comes from."""
    from superinfer_trt.build.sim import COPIES, SYNCHRONOUS
    from superinfer_trt.sched.registry import POLICIES

    return {
        name: {
            **asdict(entry.parameters()),
            "link": COPIES.get(name, "duplex"),
            "depth": 1 if name in SYNCHRONOUS else 2,
            "unlimited_allowance": False,
        }
        for name, entry in POLICIES.items()
    }


def sweep_command(world: Mapping[str, Any], seeds: Sequence[int], wish: Wish, output: Path) -> str:
    """The sweep that makes the runs of a wish in this world, as one shell line."""
    words = ["superinfer-trt", "sweep", *flags_of(world), *wish.flags]
    words += ["--rates", ",".join(f"{rate:g}" for rate in wish.rates)]
    words += ["--seeds", ",".join(map(str, seeds)), "--policies", ",".join(wish.policies)]
    return shlex.join([*words, "--output", str(output)])


def flags_of(world: Mapping[str, Any]) -> list[str]:
    """What of a job differs from one without flags, as flags."""
    ordinary = asdict(Job())
    words = []
    for flag, (name, kind, _) in FLAGS.items():
        value = world.get(name)
        if value is None or value == ordinary[name]:
            continue
        words += [flag] if kind is bool else [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    for name, value in world.get("hardware_params", {}).items():
        words += ["--hardware-param", f"{name}={value}"]
    for text in world.get("classes", ()):
        words += ["--class", text]
    return words
