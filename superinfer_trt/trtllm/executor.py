"""TrtllmExecutor: requests in, token events out, over `tensorrt_llm.LLM.generate_async`.

It is to a service what the embedded executor and its driver are: a bounded inbox, a driver that lives or has
died, counters, one ending for each request. Planning is not here but in TensorRT-LLM's workers.

One thread with an asyncio loop of its own is the only one that talks to the LLM: upstream's results belong
to the loop they were asked for on. `submit` and `cancel` may be called from any thread, before `start` too.
Knows no gRPC, no configuration, and none of upstream's names (`llm_compat`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from superinfer_trt.core.errors import EngineFailed
from superinfer_trt.core.model import ModelConfig, Tokenizer
from superinfer_trt.core.outcome import Ending, TokenEvent, Totals
from superinfer_trt.core.ports import Clock, Observer, Outbox
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.units import SECOND, Nanos, RequestId
from superinfer_trt.core.view import Limits
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Snapshot
from superinfer_trt.runtime.quotas import Quotas
from superinfer_trt.trtllm.llm_compat import failure_of, message_of
from superinfer_trt.trtllm.llm_numbers import LlmNumbers
from superinfer_trt.trtllm.llm_request import (
    TokenReader,
    ending_of,
    sampling_fields,
    scheduling_fields,
)

log = logging.getLogger(__name__)

CHECK_S = 0.25
"""How often a dead worker is looked for."""

STATISTICS_PERIOD_S = 1.0
STATISTICS_WAIT_S = 0.05
FIRST_STATISTICS_S = 3.0
"""How long the start waits for a worker's first numbers."""

STOPPED = "the server stopped before this request had ended"


@dataclass(frozen=True, slots=True)
class Served:
    """What is served. `limits`: as far as they are known before the worker says them. `supports`: of
    core.request.OPTIONAL_SAMPLING what its sampler really does."""

    limits: Limits
    vocabulary: int
    context_tokens_max: int
    policy: str
    model: ModelConfig | None = None
    tokenizer: Tokenizer | None = None
    supports: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LlmCalls:
    """An LLM and the two classes of parameters that go with a request."""

    llm: Any
    sampling_parameters: Callable[..., Any]
    scheduling_parameters: Callable[..., Any]

    def generate(self, request: Request) -> Any:
        """Upstream's growing result. Raises whatever upstream raises."""
        return self.llm.generate_async(
            list(request.prompt),
            sampling_params=self.sampling_parameters(**sampling_fields(request.sampling)),
            streaming=True,
            scheduling_params=self.scheduling_parameters(**scheduling_fields(request)),
        )


@dataclass(slots=True, eq=False)
class _Live:
    """An accepted request that has not ended."""

    request: Request
    tokens: TokenReader
    result: Any = None
    task: asyncio.Task[None] | None = None
    ended: bool = False
    first_token: Nanos = -1
    last_token: Nanos = -1


class _Waker:
    """The injected clock for the inbox: its wake-up goes to the loop."""

    def __init__(self, clock: Clock, wake: Callable[[], None]) -> None:
        self._clock = clock
        self.wake = wake

    def now(self) -> Nanos:
        return self._clock.now()

    def park(self, until: Nanos | None) -> None:
        self._clock.park(until)


class TrtllmExecutor:
    """serve.service.Service over an LLM. `start`, then `close`; an executor starts once.

    `silence_max`: nanoseconds without any token while requests are live, after which the worker counts as
    dead (0: never): a loop that hangs in a collective says nothing at all.
    """

    engine = "trtllm"

    def __init__(
        self,
        calls: LlmCalls,
        served: Served,
        outbox: Outbox,
        clock: Clock,
        *,
        requests_max: int,
        quotas: Quotas | None = None,
        silence_max: Nanos = 300 * SECOND,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.inbox = BoundedInbox(_Waker(clock, self._wake), requests_max, quotas)
        self.clock = clock
        self.tokenizer = served.tokenizer
        self.model = served.model
        self.vocabulary = served.vocabulary
        self.policy = served.policy
        self.supports = served.supports
        self.failure = ""
        self._served = served
        self._calls = calls
        self._outbox = outbox
        self._silence_max = silence_max
        self._on_close = on_close
        self._numbers = LlmNumbers(calls.llm, served.limits)
        self._own = Totals()
        self._live: dict[RequestId, _Live] = {}
        self._events: list[TokenEvent] = []
        self._news: Nanos = 0  # when anything was heard last
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._started = threading.Event()
        self._stopping = threading.Event()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="superinfer-trtllm", daemon=True)

    # -- what a service is ---------------------------------------------------------------------------

    @property
    def driver(self) -> TrtllmExecutor:
        """Itself: its thread is what lives or dies."""
        return self

    @property
    def executor(self) -> TrtllmExecutor:
        """Itself: it has the counters."""
        return self

    @property
    def alive(self) -> bool:
        """Whether requests are served."""
        return self._thread.is_alive() and not self.failure and not self._stopping.is_set()

    @property
    def limits(self) -> Limits:
        """The worker's sizes, as far as they are known."""
        return self._numbers.limits

    @property
    def context_tokens_max(self) -> int:
        """Prompt and output together."""
        known = (self._served.context_tokens_max, self._numbers.context_tokens_max)
        return min((length for length in known if length > 0), default=0)

    @property
    def totals(self) -> Totals:
        """Counters since the start."""
        return self._numbers.totals(self._own)

    def snapshot(self) -> Snapshot:
        """Counts of this moment."""
        live = list(self._live.values())
        silent = [one.request for one in live if not one.tokens.count]
        return self._numbers.snapshot(self.clock.now(), silent, len(live) - len(silent))

    def observe(self, observer: Observer) -> None:
        """Nothing is ever told: turns are in the workers, and their traces too."""
        del observer

    def unobserve(self, observer: Observer) -> None:
        """See `observe`."""
        del observer

    # -- its life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Generates one token, so that a worker which cannot is found before anybody is served, and its
        numbers are known. Raises EngineFailed."""
        self._thread.start()
        self._started.wait()
        if self.failure:
            why = self.failure
            self.close()
            raise EngineFailed(f"TensorRT-LLM cannot generate: {why}")

    def close(self) -> None:
        """Ends what is live as failed, then calls `on_close`, where the LLM is ended. Idempotent; waits."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self.inbox.close("the server has stopped")
            self._stopping.set()
            self._wake()
            if self._thread.is_alive():
                self._thread.join()
            self._on_close()

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is to be woken
                loop.call_soon_threadsafe(self._woken.set)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:
            self.failure = self.failure or message_of(error)
            log.exception("the service over TensorRT-LLM stopped")
        finally:
            self._loop = None
            self._abandon(self.failure or STOPPED)
            self._started.set()

    async def _main(self) -> None:
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        await self._first_token()
        statistics = self._loop.create_task(self._watch_iterations())
        self._news = self.clock.now()
        self._started.set()
        try:
            while not self._stopping.is_set() and not self.failure:
                self._take_in()
                self._check()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), CHECK_S)
                self._woken.clear()
        finally:
            statistics.cancel()
            for live in list(self._live.values()):
                self._abort(live)
            self._abandon(self.failure or STOPPED)

    async def _first_token(self) -> None:
        """Raises EngineFailed; what upstream raises, too."""
        request = Request(self.inbox.next_id(), (0,), Sampling(max_tokens=1))

        async def generated() -> None:
            async for _ in self._calls.generate(request):
                pass

        task = asyncio.ensure_future(generated())
        while not task.done() and not self._stopping.is_set():
            await asyncio.wait({task}, timeout=CHECK_S)
            why = failure_of(self._calls.llm)
            if why and not task.done():  # or it has raised the reason itself
                task.cancel()
                await asyncio.wait({task})
                raise EngineFailed(why)
        if task.done():
            task.result()
            await self._first_numbers()

    async def _first_numbers(self) -> None:
        """Waits for the first iteration's numbers, where there will be any."""
        if self._iterations is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._read_iterations(once=True), FIRST_STATISTICS_S)

    # -- what the worker says of itself --------------------------------------------------------------

    @property
    def _iterations(self) -> Callable[..., Any] | None:
        """How to ask for statistics; None where nobody collects them, or where they are not needed."""
        llm = self._calls.llm
        collected = getattr(getattr(llm, "args", None), "enable_iter_perf_stats", False)
        return getattr(llm, "get_stats_async", None) if collected and not self._numbers.inside else None

    async def _watch_iterations(self) -> None:
        while self._iterations is not None:
            await asyncio.sleep(STATISTICS_PERIOD_S)
            await self._read_iterations(once=False)

    async def _read_iterations(self, *, once: bool) -> None:
        """Asks in another thread: in some releases the question itself waits for the worker."""
        ask = self._iterations
        assert ask is not None
        while True:
            try:
                async for statistics in await asyncio.to_thread(ask, timeout=STATISTICS_WAIT_S):
                    if self._numbers.saw(statistics) and once:
                        return
            except Exception as error:
                log.info("no statistics: %s", message_of(error))
            if not once:
                return
            await asyncio.sleep(STATISTICS_WAIT_S)

    def _check(self, raised: str = "") -> None:
        """Finds out whether the worker is dead, or has hung for too long. `raised`: what has just been
        raised, which is the reason if it is dead."""
        if self.failure:
            return
        why = failure_of(self._calls.llm)
        silence = self.clock.now() - self._news
        if why:
            why = raised or why
        elif self._silence_max and self._live and silence > self._silence_max:
            why = f"no token of any request for {silence // SECOND} s"
        if why:
            self.failure = why
            log.error("TensorRT-LLM has died: %s", why)
            self._abandon(why)
            self._woken.set()

    # -- requests ------------------------------------------------------------------------------------

    def _take_in(self) -> None:
        arrived, cancels = self.inbox.drain()
        for request in arrived:
            self._begin(request)
        for id, reason in cancels:
            live = self._live.get(id)
            if live is not None:
                self._end(live, reason)
                self._abort(live)

    def _begin(self, request: Request) -> None:
        assert self._loop is not None
        if not self._live:
            self._news = self.clock.now()  # silence counts from here
        live = self._accept(request)
        try:
            live.result = self._calls.generate(request)
        except Exception as error:  # upstream checks its arguments here
            self._trouble(live, error)
        else:
            live.task = self._loop.create_task(self._follow(live))

    def _accept(self, request: Request) -> _Live:
        live = self._live[request.id] = _Live(request, TokenReader(request.sampling))
        self._own.accepted += 1
        return live

    async def _follow(self, live: _Live) -> None:
        """Reads one result to its end. Any error of it ends this request; whether it has ended the others
        as well, the LLM is asked."""
        try:
            async for state in live.result:
                if live.ended:
                    return
                self._take(live, state)
            if not live.ended:
                self._end(live, FinishReason.FAILED, "TensorRT-LLM's answer stopped before its end")
        except Exception as error:
            self._trouble(live, error)

    def _take(self, live: _Live, state: Any) -> None:
        completion = state.outputs[0]
        sampled = live.tokens.read(completion)
        now = self.clock.now()
        if sampled:
            self._news = live.last_token = now
            if live.first_token < 0:
                live.first_token = now
            self._own.output_tokens += len(sampled)
        first = live.tokens.count - len(sampled)
        for index, one in enumerate(sampled, first):
            self._tell(TokenEvent(live.request.id, now, index, one))
        if state.finished:
            reason, message = ending_of(completion)
            if reason is FinishReason.CANCELLED:  # who cancels here has ended the request before
                reason, message = FinishReason.FAILED, "TensorRT-LLM cancelled the request"
            self._end(live, reason, message)

    def _trouble(self, live: _Live, error: Exception) -> None:
        if not live.ended:
            self._end(live, FinishReason.FAILED, message_of(error))
        self._check(message_of(error))

    def _abort(self, live: _Live) -> None:
        """Tells upstream; what it still says of the request is not read."""
        if live.task is not None:
            live.task.cancel()
        if live.result is not None:
            try:
                live.result.abort()
            except Exception as error:  # its executor may be gone
                log.info("abort of request %d: %s", live.request.id, message_of(error))

    def _end(self, live: _Live, reason: FinishReason, message: str = "") -> None:
        request = live.request
        live.ended = True
        del self._live[request.id]
        finished = self._own.finished
        finished[reason] = finished.get(reason, 0) + 1
        ending = Ending(
            reason=reason,
            message=message,
            prompt_tokens=len(request.prompt),
            output_tokens=live.tokens.count,
            rotations=0,
            evictions=0,
            arrival=request.arrival,
            admitted=-1,
            first_token=live.first_token,
            last_token=live.last_token,
        )
        self._tell(TokenEvent(request.id, self.clock.now(), ending=ending))
        self.inbox.ended([request.id])

    def _abandon(self, message: str) -> None:
        """Ends every accepted request as failed, also those still at the door, and closes the door."""
        self.inbox.close(message)
        for request in self.inbox.drain()[0]:
            self._accept(request)
        for live in list(self._live.values()):
            if live.task is not None:
                live.task.cancel()
            self._end(live, FinishReason.FAILED, message)
        self._flush()

    def _tell(self, event: TokenEvent) -> None:
        """Events of one pass of the loop go out together."""
        if not self._events and self._loop is not None:
            self._loop.call_soon(self._flush)
        self._events.append(event)

    def _flush(self) -> None:
        events, self._events = self._events, []
        if events:
            self._outbox.emit(events)
