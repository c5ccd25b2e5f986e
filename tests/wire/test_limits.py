"""Too many, too slow, going away: bounded, answered, and nothing lost (C3)."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.request import FinishReason
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.server import Server, ServerOptions
from superinfer_trt.serve.streams import StreamOutbox
from support.wire import Said, Wire, request, run, say, serving, until


def test_ten_thousand_at_once_are_bounded_and_none_is_lost() -> None:
    """The excess is told to come again; whoever was taken gets every token."""
    count, limit = 10_000, 256

    async def scenario() -> None:
        async with serving(requests_max=limit) as wire:
            wire.service.driver.hold()
            refused: list[Said] = []

            async def one(index: int) -> Said:
                said = await say(wire.stub.Generate(request(index % 255 + 1, max_tokens=5)))
                if said.code is not grpc.StatusCode.OK:
                    refused.append(said)
                return said

            tasks = [asyncio.create_task(one(index)) for index in range(count)]
            await until(lambda: len(refused) == count - limit, "the refusals")
            assert wire.server.calls.live == limit
            wire.service.driver.release()
            answers = await asyncio.gather(*tasks)
            codes = Counter(said.code for said in answers)
            assert codes == {grpc.StatusCode.OK: limit, grpc.StatusCode.RESOURCE_EXHAUSTED: count - limit}
            for index, said in enumerate(answers):
                if said.code is grpc.StatusCode.OK:
                    assert said.token_ids == [index % 255 + 1] * 5
                    assert said.ending is not None
            assert Counter(wire.service.executor.endings.values()) == {FinishReason.LENGTH: limit}
            said = await say(wire.stub.Generate(request(1)))  # and there is room again
            assert said.code is grpc.StatusCode.OK

    run(scenario())


def test_a_full_inbox_is_told_apart_by_its_trailer() -> None:
    async def scenario() -> None:
        async with serving({"requests_max": 2}) as wire:
            wire.service.driver.hold()
            live = [wire.stub.Generate(request(1)) for _ in range(2)]
            for call in live:
                await call.initial_metadata()
            said = await say(wire.stub.Generate(request(1)))
            assert said.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert said.trailers["superinfer-code"] == "queue_full"
            wire.service.driver.release()
            for call in live:
                assert (await say(call)).code is grpc.StatusCode.OK

    run(scenario())


def heavy(max_tokens: int) -> pb.GenerateRequest:
    """A request whose answer is larger than any flow-control window."""
    made = request(*range(1, 20), max_tokens=max_tokens)
    made.sampling.logprobs = 20
    return made


def test_a_slow_reader_costs_the_others_nothing() -> None:
    async def scenario() -> None:
        options = {"device_blocks": 1024, "context_tokens_max": 16_000}
        async with serving(options) as wire, tight_channel(wire) as channel:
            generate = generate_on(channel)
            slow = generate(heavy(3000))
            await slow.initial_metadata()
            fast = await asyncio.gather(*(say(wire.stub.Generate(heavy(1000))) for _ in range(4)))
            assert all(len(said.token_ids) == 1000 for said in fast)
            endings = wire.service.executor.endings
            await until(lambda: len(endings) == 5, "the executor, which waits for no reader")
            assert wire.server.calls.live == 1
            said = await say(slow)
            assert len(said.token_ids) == 3000
            assert said.token_ids[:3] == [1, 2, 3]
            assert said.messages < 3000  # what piled up came together
            assert said.ending is not None

    run(scenario())


def test_a_reader_that_takes_nothing_is_ended() -> None:
    async def scenario() -> None:
        options = {"device_blocks": 1024, "context_tokens_max": 16_000}
        async with serving(options, reader_timeout_s=0.3) as wire, tight_channel(wire) as channel:
            call = generate_on(channel)(heavy(6000))
            await call.initial_metadata()
            await until(lambda: wire.server.calls.live == 0, "the end of the stalled call")
            assert len(wire.outbox) == 0
            said = await say(call)
            assert said.code is grpc.StatusCode.ABORTED
            assert 0 < len(said.token_ids) < 6000
            assert (await say(wire.stub.Generate(request(1)))).code is grpc.StatusCode.OK

    run(scenario())


def tight_channel(wire: Wire) -> grpc.aio.Channel:
    """One connection of its own, whose window does not grow."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(wire.server.target, options=options)


def generate_on(channel: grpc.aio.Channel) -> grpc.aio.UnaryStreamMultiCallable:  # type: ignore[type-arg]
    return channel.unary_stream(
        "/superinfer.v1.ExecutorService/Generate",
        request_serializer=pb.GenerateRequest.SerializeToString,
        response_deserializer=pb.GenerateResponse.FromString,
    )


def test_draining_lets_live_requests_finish_and_refuses_new_ones() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            wire.service.driver.hold()
            call = wire.stub.Generate(request(1, max_tokens=300))
            await call.initial_metadata()
            drain = asyncio.create_task(wire.server.drain(20))
            await until(lambda: not wire.server.calls.serving)
            late = await say(wire.stub.Generate(request(1)))
            assert late.code is grpc.StatusCode.UNAVAILABLE
            assert late.trailers["superinfer-code"] == "draining"
            check = health_pb2_grpc.HealthStub(wire.channel).Check
            status = (await check(health_pb2.HealthCheckRequest())).status
            assert status == health_pb2.HealthCheckResponse.NOT_SERVING
            wire.service.driver.release()
            said = await say(call)
            assert (said.code, len(said.token_ids)) == (grpc.StatusCode.OK, 300)
            assert await drain

    run(scenario())


def test_what_is_not_finished_in_time_is_cut_with_an_ending() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            driver = wire.service.driver
            driver.hold()
            call = wire.stub.Generate(request(1, max_tokens=900))
            await call.initial_metadata()
            driver.step(3)
            before = Said()
            before.take(await call.read())
            drain = asyncio.create_task(wire.server.drain(0.05))
            await until(lambda: wire.server.calls._cut, "the cut")
            driver.step(3)
            said = await say(call, before)
            assert said.code is grpc.StatusCode.UNAVAILABLE
            assert said.ending is not None
            assert said.ending.finish_reason == pb.FINISH_REASON_CANCELLED
            assert not await drain

    run(scenario())


def test_a_port_in_use_is_a_configuration_error() -> None:
    async def scenario() -> None:
        async with serving() as wire:
            outbox = StreamOutbox(asyncio.get_running_loop())
            second = Server(wire.service, outbox, ServerOptions(port=wire.server.port))
            with pytest.raises(ConfigError, match=r"service\.port: .*in use"):
                await second.start()
            await second.stop()
            third = Server(wire.service, outbox, ServerOptions(host="no.such.host.invalid"))
            with pytest.raises(ConfigError, match=r"service\.host"):
                await third.start()
            await third.stop()
            assert (await say(wire.stub.Generate(request(1)))).code is grpc.StatusCode.OK

    run(scenario())


@pytest.mark.parametrize("seed", range(8))
def test_unruly_clients(seed: int) -> None:
    """Clients that open, read slowly, cancel, abort, vanish and use ids again, all at once; `serving`
    looks afterwards that no stream is open and each accepted request has ended once (C2, C3, C4)."""
    source = random.Random(seed)

    async def client(wire: Wire, name: str) -> None:
        for _ in range(source.randint(1, 6)):
            ids = [source.randint(1, 255) for _ in range(source.randint(1, 5))]
            count = source.randint(1, 60)
            id = name if source.random() < 0.5 else ""
            call = wire.stub.Generate(request(*ids, max_tokens=count, request_id=id))
            habit = source.random()
            if habit < 0.2:
                await asyncio.sleep(source.random() * 0.01)
                call.cancel()
                continue
            if habit < 0.3:
                await wire.stub.Abort(pb.AbortRequest(request_id=name))
            elif habit < 0.5:
                await asyncio.sleep(0.01)
            if habit < 0.6:
                del call  # vanishes without a word
                continue
            said = await say(call)
            if said.code is grpc.StatusCode.OK and said.ending is not None:
                assert said.ending.usage.output_tokens >= len(said.token_ids)
                if habit > 0.5:
                    assert said.token_ids == [ids[n % len(ids)] for n in range(len(said.token_ids))]
            else:
                busy = (grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.RESOURCE_EXHAUSTED)
                assert said.code in busy

    async def scenario() -> None:
        async with serving({"requests_max": 24}, requests_max=20) as wire:
            await asyncio.gather(*(client(wire, f"c{index % 20}") for index in range(30)))
            await until(lambda: wire.server.calls.live == 0)

    run(scenario())
