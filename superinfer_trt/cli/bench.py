"""`superinfer-trt bench`: an open-loop load on a server, and how it kept its objectives."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import click
import grpc

from superinfer_trt.cli import load
from superinfer_trt.cli.client import (
    CHANNEL_OPTIONS,
    CallFailed,
    base_request,
    call_failed,
    request_options,
    target_option,
)
from superinfer_trt.cli.options import token_range
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub


@click.command("bench")
@target_option
@click.option("--requests", type=click.IntRange(1), default=32, show_default=True, help="How many.")
@click.option("--rps", type=click.FloatRange(0), default=0.0, help="Poisson arrivals; 0: all at once.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of prompts and arrivals.")
@click.option(
    "--prompt-tokens",
    type=token_range,
    metavar="LOW[:HIGH]",
    default="32:64",
    help="Of random prompts [32:64].",
)
@click.option(
    "--output-tokens",
    type=token_range,
    metavar="LOW[:HIGH]",
    default="32:64",
    help="Of their answers [32:64].",
)
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='JSONL of requests in proto JSON instead of random ones, e.g. {"text": "..."}.',
)
@request_options
@click.option("--cancel-share", type=click.FloatRange(0, 1), default=0.0, help="Callers that give up.")
@click.option("--cancel-after-s", type=click.FloatRange(0), default=1.0, show_default=True, help="When.")
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True)
@click.option("--outputs", type=click.Path(dir_okay=False, path_type=Path), help="Write the answers, JSONL.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def bench(
    *,
    target: str,
    requests: int,
    rps: float,
    seed: int,
    prompt_tokens: tuple[int, int],
    output_tokens: tuple[int, int],
    prompts_file: Path | None,
    cancel_share: float,
    cancel_after_s: float,
    timeout_s: float,
    outputs: Path | None,
    as_json: bool,
    **values: Any,
) -> int:
    """Load a server and report how it kept its objectives.

    Exit 1 when no request was completed; failures of some are in the report.
    """
    arrivals = load.Arrivals(requests, rps, seed, cancel_share, cancel_after_s)
    base = base_request(**values)
    info, before = _ask(target)
    if prompts_file is not None:
        messages = load.requests_from(prompts_file, base, requests)
    else:
        messages = load.synthetic_requests(base, info, arrivals, prompt_tokens, output_tokens)
    answers = _run(target, load.schedule(messages, arrivals), timeout_s, quiet=as_json)
    after = _stats_after(target)
    figures = load.result(answers, info, before, after)
    if outputs is not None:
        lines = (json.dumps(load.output_line(answer)) for answer in answers)
        outputs.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(figures))
    else:
        _print_table(figures)
    return 0 if any(answer.completed for answer in answers) else 1


def _ask(target: str) -> tuple[pb.GetModelInfoResponse, pb.Stats]:
    try:
        with grpc.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
            stub = ExecutorServiceStub(channel)  # type: ignore[no-untyped-call]
            info: pb.GetModelInfoResponse = stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
            return info, stub.GetStats(pb.GetStatsRequest(), timeout=10).stats
    except grpc.RpcError as error:
        raise call_failed(error, target) from error


def _stats_after(target: str) -> pb.Stats | None:
    """None when the server has gone meanwhile: what it did until then is still worth a report."""
    try:
        return _ask(target)[1]
    except CallFailed as error:
        error.show()
        return None


def _run(target: str, jobs: list[load.Job], timeout_s: float, *, quiet: bool) -> list[load.Answer]:
    """Runs the load; shows progress to people only."""
    if quiet or not sys.stderr.isatty():
        return asyncio.run(load.run_load(target, jobs, timeout_s, lambda _: None))
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        bar = shown.add_task("requests", total=len(jobs))
        return asyncio.run(load.run_load(target, jobs, timeout_s, lambda _: shown.advance(bar)))


def _print_table(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "value", title=f"{figures['engine']}, {figures['policy']}", title_justify="left")
    shares = ("ttft_attainment", "tbt_attainment", "joint_mean", "joint_p99", "joint_stall")
    for name, value in figures.items():
        if name in {"engine", "policy"}:
            continue
        if name in shares:
            shown = "-" if value is None else f"{value:.1%}"
        elif isinstance(value, dict):
            shown = "  ".join(f"{key} {_number(one)}" for key, one in value.items()) or "-"
        else:
            shown = _number(value)
        table.add_row(name, shown)
    Console().print(table)


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
