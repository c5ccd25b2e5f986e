"""`buf` on proto/: lint, and nothing that clients were promised is taken away."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PROTO = Path(__file__).resolve().parents[2] / "proto"
EXECUTOR = Path("superinfer/v1/executor.proto")


def buf(programs: Path, home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`home`: for its cache; nothing is fetched."""
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [programs / "buf", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )


def breaking(programs: Path, home: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return buf(programs, home, "breaking", folder, "--against", PROTO / "released.binpb")


def test_lint(programs: Path, tmp_path: Path) -> None:
    done = buf(programs, tmp_path, "lint", PROTO)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_nothing_of_superinfer_v1_is_excepted() -> None:
    """Exceptions are for names that are not ours."""
    text = (PROTO / "buf.yaml").read_text()
    excepted = text.partition("ignore_only:")[2].partition("breaking:")[0]
    assert "trtllm" in excepted
    assert "superinfer" not in excepted
    assert "except:" not in text


def test_nothing_that_was_promised_is_gone(programs: Path, tmp_path: Path) -> None:
    done = breaking(programs, tmp_path, PROTO)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("  string tenant = 7;\n", "", 'field "7"'),
        ("string tenant = 7;", "string tenant = 8;", 'field "7"'),
        ("string tenant = 7;", "uint32 tenant = 7;", "type"),
        ("string tenant = 7;", "string owner = 7;", "name"),
        ("rpc Abort(AbortRequest) returns (AbortResponse);", "", '"Abort"'),
        ("FINISH_REASON_FAILED = 5;", "FINISH_REASON_FAILED = 6;", '"5"'),
    ],
)
def test_a_breach_would_be_seen(programs: Path, tmp_path: Path, before: str, after: str, words: str) -> None:
    folder = shutil.copytree(PROTO, tmp_path / "proto")
    text = (PROTO / EXECUTOR).read_text()
    assert before in text
    (folder / EXECUTOR).write_text(text.replace(before, after))
    done = breaking(programs, tmp_path, folder)
    assert done.returncode == 100
    assert words in done.stdout


def test_new_fields_are_no_breach(programs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(PROTO, tmp_path / "proto")
    text = (PROTO / EXECUTOR).read_text()
    more = text.replace("string tenant = 7;", "string tenant = 7;\n  string colour = 1000;")
    (folder / EXECUTOR).write_text(more)
    assert breaking(programs, tmp_path, folder).returncode == 0
