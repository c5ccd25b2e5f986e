"""Reading result files: what counts as a run, and one line on what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sim.parquet import column, flat, read_parquet, write_parquet
from superinfer_trt.sim.report.runs import read_runs
from support.sweeps import line


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(text + "\n" for text in lines))
    return path


def test_a_run_in_two_files_counts_once(tmp_path: Path) -> None:
    one = written(tmp_path / "a.jsonl", line("fcfs", 5), line("fcfs", 10))
    two = written(tmp_path / "b.jsonl", line("fcfs", 10, process_s=9.0), line("fcfs", None))
    found = read_runs([one, two])
    assert [run.rate for run in found] == [5.0, 10.0, None]
    assert found[2].place == f"{two}:2"


def test_one_job_with_two_outcomes_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", line("fcfs", 5, ttft=0.5), line("fcfs", 5, ttft=0.6))
    with pytest.raises(ConfigError, match=r"a\.jsonl:2: the job of .*a\.jsonl:1 with other figures"):
        read_runs([path])


def test_parquet_gives_the_lines_back_and_flat_columns(tmp_path: Path) -> None:
    from pyarrow import parquet

    lines = [
        line("rotasched", 5, policy_params={"alpha": 1}),
        line("rota-slack", 5, policy_params={"weights": {"a": 2.0}}, classes=["fast:0.5:1:50"]),
        line("rotasched", 5, policy_params={"alpha": 0.5, "transfer_blocks": None}),
    ]
    path = tmp_path / "runs.parquet"
    write_parquet(path, lines)
    assert read_parquet(path) == lines
    table = parquet.read_table(path)
    assert table["job.policy_params.alpha"].to_pylist() == [1.0, None, 0.5]
    assert table["job.policy_params.weights.a"].to_pylist() == [None, 2.0, None]
    assert table["job.classes"].to_pylist() == [[], ["fast:0.5:1:50"], []]
    assert table["figures.ttft_ms.p99"].to_pylist() == [4000.0] * 3
    assert [run.job for run in read_runs([path])] == [json.loads(text)["job"] for text in lines]
    assert list(tmp_path.iterdir()) == [path]


def test_values_of_several_kinds_become_text() -> None:
    assert column([1, None, 2.5]) == [1.0, None, 2.5]
    assert column([True, None]) == [True, None]
    assert column([True, 1]) == ["true", "1"]
    assert column([1, "auto", None]) == ["1", '"auto"', None]
    assert column([1 << 70, 2]) == [str(1 << 70), "2"]
    assert column([["a"], []]) == [["a"], []]
    assert column([[1], ["a"]]) == ["[1]", '["a"]']
    assert dict(flat({"a": {"b": 1, "c": {}}, "d": None})) == {"a.b": 1, "d": None}


BAD = {
    "words": ("dear diary", "is no run"),
    "nothing": ("", "is no run"),
    "a list": ("[1]", "is no run"),
    "a job": ('{"job": {}}', "is a run without figures"),
    "no policy": ('{"job": {}, "figures": {}}', "job.policy is None"),
    "half": (line("fcfs", 5)[:200], "is no run"),
    "rate": (line("fcfs", -5), "job.rps is -5"),
    "rate as a word": (line("fcfs", 5).replace('"rps": 5', '"rps": "5"'), "job.rps is '5'"),
    "share": (line("fcfs", 5, ttft=1.5), "figures.ttft_attainment is 1.5; expected 0..1"),
    "not finite": (line("fcfs", 5, longest_gap_s=float("nan")), "longest_gap_s is nan; expected a number"),
    "percentile": (line("fcfs", 5, ttft_ms={"p99": "long"}), "ttft_ms.p99 is 'long'"),
    "other figures": (
        '{"job": ' + json.dumps(json.loads(line("fcfs", 5))["job"]) + ', "figures": {}}',
        "ttft",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_run_is_named_by_its_line(what: str, tmp_path: Path) -> None:
    text, said = BAD[what]
    path = written(tmp_path / "runs.jsonl", line("fcfs", 10), text)
    with pytest.raises(ConfigError) as caught:
        read_runs([path])
    assert str(caught.value).startswith(f"{path}:2: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    from pyarrow import parquet, table

    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "noise.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "noise.parquet").write_bytes(b"PAR1 or so")
    parquet.write_table(table({"a": [1]}), tmp_path / "other.parquet")
    for name, said in {
        "empty.jsonl": "no run in it; expected a JSON object",
        "nowhere.jsonl": "No such file",
        "nowhere.parquet": "cannot be read as Parquet",
        "noise.jsonl": "is no text",
        "noise.parquet": "cannot be read as Parquet",
        "other.parquet": "no column 'run'",
        "": "cannot be read",
    }.items():
        with pytest.raises(ConfigError, match=said) as caught:
            read_runs([tmp_path / name])
        assert "\n" not in str(caught.value)
