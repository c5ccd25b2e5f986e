"""Sending a load and reading its answers, on one event loop, and how far that loop kept up itself.

Open loop: requests are sent when they are due, whatever the answers do, and times are counted from that
moment, so a slow client cannot hide a slow server. Closed loop: so many callers, each sends its next request
when its last one has ended. Knows no workload and no figures of a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import click
import grpc

from superinfer_trt.cli.load_api import EXECUTOR, Answer, Api, Job
from superinfer_trt.core.attainment import percentile
from superinfer_trt.core.units import MILLISECOND, SECOND, Nanos
from superinfer_trt.serve.security_client import open_aio_channel

CONNECT_TIMEOUT_S = 10
_HEAD_START: Nanos = 50 * MILLISECOND  # room to make the tasks before the first is due
_LOOK: Nanos = 10 * MILLISECOND  # between two looks at how late the loop is
_LOOKS_A_VERDICT = 10

Progress = Callable[[Answer], None]
Verdict = Callable[[Sequence[Answer], Nanos], bool]
"""Whether the load can be ended already: (all answers, now)."""


@dataclass(slots=True)
class Client:
    """How far the client itself kept up. Timers of the loop are good to a millisecond.

    `lags`: how late the loop woke. `wall`: from the first due moment to the end. `cpu_s`: of this process.
    """

    lags: list[Nanos] = field(default_factory=list)
    wall: Nanos = 0
    cpu_s: float = 0.0

    def late_p99(self, answers: Sequence[Answer]) -> Nanos:
        """99 of 100 requests were sent at most this long after they were due, and 99 of 100 times the loop
        was at most so late: what the client adds to figures."""
        late = sorted(one.sent - one.due for one in answers if one.sent is not None)
        both = (sorted(self.lags), late)
        return max((percentile(values, 99) for values in both if values), default=0)


@dataclass(frozen=True, slots=True)
class Ran:
    """A load that is over. `answers` in the order of the jobs; `cut`: the verdict ended it."""

    answers: list[Answer]
    client: Client
    cut: bool = False


async def run_load(
    target: str,
    jobs: Sequence[Job],
    timeout_s: float,
    progress: Progress,
    *,
    api: Api = EXECUTOR,
    concurrency: int | None = None,
    verdict: Verdict | None = None,
) -> Ran:
    """Sends all jobs and waits for their ends. `concurrency`: a closed loop of so many callers."""
    loop = asyncio.get_running_loop()
    async with open_aio_channel(target) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), CONNECT_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise click.ClickException(f"{target}: no connection in {CONNECT_TIMEOUT_S} s") from None
        start = _now(loop) + _HEAD_START
        answers = [Answer(job, start + job.offset) for job in jobs]
        sender = _Sender(api.open(channel), api, timeout_s, progress, loop)
        if concurrency is None:
            tasks = [asyncio.create_task(sender.when_due(answer)) for answer in answers]
        else:
            left = iter(answers)
            tasks = [asyncio.create_task(sender.one_by_one(left)) for _ in range(concurrency)]
        client, cpu_s = Client(), time.process_time()
        watch = asyncio.create_task(_watch(loop, client.lags, tasks, answers, verdict))
        try:
            results = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            watch.cancel()
        client.wall, client.cpu_s = _now(loop) - start, time.process_time() - cpu_s
        for failure in results:
            if isinstance(failure, Exception):  # a cut task ends with CancelledError, which is none
                raise failure
    return Ran(answers, client, any(answer.cut for answer in answers))


class _Sender:
    """Sends one request at a time for each of its tasks."""

    def __init__(
        self,
        call: Callable[..., grpc.aio.UnaryStreamCall[object, object]],
        api: Api,
        timeout_s: float,
        progress: Progress,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._call, self._api = call, api
        self._timeout_s, self._progress, self._loop = timeout_s, progress, loop

    async def when_due(self, answer: Answer) -> None:
        """Open loop."""
        try:
            await asyncio.sleep(max(0, answer.due - _now(self._loop)) / SECOND)
        except asyncio.CancelledError:
            answer.cut = True
            raise
        await self._one(answer)

    async def one_by_one(self, answers: Iterator[Answer]) -> None:
        """Closed loop: due is when it is sent."""
        for answer in answers:  # one iterator, shared by all callers
            answer.due = _now(self._loop)
            await self._one(answer)

    async def _one(self, answer: Answer) -> None:
        job = answer.job
        answer.sent = _now(self._loop)
        call = self._call(job.request, job.index, self._timeout_s)
        timer = None
        if job.cancel_after is not None:
            timer = self._loop.call_later(job.cancel_after / SECOND, _give_up, answer, call)
        try:
            async for response in call:
                self._api.take(answer, response, _now(self._loop))
        except asyncio.CancelledError:
            if not answer.cancelled:
                answer.cut = True
                call.cancel()
                raise
        except grpc.aio.AioRpcError as error:
            answer.status, answer.message = error.code().name, error.details() or ""
        finally:
            if timer is not None:
                timer.cancel()
        self._progress(answer)


def _give_up(answer: Answer, call: grpc.aio.UnaryStreamCall[object, object]) -> None:
    if call.cancel():
        answer.cancelled, answer.status = True, "CANCELLED"


async def _watch(
    loop: asyncio.AbstractEventLoop,
    lags: list[Nanos],
    tasks: Sequence[asyncio.Task[None]],
    answers: Sequence[Answer],
    verdict: Verdict | None,
) -> None:
    """Notes how late the loop is, and ends the load when the verdict stands."""
    looks = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            wanted = _now(loop) + _LOOK
            await asyncio.sleep(_LOOK / SECOND)
            now = _now(loop)
            lags.append(max(0, now - wanted))
            looks += 1
            if verdict is not None and looks % _LOOKS_A_VERDICT == 0 and verdict(answers, now):
                for task in tasks:
                    task.cancel()
                return


def _now(loop: asyncio.AbstractEventLoop) -> Nanos:
    return round(loop.time() * SECOND)
