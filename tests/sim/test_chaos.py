"""Worlds of faults over the production parts (sim.chaos): fresh seeds in a box of time, and what once failed.

The box is what the gate can afford; `superinfer-trt chaos --seed N --seconds 120` is the longer look. Fresh:
the first seed follows from the newest commit, so each change is judged in worlds of its own, and is printed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from superinfer_trt.build.chaos import ChaosReport, options_of, run_seed
from superinfer_trt.core.phase import LEGAL, Phase, check_move
from superinfer_trt.sched.registry import POLICIES
from superinfer_trt.sim.faults import Faults

FAILED_SEEDS = Path(__file__).with_name("failed_seeds.txt")
BOX_S = 120.0
WORLDS_MIN = 20
"""A box on a machine that is busy elsewhere still shows something."""


def failed_seeds() -> list[int]:
    lines = (line.split("#")[0].strip() for line in FAILED_SEEDS.read_text().splitlines())
    return [int(line) for line in lines if line]


def fresh_seed() -> int:
    """From the newest commit; where there is no repository, from the date."""
    told = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    text = told.stdout.strip() or time.strftime("%Y-%m-%d")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:5], "big")


def check(seed: int) -> None:
    report = run_seed(seed)
    tail = "\n".join(report.tail[-40:])
    assert not report.failure, (
        f"{report.failure}\nseed {seed}: {report.options.line()}\n{tail}\n"
        f"replay: superinfer-trt chaos --seed {seed}; when it is mended, add {seed} to {FAILED_SEEDS.name}"
    )


@pytest.mark.parametrize("seed", failed_seeds())
def test_what_once_failed(seed: int) -> None:
    check(seed)


def test_fresh_worlds(capsys: pytest.CaptureFixture[str]) -> None:
    first = fresh_seed()
    started, worlds = time.monotonic(), 0
    while worlds < WORLDS_MIN or time.monotonic() - started < BOX_S:
        check(first + worlds)
        worlds += 1
    with capsys.disabled():
        sys.stdout.write(f"\nchaos: {worlds} worlds from seed {first}\n")


def test_the_worlds_are_worth_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """C8: 150 worlds, or a few more, walk every legal move; every fault, policy and depth is drawn, and
    rotations and evictions abound."""
    walked: set[tuple[Phase, Phase]] = set()

    def noting(source: Phase, target: Phase) -> None:
        walked.add((source, target))
        check_move(source, target)

    monkeypatch.setattr("superinfer_trt.runtime.sequence.check_move", noting)
    reports: list[ChaosReport] = []
    while len(reports) < 150 or (walked != set(LEGAL) and len(reports) < 600):
        reports.append(run_seed(len(reports), twice=False))
    figures = [report.figures for report in reports if report.figures is not None]
    assert len(figures) == len(reports), next(r.failure for r in reports if r.failure)
    assert walked == set(LEGAL)
    options = [report.options for report in reports]
    assert {one.policy for one in options} == {*POLICIES, "any-plan"}
    assert {(one.depth, one.shed) for one in options} == {(1, False), (1, True), (2, False), (2, True)}
    for name in Faults.__slots__:
        drawn = [bool(getattr(one.faults, name)) for one in options]
        assert 0.2 < sum(drawn) / len(drawn) < 0.8, f"{name} is drawn {sum(drawn)} times"
    assert sum(one.rotations for one in figures) > 150
    assert sum(one.evictions for one in figures) > 150
    assert sum(one.copies_failed for one in figures) > 5
    assert sum(one.steps_failed for one in figures) > 5
    assert sum(one.refused for one in figures) > 50


def digests() -> str:
    """A hash a world, over every plan and every token of it."""
    found = []
    for seed in range(12):
        figures = run_seed(seed).figures
        assert figures is not None
        found.append(figures.digest)
    return " ".join(found)


def test_a_seed_decides_everything_in_any_process() -> None:
    """C11: under another hash seed the same."""
    program = (
        "import sys, json; sys.path[:0] = json.loads(sys.argv[1])\n"
        "from sim.test_chaos import digests\n"
        "print(digests())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps([str(Path(__file__).parents[1]), *sys.path])],
        env={**os.environ, "PYTHONHASHSEED": "4242"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == digests()


def test_other_seeds_are_other_worlds() -> None:
    assert len(set(digests().split())) == 12
    assert len({options_of(seed).line() for seed in range(50)}) == 50
