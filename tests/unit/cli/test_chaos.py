"""`superinfer-trt chaos`: what it prints when a world holds, and when one breaks."""

from __future__ import annotations

import pytest

from superinfer_trt.cli.main import run
from superinfer_trt.runtime.executor import Executor


def test_a_world_that_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chaos", "--seed", "3"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("1 worlds from seed 3 in ")
    assert told.endswith("; 0 failed\n")


def test_a_broken_one_shows_its_turns_and_how_to_replay_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = Executor._emit

    def losing(self: Executor) -> None:
        if len(self._events) > 1:
            del self._events[0]
        honest(self)

    monkeypatch.setattr(Executor, "_emit", losing)
    assert run(["chaos", "--seed", "3", "--worlds", "50"]) == 1
    lines = capsys.readouterr().out.splitlines()
    seed = lines[0].split(":")[0].removeprefix("seed ")
    assert f"replay: superinfer-trt chaos --seed {seed}" in lines
    assert any("turn=" in line and "now=" in line for line in lines)
    assert any("InvariantViolation: C" in line for line in lines)
    assert lines[-1].endswith(f"1 failed: {seed}")
    assert run(["chaos", "--seed", seed]) == 1, "it replays"


def test_no_time_for_a_world(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chaos", "--seed", "3", "--seconds", "0.000001"]) == 2
    assert "--seconds" in capsys.readouterr().err
