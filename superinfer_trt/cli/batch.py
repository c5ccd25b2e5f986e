"""`superinfer-trt batch`: a file of requests in OpenAI's Batch format, answered line by line."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from superinfer_trt.cli.client import access_options
from superinfer_trt.cli.options import config_options, flags_of

_SEED = "engine.seed"
_FAILED_LINES = 3
_TELL_PERIOD_S = 30.0


@click.command("batch")
@click.argument("input_file", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("output_file", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option("--target", metavar="HOST:PORT", help="A running server; without it one is made here.")
@access_options
@click.option(
    "--in-flight", type=click.IntRange(1, 1 << 16), default=64, show_default=True, help="Requests at once."
)
@click.option(
    "--patience-s",
    type=click.FloatRange(0),
    default=600.0,
    show_default=True,
    help="How long a line is tried again while the server is busy or away.",
)
@click.option(
    "--sync-s",
    type=click.FloatRange(0, 3600),
    default=1.0,
    show_default=True,
    help="OUTPUT is made durable so often; 0: after each line.",
)
@click.option("--ordered", is_flag=True, help="Write answers in the order of INPUT.")
@click.option("--restart", is_flag=True, help="Throw away the answers in OUTPUT.")
@click.option(
    "--model-alias",
    "aliases",
    multiple=True,
    metavar="NAME",
    help="A name in `model` that means the served model too.",
)
@click.option(
    "--created",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="The Unix time that answers carry as `created`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress.")
@config_options
def batch(
    *,
    input_file: Path,
    output_file: Path,
    target: str | None,
    config_file: Path | None,
    assignments: tuple[str, ...],
    policy_parameters: tuple[str, ...],
    in_flight: int,
    patience_s: float,
    sync_s: float,
    ordered: bool,
    restart: bool,
    aliases: tuple[str, ...],
    created: int,
    as_json: bool,
    quiet: bool,
    **values: Any,
) -> int:
    """Answer each line of INPUT (OpenAI's Batch format, JSONL) by one line in OUTPUT.

    Started again after any end, kill -9 included, it goes on where it was. Exit status: 0 all lines are
    answered, 3 all are done and some have an error instead, 1 it stopped before the end, 2 wrong use, 130
    interrupted.
    """
    from superinfer_trt import config
    from superinfer_trt.batch.runner import Options
    from superinfer_trt.cli.batch_open import Opening, in_process, remote
    from superinfer_trt.core.units import SECOND
    from superinfer_trt.serve import logs

    flags = flags_of(values, assignments, policy_parameters)
    if target is not None:
        _refuse_flags(flags, config_file)
    made = config.load(config_file, flags)
    logs.configure(made.service.log_level, made.service.log_format, sys.stderr)
    patience = round(patience_s * SECOND)
    options = Options(in_flight, patience, patience if target else 0, sync_s, ordered)
    with ExitStack() as stack:
        opening: Opening
        if target is not None:
            opening = partial(remote, target)
        else:
            from superinfer_trt.build.llm import service_maker

            opening = partial(in_process, service_maker(made, stack), made)
        settings = {"seed": made.engine.seed, "created": created, "aliases": sorted(set(aliases))}
        if target is None:
            settings |= {"model_name": made.model.name, "dtype": made.engine.dtype}
            settings["kernels"] = made.engine.kernels
        work = _work(input_file, output_file, opening, settings, options, restart=restart, quiet=quiet)
        try:
            figures = asyncio.run(work)
        except asyncio.CancelledError:
            click.echo(f"{output_file}: run the same again, it goes on from here", err=True)
            raise click.Abort from None
    click.echo(json.dumps(figures)) if as_json else _print_report(figures)
    return _FAILED_LINES if figures["failed_lines"] else 0


def _refuse_flags(flags: dict[str, Any], config_file: Path | None) -> None:
    """A server has its own configuration."""
    given = [name for name, value in flags.items() if value is not None and name != _SEED]
    if config_file is not None:
        given.append("--config")
    if given:
        raise click.UsageError(f"{', '.join(given)}: of no effect with --target; the server has its own")


async def _work(
    input_file: Path,
    output_file: Path,
    opening: Any,
    settings: dict[str, Any],
    options: Any,
    *,
    restart: bool,
    quiet: bool,
) -> dict[str, Any]:
    """The whole run; returns the figures of its report."""
    from dataclasses import replace

    from superinfer_trt.batch.answer import Naming
    from superinfer_trt.batch.body import Rules
    from superinfer_trt.batch.journal import Identity, Journal
    from superinfer_trt.batch.lines import survey
    from superinfer_trt.batch.runner import Run
    from superinfer_trt.core.errors import ConfigError
    from superinfer_trt.core.slo import Slo
    from superinfer_trt.core.units import MILLISECOND
    from superinfer_trt.runtime.clock import SystemClock

    main = asyncio.current_task()
    assert main is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, main.cancel)
    source = await asyncio.to_thread(survey, input_file)
    if output_file.exists() and output_file.samefile(input_file):
        raise ConfigError(f"{output_file}: is the input")
    async with opening() as opened:
        info = opened.info
        if options.in_flight > info.requests_max:
            raise ConfigError(
                f"--in-flight: {options.in_flight} is more than the server's {info.requests_max}"
            )
        settings = settings | settings_of(info) | {"token_texts": opened.token_text is not None}
        names = opened.names | set(settings["aliases"]) if opened.names else frozenset()
        rules = Rules(info.model or info.engine, names, settings["seed"])
        naming = Naming(source.sha256, settings["created"], opened.token_text, info.has_tokenizer)
        slo = Slo(round(info.default_slo.ttft_ms * MILLISECOND), round(info.default_slo.tbt_ms * MILLISECOND))
        journal = await asyncio.to_thread(
            lambda: Journal(output_file, Identity(source.sha256, settings), restart=restart)
        )
        try:
            done = len(journal.found.done)
            with _progress(source.requests, done, journal.found.failed, quiet=quiet) as progress:
                options = replace(options, default_slo=slo)
                run = Run(opened.executor, journal, rules, naming, SystemClock(), options, progress)
                await run.run(source)
        finally:
            await asyncio.to_thread(journal.close)
    figures = run.report.figures()
    figures["lines"] = source.requests
    figures["done_before"] = done
    figures["failed_lines"] = journal.found.failed + sum(run.report.failures.values())
    return figures


def settings_of(info: Any) -> dict[str, Any]:
    """What of an executor may change an answer."""
    names = ("engine", "model", "vocabulary", "request_tokens_max", "default_max_tokens", "has_tokenizer")
    return {name: getattr(info, name) for name in names}


@contextmanager
def _progress(total: int, done: int, failed: int, *, quiet: bool) -> Iterator[Any]:
    """A bar for people, a line now and then for logs."""
    if quiet:
        yield lambda **_: None
        return
    if not sys.stderr.isatty():
        yield _Lines(total, done, failed)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} errors, {task.fields[rate]:,.0f} tokens/s, to go"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    began, tokens, errors = time.monotonic(), 0, failed
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("lines", total=total, completed=done, failed=failed, rate=0.0)

        def show(*, output_tokens: int, failed: bool) -> None:
            nonlocal tokens, errors
            tokens, errors = tokens + output_tokens, errors + failed
            rate = tokens / max(1e-3, time.monotonic() - began)
            bar.update(task, advance=1, failed=errors, rate=rate)

        yield show


class _Lines:
    """Progress for logs."""

    def __init__(self, total: int, done: int, failed: int) -> None:
        self._total, self._done, self._failed, self._here = total, done, failed, 0
        self._began = self._told = time.monotonic()

    def __call__(self, *, output_tokens: int, failed: bool) -> None:
        del output_tokens
        self._done, self._failed, self._here = self._done + 1, self._failed + failed, self._here + 1
        now = time.monotonic()
        if now - self._told >= _TELL_PERIOD_S:
            self._told = now
            left_s = (self._total - self._done) * (now - self._began) / self._here
            told = f"{self._done:,} of {self._total:,} lines, {self._failed:,} errors"
            click.echo(f"{told}, about {left_s:,.0f} s to go", err=True)


def _print_report(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "value", title="batch", title_justify="left")
    for name, value in figures.items():
        table.add_row(name, _shown(name, value))
    Console().print(table)


def _shown(name: str, value: Any) -> str:
    if name.endswith("attainment") or name.startswith("joint_"):
        return "-" if value is None else f"{value:.1%}"
    if isinstance(value, dict):
        return "  ".join(f"{key} {_shown('', one)}" for key, one in value.items()) or "-"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
