"""`superinfer-trt build` and scripts/build: what they write, and what they say instead of writing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from superinfer_trt.cli.build_plan import Profile
from superinfer_trt.cli.main import run
from superinfer_trt.core.errors import ConfigError
from support.gguf_writer import tiny_model

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


@pytest.fixture
def gguf(tmp_path: Path) -> str:
    return str(tiny_model().write(tmp_path / "tiny.gguf"))


def test_a_model_is_described_and_converted(
    gguf: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    arguments = [
        "--to",
        str(folder),
        "--dtype",
        "fp32",
        "--check-weights",
        "--hbm-gib",
        "0.01",
        "--dram-gib",
        "1",
    ]
    assert run(["build", "model", gguf, *arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    fits = told["fits"]
    assert fits["weight_bytes"] == told["parameters"] * 4 == told["written_bytes"]
    assert fits["hbm_blocks"] == (int(0.01 * 2**30 * 0.9) - fits["weight_bytes"]) // told["block_bytes"]
    assert fits["dram_blocks"] == 2**30 // told["block_bytes"]
    assert run(["build", "model", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == told["parameters"]
    assert run(["build", "model", gguf, "--hbm-gib", "1"]) == 0
    assert "hbm_blocks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--hbm-gib", "0.00001"], 2, "--hbm-gib: 1e-05 GiB do not hold the weights"),
        (["--to", "."], 1, "is there already, and not an empty folder"),
    ],
)
def test_what_a_model_cannot_is_one_line(
    gguf: str, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["build", "model", gguf, *arguments]) == code
    assert words in capsys.readouterr().err


def test_options_of_tensorrt_llm_are_completed_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, output = tmp_path / "base.yaml", tmp_path / "options.yaml"
    base.write_text("max_seq_len: 4096\nkv_cache_config: {dtype: fp8}\n")
    sizes = [
        "--max-batch-size",
        "256",
        "--max-num-tokens",
        "8192",
        "--kv-fraction",
        "0.8",
        "--dram-gib",
        "64",
    ]
    command = ["build", "trtllm", str(output), "--model", "llama", "--options", str(base), *sizes]
    assert run(command) == 0
    made = yaml.safe_load(output.read_text())
    assert made["kv_cache_config"] == {
        "dtype": "fp8",
        "enable_block_reuse": False,
        "free_gpu_memory_fraction": 0.8,
    }
    assert (made["max_seq_len"], made["max_batch_size"], made["max_num_tokens"]) == (4096, 256, 8192)
    assert f"--model llama --trtllm-options {output} --dram-gib 64" in capsys.readouterr().out
    before = output.read_bytes()
    assert run(command) == 2
    assert "is there already; --force" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert run([*command, "--force"]) == 0


@pytest.mark.parametrize(
    ("base", "arguments", "words"),
    [
        ("kv_cache_config: {enable_block_reuse: true}", [], "kv_cache_config.enable_block_reuse: true"),
        ("max_beam_width: 4", [], "max_beam_width"),
        ("tensor_parallel_size: 4", ["--tp", "2"], "tensor_parallel_size is 4, --tp says 2"),
        ("model: other", [], "model is 'other'"),
        ("{}", ["--max-batch-size", "64", "--max-num-tokens", "3"], "--max-num-tokens: 3 is less than"),
    ],
)
def test_options_that_cannot_be_are_not_written(
    tmp_path: Path, base: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.yaml").write_text(base)
    output = tmp_path / "options.yaml"
    command = ["build", "trtllm", str(output), "--model", "m", "--options", str(tmp_path / "base.yaml")]
    assert run([*command, *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not output.exists()


def test_a_plan_without_tensorrt_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("superinfer_trt.cli.build_plan.MODULES", ("no_such_tensorrt",))
    (tmp_path / "n.onnx").write_bytes(b"")
    command = ["build", "tensorrt", str(tmp_path / "n.onnx"), str(tmp_path / "p"), "--plugins", __file__]
    assert run(command) == 2
    told = capsys.readouterr().err
    assert "neither tensorrt nor tensorrt_rtx can be imported here" in told
    assert "trtexec" in told
    assert not (tmp_path / "p").exists()


def test_shapes() -> None:
    assert Profile.parse("x=1x64:8x64:64x64") == Profile("x", (1, 64), (8, 64), (64, 64))
    for wrong in ("x", "x=1:2", "x=1x2:1x2", "=1:1:1", "x=2:1:3", "x=1:1x1:1", "x=a:b:c", "x=0:1:1"):
        with pytest.raises(ConfigError, match="--shape"):
            Profile.parse(wrong)


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPTS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "scripts/build native"),
        (["houses"], "scripts/build native"),
        (["native", "houses"], "no preset houses; there are dev, release, cuda and aarch64"),
    ],
)
def test_the_script_says_what_it_knows(arguments: list[str], words: str) -> None:
    done = script("build", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


@pytest.mark.parametrize("name", ["build", "run_batch"])
def test_a_script_without_an_environment_says_how_to_get_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VENV", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    done = script(name, *(["model", "smollm2"] if name == "build" else ["in", "out"]))
    assert done.returncode == 2
    assert "scripts/quickstart" in done.stderr
