"""`sweep --output runs.parquet`: the same runs as lines give, gone on with, whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from superinfer_trt.cli.main import run
from superinfer_trt.cli.sweep import lines_of
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sim.parquet import read_parquet, write_parquet

TINY = ["--rates", "5", "--duration-s", "1", "--hbm-blocks", "700"]


def sweep(output: Path, *more: str, policies: str = "fcfs,rotasched:alpha=1", seeds: str = "1,2") -> int:
    return run(["sweep", *TINY, "--policies", policies, "--seeds", seeds, "--output", str(output), *more])


def told(lines: list[str]) -> list[dict[str, Any]]:
    """Without what the machine's speed decides."""
    runs = [json.loads(line) for line in lines]
    return [{"job": one["job"], **one["figures"], "process_s": 0, "speed": 0} for one in runs]


def test_parquet_has_the_runs_of_the_lines_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    lines, table = tmp_path / "runs.jsonl", tmp_path / "runs.parquet"
    assert sweep(lines) == sweep(table) == 0
    assert told(read_parquet(table)) == told(lines.read_text().splitlines())
    assert sorted(tmp_path.iterdir()) == [lines, table]


def test_a_finished_sweep_goes_on_with_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "runs.parquet"
    assert sweep(table, seeds="1") == 0
    first = read_parquet(table)
    assert sweep(table) == 0
    assert "2 of 4 runs" in capsys.readouterr().err
    assert read_parquet(table)[:2] == first
    assert sweep(table) == 0
    assert "4 of 4 runs" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [table]


def test_a_sweep_that_was_stopped_goes_on_with_its_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from superinfer_trt.cli import sweep as module

    real, count = module.run_job, 0

    def stopped(job: Any) -> Any:
        nonlocal count
        count += 1
        if count > 3:
            raise KeyboardInterrupt
        return real(job)

    table = tmp_path / "runs.parquet"
    monkeypatch.setattr(module, "run_job", stopped)
    assert sweep(table) == 130
    lines = tmp_path / "runs.parquet.jsonl"
    assert list(tmp_path.iterdir()) == [lines]
    lines.write_text(lines.read_text()[:-20])  # torn, too
    monkeypatch.undo()
    capsys.readouterr()
    assert sweep(table) == 0
    assert "2 of 4 runs" in capsys.readouterr().err
    assert len(read_parquet(table)) == 4
    assert list(tmp_path.iterdir()) == [table]


def test_where_no_run_ended_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("superinfer_trt.cli.sweep.run_job", broken)
    assert sweep(tmp_path / "runs.parquet", seeds="1") == 1
    assert "out of luck" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_parquet_of_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "runs.parquet"
    write_parquet(table, ['{"dear": "diary"}'])
    before = table.read_bytes()
    assert sweep(table) == 2
    assert "runs.parquet:1: is no run of a sweep" in capsys.readouterr().err
    assert table.read_bytes() == before
    assert list(tmp_path.iterdir()) == [table]


@pytest.mark.parametrize("name", ["runs.csv", "runs", "runs.jsonl.gz"])
def test_another_suffix_is_refused_by_its_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path / name) == 2
    assert f"--output: {name}: {Path(name).suffix!r} is no suffix of runs" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_suffixes() -> None:
    assert lines_of(Path("a/b.jsonl")) == Path("a/b.jsonl")
    assert lines_of(Path("a/b.PARQUET")) == Path("a/b.PARQUET.jsonl")
    with pytest.raises(ConfigError, match=r"'' is no suffix of runs; expected \.jsonl or \.parquet"):
        lines_of(Path("b"))
