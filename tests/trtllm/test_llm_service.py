"""gRPC -> TrtllmExecutor -> the fake LLM: streams, statuses, health, drain; and down to a rotating worker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.trtllm.llm_request import NATIVE_SAMPLER
from support.trtllm import llm as fake
from support.trtllm.gpu import VOCABULARY, expected_output
from support.trtllm.llm_worker import LlmWire, WorkerBackend, make_llm, serving_llm
from support.trtllm.rotating import RotationShape
from support.trtllm.worker import END_ID, WorkerShape
from support.wire import Said, request, run, say, text_request, until


async def health(wire: LlmWire) -> int:
    stub = health_pb2_grpc.HealthStub(wire.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest())
    return int(answer.status)


def test_a_stream_with_usage_and_timings() -> None:
    async def scenario() -> None:
        async with serving_llm(make_llm()) as wire:
            said = await say(wire.stub.Generate(request(3, 4, 5, max_tokens=4)))
            assert said.token_ids == [3, 4, 5, 3]
            assert said.ending is not None
            assert said.ending.finish_reason == pb.FINISH_REASON_LENGTH
            assert (said.ending.usage.prompt_tokens, said.ending.usage.output_tokens) == (3, 4)
            assert said.ending.timings.ttft_ms > 0
            assert not said.ending.timings.HasField("queue_ms"), "not known here"

    run(scenario())


def test_text_stop_strings_and_the_models_stop_id() -> None:
    async def scenario() -> None:
        async with serving_llm(make_llm()) as wire:
            said = await say(wire.stub.Generate(text_request("abcdef", max_tokens=1000, stop=["de"])))
            assert said.text == "abc"
            assert said.ending is not None
            assert said.ending.matched_string == "de"
            await until(lambda: wire.backend.aborted, "the abort behind a stop string")
            said = await say(wire.stub.Generate(request(65, 66, 0, max_tokens=1000)))
            assert said.token_ids == [65, 66, 0], "the stop token is told, once"
            assert said.text == "AB"
            assert said.ending is not None
            assert said.ending.finish_reason == pb.FINISH_REASON_STOP
            assert said.ending.matched_token_id == 0

    run(scenario())


def test_every_sampling_field_is_served() -> None:
    async def scenario() -> None:
        async with serving_llm(make_llm()) as wire:
            asked = request(65, max_tokens=2)
            asked.sampling.temperature = 0.5
            asked.sampling.min_p = 0.25
            asked.sampling.repetition_penalty = 1.5
            asked.sampling.presence_penalty = 0.5
            asked.sampling.logprobs = 2
            asked.slo.ttft_ms = 250
            said = await say(wire.stub.Generate(asked))
            assert said.code is grpc.StatusCode.OK, said.details
            assert [len(one.top) for one in said.logprobs] == [2, 2]
            _, sampling, scheduling = wire.backend.submitted[-1]
            assert (sampling.min_p, sampling.repetition_penalty, sampling.presence_penalty) == (
                0.25,
                1.5,
                0.5,
            )
            assert sampling.stop_token_ids == [0]
            assert (scheduling.ttft_slo_s, scheduling.tbt_slo_s) == (0.25, 0.1)

    run(scenario())


def test_what_the_sampler_would_silently_ignore_is_refused() -> None:
    """The default sampler of 1.2 accepts penalties and does nothing; `min_tokens` works with neither."""

    async def scenario() -> None:
        for supports, names in (
            (frozenset[str](), ("min_p", "repetition_penalty", "frequency_penalty", "min_tokens")),
            (NATIVE_SAMPLER, ("min_tokens",)),
        ):
            async with serving_llm(make_llm(), {"supports": supports}) as wire:
                for name in names:
                    asked = request(65)
                    setattr(asked.sampling, name, 1 if name == "min_tokens" else 0.5)
                    said = await say(wire.stub.Generate(asked))
                    assert said.code is grpc.StatusCode.UNIMPLEMENTED
                    assert f"sampling.{name}" in said.details
                assert len(wire.backend.submitted) == 1, "only the first token's"

    run(scenario())


def test_abort_and_a_client_that_leaves_reach_the_worker() -> None:
    async def scenario() -> None:
        async with serving_llm(make_llm()) as wire:
            call = wire.stub.Generate(request(3, max_tokens=1000, request_id="mine"))
            said = Said()
            said.take(await call.read())
            wire.backend.holds.set()  # no token from here on: what ends is ended by the abort
            answer = await wire.stub.Abort(pb.AbortRequest(request_id="mine"))
            assert answer.found
            said = await say(call, said)
            assert said.code is grpc.StatusCode.OK
            assert said.ending is not None
            assert said.ending.finish_reason == pb.FINISH_REASON_CANCELLED
            left = wire.stub.Generate(request(4, max_tokens=1000))
            await left.initial_metadata()
            left.cancel()
            await until(lambda: len(wire.backend.aborted) == 2, "both aborts")
            await until(lambda: wire.server.calls.live == 0)

    run(scenario())


def test_statuses_of_what_goes_wrong() -> None:
    async def scenario() -> None:
        async with serving_llm(make_llm(), requests_max=1) as wire:
            wire.backend.fails_prompts_of = 2
            said = await say(wire.stub.Generate(request(3, 4)))
            assert said.code is grpc.StatusCode.INTERNAL
            assert said.ending is not None
            assert said.ending.message == "the request is too much for the engine"
            said = await say(wire.stub.Generate(request(3, max_tokens=5000)))
            assert said.code is grpc.StatusCode.INVALID_ARGUMENT
            wire.backend.holds.set()
            first = wire.stub.Generate(request(3))
            await first.initial_metadata()
            said = await say(wire.stub.Generate(request(3)))
            assert said.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            wire.backend.holds.clear()
            assert (await say(first)).code is grpc.StatusCode.OK
            assert await health(wire) == health_pb2.HealthCheckResponse.SERVING

    run(scenario())


def test_health_turns_when_the_worker_dies() -> None:
    async def scenario() -> None:
        async with serving_llm(make_llm()) as wire:
            calls = [wire.stub.Generate(request(3, max_tokens=1000)) for _ in range(8)]
            heads = [Said() for _ in calls]
            for call, head in zip(calls, heads, strict=True):
                head.take(await call.read())
            wire.backend.holds.set()
            wire.llm.worker.crash(fake.CppExecutorError("an illegal memory access was encountered"))
            for call, head in zip(calls, heads, strict=True):
                said = await say(call, head)
                assert said.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
                if said.ending is not None:
                    assert said.ending.finish_reason == pb.FINISH_REASON_FAILED
                    assert said.ending.message == "an illegal memory access was encountered"
            said = await say(wire.stub.Generate(request(3)))
            assert said.code is grpc.StatusCode.UNAVAILABLE
            status = health_pb2.HealthCheckResponse.SERVING
            for _ in range(400):
                status = await health(wire)
                if status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    break
                await asyncio.sleep(0.01)
            assert status == health_pb2.HealthCheckResponse.NOT_SERVING

    run(scenario())


def test_draining_lets_live_requests_finish() -> None:
    async def scenario() -> None:
        async with serving_llm(make_llm()) as wire:
            call = wire.stub.Generate(request(3, max_tokens=50))
            await call.initial_metadata()
            drained, said = await asyncio.gather(wire.server.drain(30.0), say(call))
            assert drained
            assert said.code is grpc.StatusCode.OK
            assert said.token_ids == [3] * 50

    run(scenario())


def test_what_is_told_of_the_model_and_the_moment() -> None:
    async def scenario() -> None:
        async with serving_llm(make_llm(enable_iter_perf_stats=True)) as wire:
            info = await wire.stub.GetModelInfo(pb.GetModelInfoRequest())
            assert (info.engine, info.policy, info.vocabulary) == ("trtllm", "rota-slack", 256)
            assert (info.device_blocks, info.block_tokens) == (64, 16)
            await say(wire.stub.Generate(request(3, max_tokens=7)))
            stats = (await wire.stub.GetStats(pb.GetStatsRequest())).stats
            assert (stats.accepted, stats.finished_length, stats.output_tokens) == (1, 1, 7)
            assert stats.device_blocks == 64

    run(scenario())


# -- down to a worker that rotates -------------------------------------------------------------------


def rotating(policy: str, *, overlap: bool, seed: int) -> fake.LLM:
    """An LLM whose worker lives in this process, with HBM for a third of what is asked of it."""
    shape = WorkerShape(blocks=24, overlap=overlap, seed=seed, eager=0.5)
    llm = fake.LLM.__new__(fake.LLM)
    llm.args = fake.LlmArgs("worker", enable_chunked_prefill=True, max_seq_len=shape.max_seq_len)
    llm.backend = WorkerBackend(shape, RotationShape(policy=policy, host_blocks=64))
    llm._executor = fake.FakeExecutor(llm.backend, llm.backend.worker.executor)
    return llm


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])
@pytest.mark.parametrize("policy", ["rotasched", "rota-slack"])
def test_rotation_is_invisible_through_the_whole_service(policy: str, overlap: bool) -> None:
    """24 requests at once: the tokens are those of a worker that never rotates, cancelled ones a beginning
    of them (C12), and the worker's own counters are what the service tells (C1, C2)."""
    random = Random(policy)
    asked = []
    for number in range(24):
        prompt = [random.randrange(VOCABULARY) for _ in range(random.randint(4, 16))]
        one = request(*prompt, max_tokens=random.randint(12, 24), request_id=f"r{number}")
        one.sampling.stop_token_ids.append(END_ID)
        one.sampling.ignore_eos = True
        one.slo.ttft_ms = 60.0
        asked.append(one)

    async def scenario() -> None:
        llm = rotating(policy, overlap=overlap, seed=5)
        async with serving_llm(llm) as wire:
            backend = wire.backend
            assert wire.service.limits.device_blocks == 24
            assert wire.service.context_tokens_max == 40
            calls = [wire.stub.Generate(one) for one in asked]
            told = [asyncio.create_task(say(call)) for call in calls]
            for name in ("r3", "r17"):
                await wire.stub.Abort(pb.AbortRequest(request_id=name))
            cut = 0
            for one, said in zip(asked, await asyncio.gather(*told), strict=True):
                assert said.code is grpc.StatusCode.OK, said.details
                assert said.ending is not None
                expected = expected_output(list(one.token_ids.ids), one.sampling.max_tokens, END_ID)
                if said.ending.finish_reason == pb.FINISH_REASON_CANCELLED:
                    cut += 1
                    assert said.token_ids == expected[: len(said.token_ids)]
                else:
                    assert said.token_ids == expected
            assert cut <= 2
            stats = (await wire.stub.GetStats(pb.GetStatsRequest())).stats
            assert stats.rotations_in == backend.worker.rotation.totals.rotations_in > 0
            assert stats.device_blocks == 24
            assert stats.host_blocks == 64
            await until(lambda: backend.worker.executor.idle and not wire.service.snapshot().decode)
        backend.worker.drain()

    run(scenario())


def test_a_plan_that_breaks_in_the_worker_ends_the_service_not_the_clients_patience() -> None:
    async def scenario() -> None:
        llm = rotating("rotasched", overlap=True, seed=1)
        async with serving_llm(llm) as wire:
            rotation = wire.backend.worker.rotation

            def broken(active: object) -> list[object]:
                raise RuntimeError("the books differ")

            rotation.schedule = broken
            said = await say(wire.stub.Generate(request(3, 4, 5)))
            assert said.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
            assert not wire.service.alive
            assert wire.service.failure == "the worker's loop has ended"

    run(scenario())


# -- the command -------------------------------------------------------------------------------------

FAKE_PACKAGE = """
import sys
from support.trtllm.llm_worker import fake_llm_modules
sys.modules.update(fake_llm_modules())
"""


def test_the_command_serves_and_drains(tmp_path: Path) -> None:
    """`serve --engine trtllm` as a process: its ready line, a request by the command line, SIGTERM."""
    (tmp_path / "tensorrt_llm").mkdir()
    (tmp_path / "tensorrt_llm" / "__init__.py").write_text(FAKE_PACKAGE)
    (tmp_path / "config.json").write_text('{"vocab_size": 256, "max_position_embeddings": 512}')
    (tmp_path / "options.yaml").write_text("max_batch_size: 32\nmax_num_tokens: 4096\n")
    root = Path(__file__).parents[2]
    environment = {"PYTHONPATH": f"{root}:{root / 'tests'}:{tmp_path}", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", "from superinfer_trt.cli.main import main; main()"]
    options = ["--model", str(tmp_path), "--trtllm-options", str(tmp_path / "options.yaml"), "--port", "0"]
    process = subprocess.Popen(
        [*command, "serve", "--engine", "trtllm", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        ready = json.loads(line)
        assert (ready["engine"], ready["policy"]) == ("trtllm", "rota-slack")
        asked = ["generate", "--target", ready["target"], "--token-ids", "5,6", "--max-tokens", "3", "--json"]
        done = subprocess.run(
            [*command, *asked], capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["token_ids"] == [5, 6, 5]
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 0, told
        assert told.splitlines()[-1] == "stopped"
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
