"""The load that `bench` sends: from its seed alone, as the simulator draws it, counted from its moment."""

from __future__ import annotations

import itertools
from pathlib import Path

import click
import pytest

from superinfer_trt.cli import load_api, load_report
from superinfer_trt.cli import load_requests as made_of
from superinfer_trt.cli.load import Client
from superinfer_trt.cli.load_api import Answer, Job
from superinfer_trt.cli.load_requests import Workload
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.units import MILLISECOND, SECOND
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from superinfer_trt.sim.arrivals import Arrivals
from superinfer_trt.sim.workload import load_lengths, make_items

INFO = pb.GetModelInfoResponse(
    vocabulary=1000, request_tokens_max=100, default_slo=pb.Slo(ttft_ms=100, tbt_ms=10)
)
WIDE = pb.GetModelInfoResponse(
    vocabulary=50_000, request_tokens_max=200_000, default_slo=pb.Slo(ttft_ms=100, tbt_ms=10)
)
BASE = pb.GenerateRequest(tenant="t")


def test_random_requests_follow_the_seed() -> None:
    def made(seed: int) -> list[pb.GenerateRequest]:
        return made_of.synthetic_requests(BASE, INFO, 20, (3, 9), (2, 5), seed)

    assert made(1) == made(1) != made(2)
    for request in made(1):
        assert 3 <= len(request.token_ids.ids) <= 9
        assert 2 <= request.sampling.max_tokens <= 5
        assert all(made_of.LOWEST_PLAIN_ID <= id < 1000 for id in request.token_ids.ids)
        assert request.tenant == "t"
        assert request.sampling.ignore_eos


def test_what_cannot_fit_is_told_before_anything_is_sent() -> None:
    with pytest.raises(click.UsageError, match="101 tokens do not fit the server's 100"):
        made_of.synthetic_requests(BASE, INFO, 1, (1, 60), (1, 41))


def test_arrivals_are_poisson_by_seed() -> None:
    workload = Workload(requests=4000, arrivals=Arrivals(50.0, seed=3))
    times = made_of.due_times(workload)
    assert times == made_of.due_times(workload)
    assert (len(times), times[0]) == (4000, 0)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(SECOND / 50, rel=0.1)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance**0.5 == pytest.approx(mean, rel=0.1)  # exponential: deviation equals mean
    assert made_of.due_times(Workload(requests=3)) == [0, 0, 0]


def test_what_ends_arrivals() -> None:
    process = Arrivals(10.0, seed=1)
    long = made_of.due_times(Workload(arrivals=process, duration_s=20.0))
    assert 150 < len(long) < 250
    assert made_of.due_times(Workload(arrivals=process, duration_s=20.0, requests=7)) == long[:7]
    assert (
        made_of.due_times(Workload(arrivals=process, duration_s=0.5, requests=7))
        == long[: len(made_of.due_times(Workload(arrivals=process, duration_s=0.5)))]
    )
    assert len(made_of.due_times(Workload(arrivals=process))) == made_of.REQUESTS_DEFAULT
    with pytest.raises(ConfigError, match="no request arrives"):
        made_of.due_times(Workload(arrivals=process, duration_s=1e-6))


def test_another_rate_is_the_same_draws_closer_together() -> None:
    """So two probes of a search differ in the rate and in nothing else."""

    def jobs(rps: float) -> list[Job]:
        asked = Workload(requests=50, arrivals=Arrivals(rps, seed=5, shape=0.5), cancel_share=0.3, seed=5)
        return made_of.make_jobs(asked, BASE, WIDE)

    slow, fast = jobs(2.0), jobs(8.0)
    assert [one.request for one in slow] == [one.request for one in fast]
    assert [one.cancel_after for one in slow] == [one.cancel_after for one in fast]
    for one, other in zip(slow, fast, strict=True):
        assert one.offset == pytest.approx(4 * other.offset, abs=8)


def test_a_trace_is_the_simulators_workload() -> None:
    """The lengths, classes and distances of `simulate` with the same flags."""
    classes = ("gold:0.25:ttft=500,tbt=50", "slow:0.25:ttft=9000,tbt=900")
    asked = Workload(
        trace="azure-conversation",
        arrivals=Arrivals(5.0, duration_s=30.0, seed=42),
        duration_s=30.0,
        seed=42,
        classes=tuple(map(made_of.class_option, classes)),
    )
    jobs = made_of.make_jobs(asked, pb.GenerateRequest(), WIDE)
    sim_classes = [made_of._sim_class(one, BASE, WIDE) for one in asked.classes]
    lengths = load_lengths("azure-conversation", 42)
    items = make_items(lengths, Arrivals(5.0, 30.0, 42), classes=sim_classes, seed=42)
    assert len(jobs) == len(items) > 100
    for job, item in zip(jobs, items, strict=True):
        assert job.offset == item.arrival - items[0].arrival
        assert len(job.request.token_ids.ids) == item.prompt_tokens
        assert job.request.sampling.max_tokens == item.output_tokens
        assert job.group == job.request.tenant == item.tenant
        if item.tenant:
            assert job.request.slo.ttft_ms * MILLISECOND == item.slo.ttft
        else:
            assert not job.request.HasField("slo")
    assert {job.group for job in jobs} == {"", "gold", "slow"}


def test_a_traces_own_times_and_tenants(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens,tenant\n3,5,2,a\n3.5,6,3,\n4.5,70,40,b\n5,7,2,b\n")
    asked = Workload(trace=str(path), own_times=True)
    with pytest.raises(ConfigError, match=r"t.csv:4: 70 prompt \+ 40 output tokens do not fit .* 100 tokens"):
        made_of.make_jobs(asked, BASE, INFO)
    jobs = made_of.make_jobs(
        Workload(trace=str(path), own_times=True, drop_longer=True), pb.GenerateRequest(), INFO
    )
    assert [job.offset for job in jobs] == [0, SECOND // 2, 2 * SECOND]
    assert [job.request.tenant for job in jobs] == ["a", "", "b"]
    assert len(made_of.due_times(asked, load_lengths(str(path), 0))) == 4
    with pytest.raises(ConfigError, match="no arrival times"):
        made_of.due_times(Workload(trace="sharegpt", own_times=True), load_lengths("sharegpt", 0))


@pytest.mark.parametrize(
    "text",
    ["", "gold", "gold:x", ":0.1", "g:0", "g:1.1", "g:0.1:ttft", "g:0.1:ttft=0", "g:0.1:other=3", "g:nan"],
)
def test_classes_that_are_none(text: str) -> None:
    with pytest.raises(click.BadParameter, match="NAME:SHARE"):
        made_of.class_option(text)


def test_an_objective_that_a_class_leaves_out_is_that_of_everybody() -> None:
    asked = Workload(requests=10, classes=(made_of.class_option("all:1:tbt=7"),))
    for job in made_of.make_jobs(asked, pb.GenerateRequest(slo=pb.Slo(ttft_ms=33)), WIDE):
        assert (job.request.slo.ttft_ms, job.request.slo.tbt_ms, job.group) == (33, 7, "all")


def test_who_gives_up_follows_the_seed_and_not_the_rate() -> None:
    def quitters(rps: float) -> list[int]:
        workload = Workload(requests=200, arrivals=Arrivals(rps), seed=1, cancel_share=0.25, cancel_after_s=2)
        jobs = made_of.schedule([BASE] * 200, made_of.due_times(workload), workload)
        assert {job.cancel_after for job in jobs} == {None, 2 * SECOND}
        return [job.index for job in jobs if job.cancel_after is not None]

    assert quitters(10) == quitters(99)
    assert 30 <= len(quitters(10)) <= 70


def test_requests_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a", "sampling": {"maxTokens": 3}}\n\n{"tokenIds": {"ids": [1, 2]}}\n')
    made = made_of.requests_from(path, BASE, 3)
    assert [request.text for request in made] == ["a", "", "a"]
    assert made[0].sampling.max_tokens == 3
    assert list(made[1].token_ids.ids) == [1, 2]
    assert all(request.tenant == "t" for request in made)
    assert made[0] is not made[2], "a class writes into one of them"


@pytest.mark.parametrize(
    ("text", "words"),
    [("\n", "has no line"), ('{"text": "a"}\n{"txt": 1}\n', ":2: "), ("{", ":1: ")],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(click.UsageError, match=words):
        made_of.requests_from(path, BASE, 2)


def answer(
    *tokens_ms: int,
    status: str = "OK",
    cancelled: bool = False,
    ttft_ms: float = 0,
    group: str = "",
    measured: bool = True,
) -> Answer:
    request = pb.GenerateRequest(slo=pb.Slo(ttft_ms=ttft_ms)) if ttft_ms else pb.GenerateRequest()
    job = Job(0, 0, request, None, group, measured)
    made = Answer(job, due=0, status=status, cancelled=cancelled)
    made.tokens = [value * MILLISECOND for value in tokens_ms]
    made.token_ids = list(tokens_ms)
    if status == "OK":
        made.ending = pb.Ending(finish_reason=pb.FINISH_REASON_LENGTH)
    return made


def test_the_figures_of_a_run() -> None:
    answers = [
        answer(999, 1000, measured=False),
        answer(50, 60, group="a"),
        answer(150, 160, group="a"),
        answer(150, 160, ttft_ms=200),
        answer(status="RESOURCE_EXHAUSTED"),
        answer(1, status="CANCELLED", cancelled=True),
    ]
    figures = load_report.result(
        answers, INFO, pb.Stats(rotations_out=5, messages=1), pb.Stats(rotations_out=12, messages=9)
    )
    assert (figures["requests"], figures["completed"], figures["warmup"]) == (5, 3, 1)
    assert (figures["failed"], figures["cancelled"]) == (1, 1)
    assert figures["failures"] == {"RESOURCE_EXHAUSTED": 1}
    assert figures["ttft_attainment"] == 0.5  # of the four that nobody gave up
    assert (figures["rotations"], figures["messages"]) == (7, 8)
    wanted = {"tbt_attainment", "joint_mean", "tokens_per_s", "ttft_ms", "tbt_ms", "wall_s"}
    assert wanted <= set(figures)
    classes = figures["classes"]
    assert {name: one["ttft_attainment"] for name, one in classes.items()} == {"a": 0.5, "rest": 0.5}
    assert load_report.result(answers[:3], INFO, None, None)["rotations"] is None


@pytest.mark.parametrize(
    ("lag_ms", "sent_ms", "cpu_s", "limited"),
    [(1, 1, 0.1, False), (6, 1, 0.1, True), (1, 6, 0.1, True), (1, 1, 0.95, True)],
)
def test_a_client_that_is_the_bottleneck_says_so(
    lag_ms: int, sent_ms: int, cpu_s: float, limited: bool
) -> None:
    """Tightest objective 10 ms: a tenth is below the least that is told, 5 ms."""
    one = answer(50, 60)
    one.sent = sent_ms * MILLISECOND
    client = Client([lag_ms * MILLISECOND] * 100, SECOND, cpu_s)
    figures = load_report.client_figures(client, [one], INFO)
    assert figures["limited"] is limited
    assert ("bottleneck" in load_report.client_warning(figures)) is limited


def test_gaps_and_wrong_counts_of_a_stream_are_no_completed_request() -> None:
    whole, gap, short = (answer() for _ in range(3))
    ending = pb.Ending(finish_reason=pb.FINISH_REASON_LENGTH, usage=pb.Usage(output_tokens=2))
    for one, firsts in ((whole, (0, 1)), (gap, (0, 2)), (short, (0,))):
        one.ending = None
        for first in firsts:
            delta = pb.Delta(first_index=first, token_ids=[7])
            load_api.EXECUTOR.take(one, pb.GenerateResponse(delta=delta), first)
        load_api.EXECUTOR.take(one, pb.GenerateResponse(ending=ending), 9)
    assert [one.completed for one in (whole, gap, short)] == [True, False, False]
    assert gap.message == "token 2 came as token 1"
    assert (short.status, short.message) == (load_api.BROKEN, "1 tokens came, 2 were told")


def test_a_request_of_the_facade() -> None:
    request = pb.GenerateRequest(tenant="gold", slo=pb.Slo(ttft_ms=1.5, tbt_ms=2))
    request.token_ids.ids.extend([4, 5])
    request.sampling.max_tokens, request.sampling.seed, request.sampling.ignore_eos = 3, 9, True
    message, metadata = load_api.facade_request(request, "b-1")
    assert list(message.tokenized.input_token_ids) == [4, 5]
    assert (message.request_id, message.max_tokens, message.streaming) == ("b-1", 3, True)
    assert message.sampling_config.HasField("temperature")  # 0 is greedy, left out would be 1
    assert not message.sampling_config.HasField("top_p")
    assert message.sampling_config.seed == 9
    assert dict(metadata) == {
        "superinfer-ttft-slo-ms": "1.5", "superinfer-tbt-slo-ms": "2.0", "superinfer-tenant": "gold",
    }  # fmt: skip
    with pytest.raises(click.UsageError, match="token ids"):
        load_api.facade_request(pb.GenerateRequest(text="a"), "b-2")


def test_an_answer_of_the_facade() -> None:
    one = answer()
    one.ending = None
    for at, ids in enumerate(([1], [2, 3])):
        chunk = trt.GenerateResponse(chunk=trt.GenerateStreamChunk(token_ids=ids))
        load_api.FACADE.take(one, chunk, at)
    complete = trt.GenerateComplete(output_token_ids=[1, 2, 3], finish_reason="length", prompt_tokens=8)
    load_api.FACADE.take(one, trt.GenerateResponse(complete=complete), 5)
    assert (one.token_ids, one.tokens, one.completed) == ([1, 2, 3], [0, 1, 1], True)
    assert one.ending is not None
    assert (one.ending.usage.prompt_tokens, one.ending.usage.output_tokens) == (8, 3)


def test_a_line_of_outputs_has_nothing_of_time_in_it() -> None:
    assert (
        load_report.output_line(answer(3, 4))
        == load_report.output_line(answer(3, 4))
        == {
            "index": 0,
            "status": "OK",
            "finish_reason": "length",
            "token_ids": [3, 4],
            "text": "",
        }
    )
