"""An open-loop load: what to send and when, and what came back. The client side of `bench`.

Open loop: arrivals follow their own clock and never wait for answers, and times are counted from the
moment a request was due, so a slow client cannot hide a slow server. One event loop, no threads.
"""

from __future__ import annotations

import asyncio
import random  # seeded, in a client
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import grpc
from google.protobuf import json_format

from superinfer_trt.cli.client import CHANNEL_OPTIONS, reason_name
from superinfer_trt.core.attainment import RequestTimes, attainment
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, SECOND, Nanos
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub

CONNECT_TIMEOUT_S = 10
LOWEST_PLAIN_ID = 256  # below live control and byte tokens in most vocabularies


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests come: Poisson at `rps` by `seed`; rps 0: all at once. `cancel_share` of them are
    cancelled by their caller after `cancel_after_s`."""

    requests: int
    rps: float = 0.0
    seed: int = 0
    cancel_share: float = 0.0
    cancel_after_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """One request of the load, due `offset` after the start."""

    index: int
    offset: Nanos
    request: pb.GenerateRequest
    cancel_after: Nanos | None


@dataclass(slots=True)
class Answer:
    """What came back for a job, on the client's clock."""

    job: Job
    due: Nanos
    token_ids: list[int] = field(default_factory=list)
    tokens: list[Nanos] = field(default_factory=list)
    text: str = ""
    ending: pb.Ending | None = None
    status: str = "OK"
    message: str = ""
    cancelled: bool = False

    @property
    def completed(self) -> bool:
        """It ended as asked."""
        fine = (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH)
        return self.status == "OK" and self.ending is not None and self.ending.finish_reason in fine


def synthetic_requests(
    base: pb.GenerateRequest,
    info: pb.GetModelInfoResponse,
    arrivals: Arrivals,
    prompt_tokens: tuple[int, int],
    output_tokens: tuple[int, int],
) -> list[pb.GenerateRequest]:
    """Random token ids of random lengths, the same for the same seed and vocabulary.

    Output runs to its length (ignore_eos). Raises click.UsageError when the longest does not fit.
    """
    longest = prompt_tokens[1] + output_tokens[1]
    if longest > info.request_tokens_max:
        raise click.UsageError(
            f"--prompt-tokens + --output-tokens: {longest} tokens do not fit the server's "
            f"{info.request_tokens_max} tokens a request"
        )
    lowest = LOWEST_PLAIN_ID if info.vocabulary > 2 * LOWEST_PLAIN_ID else 0
    source = _random(f"prompts {arrivals.seed}")
    made = []
    for _ in range(arrivals.requests):
        request = pb.GenerateRequest()
        request.CopyFrom(base)
        length = source.randint(*prompt_tokens)
        request.token_ids.ids.extend(source.randrange(lowest, info.vocabulary) for _ in range(length))
        request.sampling.max_tokens = source.randint(*output_tokens)
        request.sampling.ignore_eos = True
        made.append(request)
    return made


def requests_from(path: Path, base: pb.GenerateRequest, count: int) -> list[pb.GenerateRequest]:
    """`count` requests from a JSONL file, one GenerateRequest a line in proto's JSON, over `base`; the
    file is begun again when it is too short. Raises click.UsageError naming the line."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise click.UsageError(f"{path}: has no line")
    parsed = []
    for at, line in enumerate(lines[:count], start=1):
        request = pb.GenerateRequest()
        request.CopyFrom(base)
        try:
            own = json_format.Parse(line, pb.GenerateRequest())
        except json_format.ParseError as error:
            raise click.UsageError(f"{path}:{at}: {' '.join(str(error).split())}") from None
        request.MergeFrom(own)
        parsed.append(request)
    return [parsed[at % len(parsed)] for at in range(count)]


def schedule(requests: Sequence[pb.GenerateRequest], arrivals: Arrivals) -> list[Job]:
    """When each request is due, and whether its caller gives up."""
    times = _random(f"arrivals {arrivals.seed}")
    quitters = _random(f"cancels {arrivals.seed}")
    jobs, offset_s = [], 0.0
    for index, request in enumerate(requests):
        quits = quitters.random() < arrivals.cancel_share
        after = round(arrivals.cancel_after_s * SECOND) if quits else None
        jobs.append(Job(index, round(offset_s * SECOND), request, after))
        if arrivals.rps > 0:
            offset_s += times.expovariate(arrivals.rps)
    return jobs


async def run_load(
    target: str, jobs: Sequence[Job], timeout_s: float, progress: Callable[[Answer], None]
) -> list[Answer]:
    """Sends every job when it is due and waits for all; in the order of the jobs."""
    loop = asyncio.get_running_loop()
    async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), CONNECT_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise click.ClickException(f"{target}: no connection in {CONNECT_TIMEOUT_S} s") from None
        stub = ExecutorServiceStub(channel)  # type: ignore[no-untyped-call]
        start = _now(loop) + 50 * MILLISECOND  # room to make the tasks before the first is due
        tasks = [
            asyncio.create_task(_one(stub, Answer(job, start + job.offset), timeout_s, progress, loop))
            for job in jobs
        ]
        return list(await asyncio.gather(*tasks))


async def _one(
    stub: ExecutorServiceStub,
    answer: Answer,
    timeout_s: float,
    progress: Callable[[Answer], None],
    loop: asyncio.AbstractEventLoop,
) -> Answer:
    await asyncio.sleep(max(0, answer.due - _now(loop)) / SECOND)
    call = stub.Generate(answer.job.request, timeout=timeout_s)
    timer = None
    if answer.job.cancel_after is not None:
        timer = loop.call_later(answer.job.cancel_after / SECOND, call.cancel)
    try:
        async for response in call:
            _take(answer, response, _now(loop))
    except asyncio.CancelledError:
        if not call.cancelled():
            raise
        answer.cancelled, answer.status = True, "CANCELLED"
    except grpc.aio.AioRpcError as error:
        answer.status, answer.message = error.code().name, error.details() or ""
    finally:
        if timer is not None:
            timer.cancel()
    progress(answer)
    return answer


def _take(answer: Answer, response: pb.GenerateResponse, now: Nanos) -> None:
    new = response.delta.token_ids
    answer.token_ids.extend(new)
    answer.tokens.extend([now] * len(new))
    answer.text += response.delta.text
    if response.HasField("ending"):
        answer.ending = response.ending


def _random(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311  # a reproducible load, not a secret


def _now(loop: asyncio.AbstractEventLoop) -> Nanos:
    return round(loop.time() * SECOND)


def times_of(answer: Answer, info: pb.GetModelInfoResponse) -> RequestTimes:
    """An answer as the metrics want it; objectives the request left out are the server's."""
    slo = answer.job.request.slo
    ttft_ms = slo.ttft_ms if slo.HasField("ttft_ms") else info.default_slo.ttft_ms
    tbt_ms = slo.tbt_ms if slo.HasField("tbt_ms") else info.default_slo.tbt_ms
    objectives = Slo(round(ttft_ms * MILLISECOND), round(tbt_ms * MILLISECOND))
    return RequestTimes(answer.due, answer.tokens, objectives, answer.completed)


def result(
    answers: Sequence[Answer],
    info: pb.GetModelInfoResponse,
    before: pb.Stats,
    after: pb.Stats | None,
) -> dict[str, object]:
    """The figures of the run as one JSON object. Requests that their own caller cancelled are counted,
    and are in no other figure but the server's counters (None without `after`)."""
    measured = [answer for answer in answers if not answer.cancelled]
    failures = Counter(
        answer.status if answer.status != "OK" else "ending" for answer in measured if not answer.completed
    )
    figures: dict[str, Any] = attainment(times_of(answer, info) for answer in measured).as_dict()
    figures["requests"] = len(answers)
    figures["cancelled"] = len(answers) - len(measured)
    figures["failures"] = dict(failures)
    for name, counter in (
        ("rotations", "rotations_out"),
        ("evictions", "evictions"),
        ("messages", "messages"),
    ):
        figures[name] = getattr(after, counter) - getattr(before, counter) if after is not None else None
    figures["policy"], figures["engine"] = info.policy, info.engine
    figures["hbm_blocks"], figures["dram_blocks"] = info.device_blocks, info.host_blocks
    return figures


def output_line(answer: Answer) -> dict[str, object]:
    """One answer for a file of outputs: nothing in it depends on time, so runs can be compared."""
    ending = answer.ending
    return {
        "index": answer.job.index,
        "status": answer.status,
        "finish_reason": reason_name(ending.finish_reason) if ending is not None else "",
        "token_ids": answer.token_ids,
        "text": answer.text,
    }
