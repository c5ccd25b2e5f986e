"""Replicas and a gateway as processes on the loopback, and an HTTP client that can leave in the middle."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from support.gguf_writer import tiny_model

PATIENCE_S = 60.0
COMMAND = [sys.executable, "-c", "from superinfer_trt.cli.main import main; main()"]


def tiny_file(path: Path) -> Path:
    """A model of random weights with a tokenizer and a template; writes printable ASCII, never ends."""
    tiny = tiny_model()
    tiny.metadata["llama.context_length"] = 4096
    tokens = tiny.metadata["tokenizer.ggml.tokens"]
    output = tiny.tensors["output.weight"]
    for id, token in enumerate(tokens):
        if not re.fullmatch(r"[!-~]", token):
            output[id] = 0  # type: ignore[index]  # below the likeliest of many random logits
    return tiny.write(path)


@dataclass
class Replica:
    """One of our servers."""

    process: subprocess.Popen[str]
    target: str
    stub: Any

    def stats(self) -> pb.Stats:
        stats: pb.Stats = self.stub.GetStats(pb.GetStatsRequest(), timeout=PATIENCE_S).stats
        return stats

    @property
    def live(self) -> int:
        """Requests in any phase, and calls that are being ended."""
        now = self.stats()
        return now.streams + now.waiting + now.prefill + now.decode


@contextmanager
def replica(*arguments: str) -> Iterator[Replica]:
    """`superinfer-trt serve` on a free port."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr is not None else ""
        target = str(json.loads(line)["target"])
        with grpc.insecure_channel(target) as channel:
            yield Replica(process, target, ExecutorServiceStub(channel))
    finally:
        process.kill()
        process.communicate()


@dataclass
class Gateway:
    """The gateway's HTTP side."""

    process: subprocess.Popen[bytes]
    port: int

    def get(self, path: str) -> tuple[int, Any]:
        return self._asked("GET", path, None)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> tuple[int, Any]:
        """(status, JSON of the answer)."""
        return self._asked("POST", path, body, **headers)

    def stream(self, path: str, body: dict[str, Any], **headers: str) -> Events:
        """Sends a request that is answered by events; its status has come when this returns."""
        return Events(self._sent("POST", path, {**body, "stream": True}, **headers))

    def leaving(self, path: str, body: dict[str, Any]) -> http.client.HTTPConnection:
        """Sends a request and does not wait for the answer."""
        return self._sent("POST", path, body)

    def _asked(self, method: str, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        connection = self._sent(method, path, body, **headers)
        try:
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        try:
            return response.status, json.loads(raw)
        except ValueError:
            return response.status, raw.decode()

    def _sent(self, method: str, path: str, body: Any, **headers: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, {"Content-Type": "application/json", **told})
        return connection


class Events:
    """The server-sent events of one answer, as JSON; ends with [DONE]."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._response = connection.getresponse()
        self.status = self._response.status
        self.done = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in iter(self._response.readline, b""):
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                self.done = True
                return
            yield json.loads(line[6:])

    def leave(self) -> None:
        """The client goes away without a word."""
        self._response.close()
        self._connection.close()


@contextmanager
def gateway(
    program: Path, tokenizer: Path, targets: Sequence[str], *options: str, policy: str = "round_robin"
) -> Iterator[Gateway]:
    """The gateway in front of `targets`, all of them taken in; its log is shown when it does not come up."""
    port, metrics_port = _free_ports(2)
    command = [
        program, "launch", "--host", "127.0.0.1", "--port", str(port), "--prometheus-host", "127.0.0.1",
        "--prometheus-port", str(metrics_port), "--worker-urls", *(f"grpc://{one}" for one in targets),
        "--model-path", tokenizer, "--policy", policy, "--log-level", "warn", *options,
    ]  # fmt: skip
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        made = Gateway(process, port)
        try:
            if not eventually(lambda: _takes(made, len(targets)), 30):
                log.seek(0)
                raise AssertionError(log.read().decode(errors="replace")[-4000:])
            yield made
        finally:
            process.kill()
            process.wait()


def eventually(condition: Any, patience_s: float = PATIENCE_S) -> bool:
    """Whether what another process does came true."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def _takes(made: Gateway, count: int) -> bool:
    """Whether it routes to `count` replicas and has read the tokenizer."""
    try:
        status, told = made.get("/workers")
    except OSError:
        return False
    healthy = [one for one in told.get("workers", ()) if one.get("is_healthy")] if status == 200 else []
    return len(healthy) == count


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
