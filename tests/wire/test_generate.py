"""Generate and Abort over a real socket: streams, endings, statuses."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest

from superinfer_trt.core.request import FinishReason
from superinfer_trt.core.units import RequestId
from superinfer_trt.serve.errors import REQUEST_ID_HEADER, STATUS_OF_REFUSAL
from superinfer_trt.serve.pb import executor_pb2 as pb
from support.echo_service import LetterStream, LetterTokenizer
from support.wire import Said, request, run, say, serving, text_request, until
from unit.serve.test_mapping import REFUSED


def test_each_stream_gets_its_own_tokens_in_order() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            prompts = [[index % 250 + 1, index % 7 + 1, 5] for index in range(100)]
            calls = [wire.stub.Generate(request(*prompt, max_tokens=20)) for prompt in prompts]
            for prompt, said in zip(prompts, await asyncio.gather(*map(say, calls)), strict=True):
                assert said.code is grpc.StatusCode.OK
                assert said.token_ids == [prompt[n % 3] for n in range(20)]
                assert said.ending is not None
                assert said.ending.finish_reason == pb.FINISH_REASON_LENGTH
                assert said.ending.usage.prompt_tokens == 3
                assert said.ending.usage.output_tokens == 20
                assert 0 <= said.ending.timings.ttft_ms <= said.ending.timings.total_ms

    run(scenario())


def test_a_message_a_turn_while_the_reader_keeps_up() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            wire.service.driver.hold()
            call = wire.stub.Generate(request(9, 8, 7, max_tokens=3))
            await until(lambda: wire.server.calls.live == 1)
            seen: list[list[int]] = []
            for _ in range(3):
                wire.service.driver.step()
                seen.append(list((await call.read()).delta.token_ids))
            assert seen == [[9], [8], [7]]

    run(scenario())


def test_text_and_chat() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            said = await say(wire.stub.Generate(text_request("hey", max_tokens=7)))
            assert said.text == "heyheyh"
            chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="a")])
            said = await say(wire.stub.Generate(pb.GenerateRequest(chat=chat)))
            assert said.text.startswith("<user>a<user>a")
            assert said.ending is not None
            assert said.ending.usage.output_tokens == 128  # the server's default

    run(scenario())


class WatchedTokenizer(LetterTokenizer):
    """Remembers which thread it was used on."""

    def __init__(self) -> None:
        self.threads: list[bool] = []

    def encode(self, text: str) -> list[int]:
        self.threads.append(threading.current_thread() is threading.main_thread())
        return super().encode(text)


def test_a_long_text_is_mapped_off_the_loop() -> None:
    async def scenario() -> None:
        async with serving({"device_blocks": 1024, "context_tokens_max": 9000}) as wire:
            wire.service.tokenizer = watched = WatchedTokenizer()
            said = await say(wire.stub.Generate(text_request("ab", max_tokens=4)))
            assert said.text == "abab"
            said = await say(wire.stub.Generate(text_request("ab" * 4000, max_tokens=4)))
            assert said.text == "abab"
            assert watched.threads == [True, False]

    run(scenario())


def test_a_stop_string_ends_the_request_in_the_executor() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            driver = wire.service.driver
            driver.hold()
            call = wire.stub.Generate(text_request("hello world", max_tokens=900, stop=["o w", "zz"]))
            await call.initial_metadata()
            before = Said()
            for _ in "hello w":
                driver.step()
                before.take(await call.read())
            assert before.text == "hell"
            driver.step()  # the executor has been told by now, and makes no further token
            said = await say(call, before)
            assert (said.code, said.text) == (grpc.StatusCode.OK, "hell")
            assert said.ending is not None
            assert said.ending.matched_string == "o w"
            assert said.ending.finish_reason == pb.FINISH_REASON_STOP
            assert said.token_ids == [ord(letter) for letter in "hello w"]
            assert said.ending.usage.output_tokens == 7
            assert wire.service.executor.endings == {RequestId(0): FinishReason.STOP}
            assert wire.service.executor.totals.output_tokens == 7

    run(scenario())


def test_stop_ids_of_model_and_request() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            said = await say(wire.stub.Generate(request(5, 0, 6, max_tokens=9)))
            assert said.token_ids == [5, 0]  # 0 is the model's own
            assert said.ending is not None
            assert said.ending.matched_token_id == 0
            eager = request(5, 0, 6, max_tokens=9)
            eager.sampling.ignore_eos = True
            eager.sampling.stop_token_ids.append(6)
            said = await say(wire.stub.Generate(eager))
            assert said.token_ids == [5, 0, 6]
            assert said.text == "\x05\x00"

    run(scenario())


def test_log_probabilities_on_request() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            asking = request(5, 6, max_tokens=3)
            asking.sampling.logprobs = 2
            said = await say(wire.stub.Generate(asking))
            assert [len(one.top) for one in said.logprobs] == [2, 2, 2]
            assert said.logprobs[0].top[1].token_id == 6
            said = await say(wire.stub.Generate(request(5, 6, max_tokens=3)))
            assert said.logprobs == []

    run(scenario())


@pytest.mark.parametrize(
    ("length", "reason", "code", "message"),
    [
        (3, pb.FINISH_REASON_REJECTED, grpc.StatusCode.RESOURCE_EXHAUSTED, "never fits"),
        (4, pb.FINISH_REASON_FAILED, grpc.StatusCode.INTERNAL, "the engine broke"),
    ],
)
def test_rejected_and_failed_requests_get_an_ending_and_a_status(
    length: int, reason: int, code: grpc.StatusCode, message: str
) -> None:
    async def scenario() -> None:
        async with serving() as wire:
            executor = wire.service.executor
            executor.reject_prompts_of, executor.fail_prompts_of = 3, 4
            healthy = wire.stub.Generate(request(1, 2, max_tokens=50))
            said = await say(wire.stub.Generate(request(*[7] * length, max_tokens=50)))
            assert said.code is code
            assert said.ending is not None
            assert (said.ending.finish_reason, said.ending.message) == (reason, message)
            assert len(said.token_ids) == length - 3
            assert len((await say(healthy)).token_ids) == 50

    run(scenario())


def test_every_refusal_of_the_mapping_reaches_the_client() -> None:
    async def scenario() -> None:
        options = {"device_blocks": 4, "context_tokens_max": 100}
        async with serving(options) as wire:
            for name, message, code, field, _ in REFUSED:
                said = await say(wire.stub.Generate(message))
                assert said.code is STATUS_OF_REFUSAL[code], name
                assert said.trailers["superinfer-field"] == field, name
                assert said.trailers["superinfer-code"] == code.value, name
                assert field in said.details, name
            assert wire.service.executor.totals.accepted == 0
            stats = (await wire.stub.GetStats(pb.GetStatsRequest())).stats
            assert stats.refused == len(REFUSED)
            assert len((await say(wire.stub.Generate(request(1)))).token_ids) == 4

    run(scenario())


def test_text_without_a_tokenizer_is_unimplemented() -> None:
    async def scenario() -> None:
        async with serving({"text": False}) as wire:
            said = await say(wire.stub.Generate(text_request("a")))
            assert said.code is grpc.StatusCode.UNIMPLEMENTED
            assert said.trailers["superinfer-field"] == "text"
            assert (await say(wire.stub.Generate(request(1, 2)))).token_ids == [1, 2, 1, 2]

    run(scenario())


def test_what_the_engine_cannot_do_is_unimplemented_by_name() -> None:
    async def scenario() -> None:
        async with serving({"supports": frozenset()}) as wire:
            asked = {"min_p": 0.5, "presence_penalty": 1.0, "repetition_penalty": 2.0, "min_tokens": 2}
            for name, value in asked.items():
                message = request(1)
                setattr(message.sampling, name, value)
                said = await say(wire.stub.Generate(message))
                assert said.code is grpc.StatusCode.UNIMPLEMENTED
                assert said.trailers["superinfer-field"] == f"sampling.{name}"
                assert said.trailers["superinfer-code"] == "unsupported"
            message = request(1)
            message.sampling.repetition_penalty = 1.0
            assert (await say(wire.stub.Generate(message))).code is grpc.StatusCode.OK

    run(scenario())


def test_ids_of_requests() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            wire.service.driver.hold()
            first = wire.stub.Generate(request(1, request_id="mine"))
            assert dict(await first.initial_metadata())[REQUEST_ID_HEADER] == "mine"
            second = await say(wire.stub.Generate(request(1, request_id="mine")))
            assert second.code is grpc.StatusCode.ALREADY_EXISTS
            assert second.trailers["superinfer-field"] == "request_id"
            made = wire.stub.Generate(request(1))
            name = dict(await made.initial_metadata())[REQUEST_ID_HEADER]
            assert name.startswith("#")
            wire.service.driver.release()
            for call, told in ((first, "mine"), (made, name)):
                said = await say(call)
                assert said.ending is not None
                assert said.ending.request_id == told
            assert (await say(wire.stub.Generate(request(1, request_id="mine")))).code is grpc.StatusCode.OK

    run(scenario())


def test_abort_ends_a_live_request_with_status_ok() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            driver = wire.service.driver
            driver.hold()
            call = wire.stub.Generate(request(1, max_tokens=900, request_id="x"))
            await call.initial_metadata()
            driver.step(3)
            before = Said()
            before.take(await call.read())
            answer = await wire.stub.Abort(pb.AbortRequest(request_id="x"))
            assert answer.found
            driver.step(2)
            said = await say(call, before)
            assert said.code is grpc.StatusCode.OK
            assert said.ending is not None
            assert said.ending.finish_reason == pb.FINISH_REASON_CANCELLED
            assert not (await wire.stub.Abort(pb.AbortRequest(request_id="x"))).found
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await wire.stub.Abort(pb.AbortRequest())
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(scenario())


@pytest.mark.parametrize("how", ["cancel", "deadline", "vanish"])
def test_a_client_that_goes_away_ends_its_request(how: str) -> None:
    async def scenario() -> None:
        async with serving() as wire:
            driver, endings = wire.service.driver, wire.service.executor.endings
            driver.hold()
            async with grpc.aio.insecure_channel(wire.server.target) as channel:
                generate = channel.unary_stream(
                    "/superinfer.v1.ExecutorService/Generate",
                    request_serializer=pb.GenerateRequest.SerializeToString,
                    response_deserializer=pb.GenerateResponse.FromString,
                )
                call = generate(request(1, max_tokens=900), timeout=0.5 if how == "deadline" else None)
                await call.initial_metadata()
                driver.step(3)
                if how == "cancel":
                    call.cancel()
                elif how == "deadline":
                    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: wire.server.calls.live == 0, "the servicer's notice")
            assert len(wire.outbox) == 0
            driver.release()
            await until(lambda: endings == {RequestId(0): FinishReason.CANCELLED}, "the executor's notice")

    run(scenario())


class BrokenStream(LetterStream):
    """Fails at its second token."""

    def __init__(self) -> None:
        self.tokens = 0

    def push(self, token: int) -> str:
        self.tokens += 1
        if self.tokens == 2:
            raise RuntimeError("a path of this machine")
        return super().push(token)


def test_a_bug_in_one_stream_is_internal_and_stays_in_it(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving() as wire:
            assert wire.service.tokenizer is not None
            wire.service.tokenizer.stream = BrokenStream  # type: ignore[method-assign]
            said = await say(wire.stub.Generate(text_request("abc", max_tokens=900)))
            assert (said.code, said.details) == (grpc.StatusCode.INTERNAL, "internal error")
            endings = wire.service.executor.endings
            await until(lambda: endings)
            assert wire.server.calls.live == 0
            del wire.service.tokenizer.stream
            assert (await say(wire.stub.Generate(text_request("abc")))).text == "abca"

    run(scenario())
    assert "a call to Generate failed" in caplog.text
