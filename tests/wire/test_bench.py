"""`bench` against real servers: both services, both loops, the search, and a server that is not ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from superinfer_trt.serve.pb import trtllm_service_pb2_grpc as trt_grpc

PATIENCE_S = 120
COMMAND = [sys.executable, "-c", "from superinfer_trt.cli.main import main; main()"]
STEP_MS = 5


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    """A step takes STEP_MS and no more, whoever is in it; 8 requests at a time."""
    terms = {"base_ns": STEP_MS * 1e6, "row_ns": 0, "prefill_token_ns": 0, "context_token_ns": 0}
    flags = [f"--set=engine.step_cost.{name}={value}" for name, value in terms.items()]
    process = subprocess.Popen(
        [*COMMAND, "serve", "--engine", "sim", "--port", "0", "--seats", "8", "--policy", "fcfs", *flags],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["target"]
    finally:
        process.kill()
        process.communicate()


def bench(target: str, *arguments: str, code: int = 0) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [*COMMAND, "bench", "--target", target, "--json", *arguments],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_both_services_give_the_same_answers(target: str, tmp_path: Path) -> None:
    written = []
    for api in ("executor", "facade"):
        path = tmp_path / f"{api}.jsonl"
        classes = ("--class", "gold:0.5:ttft=60000,tbt=5000", "--class", "lost:0.25:ttft=0.001")
        told, _ = bench(
            target, "--api", api, "--requests", "24", "--rps", "200", "--outputs", str(path), *classes
        )
        assert (told["api"], told["completed"], told["failures"]) == (api, 24, {})
        assert told["messages"] >= 24
        assert set(told["classes"]) == {"gold", "lost", "rest"}
        assert told["classes"]["gold"]["joint_mean"] == 1.0
        assert told["classes"]["lost"]["ttft_attainment"] == 0.0
        counts = [one["requests"] for one in told["classes"].values()]
        assert sum(counts) == 24
        written.append(path.read_text())
    assert written[0] == written[1]


def test_a_closed_loop_has_so_many_callers(target: str) -> None:
    """32 requests of 10 steps, 4 at a time: at least 80 steps one after the other."""
    load = ("--requests", "32", "--prompt-tokens", "8", "--output-tokens", "10", "--concurrency")
    few, _ = bench(target, *load, "4", "--warmup-requests", "4")
    assert (few["requests"], few["warmup"], few["completed"]) == (28, 4, 28)
    assert few["wall_s"] >= 28 / 4 * 10 * STEP_MS / 1000 * 0.99
    alone, _ = bench(target, *load, "1")
    assert alone["tokens_per_s"] < few["tokens_per_s"]


def test_the_search_ends_between_a_rate_that_meets_and_one_that_misses(target: str) -> None:
    """8 seats x 200 steps a second / 40 tokens are 40 requests a second, at most."""
    asked = ("--find-goodput", "--prompt-tokens", "8", "--output-tokens", "40", "--ttft-slo-ms", "400")
    limits = ("--rps", "10", "--requests", "60", "--duration-s", "3", "--precision", "0.5")
    told, lines = bench(target, *asked, *limits, "--tbt-slo-ms", "1000", "--shape", "1e4")
    assert told["ended"] in ("precision", "client")
    assert told["rps"] < told["missed_rps"] <= 1.5 * told["rps"] * 1.001
    assert told["rps"] <= 60
    assert told["missed_rps"] >= 5
    assert [one["rps"] for one in told["probes"]][:1] == [10]
    assert told["figures"]["joint_mean"] >= 0.95
    best = next(one for one in told["probes"] if one["rps"] == told["rps"])
    assert best["met"]
    assert not best["cut"]
    assert best["requests"] == told["figures"]["requests"]
    assert len(lines.splitlines()) == len(told["probes"]) + 1


def test_a_search_that_finds_nothing(target: str) -> None:
    never = (
        "--find-goodput",
        "--ttft-slo-ms",
        "0.001",
        "--probes-max",
        "2",
        "--rps",
        "50",
        "--requests",
        "5",
    )
    told, lines = bench(target, *never, code=1)
    assert (told["rps"], told["ended"], told["figures"]) == (None, "never met", None)
    assert [(one["met"], one["cut"]) for one in told["probes"]] == [(False, True)] * 2
    assert "no probe met" in lines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--concurrency", "2", "--rps", "1"], "not with --rps"),
        (["--concurrency", "2", "--find-goodput"], "not with --find-goodput"),
        (["--duration-s", "2"], "--duration-s: needs --rps"),
        (["--class", "a:0.7", "--class", "b:0.7"], "add up to 1.4"),
        (["--find-goodput", "--rps", "0"], "a rate above 0"),
        (["--trace", "nothing", "--rps", "1"], "neither a file nor a synthetic workload"),
        (["--trace", "sharegpt", "--requests", "2", "--drop-longer"], "no arrival times"),
        (["--requests", "2", "--warmup-requests", "2"], "leaves none of 2"),
        (["--rps", "inf"], "rps is inf"),
    ],
)
def test_flags_that_contradict_each_other(target: str, arguments: list[str], words: str) -> None:
    _, told = bench(target, *arguments, code=2)
    assert words in told


def test_text_cannot_be_sent_through_the_facade(target: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "hello"}\n')
    _, told = bench(target, "--api", "facade", "--prompts", str(path), code=2)
    assert "token ids" in told


class Stranger(trt_grpc.TrtllmServiceServicer):
    """A TrtllmService as another project's server may be: no ExecutorService beside it, no load told."""

    def GetModelInfo(self, request: Any, context: Any) -> trt.GetModelInfoResponse:
        return trt.GetModelInfoResponse(model_id="m", max_seq_len=100, max_batch_size=4, vocab_size=1000)

    def GetServerInfo(self, request: Any, context: Any) -> trt.GetServerInfoResponse:
        return trt.GetServerInfoResponse(backend="tensorrt_llm")

    def Generate(self, request: trt.GenerateRequest, context: Any) -> Iterator[trt.GenerateResponse]:
        assert request.request_id
        ids = [5] * request.max_tokens
        for id in ids[len(request.tokenized.input_token_ids) % 2 :]:  # loses a token of odd prompts
            yield trt.GenerateResponse(chunk=trt.GenerateStreamChunk(token_ids=[id]))
        yield trt.GenerateResponse(
            complete=trt.GenerateComplete(output_token_ids=ids, finish_reason="length")
        )


def test_a_server_that_is_not_ours_is_counted_too() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(8))
    trt_grpc.add_TrtllmServiceServicer_to_server(Stranger(), server)  # type: ignore[no-untyped-call]
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        load = ("--requests", "20", "--prompt-tokens", "4:9", "--output-tokens", "3:6")
        told, _ = bench(target, "--api", "facade", *load)
        assert told["engine"] == "tensorrt_llm"
        assert told["rotations"] is None
        assert told["completed"] + told["failures"]["BROKEN_STREAM"] == 20
        assert 0 < told["completed"] < 20
        _, words = bench(target, *load, code=2)
        assert "UNIMPLEMENTED" in words
    finally:
        server.stop(0)
