"""Requests that end early, models that break, executors that are away, and what the metrics page says."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest

pytest.importorskip("tritonclient", reason="run by `scripts/test --only triton`")

from asking import Caller, Heard, ids_inputs, run
from processes import executor, until

LONG = 90
DEADLINE_S = 3.0
TOKENS_BEHIND_MAX = 3
"""Made after a caller has gone, until the executor's step that it falls into has ended: the cancel's own way
takes less than a token, and a busy machine is given two."""


def quiet(stage: Any) -> None:
    until(lambda: stage.slow.live() == 0, "an idle executor")


async def started(caller: Caller, heard: Heard, **options: Any) -> asyncio.Task:
    """A long request whose stream stays open, after its third answer."""
    task = asyncio.create_task(
        caller.ask(ids_inputs([1, 2, 3], LONG, streaming=True), heard, hold=asyncio.Event(), **options)
    )
    await asyncio.wait_for(heard.third.wait(), 30)
    return task


@pytest.mark.parametrize("way", ["cancel", "close", "deadline"])
def test_a_caller_that_goes_ends_its_request_within_a_token(stage: Any, way: str) -> None:
    quiet(stage)
    before = stage.slow.stats()

    async def scenario() -> None:
        heard = Heard()
        async with Caller(stage.triton.grpc, "slow") as caller:
            task = await started(caller, heard, deadline_s=DEADLINE_S if way == "deadline" else None)
            if way == "cancel":
                caller.streams[0].cancel()
            elif way == "close":
                await caller.client.close()
            ended = await asyncio.gather(task, return_exceptions=True)
            made = stage.slow.stats().output_tokens
            if way == "deadline":
                assert "DEADLINE" in str(ended[0]) or "Deadline" in str(ended[0])
            while stage.slow.live():
                await asyncio.sleep(0.002)
            after = stage.slow.stats()
            assert after.output_tokens - made <= TOKENS_BEHIND_MAX
            assert after.finished_cancelled == before.finished_cancelled + 1

    run(scenario())


def test_stop_with_the_same_id_ends_the_request(stage: Any) -> None:
    quiet(stage)

    async def scenario() -> tuple[Heard, Heard, int, int]:
        heard = Heard()
        async with Caller(stage.triton.grpc, "slow") as caller:
            hold = asyncio.Event()
            inputs = ids_inputs([1, 2, 3], LONG, streaming=True)
            task = asyncio.create_task(caller.ask(inputs, heard, request_id="job", hold=hold))
            await asyncio.wait_for(heard.third.wait(), 30)
            stopper = await caller.ask(ids_inputs([1], 1, stop=True), request_id="job")
            made = stage.slow.stats().output_tokens
            while stage.slow.live():
                await asyncio.sleep(0.002)
            grown = stage.slow.stats().output_tokens - made
            hold.set()
            await task
            return heard, stopper, grown, len(heard.answers)

    heard, stopper, grown, answers = run(scenario())
    assert grown <= TOKENS_BEHIND_MAX
    assert (heard.errors, stopper.errors, stopper.answers) == ([], [], [])
    assert 3 <= answers < LONG


def test_stop_without_an_id_is_refused(stage: Any) -> None:
    async def scenario() -> Heard:
        async with Caller(stage.triton.grpc, "slow") as caller:
            return await caller.ask(ids_inputs([1], 1, stop=True))

    assert "stop: needs the id" in run(scenario()).errors[0]


def test_a_timeout_ends_the_request(stage: Any) -> None:
    quiet(stage)

    async def scenario() -> Heard:
        async with Caller(stage.triton.grpc, "slow") as caller:
            return await caller.ask(ids_inputs([1, 2, 3], LONG, streaming=True), timeout=1_000_000)

    heard = run(scenario())
    assert heard.errors == ["timeout: 1000000 us have passed"]
    assert 1 <= len(heard.answers) < LONG / 2
    quiet(stage)


def test_the_metrics_page_has_the_names_of_tensorrt_llm(stage: Any) -> None:
    quiet(stage)
    metric, slow = stage.triton.metric, {"model": "slow"}

    async def scenario() -> None:
        heard = Heard()
        async with Caller(stage.triton.grpc, "slow") as caller:
            task = await started(caller, heard)
            name = "nv_trt_llm_request_metrics"
            until(lambda: metric(name, request_type="active", **slow) == 1, "an active request")
            blocks = "nv_trt_llm_kv_cache_block_metrics"
            assert metric(blocks, kv_cache_block_type="max", **slow) == 8
            assert metric(blocks, kv_cache_block_type="tokens_per", **slow) == 16
            assert metric(blocks, kv_cache_block_type="used", **slow) >= 1
            caller.streams[0].cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            until(lambda: metric(name, request_type="active", **slow) == 0, "no active request")

    run(scenario())
    made = stage.slow.stats()
    until(lambda: metric("superinfer_output_tokens_total", **slow) == made.output_tokens, "the tokens made")
    assert metric("superinfer_rotations_total", direction="out", **slow) == made.rotations_out


def test_an_executor_that_is_away_is_told_and_found_again(stage: Any) -> None:
    async def scenario() -> Heard:
        async with Caller(stage.triton.grpc, "away") as caller:
            return await caller.ask(ids_inputs([1, 2, 3], 4))

    assert run(scenario()).errors != []
    up = lambda: stage.triton.metric("superinfer_executor_up", model="away")  # noqa: E731
    until(lambda: up() == 0, "the executor to be missed")
    with executor("--engine=pattern", f"--set=service.port={stage.away.rpartition(':')[2]}") as found:
        assert found.target == stage.away
        until(lambda: up() == 1, "the executor to be found")
        heard = run(scenario())
        assert heard.errors == []
        assert len(heard.all("output_ids")) == 7


def test_a_crashed_stub_takes_its_requests_with_it_and_is_repaired_by_unload_and_load(stage: Any) -> None:
    quiet(stage)
    before = stage.slow.stats()

    async def scenario() -> None:
        heard = Heard()
        async with Caller(stage.triton.grpc, "slow") as caller:
            task = await started(caller, heard)
            os.kill(stage.triton.stubs()["slow"], signal.SIGKILL)
            while stage.slow.live():  # the executor sees its client go
                await asyncio.sleep(0.002)
            assert stage.slow.stats().finished_cancelled == before.finished_cancelled + 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with Caller(stage.triton.grpc, "slow") as caller:
            broken = await caller.ask(ids_inputs([1, 2, 3], 4))
            assert broken.errors
            assert "slow" in broken.errors[0]
            await caller.client.unload_model("slow")
            deadline = time.monotonic() + 20
            while await caller.client.is_model_ready("slow") and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            await caller.client.load_model("slow")
            again = await caller.ask(ids_inputs([1, 2, 3], 4))
            assert again.errors == []
            assert len(again.all("output_ids")) == 7

    run(scenario())
