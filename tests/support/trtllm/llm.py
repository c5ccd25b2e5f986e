"""A fake of TensorRT-LLM's LLM API: `LLM`, its executor, growing results, and what becomes of errors.

Written from the public source of TensorRT-LLM (`llmapi/llm.py`, `sampling_params.py` and in `executor/`
executor, proxy and result, about 1.2), facts only. A result belongs to the event loop that it was asked for
on and grows in place, one response at a time. An error of one request is raised where its result is read; an
error of a worker waits in a queue until somebody reads a result or submits a request, then shuts the LLM down
and is raised there, and whoever reads another result waits for ever. Nothing here knows rotation.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Queue
from typing import Any, ClassVar, Protocol

from support.trtllm.package import SchedulingParams

log = logging.getLogger(__name__)


class RequestError(RuntimeError):
    """One request has failed."""


class CppExecutorError(RuntimeError):
    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message}\nStack trace:\n  somewhere"


@dataclass
class SamplingParams:
    """The fields that are checked or used."""

    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: int | None = None
    ignore_eos: bool = False
    detokenize: bool = True

    def __post_init__(self) -> None:
        if self.temperature is not None and self.temperature < 0:
            raise ValueError("require temperature >= 0")
        if self.seed is not None and not -(1 << 63) <= self.seed < 1 << 63:
            raise TypeError("seed is a signed 64-bit number in the binding")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass
class CompletionOutput:
    index: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | None = None


@dataclass
class Response:
    """What a worker sends of one request: new tokens, how it ended, or an error."""

    client_id: int
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None


class RequestOutput:
    """A result that grows while it is iterated over."""

    def __init__(self, executor: FakeExecutor, id: int, prompt: list[int], sampling: SamplingParams) -> None:
        self._executor = executor
        self._loop = asyncio.get_running_loop()  # without one there would be no asynchronous queue
        self._queue: deque[Response] = deque()
        self._event = asyncio.Event()
        self._done = False
        self.request_id = id
        self.prompt_token_ids = prompt
        self.sampling_params = sampling
        self.outputs = [CompletionOutput()]

    @property
    def finished(self) -> bool:
        return self._done

    def abort(self) -> None:
        self._executor.abort_request(self.request_id)

    def put(self, response: Response) -> None:
        """From the dispatcher's thread."""
        self._queue.append(response)
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._event.set)

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._done:
            raise StopAsyncIteration
        assert asyncio.get_running_loop() is self._loop, "a result is read on the loop it was made on"
        while not self._queue:
            self._event.clear()
            await self._event.wait()
        self._handle(self._queue.popleft())
        return self

    def _handle(self, response: Response) -> None:
        if response.error is not None:
            self._executor.handle_background_error(response.error)
        output, sampling = self.outputs[0], self.sampling_params
        self._done = response.finish is not None
        output.token_ids.extend(response.tokens)
        if sampling.logprobs:
            output.logprobs += [chances(token, sampling.logprobs) for token in response.tokens]
        if response.finish == "stop_words":
            output.finish_reason = "stop"
            output.stop_reason = output.token_ids[-1]
            if not sampling.include_stop_str_in_output:
                output.token_ids = output.token_ids[:-1]
        else:
            output.finish_reason = response.finish
        self._executor.handle_background_error()


def chances(token: int, count: int) -> dict[int, Logprob]:
    """The likeliest are the ids below the token; the token itself is the least likely of all."""
    found = {max(0, token - 1 - rank): Logprob(-0.5 - rank, rank + 1) for rank in range(count)}
    found[token] = Logprob(-9.0, count + 1)
    return found


class Backend(Protocol):
    """What computes."""

    def submit(self, id: int, prompt: list[int], sampling: SamplingParams, scheduling: Any) -> None: ...
    def abort(self, id: int) -> None: ...
    def step(self) -> list[Response]: ...
    def statistics(self) -> dict[str, Any]: ...


class EchoBackend:
    """Output token n is prompt[n % len(prompt)]; one token for each live request a step."""

    def __init__(self) -> None:
        self._live: dict[int, tuple[list[int], SamplingParams, int]] = {}
        self._lock = threading.Lock()
        self._aborted: list[int] = []
        self.submitted: list[tuple[list[int], SamplingParams, Any]] = []
        self.aborted: list[int] = []
        self.fails_prompts_of = 0  # at their second token
        self.breaks_prompts_of = 0  # ended by upstream itself, as `timeout`
        self.holds = threading.Event()  # while set, nobody gets a token
        self.iterations = 0

    def submit(self, id: int, prompt: list[int], sampling: SamplingParams, scheduling: Any) -> None:
        with self._lock:
            self.submitted.append((prompt, sampling, scheduling))
            self._live[id] = (prompt, sampling, 0)

    def abort(self, id: int) -> None:
        with self._lock:
            self.aborted.append(id)
            self._aborted.append(id)

    def step(self) -> list[Response]:
        with self._lock:
            ended = [id for id in self._aborted if self._live.pop(id, None) is not None]
            self._aborted.clear()
            made = [Response(id, finish="cancelled") for id in ended]
            if not self.holds.is_set():
                made += [self._advance(id) for id in list(self._live)]
                self.iterations += 1
            return made

    def statistics(self) -> dict[str, Any]:
        cache = {"maxNumBlocks": 64, "freeNumBlocks": 64 - len(self._live), "tokensPerBlock": 16}
        return {"iter": self.iterations, "numActiveRequests": len(self._live), "kvCacheStats": cache}

    def _advance(self, id: int) -> Response:
        prompt, sampling, count = self._live[id]
        token = prompt[count % len(prompt)]
        self._live[id] = (prompt, sampling, count + 1)
        if count and len(prompt) == self.fails_prompts_of:
            del self._live[id]
            return Response(id, error="the request is too much for the engine")
        finish = None
        if count and len(prompt) == self.breaks_prompts_of:
            finish = "timeout"
        elif token in (sampling.stop_token_ids or ()):
            finish = "stop_words"
        elif count + 1 == sampling.max_tokens:
            finish = "length"
        if finish is not None:
            del self._live[id]
        return Response(id, [token], finish)


class FakeExecutor:
    """The side of the LLM that talks to a worker: here, a thread that steps the backend."""

    def __init__(self, backend: Backend, engine: Any = None) -> None:
        self._backend = backend
        self._results: dict[int, RequestOutput] = {}
        self._last_id = 0
        self._work = threading.Event()
        self._stop = threading.Event()
        self._error_queue: Queue[BaseException] = Queue()
        self.doing_shutdown = False
        self.engine = engine  # only a worker in this process shows it
        self._thread = threading.Thread(target=self._dispatch, daemon=True)
        self._thread.start()

    def is_shutdown(self) -> bool:
        return self.doing_shutdown

    def submit(self, prompt: list[int], sampling: SamplingParams, scheduling: Any) -> RequestOutput:
        self._last_id += 1
        result = RequestOutput(self, self._last_id, prompt, sampling)
        self._results[result.request_id] = result
        self._backend.submit(result.request_id, prompt, sampling, scheduling)
        self._work.set()
        self.handle_background_error()
        return result

    def abort_request(self, id: int) -> None:
        self._backend.abort(id)
        self._work.set()

    def crash(self, error: BaseException) -> None:
        """The worker dies in silence: what a callback of its process leaves behind."""
        self._stop.set()
        self._error_queue.put_nowait(error)

    def hang(self) -> None:
        """The worker dies, and nobody hears of it."""
        self._stop.set()

    def handle_background_error(self, error: str | None = None) -> None:
        if error is not None:
            raise RequestError(error)
        if not self._error_queue.empty():
            found = self._error_queue.get()
            self.shutdown()
            raise found

    def shutdown(self) -> None:
        if not self.doing_shutdown:
            self.doing_shutdown = True
            self._stop.set()
            self._work.set()
            if threading.current_thread() is not self._thread:
                self._thread.join()

    def _dispatch(self) -> None:
        while not self._stop.is_set():
            if not self._results:
                self._work.wait(0.05)  # the loop turns on: a batch may still be in the air
                self._work.clear()
            try:
                responses = self._backend.step()
            except Exception as error:  # the worker's loop logs it, says that it has ended, and that is all
                log.warning("Error in event loop: %s", error)
                if self.engine is not None:
                    self.engine.is_shutdown = True
                return
            for response in responses:
                result = self._results[response.client_id]
                if response.finish is not None or response.error is not None:
                    del self._results[response.client_id]
                result.put(response)
            self._stop.wait(0.0005)


@dataclass
class LlmArgs:
    """The arguments that are known; another one is refused as pydantic does."""

    model: str
    tensor_parallel_size: int = 1
    backend: str | None = None
    kv_cache_config: dict[str, Any] = field(default_factory=dict)
    enable_chunked_prefill: bool = False
    enable_iter_perf_stats: bool = False
    max_seq_len: int | None = None
    max_batch_size: int | None = 2048
    max_num_tokens: int | None = 8192
    disable_overlap_scheduler: bool = False


class LLM:
    """The class that a program makes. `backend_of` and `engine_of` are a test's."""

    backend_of: Callable[[LlmArgs], Backend] = staticmethod(lambda arguments: EchoBackend())
    engine_of: Callable[[Backend], Any] = staticmethod(lambda backend: None)
    made: ClassVar[list[LLM]] = []

    def __init__(self, model: str, **arguments: Any) -> None:
        try:
            self.args = LlmArgs(model=model, **arguments)
        except TypeError as error:
            raise ValueError(f"1 validation error for TorchLlmArgs: {error}") from error
        self.backend = self.backend_of(self.args)
        self._executor: FakeExecutor | None = FakeExecutor(self.backend, self.engine_of(self.backend))
        LLM.made.append(self)

    @property
    def worker(self) -> FakeExecutor:
        assert self._executor is not None
        return self._executor

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams | None = None,
        lora_request: Any = None,
        streaming: bool = False,
        scheduling_params: SchedulingParams | None = None,
    ) -> RequestOutput:
        if self._executor is None or self._executor.is_shutdown():
            raise RuntimeError("LLM is shutting down")
        assert isinstance(sampling_params, SamplingParams)
        assert isinstance(scheduling_params, SchedulingParams)
        assert streaming
        if sampling_params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        limit = self.args.max_num_tokens
        if not self.args.enable_chunked_prefill and limit and len(inputs) > limit:
            raise ValueError(f"The sum of prompt length ({len(inputs)}) should not exceed {limit}")
        return self._executor.submit(inputs, sampling_params, scheduling_params)

    def get_stats_async(self, timeout: float | None = 2) -> AsyncIterator[dict[str, Any]]:
        statistics = json.loads(json.dumps(self.backend.statistics()))

        async def some() -> AsyncIterator[dict[str, Any]]:
            yield statistics

        return some()

    def shutdown(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None


def update_llm_args_with_extra_dict(arguments: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The file wins."""
    return arguments | options
