"""trtllm.TrtllmService over a real socket, through stubs of our own text of the proto."""

from __future__ import annotations

import asyncio
import hashlib
import io
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.serve.pb import trtllm_common_pb2 as common
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from superinfer_trt.serve.pb.trtllm_service_pb2_grpc import TrtllmServiceStub
from support.described import described
from support.wire import Wire, request, run, say, serving, until

FIELDS = Path(__file__).with_name("trtllm_fields.txt")
"""What gateways know; tests/gateway compares it with their own stubs."""
EOS = 3


@dataclass
class Got:
    """All that a call to Generate brought."""

    chunks: list[trt.GenerateStreamChunk] = field(default_factory=list)
    complete: trt.GenerateComplete | None = None
    ids: set[str] = field(default_factory=set)
    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    trailers: dict[str, Any] = field(default_factory=dict)

    @property
    def streamed(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]


async def read(call: Any, got: Got | None = None) -> Got:
    got = got if got is not None else Got()
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            assert got.complete is None, "nothing comes behind `complete`"
            got.ids.add(response.request_id)
            if response.HasField("chunk"):
                got.chunks.append(response.chunk)
            else:
                got.complete = response.complete
    except grpc.aio.AioRpcError as error:
        got.code, got.details = error.code(), error.details() or ""
        got.trailers = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
    return got


@asynccontextmanager
async def facing(service: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[tuple[Wire, Any]]:
    async with serving(service, **options) as wire:
        yield wire, TrtllmServiceStub(wire.channel)


def ask(*ids: int, max_tokens: int = 4, **fields: Any) -> trt.GenerateRequest:
    fields.setdefault("streaming", True)
    return trt.GenerateRequest(
        tokenized=trt.TokenizedInput(input_token_ids=ids), max_tokens=max_tokens, **fields
    )


def watch(wire: Wire) -> list[Request]:
    """The requests that reach the executor from now on."""
    seen: list[Request] = []
    submit = wire.service.inbox.submit
    wire.service.inbox.submit = lambda one: (seen.append(one), submit(one))[1]  # type: ignore[method-assign]
    return seen


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


def slo(ttft_ms: float, tbt_ms: float) -> Slo:
    return Slo(round(ttft_ms * MILLISECOND), round(tbt_ms * MILLISECOND))


def test_objectives_by_metadata_and_by_class() -> None:
    async def scenario() -> None:
        default = slo(5000, 100)
        async with facing(slo_classes={"gold": slo(500, 50)}, default_slo=default) as (wire, stub):
            seen = watch(wire)
            told = (
                ("superinfer-ttft-slo-ms", "750.5"),
                ("superinfer-tenant", "acme"),
                ("openengine-priority", "7"),
            )
            for name, metadata in (
                ("plain", ()), ("gold.1", ()), ("gold.2", told), ("goldfish.3", told), ("gold", ()),
                ("a.gold.b", ()),
            ):  # fmt: skip
                got = await read(stub.Generate(ask(1, request_id=name), metadata=metadata))
                assert got.code is grpc.StatusCode.OK, got.details
            assert [one.slo for one in seen] == [
                default, slo(500, 50), slo(750.5, 50), slo(750.5, 100), default, default,
            ]  # fmt: skip
            assert [one.tenant for one in seen] == ["", "", "acme", "acme", "", ""]
            for value in ("soon", "nan", "0", "-1"):
                wrong = (("superinfer-tbt-slo-ms", value),)
                got = await read(stub.Generate(ask(1), metadata=wrong))
                assert got.code is grpc.StatusCode.INVALID_ARGUMENT
                assert "tbt" in got.trailers["superinfer-field"]
            assert wire.server.calls.refused == 4

    run(scenario())


def test_the_executor_service_takes_the_same_metadata_where_the_message_says_nothing() -> None:
    async def scenario() -> None:
        async with serving(default_slo=slo(5000, 100), slo_classes={"gold": slo(500, 50)}) as wire:
            seen = watch(wire)
            told = (
                ("superinfer-ttft-slo-ms", "750"),
                ("superinfer-tbt-slo-ms", "75"),
                ("superinfer-tenant", "m"),
            )
            asked = request(1, tenant="own", request_id="gold.1")
            asked.slo.tbt_ms = 20
            for one in (asked, request(1)):
                said = await say(wire.stub.Generate(one, metadata=told))
                assert said.code is grpc.StatusCode.OK
            assert [one.slo for one in seen] == [slo(750, 20), slo(750, 75)]
            assert [one.tenant for one in seen] == ["own", "m"]
            said = await say(wire.stub.Generate(request(1), metadata=(("superinfer-ttft-slo-ms", "x"),)))
            assert (said.code, said.trailers["superinfer-field"]) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "superinfer-ttft-slo-ms",
            )

    run(scenario())


def test_what_is_served() -> None:
    async def scenario() -> None:
        async with facing(model_name="served") as (_, stub):
            info = await stub.GetModelInfo(trt.GetModelInfoRequest())
            assert (info.model_id, info.vocab_size, info.max_batch_size) == ("served", 256, 64)
            assert (info.max_seq_len, info.max_input_len) == (1024, 1023)  # the HBM pool: 64 blocks of 16
            assert "stop_strings" in info.supported_features
            server = await stub.GetServerInfo(trt.GetServerInfoRequest())
            assert (server.backend, server.world_size) == ("superinfer-echo", 1)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Embed(trt.EmbedRequest())
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        async with facing({"text": False}) as (_, stub):
            info = await stub.GetModelInfo(trt.GetModelInfoRequest())
            assert (info.model_id, "stop_strings" in info.supported_features) == ("echo", False)

    run(scenario())


def test_the_tokenizer_comes_in_pieces_and_whole() -> None:
    async def scenario() -> None:
        async with facing() as (wire, stub):
            assert wire.service.tokenizer is not None
            kept = {"a.json": b"{}", "b.bin": hashlib.shake_256(b"").digest(1_200_000)}  # does not compress
            wire.service.tokenizer.files = lambda: kept
            archives = []
            for _ in range(2):
                pieces = [piece async for piece in stub.GetTokenizer(common.GetTokenizerRequest())]
                whole = b"".join(piece.data for piece in pieces)
                assert [piece.sha256 for piece in pieces[:-1]] == [""] * 2
                assert pieces[-1].sha256 == hashlib.sha256(whole).hexdigest()
                archives.append(whole)
            assert archives[0] == archives[1]
            with zipfile.ZipFile(io.BytesIO(archives[0])) as archive:
                assert {name: archive.read(name) for name in archive.namelist()} == kept
        async with facing({"text": False}) as (_, stub):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetTokenizer(common.GetTokenizerRequest()).read()
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(scenario())


def test_load_comes_at_once_and_again() -> None:
    async def scenario() -> None:
        async with facing() as (wire, stub):
            wire.service.driver.hold()
            running = stub.Generate(ask(1, max_tokens=2))
            await until(lambda: wire.server.calls.live == 1)
            wire.service.driver.step()
            await running.read()
            call = stub.SubscribeKvEvents(common.SubscribeKvEventsRequest())
            first, second = await call.read(), await call.read()
            for at, batch in enumerate((first, second), start=1):
                assert (batch.sequence_number, len(batch.events)) == (0, 0)
                assert (batch.load.sample, batch.load.load_only) == (at, True)
                assert (batch.load.running_requests, batch.load.waiting_requests) == (1, 0)
                assert (batch.load.max_running_requests, batch.load.max_total_num_tokens) == (64, 1024)
            assert second.load.gen_throughput == 0
            call.cancel()
            other = stub.SubscribeKvEvents(common.SubscribeKvEventsRequest())
            await other.read()
            wire.service.driver.release()
            await read(running)
            stopping = asyncio.create_task(wire.server.stop())
            while await other.read() is not grpc.aio.EOF:
                pass
            await stopping

    run(scenario())


def test_who_was_rotated_out_waits() -> None:
    async def scenario() -> None:
        async with facing() as (wire, stub):
            seen = wire.service.executor.snapshot()
            wire.service.executor.snapshot = lambda: replace(
                seen, waiting=3, prefill=2, decode=5, rotating_out=1, rotary=7, rotating_in=2, device_free=16
            )
            load = (await stub.SubscribeKvEvents(common.SubscribeKvEventsRequest()).read()).load
            assert (load.running_requests, load.waiting_requests) == (7, 13)
            assert (load.queues.waiting, load.queues.paused) == (3, 10)
            assert (load.token_usage, load.num_used_tokens) == (0.75, 48 * 16)

    run(scenario())


def test_it_can_be_left_out() -> None:
    async def scenario() -> None:
        async with facing(facade=False) as (_, stub):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.HealthCheck(trt.HealthCheckRequest())
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(scenario())
