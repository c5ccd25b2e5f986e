"""The commands as processes: a modelled engine, a real port, real signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub

PATIENCE_S = 60
COMMAND = [sys.executable, "-c", "from superinfer_trt.cli.main import main; main()"]
SIM = ["--engine", "sim", "--hbm-blocks", "64", "--dram-blocks", "512", "--port", "0"]


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )


@contextmanager
def server(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    process = subprocess.Popen(
        [*COMMAND, "serve", *SIM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr is not None else ""
        yield process, json.loads(line)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with server() as (_, ready):
        yield str(ready["target"])


def test_the_ready_line(target: str) -> None:
    with server("--policy", "fcfs", "--seats", "8") as (_, ready):
        assert ready["ready"] is True
        assert str(ready["target"]).startswith("127.0.0.1:")
        assert ready["target"] != target
        assert (ready["engine"], ready["policy"], ready["hbm_blocks"]) == ("sim", "fcfs", 64)


def test_generate_streams_and_tells(target: str) -> None:
    done = cli("generate", "--target", target, "--token-ids", "1,2,3", "--max-tokens", "6", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["token_ids"]) == 6
    assert told["ending"]["finish_reason"] == "length"
    assert told["ending"]["usage"] == {"prompt_tokens": 3, "output_tokens": 6}
    plain = cli("generate", "--target", target, "--token-ids", "1,2,3", "--max-tokens", "6")
    assert plain.stdout.split() == [str(id) for id in told["token_ids"]]
    assert "length: 6 tokens" in plain.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--prompt", "a"], 2, "UNIMPLEMENTED: text: this engine has no tokenizer"),
        (["--token-ids", "99999999"], 2, "INVALID_ARGUMENT: token_ids: id 99999999"),
        (["--token-ids", "1", "--max-tokens", "2000"], 2, "tokens of the HBM pool"),
        (["--token-ids", "1", "--temperature", "nan"], 2, "sampling.temperature"),
    ],
)
def test_what_the_server_refuses_is_one_line(
    target: str, arguments: list[str], code: int, words: str
) -> None:
    done = cli("generate", "--target", target, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_bench_reports_and_its_outputs_do_not_depend_on_the_load(target: str, tmp_path: Path) -> None:
    lines = []
    for rate in ("0", "100"):
        path = tmp_path / f"{rate}.jsonl"
        lengths = ["--prompt-tokens", "8:40", "--output-tokens", "4:12"]
        load = ["--requests", "12", "--rps", rate, *lengths, "--outputs", str(path)]
        done = cli("bench", "--target", target, *load, "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["requests"], told["completed"], told["failed"]) == (12, 12, 0)
        for name in ("ttft_attainment", "tbt_attainment", "joint_mean"):
            assert 0 <= told[name] <= 1
        assert told["tokens_per_s"] > 0
        assert set(told["ttft_ms"]) == set(told["tbt_ms"]) == {"p50", "p90", "p99"}
        assert told["rotations"] >= 0
        lines.append(path.read_text())
    assert lines[0] == lines[1]
    assert len(lines[0].splitlines()) == 12


def test_bench_for_people(target: str) -> None:
    done = cli("bench", "--target", target, "--requests", "2", "--output-tokens", "3")
    assert done.returncode == 0
    assert "ttft_attainment" in done.stdout


def test_a_second_server_on_the_port_is_told_so(target: str) -> None:
    done = cli("serve", *SIM, "--port", target.rpartition(":")[2])
    assert (done.returncode, done.stdout) == (2, "")
    assert "service.port: cannot listen on" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number: signal.Signals) -> None:
    with server() as (process, ready):
        asking = subprocess.Popen(
            [
                *COMMAND,
                "generate",
                "--target",
                str(ready["target"]),
                "--token-ids",
                "1",
                "--max-tokens",
                "80",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        watch_until(str(ready["target"]), "decode")
        process.send_signal(number)
        said, _ = asking.communicate(timeout=PATIENCE_S)
        assert asking.returncode == 0
        assert len(said.split()) == 80
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr is not None
        assert "draining 1 live requests" in process.stderr.read()


def test_a_second_signal_cuts() -> None:
    with server("--drain-timeout-s", "1000") as (process, ready):
        asking = subprocess.Popen(
            [
                *COMMAND,
                "generate",
                "--target",
                str(ready["target"]),
                "--token-ids",
                "1",
                "--max-tokens",
                "1000",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        watch_until(str(ready["target"]), "decode")
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert "draining" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 1
        _, told = asking.communicate(timeout=PATIENCE_S)
        assert asking.returncode == 1
        assert "UNAVAILABLE" in told


def watch_until(target: str, phase: str) -> None:
    """Returns when a request of that phase is seen in the server's statistics."""

    with grpc.insecure_channel(target) as channel:
        for told in ExecutorServiceStub(channel).WatchStats(
            pb.WatchStatsRequest(period_ms=10), timeout=PATIENCE_S
        ):
            if getattr(told.stats, phase):
                return
    raise AssertionError("the watch ended")
