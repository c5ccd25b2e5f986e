"""Generate and Abort of trtllm.TrtllmService over a real socket."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from superinfer_trt.core.request import FinishReason
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from support.described import described
from support.facade import Got, ask, facing, read, watch
from support.wire import request, run, say, until

FIELDS = Path(__file__).with_name("trtllm_fields.txt")
"""What gateways know; tests/gateway compares it with their own stubs."""
EOS = 3


def test_names_numbers_and_types_are_those_that_gateways_know() -> None:
    assert described(trt.DESCRIPTOR, "TrtllmService") == FIELDS.read_text()


def test_chunks_and_then_all_of_it() -> None:
    async def scenario() -> None:
        async with facing() as (_, stub):
            got = await read(stub.Generate(ask(9, 8, 7, max_tokens=5, request_id="a")))
            assert got.streamed == [9, 8, 7, 9, 8]
            assert got.ids == {"a"}
            assert [chunk.completion_tokens for chunk in got.chunks][-1] == 5
            assert {chunk.prompt_tokens for chunk in got.chunks} == {3}
            assert got.complete is not None
            assert list(got.complete.output_token_ids) == got.streamed
            assert got.complete.finish_reason == "length"
            assert got.complete.WhichOneof("matched_stop") is None
            assert (got.complete.prompt_tokens, got.complete.completion_tokens) == (3, 5)
            assert (got.complete.cached_tokens, got.complete.sequence_index) == (0, 0)
            assert not got.complete.HasField("perf_metrics")

    run(scenario())


def test_without_streaming_there_is_one_message() -> None:
    async def scenario() -> None:
        async with facing() as (_, stub):
            got = await read(stub.Generate(ask(9, 8, streaming=False)))
            assert got.chunks == []
            assert got.complete is not None
            assert list(got.complete.output_token_ids) == [9, 8, 9, 8]

    run(scenario())


def test_log_probabilities_and_times_if_asked_for() -> None:
    async def scenario() -> None:
        async with facing() as (_, stub):
            output = trt.OutputConfig(logprobs=2, return_perf_metrics=True)
            got = await read(stub.Generate(ask(9, 8, output_config=output)))
            assert got.complete is not None
            told = [one for chunk in got.chunks for one in chunk.logprobs]
            assert [one.token_id for one in told] == [9, 8, 9, 8]
            assert list(got.complete.logprobs) == told
            assert [(one.token_id, one.logprob) for one in told[1].top_logprobs] == [(8, -0.5), (9, -1.5)]
            times = got.complete.perf_metrics
            assert 0 == times.arrival_time <= times.first_token_time <= times.last_token_time < 60
            got = await read(stub.Generate(ask(9, output_config=trt.OutputConfig(logprobs=-1))))
            assert got.trailers["superinfer-field"] == "output_config.logprobs"

    run(scenario())


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("keeps", [True, False])
def test_what_stopped_it_is_told_and_kept_only_on_demand(streaming: bool, keeps: bool) -> None:
    async def scenario() -> None:
        async with facing() as (wire, stub):
            assert wire.service.model is not None
            wire.server.calls.bounds = replace(wire.server.calls.bounds, model_stop_ids=frozenset({EOS}))
            common_fields = {"streaming": streaming, "include_stop_token_in_output": keeps, "max_tokens": 9}
            got = await read(stub.Generate(ask(7, EOS, **common_fields)))
            assert got.complete is not None
            assert list(got.complete.output_token_ids) == ([7, EOS] if keeps else [7])
            assert got.streamed == (list(got.complete.output_token_ids) if streaming else [])
            assert (got.complete.finish_reason, got.complete.completion_tokens) == ("stop", 2)
            assert got.complete.WhichOneof("matched_stop") is None
            got = await read(stub.Generate(ask(7, 5, stop_token_ids=[5], **common_fields)))
            assert got.complete is not None
            assert list(got.complete.output_token_ids) == ([7, 5] if keeps else [7])
            assert (got.complete.finish_reason, got.complete.matched_token_id) == ("stop", 5)
            got = await read(stub.Generate(ask(7, EOS, ignore_eos=True, **common_fields)))
            assert got.complete is not None
            assert (got.complete.finish_reason, got.complete.completion_tokens) == ("length", 9)
            assert list(got.complete.output_token_ids)[:3] == [7, EOS, 7]

    run(scenario())


def test_a_stop_string_is_taken_off_the_whole_but_not_off_what_had_left() -> None:
    async def scenario() -> None:
        async with facing() as (_, stub):
            letters = [ord(letter) for letter in "hey you"]
            asked = ask(*letters, max_tokens=50, stop=["y y"])
            asked.output_config.logprobs = 0
            got = await read(stub.Generate(asked))
            assert got.complete is not None
            assert bytes(got.complete.output_token_ids) == b"he"
            assert len(got.complete.logprobs) == 2
            assert bytes(got.streamed) == b"hey y"
            assert (got.complete.finish_reason, got.complete.matched_stop_str) == ("stop", "y y")
            asked.include_stop_token_in_output = True
            got = await read(stub.Generate(asked))
            assert got.complete is not None
            assert bytes(got.complete.output_token_ids) == b"hey y"

    run(scenario())


NOT_DONE: dict[str, dict[str, Any]] = {
    "tokenized.query_token_ids": {"tokenized": trt.TokenizedInput(query_token_ids=[1])},
    "sampling_config.beam_width": {"sampling_config": trt.SamplingConfig(beam_width=2)},
    "sampling_config.num_return_sequences": {"sampling_config": trt.SamplingConfig(num_return_sequences=2)},
    "sampling_config.top_p_decay": {"sampling_config": trt.SamplingConfig(top_p_decay=0.5)},
    "sampling_config.top_p_reset_ids": {"sampling_config": trt.SamplingConfig(top_p_reset_ids=0)},
    "sampling_config.prompt_ignore_length": {"sampling_config": trt.SamplingConfig(prompt_ignore_length=1)},
    "sampling_config.no_repeat_ngram_size": {"sampling_config": trt.SamplingConfig(no_repeat_ngram_size=3)},
    "sampling_config.beam_width_array": {"sampling_config": trt.SamplingConfig(beam_width_array=[1, 2])},
    "output_config.prompt_logprobs": {"output_config": trt.OutputConfig(prompt_logprobs=1)},
    "output_config.return_context_logits": {"output_config": trt.OutputConfig(return_context_logits=True)},
    "output_config.return_generation_logits": {
        "output_config": trt.OutputConfig(return_generation_logits=True)
    },
    "output_config.return_encoder_output": {"output_config": trt.OutputConfig(return_encoder_output=True)},
    "guided_decoding": {"guided_decoding": trt.GuidedDecodingParams(guide_type=1)},
    "embedding_bias": {"embedding_bias": [0.5]},
    "lora_config": {"lora_config": trt.LoraConfig(task_id=7)},
    "prompt_tuning_config": {"prompt_tuning_config": trt.PromptTuningConfig(embedding_table=b"a")},
    "multimodal_input": {"multimodal_input": trt.MultimodalInput(image_data=[b"a"])},
    "kv_cache_retention": {"kv_cache_retention": trt.KvCacheRetentionConfig(policy="a")},
    "disaggregated_params": {"disaggregated_params": trt.DisaggregatedParams(request_type=1)},
    "lookahead_config": {"lookahead_config": trt.LookaheadConfig(max_window_size=2)},
    "bad": {"bad": ["word"]},
    "bad_token_ids": {"bad_token_ids": [4]},
}
WRONG: dict[str, dict[str, Any]] = {
    "stop[0]": {"stop": [""]},
    "stop_token_ids[0]": {"stop_token_ids": [256]},
    "sampling_config.temperature": {"sampling_config": trt.SamplingConfig(temperature=-1)},
    "sampling_config.top_p": {"sampling_config": trt.SamplingConfig(top_p=1.5)},
    "sampling_config.repetition_penalty": {"sampling_config": trt.SamplingConfig(repetition_penalty=0)},
    "output_config.logprobs": {"output_config": trt.OutputConfig(logprobs=21)},
}


def test_each_field_that_is_not_done_is_refused_by_its_name() -> None:
    async def scenario() -> None:
        async with facing() as (wire, stub):
            for name, fields in NOT_DONE.items():
                asked = ask(1, 2)
                asked.MergeFrom(trt.GenerateRequest(**fields))
                got = await read(stub.Generate(asked))
                assert got.code is grpc.StatusCode.INVALID_ARGUMENT, name
                assert (got.trailers["superinfer-field"], got.complete) == (name, None)
                assert got.details.startswith(name + ":")
            assert wire.server.calls.refused == len(NOT_DONE)

    run(scenario())


def test_each_limit_is_told_in_the_names_of_this_service() -> None:
    async def scenario() -> None:
        async with facing() as (_, stub):
            for name, fields in WRONG.items():
                asked = ask(1, 2)
                asked.MergeFrom(trt.GenerateRequest(**fields))
                got = await read(stub.Generate(asked))
                assert got.code is grpc.StatusCode.INVALID_ARGUMENT, name
                assert got.trailers["superinfer-field"] == name
            for ids in ([], [256], [1] * 4096):
                got = await read(stub.Generate(ask(*ids)))
                assert got.code is grpc.StatusCode.INVALID_ARGUMENT
                assert got.trailers["superinfer-field"] == "tokenized.input_token_ids"

    run(scenario())


def test_what_gateways_fill_in_asks_for_nothing() -> None:
    async def scenario() -> None:
        async with facing() as (wire, stub):
            seen = watch(wire)
            asked = ask(1, 2)
            asked.sampling_config.MergeFrom(
                trt.SamplingConfig(
                    beam_width=1, num_return_sequences=1, top_k=-1, top_p=1.0, top_p_min=0.1, top_p_decay=1.0,
                    top_p_reset_ids=-1, temperature=0.7, min_tokens=0, beam_search_diversity_rate=0.5,
                    repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, length_penalty=2.0,
                    early_stopping=1, no_repeat_ngram_size=1 << 30, min_p=0.0, beam_width_array=[1, 1],
                    prompt_ignore_length=0,
                )
            )  # fmt: skip
            asked.output_config.MergeFrom(trt.OutputConfig(prompt_logprobs=0, exclude_input_from_output=True))
            asked.lora_config.task_id = 0
            asked.guided_decoding.SetInParent()
            asked.disaggregated_params.SetInParent()
            asked.cache_salt_id, asked.arrival_time = 7, 1.5
            asked.tokenized.original_text = "ab"
            got = await read(stub.Generate(asked))
            assert got.details == ""
            assert got.streamed == [1, 2, 1, 2]
            assert seen[0].sampling.temperature == pytest.approx(0.7)
            assert (seen[0].sampling.top_k, seen[0].sampling.top_p) == (0, 1.0)

    run(scenario())


def test_sampling_as_tensorrt_llm_understands_it() -> None:
    async def scenario() -> None:
        async with facing() as (wire, stub):
            seen = watch(wire)
            for config in (
                {}, {"temperature": 0.0}, {"top_p": 0.0}, {"top_k": 5, "top_p": 0.5, "seed": 9},
            ):  # fmt: skip
                got = await read(stub.Generate(ask(1, 2, sampling_config=trt.SamplingConfig(**config))))
                assert got.complete is not None, got.details
            assert [one.sampling.temperature for one in seen] == [1.0, 0.0, 0.0, 1.0]
            last = seen[-1].sampling
            assert (last.top_k, last.top_p, last.seed) == (5, 0.5, 9)

    run(scenario())


def test_more_tokens_than_fit_are_what_fits() -> None:
    async def scenario() -> None:
        async with facing({"context_tokens_max": 12}) as (_, stub):
            got = await read(stub.Generate(ask(1, 2, max_tokens=2048)))
            assert got.complete is not None
            assert (got.complete.finish_reason, len(got.streamed)) == ("length", 10)
            got = await read(stub.Generate(ask(1, 2, max_tokens=0)))
            assert len(got.streamed) == 10

    run(scenario())


def test_abort_ends_it_as_cancelled() -> None:
    async def scenario() -> None:
        async with facing() as (wire, stub):
            wire.service.driver.hold()
            for name in ("gold.chat-1", "any id: ünicode, spaces / " + "x" * 200):
                call = stub.Generate(ask(5, 6, max_tokens=1000, request_id=name))
                await until(lambda: wire.server.calls.live == 1)
                got = Got()
                wire.service.driver.step()
                first = await call.read()
                got.chunks.append(first.chunk)
                told = await stub.Abort(trt.AbortRequest(request_id=name))
                assert (told.success, told.message) == (True, "the request is being ended")
                wire.service.driver.step()
                await read(call, got)
                assert got.complete is not None
                assert got.complete.finish_reason == "cancelled"
                assert first.request_id == name
                assert list(got.complete.output_token_ids) == got.streamed
                await until(lambda: wire.server.calls.live == 0)
            told = await stub.Abort(trt.AbortRequest(request_id="gone"))
            assert not told.success
            with pytest.raises(grpc.aio.AioRpcError) as wrong:
                await stub.Abort(trt.AbortRequest())
            assert wrong.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(scenario())


@pytest.mark.parametrize("streaming", [True, False])
def test_a_call_that_is_cancelled_ends_the_request(streaming: bool) -> None:
    async def scenario() -> None:
        async with facing() as (wire, stub):
            wire.service.driver.hold()
            call = stub.Generate(ask(5, 6, max_tokens=1000, streaming=streaming))
            await until(lambda: wire.server.calls.live == 1)
            wire.service.driver.step()
            await until(lambda: wire.service.executor.totals.output_tokens == 1)
            call.cancel()
            await until(lambda: wire.server.calls.live == 0)
            wire.service.driver.step()
            await until(lambda: wire.service.executor.endings)
            assert list(wire.service.executor.endings.values()) == [FinishReason.CANCELLED]
            assert wire.service.executor.totals.output_tokens <= 2

    run(scenario())


def test_bad_endings_are_statuses_before_which_nothing_is_complete() -> None:
    async def scenario() -> None:
        async with facing() as (wire, stub):
            wire.service.executor.reject_prompts_of = 2
            wire.service.executor.fail_prompts_of = 3
            got = await read(stub.Generate(ask(1, 2)))
            assert (got.code, got.complete) == (grpc.StatusCode.RESOURCE_EXHAUSTED, None)
            got = await read(stub.Generate(ask(1, 2, 3)))
            assert (got.code, got.complete, got.streamed) == (grpc.StatusCode.INTERNAL, None, [1])

    run(scenario())


def test_a_full_house_and_a_twin_are_refused() -> None:
    async def scenario() -> None:
        async with facing(requests_max=2) as (wire, stub):
            wire.service.driver.hold()
            first = stub.Generate(ask(1, max_tokens=2, request_id="a"))
            await until(lambda: wire.server.calls.live == 1)
            got = await read(stub.Generate(ask(1, request_id="a")))
            assert got.code is grpc.StatusCode.ALREADY_EXISTS
            second = wire.stub.Generate(request(1, max_tokens=2))  # the other service has the same places
            await until(lambda: wire.server.calls.live == 2)
            got = await read(stub.Generate(ask(1)))
            assert got.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            wire.service.driver.release()
            assert (await read(first)).complete is not None
            assert (await say(second)).token_ids == [1, 1]

    run(scenario())


def test_a_server_that_goes_away_says_so_and_nothing_is_complete() -> None:
    async def scenario() -> None:
        async with facing() as (wire, stub):
            assert (await stub.HealthCheck(trt.HealthCheckRequest())).status == "OK"
            wire.service.driver.hold()
            call = stub.Generate(ask(5, max_tokens=1000))
            await until(lambda: wire.server.calls.live == 1)
            wire.server.calls.drain()
            assert "draining" in (await stub.HealthCheck(trt.HealthCheckRequest())).status
            assert (await read(stub.Generate(ask(1)))).code is grpc.StatusCode.UNAVAILABLE
            wire.server.calls.cut()
            wire.service.driver.release()
            got = await read(call)
            assert (got.code, got.complete) == (grpc.StatusCode.UNAVAILABLE, None)
            wire.service.driver.kill()
            assert "ended" in (await stub.HealthCheck(trt.HealthCheckRequest())).status

    run(scenario())
