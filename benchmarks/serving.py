"""What serving costs: start-up, idle memory, and what each way in adds to a first token, in one run.

All ways lead to the same executor, whose modelled engine takes --step-ms a step and nothing for a prompt, so
that what is left of a first token is the way. Ways take turns, request by request, so that a busy moment of
the machine meets all of them.

executor   superinfer.v1.ExecutorService, by grpc.aio
facade     trtllm.TrtllmService on the same port, by grpc.aio
triton     the model `tensorrt_llm` in a real tritonserver, a proxy of that port, by Triton's own client

    python benchmarks/serving.py [--json] [--requests 200] [--tritonserver FOLDER]

Triton is there with --tritonserver, in an environment as the stage `triton` of scripts/test makes one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from superinfer_trt.core.attainment import percentile
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.pb.trtllm_service_pb2_grpc import TrtllmServiceStub

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-c", "from superinfer_trt.cli.main import main; main()"]
PROMPT = list(range(1, 65))
OUTPUT_TOKENS = 16
WARMUP = 10

Way = Callable[[], Awaitable[list[int]]]
"""Sends one request; (sent, each message that had tokens) in ns."""


@contextlib.contextmanager
def server(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """(process, target, seconds until it was ready)."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield process, ready["target"], time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(30)


def resident_mib(pid: int) -> float:
    """Resident memory of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def executor_way(channel: grpc.aio.Channel) -> Way:
    stub = ExecutorServiceStub(channel)
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT))
    request.sampling.max_tokens = OUTPUT_TOKENS

    async def way() -> list[int]:
        times = [time.perf_counter_ns()]
        async for response in stub.Generate(request):
            if response.delta.token_ids:
                times.append(time.perf_counter_ns())  # noqa: PERF401  # the moment is what counts
        return times

    return way


def facade_way(channel: grpc.aio.Channel) -> Way:
    stub = TrtllmServiceStub(channel)
    request = trt.GenerateRequest(max_tokens=OUTPUT_TOKENS, streaming=True)
    request.tokenized.input_token_ids.extend(PROMPT)
    request.sampling_config.temperature = 0

    async def way() -> list[int]:
        times = [time.perf_counter_ns()]
        async for response in stub.Generate(request):
            if response.HasField("chunk"):
                times.append(time.perf_counter_ns())  # noqa: PERF401
        return times

    return way


def triton_way(address: str, close: contextlib.AsyncExitStack) -> Way:
    from asking import ids_inputs
    from tritonclient.grpc import aio

    client = aio.InferenceServerClient(address)
    close.push_async_callback(client.close)
    inputs = ids_inputs(PROMPT, OUTPUT_TOKENS, streaming=True)

    async def way() -> list[int]:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": "tensorrt_llm", "inputs": inputs}

        times = [time.perf_counter_ns()]
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            if result.as_numpy("output_ids").size:
                times.append(time.perf_counter_ns())
        return times

    return way


async def alternate(ways: dict[str, Way], requests: int, callers: int) -> dict[str, dict[str, float]]:
    """One way after the other, `callers` requests of it at a time; figures by way, in ms."""
    heard: dict[str, list[list[int]]] = {name: [] for name in ways}
    for at in range(WARMUP + -(-requests // callers)):
        for name, way in ways.items():
            answers = await asyncio.gather(*(way() for _ in range(callers)))
            assert all(len(times) > 1 for times in answers)
            if at >= WARMUP:
                heard[name] += answers
    figures = {}
    for name, answers in heard.items():
        first = sorted(times[1] - times[0] for times in answers)
        whole = sorted(times[-1] - times[0] for times in answers)
        figures[name] = {
            "callers": callers,
            "ttft_ms_p50": percentile(first, 50) / 1e6,
            "ttft_ms_p90": percentile(first, 90) / 1e6,
            "ttft_ms_p99": percentile(first, 99) / 1e6,
            "whole_ms_p50": percentile(whole, 50) / 1e6,
            "messages": statistics.mean(len(times) - 1 for times in answers),
        }
    direct = figures["executor"]["ttft_ms_p50"]
    for one in figures.values():
        one["ttft_added_ms_p50"] = one["ttft_ms_p50"] - direct
    return figures


@contextlib.contextmanager
def triton(home: Path | None, target: str) -> Iterator[tuple[str, dict[str, float]]]:
    """(address, its figures) of a tritonserver with a proxy of `target`; nothing without `home`."""
    if home is None:
        yield "", {}
        return
    sys.path.insert(0, str(ROOT / "tests" / "tritonserver"))
    from processes import triton as real_triton

    with tempfile.TemporaryDirectory() as name:
        models = Path(name) / "models"
        repo = [*COMMAND, "triton", "repo", "--out", str(models), "--target", target]
        subprocess.run(repo, check=True, stdout=subprocess.DEVNULL)
        began = time.perf_counter()
        with real_triton(home.absolute(), models, ["tensorrt_llm"], Path(name)) as running:
            ready_s = time.perf_counter() - began
            stub = running.stubs()["tensorrt_llm"]
            figures = {
                "ready_s": ready_s,
                "idle_mib": resident_mib(running.process.pid),
                "stub_idle_mib": resident_mib(stub),
            }
            yield running.grpc, figures


async def ways_in(target: str, address: str, requests: int) -> list[dict[str, dict[str, float]]]:
    async with contextlib.AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target))
        ways = {"executor": executor_way(channel), "facade": facade_way(channel)}
        if address:
            ways["triton"] = triton_way(address, stack)
        return [await alternate(ways, requests, callers) for callers in (1, 16)]


def started(flags: list[str], rounds: int) -> dict[str, float]:
    """The medians of several starts."""
    seconds, memory = [], []
    for _ in range(rounds):
        with server(*flags) as (process, _, ready_s):
            seconds.append(ready_s)
            memory.append(resident_mib(process.pid))
    return {"ready_s": statistics.median(seconds), "idle_mib": statistics.median(memory)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    zero = ("row_ns", "prefill_token_ns", "context_token_ns")
    flags = ["--engine", "sim", "--policy", "fcfs", f"--set=engine.step_cost.base_ns={options.step_ms * 1e6}"]
    flags += [f"--set=engine.step_cost.{name}=0" for name in zero]
    starts = {"sim": started(flags, options.starts)}
    if options.model:
        starts[options.model] = started(["--engine", "native", "--model", options.model], options.starts)
    with server(*flags) as (process, target, _), triton(options.tritonserver, target) as (address, figures):
        if figures:
            starts["triton, proxy"] = figures
        ways = asyncio.run(ways_in(target, address, options.requests))
        starts["sim"]["mib_behind_the_load"] = resident_mib(process.pid)
    return {"benchmark": "serving", "step_ms": options.step_ms, "starts": starts, "ways": ways}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one line")
    parser.add_argument("--requests", type=int, default=200, help="a way and number of callers")
    parser.add_argument("--starts", type=int, default=5, help="of each server")
    parser.add_argument("--step-ms", type=float, default=2.0)
    parser.add_argument("--model", default="", help="start the embedded engine with this model too")
    parser.add_argument("--tritonserver", type=Path, help="folder that nvidia-pytriton was unpacked into")
    options = parser.parse_args()
    told = measure(options)
    if options.json:
        print(json.dumps(told))
        return 0
    for name, one in told["starts"].items():
        print(f"{name:>16}  " + "  ".join(f"{key} {value:.2f}" for key, value in one.items()))
    for figures in told["ways"]:
        for name, one in figures.items():
            print(f"{name:>16}  " + "  ".join(f"{key} {value:.2f}" for key, value in one.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
