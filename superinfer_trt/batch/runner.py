"""A run: a window of requests over an input, each line answered once, as they end or in the input's order.

Knows no server, engine or policy: requests go to whatever `Executor` it is given. What is busy or away is
tried again; what is wrong becomes a line that says so. Everything on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from superinfer_trt.batch.answer import (
    Answer,
    Failure,
    Naming,
    answer_line,
    failure_line,
    failure_of_refusal,
    failure_of_status,
)
from superinfer_trt.batch.body import Asked, Rules, custom_id_of, read_line
from superinfer_trt.batch.fields import parse_object, refuse
from superinfer_trt.batch.journal import Journal
from superinfer_trt.batch.lines import LINE_BYTES_MAX, FirstLines, Input, numbered
from superinfer_trt.batch.report import Report
from superinfer_trt.core.attainment import RequestTimes
from superinfer_trt.core.errors import RefusalCode, Refused, SuperInferError
from superinfer_trt.core.ports import Clock
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, SECOND, Nanos
from superinfer_trt.serve.calls import Ended
from superinfer_trt.serve.errors import CODE_TRAILER, FIELD_TRAILER, RETRY_TRAILER, WireStatus
from superinfer_trt.serve.mapping import seed_of
from superinfer_trt.serve.pb import executor_pb2 as pb

RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
DELAY_MIN: Nanos = 100 * MILLISECOND
DELAY_MAX: Nanos = 10 * SECOND
_SKIPS_AT_ONCE = 64  # lines looked at before the loop may do something else
_HELD_WINDOWS = 4


class Executor(Protocol):
    """Where requests go."""

    async def generate(
        self, request: pb.GenerateRequest, write: Callable[[pb.GenerateResponse], None]
    ) -> None:
        """Hands every message to `write`; ends the request when its task is cancelled. Raises
        serve.calls.Ended for anything but a good end."""
        ...


class Unreachable(SuperInferError):
    """The executor was away for longer than the run's patience. What is done stays done."""


class InputChanged(SuperInferError):
    """The input was written to while it was read."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to go about it.

    `in_flight`: requests at once. `patience`: how long one line is tried again where the executor is busy,
    `away_patience` where it is away (0: one that never comes back, in this process). `sync_s`: the output is
    made durable so often; 0: after each line. `ordered`: lines are written in the order of the input; at most
    four windows of them wait in memory. `default_slo`: of requests that give none.
    """

    in_flight: int = 64
    patience: Nanos = 600 * SECOND
    away_patience: Nanos = 600 * SECOND
    sync_s: float = 1.0
    ordered: bool = False
    default_slo: Slo = field(default_factory=Slo)


class Progress(Protocol):
    """Told of each line that is done, also of those that an earlier run has done."""

    def __call__(self, *, output_tokens: int, failed: bool) -> None: ...


class Run:
    """One input, one output. `run` once.

    `sleep` waits for seconds; it is asyncio's but in tests.
    """

    def __init__(
        self,
        executor: Executor,
        journal: Journal,
        rules: Rules,
        naming: Naming,
        clock: Clock,
        options: Options,
        progress: Progress,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.report = Report()
        self._executor = executor
        self._journal = journal
        self._rules = rules
        self._naming = naming
        self._clock = clock
        self._options = options
        self._progress = progress
        self._sleep = sleep
        self._window = asyncio.Semaphore(options.in_flight)
        self._held = asyncio.Semaphore(_HELD_WINDOWS * options.in_flight)
        self._tasks: set[asyncio.Task[None]] = set()
        self._trouble: BaseException | None = None
        self._stopped = asyncio.Event()
        self._waiting: dict[int, bytes] = {}  # ordered: by place, lines that wait for earlier ones
        self._places = 0
        self._next_place = 0

    async def run(self, source: Input) -> None:
        """Answers every line that has no answer yet. Raises Unreachable, OutputFailed, InputChanged; what is
        answered is in the output then too, and another run goes on from there."""
        feeding = asyncio.create_task(self._feed(source))
        stopped = asyncio.create_task(self._stopped.wait())
        syncing = asyncio.create_task(self._keep_durable()) if self._options.sync_s else None
        try:
            await asyncio.wait({feeding, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if self._trouble is None:
                feeding.result()
        finally:
            for task in (feeding, stopped, syncing, *self._tasks):
                if task is not None:
                    task.cancel()
            ended = [task for task in (feeding, stopped, syncing, *self._tasks) if task is not None]
            await asyncio.gather(*ended, return_exceptions=True)
        if self._trouble is not None:
            raise self._trouble
        if not source.unchanged():
            raise InputChanged(
                f"{source.path}: was written to while it was read; the answers may not be to it"
            )

    # ---- lines in -----------------------------------------------------------------------------

    async def _feed(self, source: Input) -> None:
        """Every line to its end, at most a window at once."""
        ids = FirstLines()
        for count, (number, line) in enumerate(numbered(source.path)):
            if count % _SKIPS_AT_ONCE == 0:
                await asyncio.sleep(0)
            custom_id, understood = self._understand(number, line, ids)
            if understood is None:
                continue
            await self._held.acquire()
            place, self._places = self._places, self._places + 1
            if isinstance(understood, Failure):
                self._fail(place, number, custom_id, understood)
                continue
            assert custom_id is not None
            await self._window.acquire()
            task = asyncio.create_task(self._serve(place, number, custom_id, understood))
            self._tasks.add(task)
            task.add_done_callback(self._served)
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _understand(
        self, number: int, line: bytes | None, ids: FirstLines
    ) -> tuple[str | None, Asked | Failure | None]:
        """(its id, what it asks for or why not); None for a line that is done, whose id still counts."""
        done = number in self._journal.found.done
        custom_id: str | None = None
        try:
            if line is None:
                why = f"the line has more than {LINE_BYTES_MAX} bytes"
                refuse("", why, RefusalCode.TOO_LARGE)
            values = parse_object(line)
            custom_id = custom_id_of(values)
            first = ids.enter(custom_id, number)
            if done:
                return custom_id, None
            if first != number:
                refuse("custom_id", f"is that of line {first} already", RefusalCode.DUPLICATE)
            return custom_id, read_line(values, number, self._rules)
        except Refused as refusal:
            return custom_id, None if done else failure_of_refusal(refusal)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._window.release()
        if not task.cancelled() and task.exception() is not None:
            self._stop(task.exception())

    def _stop(self, trouble: BaseException | None) -> None:
        if self._trouble is None:
            self._trouble = trouble
        self._stopped.set()

    # ---- one line -----------------------------------------------------------------------------

    async def _serve(self, place: int, number: int, custom_id: str, asked: Asked) -> None:
        arrival = self._clock.now()
        answer, failure = await self._answer(number, asked)
        slo = self._slo(asked.request)
        if failure is None:
            assert answer.ending is not None
            self.report.measured(RequestTimes(arrival, answer.times, slo))
            self.report.answer(answer.ending.usage.prompt_tokens, answer.ending.usage.output_tokens)
            line = answer_line(number, custom_id, asked, answer, self._naming)
            self._deliver(place, line)
            self._progress(output_tokens=answer.ending.usage.output_tokens, failed=False)
            return
        if failure.status_code >= 429:  # not the line's own fault: it counts as a miss
            self.report.measured(RequestTimes(arrival, answer.times, slo, completed=False))
        self._fail(place, number, custom_id, failure)

    async def _answer(self, number: int, asked: Asked) -> tuple[Answer, Failure | None]:
        """The answer, or the newest attempt and why there is none. Raises Unreachable."""
        failing_since: Nanos | None = None
        attempt = 0
        while True:
            answer, status = await self._attempt(asked)
            if status is None:
                return answer, _bad_ending(answer)
            now = self._clock.now()
            failing_since = now if failing_since is None else failing_since
            delay = _delay(status, number, attempt)
            away = status.code is grpc.StatusCode.UNAVAILABLE
            patience = self._options.away_patience if away else self._options.patience
            if status.code not in RETRIED or now - failing_since + delay > patience:
                if away:
                    raise Unreachable(
                        f"the executor is away ({status.message}); run this again, it goes on from here"
                    )
                return answer, _failure_of(status, answer)
            attempt += 1
            self.report.retries += 1
            await self._sleep(delay / SECOND)

    async def _attempt(self, asked: Asked) -> tuple[Answer, WireStatus | None]:
        answer, clock = Answer(), self._clock
        try:
            await self._executor.generate(asked.request, lambda message: answer.take(message, clock.now()))
        except Ended as ended:
            return answer, ended.status
        return answer, None

    def _slo(self, request: pb.GenerateRequest) -> Slo:
        slo, default = request.slo, self._options.default_slo
        ttft = round(slo.ttft_ms * MILLISECOND) if slo.HasField("ttft_ms") else default.ttft
        tbt = round(slo.tbt_ms * MILLISECOND) if slo.HasField("tbt_ms") else default.tbt
        return Slo(ttft, tbt)

    # ---- lines out ----------------------------------------------------------------------------

    def _fail(self, place: int, number: int, custom_id: str | None, failure: Failure) -> None:
        self.report.failed(failure.code)
        self._deliver(place, failure_line(number, custom_id, failure, self._naming))
        self._progress(output_tokens=0, failed=True)

    def _deliver(self, place: int, line: bytes) -> None:
        if not self._options.ordered:
            self._write(line)
            return
        self._waiting[place] = line
        while self._next_place in self._waiting:
            self._write(self._waiting.pop(self._next_place))
            self._next_place += 1

    def _write(self, line: bytes) -> None:
        self._journal.append(line)
        if not self._options.sync_s:
            self._journal.sync()
        self._held.release()

    async def _keep_durable(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._options.sync_s)
                await asyncio.to_thread(self._journal.sync)
        except SuperInferError as error:
            self._stop(error)


def _bad_ending(answer: Answer) -> Failure | None:
    """Why a call that ended with OK has no answer for all that."""
    if answer.finished:
        return None
    if answer.ending is None:
        return failure_of_status(grpc.StatusCode.INTERNAL, "the answer has no ending")
    return failure_of_status(grpc.StatusCode.CANCELLED, "somebody has ended the request")


def _failure_of(status: WireStatus, answer: Answer) -> Failure:
    trailers = dict(status.trailers)
    told = answer.ending.message if answer.ending is not None and answer.ending.message else status.message
    return failure_of_status(
        status.code, told, code=trailers.get(CODE_TRAILER, ""), wire_field=trailers.get(FIELD_TRAILER, "")
    )


def _delay(status: WireStatus, number: int, attempt: int) -> Nanos:
    """Doubling, but what the executor has said if that is more; and up to a quarter on top, by the line, so
    that a window does not come back all at once."""
    delay = min(DELAY_MAX, DELAY_MIN << min(attempt, 16))
    told: Any = dict(status.trailers).get(RETRY_TRAILER)
    with contextlib.suppress(TypeError, ValueError):
        delay = max(delay, int(told) * MILLISECOND)
    return delay + delay * (seed_of(attempt, number) % 256) // 1024  # type: ignore[arg-type]
