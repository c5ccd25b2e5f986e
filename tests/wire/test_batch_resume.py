"""`superinfer-trt batch` killed at random moments, and its server killed under it: each line is answered
once, as in a run that nobody disturbed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 120
KILLS = 20  # of a run with its executor; a run over a server is killed half as often
VOCABULARY = 32_000
COMMAND = [sys.executable, "-c", "from superinfer_trt.cli.main import main; main()"]
PATTERN = ["--engine", "pattern", "--hbm-blocks", "96", "--dram-blocks", "512"]  # small: requests rotate
LINES = 320


def batch(source: Path, output: Path, *arguments: str) -> list[str]:
    return [*COMMAND, "batch", str(source), str(output), "--json", *arguments]


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finished(command: list[str]) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode in (0, 3), done.stderr
    return done.returncode, json.loads(done.stdout)


@contextmanager
def server(port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with started([*COMMAND, "serve", *PATTERN, "--port", str(port)]) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr is not None else ""
        yield process, str(json.loads(line)["target"])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Requests of many lengths; some lines are wrong in one way or another, one is blank."""
    draw = random.Random("requests of a batch")
    path = tmp_path_factory.mktemp("batch") / "requests.jsonl"
    with path.open("w") as file:
        for number in range(1, LINES + 1):
            body: dict[str, Any] = {
                "prompt": [draw.randrange(VOCABULARY) for _ in range(draw.randrange(3, 60))],
                "max_tokens": draw.randrange(2, 48),
                "superinfer": {"ttft_slo_ms": draw.choice((100, 5000)), "tenant": draw.choice("ab")},
            }
            if number % 40 == 0:
                body["logit_bias"] = {"5": 100}
            id = "twice" if number in (11, 210) else f"request-{number}"
            line = {"custom_id": id, "method": "POST", "url": "/v1/completions", "body": body}
            text = json.dumps(line)
            file.write(("" if number == 100 else text[:50] if number == 150 else text) + "\n")
    return path


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """Output lines by number, of one run in one go."""
    output = tmp_path_factory.mktemp("reference") / "answers.jsonl"
    code, figures = finished(batch(source, output, *PATTERN))
    assert code == 3, "some lines are wrong"
    found = by_line(output)
    assert len(found) == figures["lines"] == LINES - 1
    assert figures["failed_lines"] == 10
    return found


def by_line(output: Path) -> dict[int, bytes]:
    """Checks that no line of the input is answered twice."""
    lines = output.read_bytes().splitlines(keepends=True)
    made = {json.loads(line)["line"]: line for line in lines}
    assert len(made) == len(lines)
    return made


def kill_at_random(command: list[str], output: Path, draw: random.Random) -> bool:
    """Starts a run and kills it: while it starts, or a moment after it has begun to write.

    False: the machine was quicker than the moment, and the run had ended by itself.
    """
    size = output.stat().st_size if output.exists() else 0
    begins = draw.random() < 0.8
    wait_s = draw.uniform(0, 0.12) if begins else draw.uniform(0, 0.8)
    with started(command) as process:
        if begins:
            wait_for_bytes(
                output, size + 1, process, done_is_fine=True
            )  # the last kill may have left nothing
        time.sleep(wait_s)  # the moment is the point
        process.send_signal(signal.SIGKILL)
        ended = process.wait(PATIENCE_S)
    assert ended in (-signal.SIGKILL, 3)
    return ended == -signal.SIGKILL


def killed_often(
    command: list[str], output: Path, seed: str, kills: int, undisturbed: dict[int, bytes]
) -> None:
    """Kills so many runs of `command`; whenever the work is done, looks at it and begins anew."""
    draw = random.Random(seed)
    killed = starts = 0
    while killed < kills:
        starts += 1
        assert starts <= 2 * kills, f"only {killed} of {starts} runs were killed; more lines are needed"
        if not kill_at_random(command, output, draw):
            assert by_line(output) == undisturbed
            for made in output.parent.glob(f"{output.name}*"):
                made.unlink()
            continue
        killed += 1
        if output.exists() and draw.random() < 0.5:  # what a kill in the middle of a write would leave
            with output.open("ab") as file:
                file.write(b'{"id":"batch_req_1","custom_id":"request-3","li')
    finished(command)


def test_killed_often_it_answers_as_if_never_killed(
    source: Path, undisturbed: dict[int, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    killed_often(batch(source, output, *PATTERN, "--in-flight", "32"), output, "here", KILLS, undisturbed)
    assert by_line(output) == undisturbed
    code, figures = finished(batch(source, output, *PATTERN))
    assert (code, figures["answered"], figures["done_before"]) == (3, 0, LINES - 1)


def test_killed_often_over_a_server_it_answers_the_same(
    source: Path, undisturbed: dict[int, bytes], tmp_path: Path
) -> None:
    """A run over a server, too: what a killed client had under way ends there with its connection."""
    output = tmp_path / "answers.jsonl"
    with server() as (_, target):
        command = batch(source, output, "--target", target, "--in-flight", "32")
        killed_often(command, output, "server", KILLS // 2, undisturbed)
    assert by_line(output) == undisturbed


def test_a_server_that_is_killed_and_comes_back_loses_no_line(
    source: Path, undisturbed: dict[int, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    with (
        server() as (first, target),
        started(batch(source, output, "--target", target, "--ordered")) as process,
    ):
        wait_for_bytes(output, 4000, process)
        first.kill()
        first.wait(PATIENCE_S)
        assert process.poll() is None
        with server(int(target.rpartition(":")[2])):
            told, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3
    figures = json.loads(told)
    assert figures["retries"] > 0
    assert by_line(output) == undisturbed
    assert list(by_line(output)) == sorted(undisturbed), "--ordered"


def test_interrupted_it_says_how_to_go_on(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    with started(batch(source, output, *PATTERN)) as process:
        wait_for_bytes(output, 1, process)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "goes on from here" in told
    assert 0 < len(by_line(output)) < LINES - 1


def test_an_executor_that_stays_away_ends_the_run(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    with server() as (serving, target):
        command = batch(source, output, "--target", target, "--patience-s", "0.5")
        with started(command) as process:
            wait_for_bytes(output, 4000, process)
            serving.kill()
            _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "the executor is away" in told
    assert 0 < len(by_line(output)) < LINES - 1


def wait_for_bytes(
    output: Path, size: int, process: subprocess.Popen[str], *, done_is_fine: bool = False
) -> None:
    """Until a run has written so much, or has done all where that is fine.

    A file tells nobody that it has grown, so this looks.
    """
    until = time.monotonic() + PATIENCE_S
    while not (output.exists() and output.stat().st_size >= size):
        code = process.poll()
        if code == 3 and done_is_fine:
            return
        assert code is None, process.stderr.read() if process.stderr is not None else ""
        assert time.monotonic() < until
        time.sleep(0.002)
