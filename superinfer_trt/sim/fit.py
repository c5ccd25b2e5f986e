"""Measured step times become a step model: least squares on relative errors.

The table says what each step did (the columns of StepWork) and how long it took. Effective rates and
per-step costs are found by Levenberg-Marquardt on their logarithms, so they stay positive; what the model
is (weights, KV) is given. Deterministic. Knows no hardware. Any thread.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sim.cost import StepModel, StepWork

COLUMNS = (
    "rows",
    "tokens",
    "decode_context_tokens",
    "chunk_pair_tokens",
    "chunk_context_tokens",
    "step_s",
)
FITTED = ("flops_per_s", "hbm_bytes_per_s", "base_s", "row_s")
STEPS_MIN = 8
_ROUNDS_MAX = 200

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fit:
    """The model found, and how well it explains the steps it came from."""

    model: StepModel
    steps: int
    median_error: float  # relative
    worst_error: float


def read_steps(path: Path) -> list[tuple[StepWork, float]]:
    """(work, seconds) of each line. Raises ConfigError with file, line and what is expected."""
    steps = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(
                    f"{path}:1: no column {missing[0]}; expected the columns {', '.join(COLUMNS)}"
                )
            for row in reader:
                values = [_number(f"{path}:{reader.line_num}", name, row[name]) for name in COLUMNS]
                rows, tokens, decode, pairs, chunk, step_s = values
                if tokens < 1 or step_s <= 0:
                    raise ConfigError(f"{path}:{reader.line_num}: expected tokens >= 1 and step_s > 0")
                steps.append((StepWork(int(rows), int(tokens), int(decode), pairs, int(chunk)), step_s))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if len(steps) < STEPS_MIN:
        raise ConfigError(f"{path}: has {len(steps)} steps; expected at least {STEPS_MIN}")
    return steps


def fit(steps: Sequence[tuple[StepWork, float]], start: StepModel) -> Fit:
    """`start` with the four fitted terms replaced by those that explain `steps` best."""
    begun = [max(getattr(start, name), 1e-12) for name in FITTED]
    at: Vector = np.log(np.array(begun))
    damping = 1e-2
    errors = _errors(steps, start, at)
    for _ in range(_ROUNDS_MAX):
        slopes = _slopes(steps, start, at, errors)
        normal = slopes.T @ slopes
        step = np.linalg.solve(
            normal + damping * (np.diag(np.diag(normal)) + 1e-9 * np.eye(len(at))), -slopes.T @ errors
        )
        step = np.clip(step, -1.0, 1.0)
        tried = _errors(steps, start, at + step)
        if tried @ tried < errors @ errors:
            better = float(errors @ errors - tried @ tried)
            at, errors, damping = at + step, tried, max(damping / 5, 1e-9)
            if better < 1e-12 * float(errors @ errors + 1e-12):
                break
        else:
            damping *= 5
            if damping > 1e9:
                break
    relative = np.abs(errors)
    return Fit(_model(start, at), len(steps), float(np.median(relative)), float(relative.max()))


def _model(start: StepModel, at: Vector) -> StepModel:
    flops, hbm, base, row = (float(value) for value in np.exp(at))
    share = start.attention_flops_per_s / start.flops_per_s  # attention keeps its part of the peak
    return replace(
        start,
        flops_per_s=flops,
        attention_flops_per_s=flops * share,
        hbm_bytes_per_s=hbm,
        base_s=base,
        row_s=row,
    )


def _errors(steps: Sequence[tuple[StepWork, float]], start: StepModel, at: Vector) -> Vector:
    model = _model(start, at)
    return np.array([model.seconds(work) / measured - 1.0 for work, measured in steps])


def _slopes(steps: Sequence[tuple[StepWork, float]], start: StepModel, at: Vector, errors: Vector) -> Vector:
    width = 1e-6
    columns = [(_errors(steps, start, at + width * one) - errors) / width for one in np.eye(len(at))]
    return np.column_stack(columns)


def _number(at: str, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"{at}: {name} is {(text or '')[:40]!r}; expected a number >= 0")
    return value
