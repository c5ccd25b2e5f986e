"""`superinfer-trt sweep`: many simulations in parallel processes, resumable.

Each finished run is one line of the result file, with its job in it; a run whose job stands there is not
run again. A line is written whole or not at all: a torn last line is dropped when the sweep goes on. Parquet
cannot be added to: its lines are gathered in a file beside it (`runs.parquet.jsonl`) and written at the end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TextIO

import click

from superinfer_trt.cli.simulation import Job, build_job, job_options, make_job, number_or_word, run_job
from superinfer_trt.core.errors import ConfigError


@click.command("sweep")
@job_options
@click.option("--policies", required=True, metavar="NAME,NAME", help="NAME[:PARAMETER=VALUE]... each.")
@click.option("--rates", required=True, metavar="RPS,RPS", help="Requests a second.")
@click.option("--seeds", default="42", show_default=True, metavar="SEED,SEED", help="Of arrivals and draws.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Where the runs go: .jsonl, or .parquet with flat columns.",
)
@click.option("--processes", type=click.IntRange(1, 1024), default=1, show_default=True)
def sweep(*, policies: str, rates: str, seeds: str, output: Path, processes: int, **values: Any) -> int:
    """Run policies x rates x seeds and write one line (or row) a run.

    Runs that stand in the output already are kept, so a sweep that was stopped goes on. Exit 1 when a run
    failed.
    """
    lines = lines_of(output)
    jobs = list(_jobs(make_job(values), policies, rates, seeds))
    for job in jobs:
        build_job(job)  # nothing is run, and nothing written, unless all can be
    if lines != output and output.exists() and not lines.exists():
        _unpack(output, lines)
    done = finished_jobs(lines)
    todo = [job for job in jobs if job_key(job) not in done]
    click.echo(f"{len(jobs) - len(todo)} of {len(jobs)} runs are in {output}", err=True)
    failures = 0
    with _opened(lines) as file, _progress(len(todo)) as advance:
        for job, figures, error in run_all(todo, processes):
            advance()
            if error:
                failures += 1
                click.echo(f"{job.policy} at {job.rps} RPS, seed {job.seed}: {error}", err=True)
                continue
            file.write(json.dumps({"job": asdict(job), "figures": figures}) + "\n")
            file.flush()
    if lines != output:
        _pack(lines, output)
    return 1 if failures else 0


def lines_of(output: Path) -> Path:
    """The file that lines are added to, by the suffix of `output`. Raises ConfigError."""
    suffix = output.suffix.lower()
    if suffix == ".jsonl":
        return output
    if suffix == ".parquet":
        from superinfer_trt.sim.parquet import require_pyarrow

        require_pyarrow()  # now, not after hours of runs
        return output.with_name(output.name + ".jsonl")
    raise ConfigError(
        f"--output: {output.name}: {suffix!r} is no suffix of runs; expected .jsonl or .parquet"
    )


def _unpack(output: Path, lines: Path) -> None:
    """The rows of a Parquet file as lines again, whole or not at all. Raises ConfigError."""
    from superinfer_trt.sim.parquet import read_parquet

    rows = read_parquet(output)
    for number, row in enumerate(rows, 1):
        _key_of(output, number, row.encode())
    part = lines.with_name(lines.name + ".part")
    try:
        part.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
        part.replace(lines)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"--output: cannot write {lines} ({error.strerror})") from None


def _pack(lines: Path, output: Path) -> None:
    """Lines become Parquet and go; where no run has ended there is nothing to write. Raises ConfigError."""
    from superinfer_trt.sim.parquet import write_parquet

    rows = lines.read_text(encoding="utf-8").splitlines()
    if rows:
        write_parquet(output, rows)
    lines.unlink()


def run_all(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, dict[str, Any], str]]:
    """(job, figures, error) as they end; at most `processes` runs at a time."""
    if processes == 1:
        for job in jobs:
            yield (job, *_run(job))
        return
    with ProcessPoolExecutor(min(processes, max(1, len(jobs))), mp_context=get_context("spawn")) as pool:
        running: dict[Future[tuple[dict[str, Any], str]], Job] = {pool.submit(_run, job): job for job in jobs}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield (running.pop(future), *future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run(job: Job) -> tuple[dict[str, Any], str]:
    """In another process: errors travel as text."""
    try:
        return run_job(job).figures, ""
    except Exception as error:
        return {}, f"{type(error).__name__}: {' '.join(str(error).split())}"


def _jobs(base: Job, policies: str, rates: str, seeds: str) -> Iterator[Job]:
    names = [parsed_policy(text) for text in _words("--policies", policies)]
    try:
        numbers = [float(text) for text in _words("--rates", rates)]
        whole = [int(text) for text in _words("--seeds", seeds)]
    except ValueError as error:
        raise ConfigError(f"--rates and --seeds are numbers with commas between ({error})") from None
    for (name, parameters), rps, seed in product(names, numbers, whole):
        merged = {**base.policy_params, **parameters}
        yield replace(base, policy=name, policy_params=merged, rps=rps, seed=seed)


def parsed_policy(text: str) -> tuple[str, dict[str, Any]]:
    """`rotasched:alpha=1:beta_ttft=0.25`. Raises ConfigError."""
    from superinfer_trt.cli.options import assignment

    name, *parameters = text.split(":")
    pairs = dict(assignment(parameter, "--policies") for parameter in parameters)
    return name, {key: number_or_word(value) for key, value in pairs.items()}


def _words(option: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise ConfigError(f"{option}: {text!r}; expected values with commas between")
    return words


def job_key(job: Job) -> str:
    """Equal for equal jobs, also after a way through JSON."""
    return json.dumps(asdict(job), sort_keys=True)


def finished_jobs(path: Path) -> set[str]:
    """Keys of the runs in a result file; a torn last line is cut off. Raises ConfigError."""
    if not path.exists():
        return set()
    found = set()
    whole_bytes = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                found.add(_key_of(path, number, line))
                whole_bytes += len(line)
        if whole_bytes < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(whole_bytes)
    except OSError as error:
        raise ConfigError(f"--output: cannot read {path} ({error.strerror})") from None
    return found


def _key_of(path: Path, number: int, line: bytes) -> str:
    try:
        job = json.loads(line)["job"]
    except (ValueError, KeyError, TypeError, RecursionError):
        job = None
    if not isinstance(job, dict):
        raise ConfigError(f"{path}:{number}: is no run of a sweep; expected a JSON object with 'job'")
    return json.dumps(job, sort_keys=True)


def _opened(path: Path) -> TextIO:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output: cannot write {path} ({error.strerror})") from None


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar for people, nothing for files and pipes; gives what to call after each run."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        bar = shown.add_task("runs", total=total)
        yield lambda: shown.advance(bar)
