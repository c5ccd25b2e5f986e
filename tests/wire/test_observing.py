"""The commands that look at a server, as processes against a real one; and what it logs."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from pathlib import Path

from wire.test_process import PATIENCE_S, cli, server


def test_top_shows_a_frame_and_json() -> None:
    with server() as (_, ready):
        target = str(ready["target"])
        assert cli("generate", "--target", target, "--token-ids", "1,2", "--max-tokens", "5").returncode == 0
        shown = cli("top", "--target", target, "--once")
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.startswith("serving  sim")
        assert "HBM blocks" in shown.stdout
        told = cli("top", "--target", target, "--once", "--json")
        found = json.loads(told.stdout)
        assert (found["stats"]["output_tokens"], found["stats"]["joint_met"]) == (5, 1)
        assert found["rates"]["output_tokens_per_s"] == 0
    gone = cli("top", "--target", target, "--once")
    assert gone.returncode == 1
    assert gone.stderr.startswith("Error: UNAVAILABLE")


def test_profile_writes_a_whole_file(tmp_path: Path) -> None:
    with server() as (_, ready):
        target, path = str(ready["target"]), tmp_path / "run.json"
        done = cli("profile", "--target", target, "--seconds", "0.05", "--output", str(path))
        assert done.returncode == 0, done.stderr
        assert json.loads(path.read_text())["traceEvents"]
        assert list(tmp_path.iterdir()) == [path]
        nowhere = cli("profile", "--target", target, "--output", str(tmp_path / "no" / "run.json"))
        assert nowhere.returncode == 2
    gone = cli("profile", "--target", target, "--output", str(path))
    assert gone.returncode == 1
    assert list(tmp_path.iterdir()) == [path]


def test_metrics_and_logs_of_the_process() -> None:
    options = ("--metrics-port", "0", "--log-level", "info", "--log-format", "json")
    with server(*options) as (process, ready):
        target = str(ready["target"])
        secret = "4242"
        for extra in (("--tenant", "acme"), ("--temperature", "-1")):
            cli("generate", "--target", target, "--token-ids", secret, "--max-tokens", "3", *extra)
        with urllib.request.urlopen(str(ready["metrics"]), timeout=10) as answer:
            text = answer.read().decode()
        assert re.search(r"^superinfer_tenant_ended_total\{.*tenant=\"acme\"\} 1\.0$", text, re.MULTILINE)
        assert "process_cpu_seconds_total" in text
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    (ended,) = [line for line in lines if line["message"] == "ended"]
    assert (ended["tenant"], ended["reason"], ended["output_tokens"]) == ("acme", "length", 3)
    assert 0 <= ended["queue_ms"] <= ended["ttft_ms"] <= ended["total_ms"]
    (refused,) = [line for line in lines if line["message"] == "refused"]
    assert (refused["code"], refused["field"]) == ("invalid", "sampling.temperature")
    assert secret not in errors
    assert process.returncode == 0
