"""Fitting: the terms behind made-up measurements are found again, noise or not."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from superinfer_trt.cli.main import run
from superinfer_trt.cli.simulation import make_job
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sim.cost import StepModel, StepWork
from superinfer_trt.sim.fit import COLUMNS, FITTED, fit, read_steps
from superinfer_trt.sim.profiles import MODELS, find_hardware, step_model

START = step_model(find_hardware("gh200-144gb"), MODELS["qwen2.5-32b"])
TRUTH = replace(START, flops_per_s=4.1e14, attention_flops_per_s=4.1e14 * 0.6, hbm_bytes_per_s=2.9e12)
TRUTH = replace(TRUTH, base_s=7e-3, row_s=2e-5)


def measured(truth: StepModel, noise: float) -> list[tuple[StepWork, float]]:
    draw = random.Random(4)
    steps = []
    for _ in range(300):
        rows, chunk = draw.randint(1, 400), draw.choice([0, 0, 128, 2048])
        work = StepWork(rows, rows + chunk, rows * draw.randint(50, 900), chunk * chunk / 2, 0)
        steps.append((work, truth.seconds(work) * (1 + draw.uniform(-noise, noise))))
    return steps


@pytest.mark.parametrize(("noise", "close"), [(0.0, 1e-3), (0.05, 0.1)])
def test_the_terms_behind_measurements_are_found(noise: float, close: float) -> None:
    found = fit(measured(TRUTH, noise), START)
    for name in FITTED:
        assert getattr(found.model, name) == pytest.approx(getattr(TRUTH, name), rel=close)
    assert found.median_error <= noise + 1e-6
    assert found.steps == 300


def table(steps: list[tuple[StepWork, float]]) -> str:
    lines = [
        f"{w.rows},{w.tokens},{w.decode_context_tokens},{w.chunk_pair_tokens},{w.chunk_context_tokens},{s!r}"
        for w, s in steps
    ]
    return "\n".join([",".join(COLUMNS), *lines]) + "\n"


def test_a_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    steps = measured(TRUTH, 0.0)[:9]
    path.write_text(table(steps))
    assert read_steps(path) == steps


def test_what_is_fitted_can_be_simulated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, profile = tmp_path / "steps.csv", tmp_path / "profile.yaml"
    path.write_text(table(measured(TRUTH, 0.0)))
    assert run(["fit", str(path), "--output", str(profile)]) == 0
    assert "median error 0.0%" in capsys.readouterr().err
    job = make_job({"config_file": profile})
    found = step_model(find_hardware(job.hardware, job.hardware_params), MODELS[job.model])
    for name in FITTED:
        assert getattr(found, name) == pytest.approx(getattr(TRUTH, name), rel=1e-3)
    assert run(["simulate", "--config", str(profile), "--rps", "5", "--duration-s", "1", "--json"]) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows,tokens\n1,1\n", "s.csv:1: no column decode_context_tokens"),
        (",".join(COLUMNS) + "\n1,1,1,1,1,slow\n", "s.csv:2: step_s is 'slow'"),
        (",".join(COLUMNS) + "\n1,0,1,1,1,1\n", "s.csv:2: expected tokens >= 1"),
        (",".join(COLUMNS) + "\n1,1,1,1,1\n", "s.csv:2: step_s is ''"),
        (",".join(COLUMNS) + "\n1,1,1,1,1,1\n", "has 1 steps; expected at least 8"),
    ],
)
def test_a_wrong_table_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_steps(path)
    assert said in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_steps(tmp_path / "absent.csv")
