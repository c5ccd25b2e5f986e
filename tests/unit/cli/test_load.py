"""The load that `bench` sends: from its seed alone, and counted from when it was due."""

from __future__ import annotations

import itertools
from pathlib import Path

import click
import pytest

from superinfer_trt.cli import load
from superinfer_trt.cli.load import Answer, Arrivals, Job
from superinfer_trt.core.units import MILLISECOND, SECOND
from superinfer_trt.serve.pb import executor_pb2 as pb

INFO = pb.GetModelInfoResponse(
    vocabulary=1000, request_tokens_max=100, default_slo=pb.Slo(ttft_ms=100, tbt_ms=10)
)
BASE = pb.GenerateRequest(tenant="t")


def test_random_requests_follow_the_seed() -> None:
    def made(seed: int) -> list[pb.GenerateRequest]:
        return load.synthetic_requests(BASE, INFO, Arrivals(20, seed=seed), (3, 9), (2, 5))

    assert made(1) == made(1) != made(2)
    for request in made(1):
        assert 3 <= len(request.token_ids.ids) <= 9
        assert 2 <= request.sampling.max_tokens <= 5
        assert all(load.LOWEST_PLAIN_ID <= id < 1000 for id in request.token_ids.ids)
        assert request.tenant == "t"
        assert request.sampling.ignore_eos


def test_what_cannot_fit_is_told_before_anything_is_sent() -> None:
    with pytest.raises(click.UsageError, match="101 tokens do not fit the server's 100"):
        load.synthetic_requests(BASE, INFO, Arrivals(1), (1, 60), (1, 41))


def test_arrivals_are_poisson_by_seed() -> None:
    requests = [BASE] * 4000
    jobs = load.schedule(requests, Arrivals(4000, rps=50, seed=3))
    assert jobs == load.schedule(requests, Arrivals(4000, rps=50, seed=3))
    gaps = [after.offset - before.offset for before, after in itertools.pairwise(jobs)]
    assert jobs[0].offset == 0
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(SECOND / 50, rel=0.1)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance**0.5 == pytest.approx(mean, rel=0.1)  # exponential: deviation equals mean
    assert all(job.offset == 0 for job in load.schedule(requests, Arrivals(4000)))


def test_who_gives_up_follows_the_seed_and_not_the_rate() -> None:
    def quitters(rps: float) -> list[int]:
        jobs = load.schedule(
            [BASE] * 200, Arrivals(200, rps=rps, seed=1, cancel_share=0.25, cancel_after_s=2)
        )
        assert {job.cancel_after for job in jobs} == {None, 2 * SECOND}
        return [job.index for job in jobs if job.cancel_after is not None]

    assert quitters(10) == quitters(99)
    assert 30 <= len(quitters(10)) <= 70


def test_requests_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a", "sampling": {"maxTokens": 3}}\n\n{"tokenIds": {"ids": [1, 2]}}\n')
    made = load.requests_from(path, BASE, 3)
    assert [request.text for request in made] == ["a", "", "a"]
    assert made[0].sampling.max_tokens == 3
    assert list(made[1].token_ids.ids) == [1, 2]
    assert all(request.tenant == "t" for request in made)


@pytest.mark.parametrize(
    ("text", "words"),
    [("\n", "has no line"), ('{"text": "a"}\n{"txt": 1}\n', ":2: "), ("{", ":1: ")],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(click.UsageError, match=words):
        load.requests_from(path, BASE, 2)


def answer(*tokens_ms: int, status: str = "OK", cancelled: bool = False, ttft_ms: float = 0) -> Answer:
    request = pb.GenerateRequest(slo=pb.Slo(ttft_ms=ttft_ms)) if ttft_ms else pb.GenerateRequest()
    made = Answer(Job(0, 0, request, None), due=0, status=status, cancelled=cancelled)
    made.tokens = [value * MILLISECOND for value in tokens_ms]
    made.token_ids = list(tokens_ms)
    if status == "OK":
        made.ending = pb.Ending(finish_reason=pb.FINISH_REASON_LENGTH)
    return made


def test_the_figures_of_a_run() -> None:
    answers = [
        answer(50, 60),
        answer(150, 160),
        answer(150, 160, ttft_ms=200),
        answer(status="RESOURCE_EXHAUSTED"),
        answer(1, status="CANCELLED", cancelled=True),
    ]
    figures = load.result(
        answers, INFO, pb.Stats(rotations_out=5, messages=1), pb.Stats(rotations_out=12, messages=9)
    )
    assert (figures["requests"], figures["completed"]) == (5, 3)
    assert (figures["failed"], figures["cancelled"]) == (1, 1)
    assert figures["failures"] == {"RESOURCE_EXHAUSTED": 1}
    assert figures["ttft_attainment"] == 0.5  # of the four that nobody gave up
    assert (figures["rotations"], figures["messages"]) == (7, 8)
    wanted = {"tbt_attainment", "joint_mean", "tokens_per_s", "ttft_ms", "tbt_ms", "wall_s"}
    assert wanted <= set(figures)


def test_a_line_of_outputs_has_nothing_of_time_in_it() -> None:
    assert (
        load.output_line(answer(3, 4))
        == load.output_line(answer(3, 4))
        == {
            "index": 0,
            "status": "OK",
            "finish_reason": "length",
            "token_ids": [3, 4],
            "text": "",
        }
    )
