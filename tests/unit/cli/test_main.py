"""The command's errors, exit codes and lightness."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import superinfer_trt
from superinfer_trt.cli import main as command
from superinfer_trt.core.errors import ConfigError, EngineFailed, ModelError, RefusalCode, Refused


def cli(*arguments: str) -> int:
    return command.run(list(arguments))


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    program = (
        "import sys; from superinfer_trt.cli.main import run; code = run(['--help']);"
        "heavy = {'numpy', 'grpc', 'google.protobuf', 'pydantic', 'yaml', 'rich', 'asyncio'};"
        "heavy &= set(sys.modules);"
        "sys.exit(repr(heavy) if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in command.COMMANDS:
        assert name in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--version") == 0
    assert superinfer_trt.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("name", list(command.COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(name, "--help") == 0
    assert "Usage: superinfer-trt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["frob"], 2, "no command 'frob'; there are serve, generate"),
        (["serve", "--frob"], 2, "--frob"),
        (["serve", "--port", "x"], 2, "x"),
        (["config", "show", "--hbm-blocks", "0"], 2, "pools.hbm_blocks"),
        (["config", "show", "--set", "nothing"], 2, "NAME=VALUE"),
        (["config", "show", "--policy-param", "=3"], 2, "NAME=VALUE"),
        (["config", "check", "/no/such/file"], 2, "/no/such/file"),
        (["serve", "--engine", "torch"], 2, "engine.name"),
        (["serve", "--engine", "sim", "--policy", "nobody", "--port", "0"], 2, "nobody"),
        (["generate", "--prompt", "a", "--token-ids", "1"], 2, "exactly one of"),
        (["generate"], 2, "exactly one of"),
        (["generate", "--token-ids", "1,x"], 2, "--token-ids"),
        (["generate", "--target", "127.0.0.1:1", "--prompt", "a"], 1, "UNAVAILABLE at 127.0.0.1:1"),
        (["bench", "--target", "127.0.0.1:1"], 1, "UNAVAILABLE at 127.0.0.1:1"),
        (["bench", "--prompt-tokens", "9:3"], 2, "LOW <= HIGH"),
        (["bench", "--prompt-tokens", "a"], 2, "LOW[:HIGH]"),
    ],
)
def test_wrong_use_is_told_without_a_traceback(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*arguments) == code
    told = capsys.readouterr()
    assert words in told.err
    assert "Traceback" not in told.err
    assert told.out == ""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("a.b: no"), 2, "error: a.b: no"),
        (Refused(RefusalCode.INVALID, "f", "bad"), 2, "error: f: bad"),
        (ModelError("m.gguf: broken"), 1, "error: m.gguf: broken"),
        (EngineFailed("step"), 1, "error: step"),
        (KeyError("x"), 1, "internal error: KeyError: 'x'"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_error_is_one_line_and_a_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(command.cli, "main", broken)
    assert cli("serve") == code
    assert capsys.readouterr().err == line + "\n"


def test_config_show_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("config", "show", "--hbm-blocks", "7", "--policy-param", "alpha=2", "--no-reflection") == 0
    shown = capsys.readouterr().out
    path = tmp_path / "c.yaml"
    path.write_text(shown)
    assert cli("config", "check", str(path), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["pools"]["hbm_blocks"] == 7
    assert told["config"]["scheduling"]["parameters"] == {"alpha": 2}
    assert told["config"]["service"]["reflection"] is False
    assert cli("config", "show", "--config", str(path), "--hbm-blocks", "8", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pools"]["hbm_blocks"] == 8
    assert cli("config", "check", str(path)) == 0
    assert "fine" in capsys.readouterr().out
    assert cli("config", "show", "--fields") == 0
    assert "pools.hbm_blocks" in capsys.readouterr().out
