"""The demo: what it compares, and one run of it with real servers and an engine that verifies every block."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from superinfer_trt.cli import demo
from superinfer_trt.cli.load_api import Answer, Job
from superinfer_trt.serve.pb import executor_pb2 as pb

pytest.importorskip("superinfer_trt._duplexkv", reason="the native lanes are not built")


def answer(index: int, token_ids: list[int], prompt_tokens: int = 20) -> Answer:
    ending = pb.Ending(finish_reason=pb.FINISH_REASON_LENGTH)
    ending.usage.prompt_tokens = prompt_tokens
    ending.usage.output_tokens = len(token_ids)
    job = Job(index, 0, pb.GenerateRequest(), None)
    return Answer(job, 0, token_ids=token_ids, ending=ending)


def run(name: str, tokens: list[list[int]], **figures: float) -> demo.Run:
    return demo.Run(name, [answer(index, ids) for index, ids in enumerate(tokens)], dict(figures))


SAME = [[1, 2, 3], [4, 5, 6]]
POOR = {"ttft_attainment": 0.5, "joint_mean": 0.5, "rotations": 0}
RICH = {"ttft_attainment": 1.0, "joint_mean": 0.9, "rotations": 120}


def checks(rotating: demo.Run) -> dict[str, bool]:
    report = demo.compare(run("all", SAME, **POOR), run("fcfs", SAME, **POOR), rotating)
    assert set(report["runs"]) == {"all", "fcfs", rotating.name}
    found: dict[str, bool] = report["checks"]
    return found


def test_all_holds() -> None:
    assert all(checks(run("rota", SAME, **RICH)).values())


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"rotations": 99}, "at least 100 rotations"),
        ({"ttft_attainment": 0.5}, "TTFT attainment is higher"),
        ({"joint_mean": 0.4}, "joint attainment is higher"),
    ],
)
def test_each_check_can_fail(change: dict[str, float], broken: str) -> None:
    found = checks(run("rota", SAME, **{**RICH, **change}))
    assert [name for name, holds in found.items() if not holds] == [broken]


def test_one_other_token_is_noticed() -> None:
    found = checks(run("rota", [[1, 2, 3], [4, 5, 7]], **RICH))
    assert [name for name, holds in found.items() if not holds] == ["rotation gave the same tokens"]


def test_an_unfinished_answer_is_noticed() -> None:
    rotating = run("rota", SAME, **RICH)
    rotating.answers[1].status = "UNAVAILABLE"
    assert not checks(rotating)["rotation gave the same tokens"]


def test_blocks_are_counted_request_by_request() -> None:
    answers = [answer(0, [1] * 12, prompt_tokens=20), answer(1, [1] * 13, prompt_tokens=20)]
    assert demo.blocks_needed(answers, 16) == 2 + 3


def test_objectives_follow_the_machine() -> None:
    assert demo.objectives_ms({"wall_s": 2.0}, tokens=100) == (1600.0, 120.0)


def test_it_runs_and_rotation_changes_no_token() -> None:
    command = [sys.executable, "-m", "superinfer_trt", "demo", "--engine", "pattern", "--json"]
    command += ["--clients", "8", "--tokens", "48"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    report = json.loads(done.stdout)
    assert report["checks"]["fcfs gave the same tokens"]
    assert report["checks"]["rotation gave the same tokens"]
    assert report["hbm_blocks"] < report["blocks_needed"]
    assert (done.returncode == 0) == all(report["checks"].values())
