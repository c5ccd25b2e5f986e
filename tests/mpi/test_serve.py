"""The command as a user starts it: `mpiexec -n 2 superinfer-trt serve --tp 2`, real processes, real MPI."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from superinfer_trt.core.errors import ModelError
from superinfer_trt.model.open import open_model
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from support.gguf_writer import tiny_model

pytest.importorskip("mpi4py", reason="needs mpi4py and an MPI (extra `mpi`)")
BESIDE = Path(sys.executable).parent / "mpiexec"
MPIEXEC = str(BESIDE) if BESIDE.exists() else shutil.which("mpiexec")
if MPIEXEC is None:
    pytest.skip("no mpiexec (extra `mpi` brings one)", allow_module_level=True)

PATIENCE_S = 90
COMMAND = [sys.executable, "-c", "from superinfer_trt.cli.main import main; main()"]
PATTERN = ["--engine", "pattern", "--hbm-blocks", "24", "--dram-blocks", "256"]


@dataclass
class Job:
    """A running server: mpiexec, rank 0's pid and where it listens."""

    process: subprocess.Popen[str]
    target: str
    pid: int

    def followers(self) -> list[int]:
        """Pids of the ranks above 0: the other children of rank 0's parent."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.pid:
                try:
                    parent = _parent(int(entry.name))
                except OSError:
                    continue
                if parent == _parent(self.pid):
                    found.append(int(entry.name))
        return found

    def end(self) -> tuple[int, str]:
        """Waits; exit code and stderr."""
        _, told = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, told


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def mpi_run(ranks: int, *arguments: str) -> list[str]:
    return [str(MPIEXEC), "-n", str(ranks), *COMMAND, *arguments]


@contextmanager
def serving(ranks: int, *arguments: str) -> Iterator[Job]:
    serve = ["serve", "--port", "0", "--threads", "1", "--tp", str(ranks), *arguments]
    process = subprocess.Popen(
        mpi_run(ranks, *serve) if ranks > 1 else [*COMMAND, *serve],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate(timeout=PATIENCE_S)
        ready = json.loads(line)
        yield Job(process, str(ready["target"]), int(ready["pid"]))
    finally:
        if process.poll() is None:
            process.terminate()  # mpiexec hands it on: rank 0 drains, and what lives is cut
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def ask(stub: ExecutorServiceStub, ids: list[int], max_tokens: int) -> Iterator[pb.GenerateResponse]:
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids))
    request.sampling.max_tokens = max_tokens
    call: Iterator[pb.GenerateResponse] = stub.Generate(request, timeout=PATIENCE_S)
    return call


def tokens_of(responses: Iterator[pb.GenerateResponse]) -> list[int]:
    return [id for response in responses for id in response.delta.token_ids]


def crowd(target: str, vocabulary: int, count: int, prompt: int, output: int) -> tuple[list[list[int]], int]:
    """Greedy answers to `count` requests at once, and how often they were rotated."""
    answers, rotations = [], 0
    with grpc.insecure_channel(target) as channel:
        stub = ExecutorServiceStub(channel)
        calls = [
            ask(stub, [(31 * i + 7 * t) % vocabulary for t in range(prompt + i)], output + 2 * i)
            for i in range(count)
        ]
        for call in calls:
            ids: list[int] = []
            for response in call:
                ids += response.delta.token_ids
                if response.HasField("ending"):
                    rotations += response.ending.rotations
            answers.append(ids)
    return answers, rotations


def test_a_signal_to_mpiexec_drains_and_all_ranks_end_in_order() -> None:
    with serving(2, *PATTERN) as job:
        followers = job.followers()
        assert len(followers) == 1
        with grpc.insecure_channel(job.target) as channel:
            responses = ask(ExecutorServiceStub(channel), [1, 2, 3], 300)
            first = next(responses)
            job.process.send_signal(signal.SIGTERM)
            assert len(first.delta.token_ids) + len(tokens_of(responses)) == 300
        code, told = job.end()
        assert code == 0, told
        assert "draining 1 live requests" in told
        assert "stopped" in told
        assert not Path(f"/proc/{followers[0]}").exists()


ROTATED = [
    "--policy",
    "rotasched",
    "--policy-param",
    "min_stint_tokens=4",
    "--step-tokens",
    "64",
    "--seats",
    "8",
]


def test_a_model_on_two_ranks_says_what_it_says_on_one(tmp_path: Path) -> None:
    """The embedded engine, fp32, rotated: every greedy token of every request."""
    path = str(tiny_model().write(tmp_path / "tiny.gguf"))
    model = ["--engine", "native", "--model", path, "--dtype", "fp32"]
    told = []
    for ranks, hbm_blocks in ((1, 128), (2, 12)):
        pools = ["--hbm-blocks", str(hbm_blocks), "--dram-blocks", "128"]
        with serving(ranks, *model, *pools, *ROTATED) as job:
            told.append(crowd(job.target, 256, 12, 10, 40))
    assert told[1][0] == told[0][0]
    assert told[1][1] > 0, "nobody was forced out"


@pytest.mark.model
@pytest.mark.parametrize(("ranks", "count", "output"), [(2, 8, 24), (3, 5, 12)])
def test_smollm2_has_three_kv_heads_for_two_ranks_or_three(ranks: int, count: int, output: int) -> None:
    """fp32, rotated: every greedy token of every request is that of one rank."""
    try:
        open_model("smollm2")
    except ModelError as error:
        pytest.skip(str(error))
    model = ["--engine", "native", "--dtype", "fp32"]
    told = []
    for tp, hbm_blocks in ((1, 128), (ranks, 8 if count < 8 else 14)):
        pools = ["--hbm-blocks", str(hbm_blocks), "--dram-blocks", "128"]
        with serving(tp, *model, *pools, *ROTATED) as job:
            told.append(crowd(job.target, 40_000, count, 20, output))
    assert told[1][0] == told[0][0]
    assert told[1][1] > 0, "nobody was forced out"


def broken(responses: Iterator[pb.GenerateResponse]) -> tuple[grpc.StatusCode, str]:
    """What a stream ends with: the status, and the message of the ending if there was one."""
    message = ""
    try:
        for response in responses:
            message = response.ending.message
    except grpc.RpcError as error:
        return error.code(), message  # type: ignore[attr-defined]
    raise AssertionError("the stream ended well")


def test_a_killed_rank_ends_the_job_and_streams_end_as_unavailable() -> None:
    with serving(2, *PATTERN) as job, grpc.insecure_channel(job.target) as channel:
        responses = ask(ExecutorServiceStub(channel), [1, 2, 3], 380)
        next(responses)
        os.kill(job.followers()[0], signal.SIGKILL)
        assert broken(responses) == (grpc.StatusCode.UNAVAILABLE, "")
        assert job.end()[0] != 0
        assert not Path(f"/proc/{job.pid}").exists()


def test_a_rank_that_does_not_answer_is_named_within_the_limit() -> None:
    """Rank 0 outlives it for long enough to tell its clients, then ends all of them."""
    slow = ["--set", "engine.rank_timeout_s=3"]
    with serving(2, *PATTERN, *slow) as job, grpc.insecure_channel(job.target) as channel:
        responses = ask(ExecutorServiceStub(channel), [1, 2, 3], 380)
        next(responses)
        follower = job.followers()[0]
        os.kill(follower, signal.SIGSTOP)
        try:
            status, message = broken(responses)
            code, told = job.end()
        finally:
            if Path(f"/proc/{follower}").exists():
                os.kill(follower, signal.SIGKILL)
        assert status is grpc.StatusCode.INTERNAL
        assert "a rank did not answer rank 0 within 3 s" in message
        assert code != 0
        assert "a rank did not answer rank 0 within 3 s" in told


def test_an_idle_server_notices_too() -> None:
    slow = ["--set", "engine.rank_timeout_s=3"]
    with serving(2, *PATTERN, *slow) as job:
        follower = job.followers()[0]
        os.kill(follower, signal.SIGSTOP)
        try:
            code, told = job.end()
        finally:
            if Path(f"/proc/{follower}").exists():
                os.kill(follower, signal.SIGKILL)
        assert code != 0
        assert "a rank did not answer rank 0 within 3 s" in told


def refused(command: list[str]) -> str:
    """What a command says that is refused as wrong use."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 2, done
    assert done.stdout.count("{") == 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


def test_what_cannot_start_is_said_once_and_no_rank_stays(tmp_path: Path) -> None:
    serve = ["serve", "--port", "0", "--tp", "2"]
    alone = refused([*COMMAND, *serve, *PATTERN])
    assert "engine.tp: 2 ranks are wanted, 1 came; start with `mpiexec -n 2 superinfer-trt serve" in alone
    assert "2 ranks are wanted, 3 came" in refused(mpi_run(3, *serve, *PATTERN))
    without = [sys.executable, "-c", "import sys; sys.modules['mpi4py'] = None\n" + COMMAND[-1]]
    assert "pip install 'superinfer-trt[mpi]'" in refused([*without, *serve, *PATTERN])
    path = str(tiny_model().write(tmp_path / "tiny.gguf"))
    three = ["serve", "--port", "0", "--tp", "3", "--model", path]
    assert "engine.tp: 3 is more than tiny has KV heads (2); at most 2" in refused(mpi_run(3, *three))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "service.port: cannot listen on" in refused(
            mpi_run(2, *serve[:1], "--tp", "2", "--port", port, *PATTERN)
        )
