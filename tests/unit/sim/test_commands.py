"""`simulate` and `sweep` as commands: keys, flags over YAML, one-line refusals, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from superinfer_trt.cli.main import run

KEYS = {
    *("requests", "ttft_attainment", "tbt_attainment", "joint_mean", "joint_p99", "joint_stall"),
    *("longest_gap_s", "ttft_attainment_longest_prompts", "tokens_per_s", "rotations", "steps", "wall_s"),
}
SHARES = {key for key in KEYS if "attainment" in key or key.startswith("joint")}
SMALL = ["--rps", "10", "--duration-s", "2", "--hbm-blocks", "700"]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text("prompt_tokens,output_tokens\n" + "".join(f"{at * 7 + 5},{at + 3}\n" for at in range(40)))
    return path


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["simulate", *SMALL, *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_one_object_with_the_promised_keys(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    found = figures(capsys, "--trace", str(trace))
    assert set(found) >= KEYS
    assert all(0 <= found[key] <= 1 for key in SHARES)
    assert found["requests"] == found["completed"] > 10
    assert found["seed"] == 42
    again = figures(capsys, "--trace", str(trace))
    drop = {"process_s", "speed"}
    assert {k: v for k, v in found.items() if k not in drop} == {
        k: v for k, v in again.items() if k not in drop
    }


def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", *SMALL]) == 0
    shown = capsys.readouterr().out
    assert "ttft_attainment" in shown
    assert "100.0%" in shown


def test_the_history_of_lightllm_may_be_the_trace(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    arguments = ("--trace", str(trace), "--policy", "lightllm", "--hbm-blocks", "22")
    exact = figures(capsys, *arguments)
    drawn = figures(capsys, *arguments, "--policy-param", "history=trace")
    assert exact["completed"] == drawn["completed"] == exact["requests"]
    assert exact["ttft_ms"] != drawn["ttft_ms"]


def test_flags_win_over_yaml(capsys: pytest.CaptureFixture[str], tmp_path: Path, trace: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"trace: {trace}\nmodel: llama-3-8b\nclasses: ['a:1:1:50']\n"
        "policy: rotasched\npolicy_params: {alpha: 1, beta_tbt: 0.5}\n"
    )
    found = figures(capsys, "--config", str(config), "--model", "qwen2.5-32b", "--policy-param", "alpha=2")
    assert found["model"] == "qwen2.5-32b"
    assert found["trace"] == "trace.csv"


def test_numbers_may_be_written_with_an_exponent(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    found = figures(capsys, "--trace", str(trace), "--hardware-param", "dram_bytes=1e11")
    assert found["dram_blocks"] == 23_841


def test_a_model_may_be_a_config(capsys: pytest.CaptureFixture[str], tmp_path: Path, trace: Path) -> None:
    shape = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "vocab_size": 128256}
    shape |= {"num_key_value_heads": 8, "intermediate_size": 8192, "max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps({**shape, "tie_word_embeddings": True}))
    found = figures(capsys, "--model", str(tmp_path), "--trace", str(trace))
    assert 0 < found["step_ms"] < 10


def test_rows_too_long_are_left_out_when_asked(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    found = figures(capsys, "--trace", str(trace), "--context-tokens", "100", "--drop-longer")
    assert found["rows_dropped"] > 20
    assert found["failed"] == 0


def test_tenants_are_reported_apart(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    found = figures(capsys, "--trace", str(trace), "--class", "fast:0.5:1:50")
    assert set(found["tenants"]) == {"", "fast"}


def test_perfetto_is_written_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path, trace: Path) -> None:
    path = tmp_path / "run.json"
    figures(capsys, "--trace", str(trace), "--perfetto", str(path))
    assert json.loads(path.read_text())["traceEvents"]
    assert sorted(tmp_path.iterdir()) == sorted([path, trace])


BAD = {
    "trace": (["--trace", "nowhere.csv"], "neither a file nor"),
    "no rate": (["--rps", "5", "--trace", "{trace}", "--context-tokens", "50"], "trace.csv:8: 47 prompt"),
    "hardware": (["--hardware", "abacus"], "known: gh200-144gb"),
    "hardware figure": (["--hardware-param", "hbm_bytes=lots"], "hbm_bytes is 'lots'"),
    "model": (["--model", "none"], "known (llama-3-8b"),
    "policy": (["--policy", "none"], "known: rotasched"),
    "parameter": (["--policy-param", "colour=1"], "'colour' is unknown"),
    "link": (["--link", "string"], "known: duplex"),
    "arrivals": (["--arrivals", "never"], "known: gamma"),
    "class": (["--class", "a:2:1:1"], "class: 'a:2:1:1'"),
    "class words": (["--class", "a"], "expected NAME:SHARE"),
    "yaml": (["--config", "{yaml}"], "'colour' is unknown"),
    "room": (["--hardware", "h100-pcie5", "--model", "mixtral-8x7b"], "no room for KV"),
    "perfetto": (["--perfetto", "no/such/folder/x.json"], "is no folder"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_code_2(
    what: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, trace: Path
) -> None:
    yaml = tmp_path / "c.yaml"
    yaml.write_text("colour: 1\n")
    arguments, said = BAD[what]
    filled = [word.format(trace=trace, yaml=yaml) for word in arguments]
    assert run(["simulate", *SMALL, *filled, "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    ["- 1\n", "rps: fast\n", "rps: -1\n", "policy_params: 3\n", "drop_longer: 7\n", "rps: [1]\n", "a: [\n"],
)
def test_a_wrong_yaml_is_refused(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert run(["simulate", "--config", str(path)]) == 2
    assert "c.yaml" in capsys.readouterr().err


def sweep(trace: Path, output: Path, *more: str) -> int:
    base = ["sweep", "--trace", str(trace), "--duration-s", "2", "--hbm-blocks", "700"]
    chosen = ["--policies", "fcfs,rotasched:alpha=1", "--rates", "5,10", "--seeds", "1,2"]
    return run([*base, *chosen, "--output", str(output), *more])


def test_a_sweep_goes_on_where_it_was_torn(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trace: Path
) -> None:
    output = tmp_path / "runs.jsonl"
    assert sweep(trace, output) == 0
    whole = output.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert len(lines) == 8
    assert {(one["job"]["policy"], one["job"]["rps"], one["job"]["seed"]) for one in lines} == {
        (policy, rps, seed) for policy in ("fcfs", "rotasched") for rps in (5.0, 10.0) for seed in (1, 2)
    }
    assert {json.dumps(one["job"]["policy_params"]) for one in lines} == {"{}", '{"alpha": 1}'}
    output.write_text(whole[: whole.rindex("{", 0, len(whole) - 300) + 20])
    kept = output.read_text().count("\n")
    capsys.readouterr()
    assert sweep(trace, output) == 0
    assert f"{kept} of 8 runs" in capsys.readouterr().err
    assert len({json.dumps(json.loads(line)["job"]) for line in output.read_text().splitlines()}) == 8
    assert sweep(trace, output) == 0
    assert "8 of 8 runs" in capsys.readouterr().err


def test_a_sweep_in_processes_finds_the_same(tmp_path: Path, trace: Path) -> None:
    alone, together = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert sweep(trace, alone) == 0
    assert sweep(trace, together, "--processes", "2") == 0

    def found(path: Path) -> dict[str, Any]:
        runs = [json.loads(line) for line in path.read_text().splitlines()]
        return {json.dumps(one["job"]): {**one["figures"], "process_s": 0, "speed": 0} for one in runs}

    assert found(alone) == found(together)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policies", "nobody"], "'nobody' is unknown"),
        (["--policies", "fcfs,"], "commas"),
        (["--rates", "fast"], "numbers"),
        (["--rates", "0"], "rps"),
        (["--policies", "fcfs:alpha"], "NAME=VALUE"),
    ],
)
def test_a_sweep_that_cannot_run_writes_nothing(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, trace: Path
) -> None:
    output = tmp_path / "runs.jsonl"
    assert sweep(trace, output, *arguments) == 2
    assert said in capsys.readouterr().err
    assert not output.exists()


def test_a_file_that_is_no_sweep_is_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trace: Path
) -> None:
    output = tmp_path / "notes.jsonl"
    output.write_text("dear diary\n")
    assert sweep(trace, output) == 2
    assert "notes.jsonl:1" in capsys.readouterr().err
    assert output.read_text() == "dear diary\n"
