"""The processes of these tests: an executor of ours, and the real tritonserver. On loopback, ended by pid."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub

START_S, STOP_S = 180.0, 20.0
ELSEWHERE = Path(__file__).parent
"""Where processes start: from the root, `python -m` would meet the sources, not what is installed."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition, what: str, timeout_s: float = 20.0) -> None:
    """Waits for another process."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come in {timeout_s} s"
        time.sleep(0.005)


def end(process: subprocess.Popen, number: int) -> None:
    if process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Executor:
    """A client of the executor behind a model: the direct path that Triton's is compared with."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.channel = grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)])
        self.stub = ExecutorServiceStub(self.channel)

    def stats(self) -> pb.Stats:
        return self.stub.GetStats(pb.GetStatsRequest(), timeout=10).stats

    def live(self) -> int:
        now = self.stats()
        return now.waiting + now.prefill + now.decode + now.rotating_out + now.rotary + now.rotating_in

    def say(self, request: pb.GenerateRequest) -> tuple[list[int], str, list[float]]:
        """(tokens, text, log-probabilities) of one request on the direct path."""
        ids: list[int] = []
        text, logprobs = "", []
        for response in self.stub.Generate(request, timeout=60):
            ids += response.delta.token_ids
            text += response.delta.text
            logprobs += [one.logprob for one in response.delta.logprobs]
        return ids, text, logprobs


@contextmanager
def executor(*flags: str) -> Iterator[Executor]:
    """`superinfer-trt serve` on a free port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "superinfer_trt", "serve", "--port=0", *flags],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ELSEWHERE,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the executor ended before it was ready"
        yield Executor(json.loads(line)["target"])
    finally:
        end(process, signal.SIGTERM)


@dataclass
class Triton:
    """A running tritonserver."""

    process: subprocess.Popen
    http: str
    grpc: str
    metrics: str
    log: Path

    def metric(self, name: str, **labels: str) -> float | None:
        """One sample of the metrics page."""
        page = urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10).read().decode()
        for line in page.splitlines():
            if line.startswith(f"{name}{{") and all(
                f'{key}="{value}"' in line for key, value in labels.items()
            ):
                return float(line.rsplit(" ", 1)[1])
        return None

    def stubs(self) -> dict[str, int]:
        """Model -> pid of the process its Python code runs in."""
        found = {}
        for pid in _children(self.process.pid):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if "triton_python_backend_stub" in words[0]:
                found[Path(words[1]).parent.parent.name] = pid
        return found


@contextmanager
def triton(home: Path, repository: Path, models: Sequence[str], folder: Path) -> Iterator[Triton]:
    """The real server, with exactly these models, its Python in this environment."""
    server = home / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "backends" / "python" / "triton_python_backend_stub"
    if not stub.exists():
        shutil.copy(server / "python_backend_stubs" / version / stub.name, stub)
    for binary in (stub, server / "bin" / "tritonserver"):
        binary.chmod(0o755)
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    flags = [
        f"--{kind}-{what}={value}"
        for kind, address in zip(("http", "grpc", "metrics"), addresses, strict=True)
        for what, value in zip(("address", "port"), address.split(":"), strict=True)
    ]
    log = folder / "triton.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                str(server / "bin" / "tritonserver"), f"--model-repository={repository}",
                f"--backend-directory={server / 'backends'}", *flags, "--allow-gpu-metrics=false",
                "--model-control-mode=explicit", *(f"--load-model={name}" for name in models),
                "--exit-timeout-secs=2", f"--backend-config=python,shm-region-prefix-name=si{os.getpid()}",
            ],
            stdout=file, stderr=subprocess.STDOUT, env=_environment(), cwd=folder,
        )  # fmt: skip
    try:
        _wait_ready(process, addresses[0], log)
        yield Triton(process, *addresses, log)
    finally:
        end(process, signal.SIGINT)


def _environment() -> dict[str, str]:
    """The stub takes its packages from the `python3` that comes first, and its libpython from the loader."""
    found = dict(os.environ)
    found["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{found.get('PATH', '')}"
    libraries = sysconfig.get_config_var("LIBDIR")
    if (Path(libraries) / str(sysconfig.get_config_var("INSTSONAME"))).is_file():
        found["LD_LIBRARY_PATH"] = libraries
    return found


def _wait_ready(process: subprocess.Popen, http: str, log: Path) -> None:
    def ready() -> bool:
        assert process.poll() is None, f"tritonserver ended:\n{log.read_text()[-4000:]}"
        try:
            return urllib.request.urlopen(f"http://{http}/v2/health/ready", timeout=5).status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    until(ready, "a ready tritonserver", START_S)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] + [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if path.read_text().rsplit(")", 1)[1].split()[1] == str(pid)
    ]
