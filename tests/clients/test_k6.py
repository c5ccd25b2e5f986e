"""k6 as a client: it knows the .proto and nothing else; it counts every token, and sees the times we see."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 120
COMMAND = [sys.executable, "-c", "from superinfer_trt.cli.main import main; main()"]
SCRIPT = Path(__file__).with_name("generate.js")
STEP_MS, PREFILL_MS = 25, 100
PROMPT_TOKENS, OUTPUT_TOKENS = 50, 8
SHARE = 0.05
RESOLUTION_MS = 1.0
TRIES = 3


@pytest.fixture(scope="module")
def target(programs: Path) -> Iterator[str]:
    """A prompt takes PREFILL_MS and a step STEP_MS, whoever else is in it."""
    terms = {
        "base_ns": STEP_MS * 1e6,
        "prefill_token_ns": PREFILL_MS / PROMPT_TOKENS * 1e6,
        "row_ns": 0,
        "context_token_ns": 0,
    }
    flags = [f"--set=engine.step_cost.{name}={value}" for name, value in terms.items()]
    process = subprocess.Popen(
        [*COMMAND, "serve", "--engine", "sim", "--port", "0", "--policy", "fcfs", *flags],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["target"]
    finally:
        process.kill()
        process.communicate()


def k6(programs: Path, target: str, **values: object) -> tuple[dict[str, Any], int, str]:
    """(metrics, exit status, what it said)."""
    settings = [f"-e{name}={value}" for name, value in {"TARGET": target, **values}.items()]
    done = subprocess.run(
        [programs / "k6", "run", "--no-usage-report", "--quiet", *settings, SCRIPT],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1]), done.returncode, done.stderr


def ours(target: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [*COMMAND, "bench", "--target", target, "--json", *arguments],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_it_counts_every_token(programs: Path, target: str) -> None:
    """Short prompts, sixty streams at once: the server coalesces, and still each index comes once.

    Not timed: arrivals that a busy machine made k6 leave out are none of the server's doing.
    """
    told, status, said = k6(
        programs, target, RPS=60, DURATION_S=3, PROMPT_TOKENS=1, OUTPUT_TOKENS=40, VUS=150
    )
    assert status == 0 or told["dropped_iterations"]["count"] > 0, said
    requests = told["iterations"]["count"]
    assert requests >= 60
    assert told["tokens"]["count"] == requests * 40
    assert told["ended"]["count"] == requests
    assert (told["checks"]["fails"], told["wrong"]["count"]) == (0, 0), said


def test_it_sees_the_times_that_we_see(programs: Path, target: str) -> None:
    """The same even arrivals, one request at a time: medians agree within SHARE, or k6's own resolution.

    Not the tails: those of twenty requests are the machine's. The best of TRIES, as it does other things too.
    """
    faults: list[str] = []
    for _ in range(TRIES):
        theirs, status, said = k6(
            programs, target, RPS=3, DURATION_S=6, PROMPT_TOKENS=PROMPT_TOKENS, OUTPUT_TOKENS=OUTPUT_TOKENS
        )
        assert theirs["wrong"]["count"] == 0, said
        load = ["--requests", str(theirs["iterations"]["count"]), "--rps", "3", "--shape", "1e6"]
        lengths = ["--prompt-tokens", str(PROMPT_TOKENS), "--output-tokens", str(OUTPUT_TOKENS)]
        mine = ours(target, *load, *lengths)
        assert mine["output_tokens"] == theirs["tokens"]["count"]
        faults = ["k6 left arrivals out"] if status else []
        for name, their_name, least_ms in (
            ("ttft_ms", "ttft_ms", PREFILL_MS + STEP_MS),
            ("tbt_ms", "itl_ms", STEP_MS),
        ):
            one, other = mine[name]["p50"], theirs[their_name]["med"]
            assert min(one, other + RESOLUTION_MS) >= least_ms * 0.99, "faster than the engine"
            if abs(one - other) > max(SHARE * one, RESOLUTION_MS):
                faults.append(f"{name}: ours {one:.2f}, k6 {other:.2f}")
        if not faults:
            return
    pytest.fail("; ".join(faults))


def test_its_threshold_is_our_objective(programs: Path, target: str) -> None:
    """An objective nobody can meet: k6's exit status says so, and so does our share."""
    hopeless = {"TTFT_SLO_MS": PREFILL_MS / 2, "SLO_SHARE": 0.95}
    told, status, _ = k6(
        programs, target, RPS=3, DURATION_S=1, PROMPT_TOKENS=PROMPT_TOKENS, OUTPUT_TOKENS=2, **hopeless
    )
    assert status == 99
    assert told["slo_met"]["rate"] == 0
    load = ["--requests", "3", "--rps", "3", "--prompt-tokens", str(PROMPT_TOKENS), "--output-tokens", "2"]
    assert ours(target, *load, "--ttft-slo-ms", str(PREFILL_MS / 2))["joint_mean"] == 0


def test_a_refusal_is_seen_as_one(programs: Path, target: str) -> None:
    told, status, said = k6(programs, target, RPS=2, DURATION_S=1, OUTPUT_TOKENS=1 << 20)
    assert status == 99
    assert told["wrong"]["count"] == told["iterations"]["count"] > 0
    assert "InvalidArgument: sampling.max_tokens" in said
