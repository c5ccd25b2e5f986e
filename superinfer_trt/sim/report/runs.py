"""Runs out of result files: JSONL or Parquet of `sweep`, each run checked before anything is made of it.

A run that stands in several files counts once; the same job with other figures is refused, since it comes
from two versions of the program. Knows no policy. Any thread.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sim.parquet import read_parquet
from superinfer_trt.sim.report.metric import METRICS, TTFT

EXPECTED = "expected a JSON object with 'job' and 'figures', as `sweep` writes it"
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "policy": str,
    "policy_params": dict,
    "hardware": str,
    "hardware_params": dict,
    "model": str,
    "trace": str,
    "seed": int,
}


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation: its job (the flags of `simulate` by name), its figures, and FILE:LINE."""

    job: Mapping[str, Any]
    figures: Mapping[str, Any]
    place: str

    @property
    def rate(self) -> float | None:
        """Requests a second; None where the trace's own times were replayed."""
        rate: float | None = self.job["rps"]
        return rate


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs of all files, in order, each job once. Raises ConfigError, with FILE:LINE."""
    found: dict[str, Run] = {}
    for path in paths:
        for place, line in _lines(path):
            run = parsed_run(place, line)
            key = json.dumps(run.job, sort_keys=True)
            check_same(found.setdefault(key, run), run)
    if not found:
        raise ConfigError(f"{', '.join(map(str, paths))}: no run in it; {EXPECTED}")
    return list(found.values())


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(FILE:LINE, text); for Parquet LINE is the row, from 1."""
    if path.suffix.lower() == ".parquet":
        for number, line in enumerate(read_parquet(path), 1):
            yield f"{path}:{number}", line
        return
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield f"{path}:{number}", line
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no text; expected JSONL or .parquet, as `sweep` writes it") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def parsed_run(place: str, line: str) -> Run:
    """Raises ConfigError that begins with `place`."""
    try:
        tree = json.loads(line)
    except (ValueError, RecursionError):
        tree = None
    if not (isinstance(tree, dict) and isinstance(tree.get("job"), dict)):
        raise ConfigError(f"{place}: is no run; {EXPECTED}")
    job, figures = tree["job"], tree.get("figures")
    if not isinstance(figures, dict):
        raise ConfigError(f"{place}: is a run without figures; {EXPECTED}")
    for name, kind in _KINDS.items():
        if not isinstance(job.get(name), kind):
            raise ConfigError(f"{place}: is no run: job.{name} is {job.get(name)!r}; {EXPECTED}")
    rate = job.get("rps")
    number = isinstance(rate, (int, float)) and not isinstance(rate, bool) and math.isfinite(rate)
    if rate is not None and not (number and rate > 0):
        raise ConfigError(f"{place}: is no run: job.rps is {rate!r}; expected a number > 0 or null")
    try:
        for metric in METRICS.values():
            metric.value(figures)
    except ValueError as error:
        raise ConfigError(f"{place}: is no run: figures.{error}") from None
    if TTFT.name not in figures:
        raise ConfigError(f"{place}: is no run: figures have no {TTFT.name}; {EXPECTED}")
    return Run(job | {"rps": None if rate is None else float(rate)}, figures, place)


def check_same(known: Run, run: Run) -> None:
    """Two runs of one simulation have the same figures. Raises ConfigError."""
    first, second = ([metric.value(one.figures) for metric in METRICS.values()] for one in (known, run))
    if first != second:
        raise ConfigError(
            f"{run.place}: the job of {known.place} with other figures; expected runs of one version"
        )
