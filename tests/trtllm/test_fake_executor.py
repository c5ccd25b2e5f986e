"""The fake worker itself: stock schedules, stock tokens, and that its traps work.

The table of schedules is the behaviour of TensorRT-LLM's capacity and micro-batch schedulers as read from its
source: 32 tokens a block, 8192 tokens a step, batches of 8 unless said.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from support.trtllm.executor import PyExecutor
from support.trtllm.gpu import Stream, expected_output
from support.trtllm.kv import KvImpl
from support.trtllm.request import LlmRequest, LlmRequestState
from support.trtllm.scheduling import (
    CapacityPolicy,
    ChunkingPolicy,
    SimpleScheduler,
    StockCapacityScheduler,
    StockMicroBatchScheduler,
)
from support.trtllm.worker import END_ID, WorkerShape, make_requests, make_worker

NO_EVICT, MAX_UTIL, STATIC = (
    CapacityPolicy.GUARANTEED_NO_EVICT,
    CapacityPolicy.MAX_UTILIZATION,
    CapacityPolicy.STATIC_BATCH,
)
FCFS, EQUAL = ChunkingPolicy.FIRST_COME_FIRST_SERVED, ChunkingPolicy.EQUAL_PROGRESS


@dataclass(frozen=True)
class Asked:
    """A request of a case: prompt, most new tokens, tokens in KV if it runs."""

    prompt: int
    new: int
    running: int = 0
    completing: bool = False


TWO_AND_ONE = (Asked(64, 128, 128), Asked(64, 128, 128), Asked(256, 64))
LONG_FIRST = (Asked(512, 64), Asked(32, 32))
WAITING_FIRST = (Asked(256, 64), *[Asked(64, 64, 64)] * 3)
CHUNKS = (Asked(64, 64, 64), Asked(80, 16), Asked(80, 16))
THREE = (Asked(64, 64, 64),) * 3
COMPLETING = (Asked(64, 64, 64, completing=True), Asked(64, 64))

# name -> requests, policy, blocks, options, (generation, context with chunk lengths, paused)
SCHEDULES = {
    "no evict holds what would not complete": (TWO_AND_ONE, NO_EVICT, 20, {}, ("12", {}, "")),
    "no evict admits what completes": (TWO_AND_ONE, NO_EVICT, 22, {}, ("12", {3: 256}, "")),
    "max utilization, 18": (TWO_AND_ONE, MAX_UTIL, 18, {}, ("12", {3: 256}, "")),
    "max utilization, 20": (TWO_AND_ONE, MAX_UTIL, 20, {}, ("12", {3: 256}, "")),
    "max utilization, 10": (TWO_AND_ONE, MAX_UTIL, 10, {}, ("12", {}, "")),
    "max utilization pauses, 9": (TWO_AND_ONE, MAX_UTIL, 9, {}, ("1", {}, "2")),
    "max utilization pauses, 8": (TWO_AND_ONE, MAX_UTIL, 8, {}, ("1", {}, "2")),
    "head of line, no evict": (LONG_FIRST, NO_EVICT, 10, {}, ("", {}, "")),
    "head of line, max utilization": (LONG_FIRST, MAX_UTIL, 10, {}, ("", {}, "")),
    "a waiting first takes from the last": (WAITING_FIRST, MAX_UTIL, 12, {}, ("2", {1: 256}, "43")),
    "chunks, first come": (CHUNKS, NO_EVICT, 64, {"tokens": 100, "chunk": FCFS}, ("1", {2: 80}, "")),
    "chunks, equal": (CHUNKS, NO_EVICT, 64, {"tokens": 100, "chunk": EQUAL}, ("1", {2: 64, 3: 32}, "")),
    "static batch waits": ((THREE[0], Asked(64, 64)), STATIC, 64, {}, ("1", {}, "")),
    "static batch, idle": ((Asked(64, 64), Asked(64, 64)), STATIC, 64, {}, ("", {1: 64, 2: 64}, "")),
    "a request limit destroys KV": (THREE, MAX_UTIL, 64, {"limit": 2}, ("12", {}, "3")),
    "completing: fits, not batched": (COMPLETING, MAX_UTIL, 64, {}, ("", {2: 64}, "")),
}


def running(impl: KvImpl, id: int, asked: Asked) -> LlmRequest:
    request = LlmRequest(id, [1] * asked.prompt, asked.new)
    if asked.running:
        impl.add_sequence(id, asked.running, 1)
        request.context_current_position = asked.prompt
        for _ in range(asked.running - asked.prompt):
            request.add_new_token(1)
        request.state = LlmRequestState.GENERATION_IN_PROGRESS
    if asked.completing:
        request.state = LlmRequestState.GENERATION_TO_COMPLETE
    return request


@pytest.mark.parametrize("name", SCHEDULES)
def test_stock_schedules_are_the_known_ones(name: str) -> None:
    asked, policy, blocks, options, (generation, context, paused) = SCHEDULES[name]
    impl = KvImpl(blocks, 32, Stream())
    requests = [running(impl, id, one) for id, one in enumerate(asked, 1)]
    chunking = (options["chunk"], 32) if "chunk" in options else None
    scheduler = SimpleScheduler(
        StockCapacityScheduler(options.get("limit", 8), impl, policy),
        StockMicroBatchScheduler(8, options.get("tokens", 8192), chunking),
    )
    output = scheduler.schedule_request(requests, set())
    assert "".join(str(r.request_id) for r in output.generation_requests) == generation
    assert {r.request_id: r.context_chunk_size for r in output.context_requests} == context
    assert "".join(str(r.request_id) for r in output.paused_requests) == paused


def test_a_running_request_without_sequence_breaks_max_utilization_only() -> None:
    impl = KvImpl(16, 32, Stream())
    request = running(impl, 1, Asked(64, 64, 64))
    impl.remove_sequence(1)
    assert StockCapacityScheduler(8, impl, NO_EVICT).schedule_request([request]) == ([request], [], [])
    with pytest.raises(KeyError):
        StockCapacityScheduler(8, impl, MAX_UTIL).schedule_request([request])


def drain(worker: PyExecutor, steps_max: int = 3000) -> None:
    for _ in range(steps_max):
        if worker.idle:
            return
        worker.step()
    raise AssertionError("not drained")


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("policy", [NO_EVICT, MAX_UTIL])
@pytest.mark.parametrize("chunk_unit", [0, 4])
def test_stock_workers_say_what_the_model_says(
    overlap: bool, policy: CapacityPolicy, chunk_unit: int
) -> None:
    pauses = 0
    for seed in range(6):
        shape = WorkerShape(blocks=16, overlap=overlap, chunk_unit=chunk_unit, seed=seed, eager=seed / 10)
        worker = make_worker(shape, policy)
        requests = make_requests(12, seed)
        for request in requests:
            worker.enqueue(request)
        drain(worker)
        for request in requests:
            prompt = request.get_tokens(0)[: request.orig_prompt_len]
            limit = request.py_max_new_tokens
            assert request.output == expected_output(prompt, limit, END_ID)
        assert worker.kv_cache_manager.impl.sequences == set()
        pauses += sum(request.pauses for request in requests)
    assert (pauses > 0) == (policy is MAX_UTIL), "recomputation belongs to one policy only"


def test_who_is_left_out_and_keeps_its_batch_index_resumes_one_position_off() -> None:
    """The trap of the overlap loop: the host knows the token by then, the device path assumes it does not."""

    def second_token(*, cleared: bool) -> list[int]:
        worker = make_worker(WorkerShape(blocks=16))
        request = LlmRequest(1, [3, 4, 5], 6)
        worker.enqueue(request)
        worker.step()
        capacity = worker.scheduler.capacity_scheduler
        scheduled = capacity.schedule_request
        capacity.schedule_request = lambda active: ([], [], [])
        worker.step()
        if cleared:
            request.py_batch_idx = None
        capacity.schedule_request = scheduled
        drain(worker)
        return request.output

    right = expected_output([3, 4, 5], 6)
    assert second_token(cleared=True) == right
    assert second_token(cleared=False) != right
