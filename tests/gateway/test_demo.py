"""The demonstration runs to its end, on a model of random weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gateway_demo"


def test_it_asks_each_way_and_stops(program: Path, model: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--model", model, "--smg", program],
        capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "length, 40 tokens" in done.stdout
    assert done.stdout.count("first word after") == 2
    assert "gold.demo-" in done.stdout
    assert done.stdout.endswith("== done\n")
