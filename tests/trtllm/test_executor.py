"""TrtllmExecutor over the fake LLM: tokens, aborts, errors, death; each request ends once (C3, C4)."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from superinfer_trt.core.errors import EngineFailed, RefusalCode, Refused
from superinfer_trt.core.outcome import Sampled
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, SECOND, RequestId
from superinfer_trt.trtllm.executor import TrtllmExecutor
from superinfer_trt.trtllm.llm_compat import failure_of, message_of
from superinfer_trt.trtllm.llm_request import TokenReader, ending_of, sampling_fields
from support.trtllm import llm as fake
from support.trtllm.llm_worker import LIMITS, Heard, make_executor, make_llm


@contextmanager
def running(llm: fake.LLM | None = None, **options: Any) -> Iterator[tuple[TrtllmExecutor, Heard, Any]]:
    heard = Heard()
    made = llm if llm is not None else make_llm()
    executor = make_executor(made, heard, **options)
    executor.start()
    try:
        yield executor, heard, made.backend
    finally:
        executor.close()
        totals = executor.totals
        assert totals.accepted == sum(totals.finished.values())
        assert executor.inbox.live == 0


def ask(executor: TrtllmExecutor, *prompt: int, **sampling: Any) -> RequestId:
    id = executor.inbox.next_id()
    executor.inbox.submit(Request(id, prompt, Sampling(**sampling), arrival=executor.clock.now()))
    return id


# -- the words of the two sides ----------------------------------------------------------------------


def test_greedy_asks_for_nothing_else() -> None:
    assert sampling_fields(Sampling(max_tokens=5, stop_ids=frozenset({9, 2}))) == {
        "max_tokens": 5,
        "temperature": 0.0,
        "seed": 0,
        "end_id": -1,
        "pad_id": -1,
        "ignore_eos": True,
        "stop_token_ids": [2, 9],
        "include_stop_str_in_output": True,
        "detokenize": False,
    }


def test_every_kind_of_sampling_has_its_upstream_field() -> None:
    fields = sampling_fields(
        Sampling(
            temperature=0.7,
            top_k=5,
            top_p=0.9,
            min_p=0.1,
            repetition_penalty=1.2,
            presence_penalty=0.3,
            frequency_penalty=0.4,
            min_tokens=2,
            seed=(1 << 64) - 1,
            logprobs=0,
        )
    )
    made = fake.SamplingParams(**fields)
    assert (made.temperature, made.top_k, made.top_p, made.min_p) == (0.7, 5, 0.9, 0.1)
    assert (made.repetition_penalty, made.presence_penalty, made.frequency_penalty) == (1.2, 0.3, 0.4)
    assert (made.seed, made.logprobs) == ((1 << 63) - 1, 1)
    assert made.min_tokens is None, "it would keep back an end id, and there is none"
    assert made.stop_token_ids is None


def test_a_growing_completion_is_read_once() -> None:
    reader = TokenReader(Sampling())
    completion = fake.CompletionOutput()
    assert reader.read(completion) == []
    completion.token_ids += [5, 6]
    assert [one.token for one in reader.read(completion)] == [5, 6]
    assert reader.read(completion) == []
    completion.token_ids.append(7)
    assert [one.token for one in reader.read(completion)] == [7]
    completion.token_ids = [5]  # a stop word that was cut off: what was said stays said
    assert reader.read(completion) == []
    assert reader.count == 3


def test_log_probabilities_are_ranked_and_the_chosen_one_is_found() -> None:
    reader = TokenReader(Sampling(logprobs=2))
    completion = fake.CompletionOutput(token_ids=[9], logprobs=[fake.chances(9, 2)])
    assert reader.read(completion) == [Sampled(9, -9.0, ((8, -0.5), (7, -1.5)))]
    plain = fake.CompletionOutput(token_ids=[9, 3, 4], logprobs=[{}, -0.25])  # type: ignore[list-item]
    first, second = reader.read(plain)
    assert first == Sampled(3, -0.25)
    assert math.isnan(second.logprob), "not given"


def test_endings() -> None:
    def ended(finish: str | None) -> tuple[FinishReason, str]:
        return ending_of(SimpleNamespace(finish_reason=finish))

    assert ended("stop") == (FinishReason.STOP, "")
    assert ended("length") == (FinishReason.LENGTH, "")
    assert ended("timeout") == (FinishReason.FAILED, "TensorRT-LLM ended the request: timeout")
    assert ended(None)[0] is FinishReason.FAILED


def test_messages_have_causes_and_no_stack() -> None:
    error = RuntimeError("Executor worker returned error")
    error.__cause__ = fake.CppExecutorError("CUDA is out of memory")
    assert message_of(error) == "Executor worker returned error: CUDA is out of memory"
    assert message_of(ValueError()) == "ValueError"


# -- one request -------------------------------------------------------------------------------------


def test_tokens_times_and_usage() -> None:
    with running() as (executor, heard, backend):
        before = executor.clock.now()
        id = executor.inbox.next_id()
        slo = Slo(2 * SECOND, 50 * MILLISECOND)
        executor.inbox.submit(Request(id, (4, 5, 6), Sampling(max_tokens=5), slo, before, "gold"))
        events = heard.wait(id, ended=True)
        assert [event.sampled.token for event in events if event.sampled] == [4, 5, 6, 4, 5]
        ending = events[-1].ending
        assert ending is not None
        assert (ending.reason, ending.prompt_tokens, ending.output_tokens) == (FinishReason.LENGTH, 3, 5)
        assert before == ending.arrival <= ending.first_token <= ending.last_token <= executor.clock.now()
        prompt, _, scheduling = backend.submitted[-1]
        assert prompt == [4, 5, 6]
        assert (scheduling.ttft_slo_s, scheduling.tbt_slo_s, scheduling.tenant) == (2.0, 0.05, "gold")
        assert executor.totals.output_tokens == 5
        assert executor.totals.finished == {FinishReason.LENGTH: 1}


def test_the_stop_token_is_in_the_stream() -> None:
    with running() as (executor, heard, _):
        events = heard.wait(ask(executor, 4, 5, 6, stop_ids=frozenset({6, 200})), ended=True)
        assert [event.sampled.token for event in events if event.sampled] == [4, 5, 6]
        assert events[-1].ending is not None
        assert events[-1].ending.reason is FinishReason.STOP


def test_log_probabilities_come_with_their_tokens() -> None:
    with running() as (executor, heard, _):
        events = heard.wait(ask(executor, 40, max_tokens=3, logprobs=1), ended=True)
        assert [event.sampled for event in events[:3]] == [Sampled(40, -9.0, ((39, -0.5),))] * 3


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.STOP])
def test_a_cancel_ends_at_once_with_its_reason_and_reaches_upstream(reason: FinishReason) -> None:
    with running() as (executor, heard, backend):
        id = ask(executor, 4, max_tokens=100_000)
        heard.wait(id, tokens=2)
        executor.inbox.cancel(id, reason)
        executor.inbox.cancel(id, FinishReason.CANCELLED)  # twice is once
        executor.inbox.cancel(RequestId(1 << 40))  # and a stranger is nobody
        ending = heard.wait(id, ended=True)[-1].ending
        assert ending is not None
        assert ending.reason is reason
        assert ending.output_tokens >= 2
        heard.wait(ask(executor, 5, max_tokens=1), ended=True)
        assert len(backend.aborted) == 1
        assert executor.inbox.live == 0


# -- what goes wrong ---------------------------------------------------------------------------------


def test_an_error_of_one_request_is_its_own() -> None:
    with running() as (executor, heard, backend):
        backend.fails_prompts_of = 2
        other = ask(executor, 7, max_tokens=50)
        failed = heard.wait(ask(executor, 4, 5), ended=True)[-1].ending
        assert failed is not None
        assert failed.reason is FinishReason.FAILED
        assert failed.message == "the request is too much for the engine"
        assert failed.output_tokens == 1
        ending = heard.wait(other, ended=True)[-1].ending
        assert ending is not None
        assert ending.reason is FinishReason.LENGTH
        assert executor.alive


def test_arguments_that_upstream_refuses_fail_that_request_only() -> None:
    with running(make_llm(enable_chunked_prefill=False, max_num_tokens=4)) as (executor, heard, _):
        ending = heard.wait(ask(executor, 1, 2, 3, 4, 5), ended=True)[-1].ending
        assert ending is not None
        assert ending.reason is FinishReason.FAILED
        assert "should not exceed 4" in ending.message
        assert heard.wait(ask(executor, 1, max_tokens=1), ended=True)[-1].index == -1
        assert executor.alive


def test_an_end_that_nobody_here_knows_is_a_failure() -> None:
    with running() as (executor, heard, backend):
        backend.breaks_prompts_of = 2
        ending = heard.wait(ask(executor, 4, 5), ended=True)[-1].ending
        assert ending is not None
        assert (ending.reason, ending.message) == (
            FinishReason.FAILED,
            "TensorRT-LLM ended the request: timeout",
        )


def test_a_worker_that_dies_in_silence_is_noticed_and_nobody_is_forgotten() -> None:
    llm = make_llm()
    with running(llm) as (executor, heard, backend):
        ids = [ask(executor, 4, max_tokens=100_000) for _ in range(20)]
        for id in ids:
            heard.wait(id, tokens=1)
        backend.holds.set()  # no answer will ever come that could bring the error along
        llm.worker.crash(fake.CppExecutorError("illegal memory access"))
        for id in ids:
            ending = heard.wait(id, ended=True)[-1].ending
            assert ending is not None
            assert (ending.reason, ending.message) == (FinishReason.FAILED, "illegal memory access")
        assert not executor.alive
        assert executor.failure == "illegal memory access"
        with pytest.raises(Refused) as refusal:
            ask(executor, 4)
        assert refusal.value.code is RefusalCode.DRAINING


def test_a_worker_that_hangs_is_noticed_by_its_silence() -> None:
    llm = make_llm()
    with running(llm, silence_max=SECOND // 2) as (executor, heard, _):
        id = ask(executor, 4, max_tokens=100_000)
        heard.wait(id, tokens=1)
        llm.worker.hang()
        ending = heard.wait(id, ended=True)[-1].ending
        assert ending is not None
        assert ending.reason is FinishReason.FAILED
        assert ending.message.startswith("no token of any request for")
        assert not executor.alive


def test_an_llm_that_was_shut_down_elsewhere_serves_nothing() -> None:
    llm = make_llm()
    with running(llm) as (executor, heard, _):
        id = ask(executor, 4, max_tokens=100_000)
        heard.wait(id, tokens=1)
        llm.shutdown()
        ending = heard.wait(id, ended=True)[-1].ending
        assert ending is not None
        assert ending.reason is FinishReason.FAILED
        assert not executor.alive


def test_a_worker_that_cannot_generate_does_not_start() -> None:
    llm = make_llm()
    llm.worker.crash(fake.CppExecutorError("no kernel image"))
    executor = make_executor(llm, Heard())
    with pytest.raises(EngineFailed, match="cannot generate: no kernel image"):
        executor.start()
    assert not executor.alive
    executor.close()


def test_a_slow_start_is_waited_for() -> None:
    llm = make_llm()
    llm.backend.holds.set()  # type: ignore[attr-defined]
    heard = Heard()
    executor = make_executor(llm, heard)
    id = ask(executor, 4, max_tokens=1)  # what comes early waits at the door
    starting = threading.Thread(target=executor.start)
    starting.start()
    while not llm.backend.submitted:  # type: ignore[attr-defined]
        threading.Event().wait(0.005)
    assert starting.is_alive(), "served before the first token was made"
    assert not heard.events
    llm.backend.holds.clear()  # type: ignore[attr-defined]
    starting.join(30)
    heard.wait(id, ended=True)
    executor.close()


def test_what_shows_a_death() -> None:
    executor = SimpleNamespace(is_shutdown=lambda: False)
    llm = SimpleNamespace(_executor=executor)
    assert failure_of(llm) == ""
    executor.mpi_futures = [SimpleNamespace(done=lambda: False), SimpleNamespace(done=lambda: True)]
    assert failure_of(llm) == "a worker process has ended"
    executor.mpi_futures = []
    executor.engine = SimpleNamespace(is_shutdown=True)
    assert failure_of(llm) == "the worker's loop has ended"
    executor.engine.is_shutdown = False
    llm._check_health = lambda: False
    assert failure_of(llm) == "the LLM says that it is not healthy"
    executor._fatal_error = RuntimeError("NCCL")
    assert failure_of(llm) == "NCCL"
    assert failure_of(SimpleNamespace(_executor=None)) == "the LLM has been shut down"


# -- the whole ---------------------------------------------------------------------------------------


def test_the_inbox_is_bounded_and_places_come_back() -> None:
    with running(requests_max=2) as (executor, heard, backend):
        backend.holds.set()
        ids = [ask(executor, 4, max_tokens=1) for _ in range(2)]
        with pytest.raises(Refused) as refusal:
            ask(executor, 4)
        assert refusal.value.code is RefusalCode.QUEUE_FULL
        backend.holds.clear()
        for id in ids:
            heard.wait(id, ended=True)
        heard.wait(ask(executor, 4, max_tokens=1), ended=True)


def test_closing_ends_everybody_once_and_the_llm_with_them() -> None:
    llm = make_llm()
    with running(llm) as (executor, heard, _):
        ids = [ask(executor, 4, max_tokens=100_000) for _ in range(5)]
        executor.close()
        executor.close()
        endings = [heard.wait(id, ended=True)[-1].ending for id in ids]
        assert {ending.reason for ending in endings if ending} == {FinishReason.FAILED}
        assert llm._executor is None
        assert not executor.alive


@pytest.mark.parametrize("seed", range(4))
def test_random_lives_end_once_each(seed: int) -> None:
    """Cancels from other threads, failures and stops among them; `Heard` checks every stream."""
    random = Random(seed)
    with running() as (executor, heard, backend):
        backend.fails_prompts_of = 3
        ids: dict[RequestId, Request] = {}
        for _ in range(150):
            prompt = tuple(random.randrange(1, 250) for _ in range(random.randint(1, 5)))
            stops = frozenset({prompt[-1]}) if random.random() < 0.3 else frozenset[int]()
            sampling = Sampling(max_tokens=random.randint(1, 30), stop_ids=stops)
            id = executor.inbox.next_id()
            ids[id] = request = Request(id, prompt, sampling)
            executor.inbox.submit(request)
            if random.random() < 0.3:
                executor.inbox.cancel(random.choice(list(ids)))
        reasons = Counter[FinishReason]()
        for id, request in ids.items():
            events = heard.wait(id, ended=True)
            said = [event.sampled.token for event in events if event.sampled]
            cycle = [request.prompt[at % len(request.prompt)] for at in range(len(said))]
            assert said == cycle
            assert events[-1].ending is not None
            reasons[events[-1].ending.reason] += 1
        assert set(reasons) == {
            FinishReason.LENGTH,
            FinishReason.STOP,
            FinishReason.CANCELLED,
            FinishReason.FAILED,
        }
        assert executor.totals.finished == dict(reasons)


def test_numbers_without_statistics_are_those_of_the_requests() -> None:
    with running() as (executor, heard, backend):
        id = ask(executor, 4, max_tokens=100_000)
        heard.wait(id, tokens=1)
        backend.holds.set()
        silent = ask(executor, 5)
        while executor.snapshot().waiting == 0:
            threading.Event().wait(0.005)
        now = executor.snapshot()
        assert (now.waiting, now.decode, now.rotary) == (1, 1, 0)
        assert (now.device_free, now.device_total) == (LIMITS.device_blocks, LIMITS.device_blocks)
        assert now.waiting_age > 0
        assert executor.limits == LIMITS
        executor.inbox.cancel(id)
        executor.inbox.cancel(silent)


def test_statistics_of_the_worker_are_believed() -> None:
    with running(make_llm(enable_iter_perf_stats=True)) as (executor, _, __):
        now = executor.snapshot()
        assert (now.device_free, now.device_total) == (64, 64)
        assert executor.limits.block_tokens == 16
        assert executor.totals.turns >= 1
