"""The metrics endpoint of a real server: what it counts is what the clients saw, exactly."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.server import Server
from support.modelled import Modelled, modelled
from support.wire import Said, run, say, serving, until

ROOT = Path(__file__).resolve().parents[2]
Key = tuple[str, frozenset[tuple[str, str]]]


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


async def scrape(server: Server) -> dict[Key, float]:
    """Every sample by its name and labels."""
    text = await asyncio.to_thread(read, server.metrics_url)
    found: dict[Key, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def value(samples: dict[Key, float], name: str, **labels: str) -> float:
    """The sum over all samples of that name with at least these labels."""
    wanted = labels.items()
    return sum(number for (one, at), number in samples.items() if one == name and wanted <= set(at))


async def load(wire: Modelled, count: int) -> list[tuple[str, Said]]:
    """(tenant, answer) of requests that end in every way a client can see."""
    dice = random.Random(3)
    kinds = ["whole"] * 6 + ["abort", "drop", "invalid", "hurried"]

    async def one(index: int) -> tuple[str, Said]:
        kind, tenant = kinds[index % len(kinds)], f"t{index % 3}"
        message = pb.GenerateRequest(request_id=f"r{index}", tenant=tenant)
        message.token_ids.ids.extend(dice.randrange(1000) for _ in range(dice.randint(1, 60)))
        message.sampling.max_tokens = 8 + dice.randrange(30)
        if kind in {"abort", "drop"}:
            message.sampling.max_tokens = 120  # still at it when the client has had enough
        if kind == "invalid":
            message.sampling.temperature = -1
        if kind == "hurried":
            message.slo.ttft_ms, message.slo.tbt_ms = 20, 0.001
        call = wire.stub.Generate(message)
        said = Said()
        if kind in {"abort", "drop"}:
            said.take(await call.read())
            if kind == "abort":
                await wire.stub.Abort(pb.AbortRequest(request_id=f"r{index}"))
            else:
                call.cancel()
                said.code = grpc.StatusCode.CANCELLED
                return tenant, said
        return tenant, await say(call, said)

    return list(await asyncio.gather(*(one(index) for index in range(count))))


def test_the_endpoint_counts_what_clients_saw() -> None:
    async def scenario() -> None:
        async with modelled(metrics_port=0) as wire:
            answers = await load(wire, 120)
            await until(lambda: wire.service.executor.idle, "the last landing")
            await until(lambda: not wire.server.calls.live, "the last call")
            samples = await scrape(wire.server)
            stats = (await wire.stub.GetStats(pb.GetStatsRequest())).stats
            check_clients(samples, answers)
            check_totals(samples, stats, wire)

    run(scenario())


def check_clients(samples: dict[Key, float], answers: list[tuple[str, Said]]) -> None:
    refused = [said for _, said in answers if said.code is grpc.StatusCode.INVALID_ARGUMENT]
    dropped = [said for _, said in answers if said.code is grpc.StatusCode.CANCELLED]
    ended = [(tenant, said) for tenant, said in answers if said.ending is not None]
    assert len(refused) + len(dropped) + len(ended) == len(answers)
    reasons = Counter(pb.FinishReason.Name(said.ending.finish_reason) for _, said in ended)  # type: ignore[union-attr]
    assert value(samples, "superinfer_refusals_total", code="invalid") == len(refused) == 12
    assert value(samples, "superinfer_requests_accepted_total") == len(answers) - len(refused)
    finished = "superinfer_requests_finished_total"
    assert value(samples, finished, reason="length") == reasons["FINISH_REASON_LENGTH"]
    aborted = reasons["FINISH_REASON_CANCELLED"]
    # A request that was dropped or aborted may have come to its end a moment before.
    assert value(samples, finished, reason="cancelled") <= aborted + len(dropped)
    assert value(samples, "superinfer_aborts_total") >= aborted > 0
    whole = [(tenant, said) for tenant, said in ended if said.ending is not None]
    for tenant in ("t0", "t1", "t2"):
        made = value(samples, "superinfer_tenant_output_tokens_total", tenant=tenant)
        seen = sum(len(said.token_ids) for at, said in whole if at == tenant)
        lost = sum(at == tenant for at, said in answers if said.code is grpc.StatusCode.CANCELLED)
        assert seen < made <= seen + 120 * lost  # what was on its way to a client that had gone
        assert value(samples, "superinfer_ttft_seconds_count", tenant=tenant) == lost + sum(
            at == tenant for at, _ in whole
        )
        gaps = value(samples, "superinfer_tbt_seconds_count", tenant=tenant)
        assert gaps == made - value(samples, "superinfer_ttft_seconds_count", tenant=tenant)


def check_totals(samples: dict[Key, float], stats: pb.Stats, wire: Modelled) -> None:
    totals = wire.service.executor.totals
    for name, number in (
        ("superinfer_output_tokens_total", stats.output_tokens),
        ("superinfer_tenant_output_tokens_total", stats.output_tokens),
        ("superinfer_tenant_accepted_total", stats.accepted),
        ("superinfer_tenant_ended_total", stats.accepted),
        ("superinfer_turns_total", totals.turns),
        ("superinfer_plan_seconds_count", totals.turns),
        ("superinfer_apply_seconds_count", totals.turns),
        ("superinfer_step_seconds_count", totals.batches),
        ("superinfer_messages_total", stats.messages),
        ("superinfer_refusals_total", stats.refused),
        ("superinfer_evictions_total", stats.evictions),
        ("superinfer_requests", 0),
        ("superinfer_streams", 0),
    ):
        assert value(samples, name) == number, name
    assert stats.rotations_out > 0
    assert value(samples, "superinfer_rotations_total", direction="out") == stats.rotations_out
    block_bytes = wire.service.executor.snapshot().block_bytes
    assert value(samples, "superinfer_link_bytes_total", direction="h2d") == (
        stats.link_in_blocks * block_bytes
    )
    assert value(samples, "superinfer_link_rate_bytes_per_second", direction="d2h") == 20e9
    assert value(samples, "superinfer_kv_blocks", tier="hbm", state="free") == 12
    assert value(samples, "superinfer_step_seconds_sum") == pytest.approx(totals.step_ns / 1e9)
    for objective in ("ttft", "joint_mean", "joint_p99", "joint_stall"):
        judged = value(samples, "superinfer_slo_requests_total", objective=objective)
        cancelled = value(samples, "superinfer_requests_finished_total", reason="cancelled")
        assert judged == stats.accepted - cancelled
    hurried = value(samples, "superinfer_slo_gaps_total", slo="20ms/0.001ms", outcome="missed")
    assert hurried == value(samples, "superinfer_tbt_seconds_count", slo="20ms/0.001ms") > 0


def test_the_endpoint_is_there_only_when_asked_for() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            assert wire.server.metrics_url == ""
        async with serving(metrics_port=0) as wire:
            url = wire.server.metrics_url
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", url)
            assert "superinfer_build_info" in await asyncio.to_thread(read, url)
            assert wire.service.executor.observers
        assert not wire.service.executor.observers
        with pytest.raises(urllib.error.URLError):
            await asyncio.to_thread(read, url)

    run(scenario())


def test_a_port_that_is_taken_is_a_configuration_error() -> None:
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(ConfigError, match=r"service\.metrics_port: cannot listen"):
                async with serving(metrics_port=taken.getsockname()[1]):
                    pass

    run(scenario())


def names(text: str) -> set[str]:
    return set(re.findall(r"\b(?:superinfer|trtllm)_[a-z0-9_]+\b", text))


def stem(name: str) -> str:
    return re.sub(r"_(total|bucket|sum|count)$", "", name)


def test_documents_and_dashboard_have_the_endpoints_names() -> None:
    async def scenario() -> str:
        async with modelled(metrics_port=0) as wire:
            await load(wire, 10)
            return await asyncio.to_thread(read, wire.server.metrics_url)

    families = list(text_string_to_metric_families(run(scenario())))
    labels = {stem(one.name): {label for s in one.samples for label in s.labels} for one in families}
    offered = {name for name in labels if name.startswith(("superinfer_", "trtllm_"))}
    told = {stem(name) for name in names((ROOT / "docs" / "observability.md").read_text())}
    assert told - {"superinfer_trt"} == offered
    board = json.loads((ROOT / "docs" / "grafana" / "superinfer.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    shown = {stem(name) for name in names("\n".join(asked))}
    assert shown <= offered
    for query in asked:
        for name, matchers in re.findall(r"(superinfer_\w+)\{([^}]*)\}", query):
            given = set(re.findall(r"(\w+)=~?\"", matchers)) - {"instance"}  # which Prometheus adds
            grouped = {word for by in re.findall(r"by \(([^)]*)\)", query) for word in by.split(", ")}
            assert given | (grouped - {"le"}) <= labels[stem(name)], query
    assert offered - shown <= {"trtllm_num_requests_waiting", "trtllm_num_requests_running"} | {
        "trtllm_kv_cache_utilization"  # the same as others, under the names of TensorRT-LLM
    }
