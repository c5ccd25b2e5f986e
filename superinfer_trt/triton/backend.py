"""A Triton model: requests in on Triton's thread, answers out on one private asyncio loop.

Knows no executor but its port, and Triton only as the module it is given. Three threads: Triton's, which maps
and hands over; the loop's, which holds all state; and one that asks Triton whether a caller has gone, because
that question waits for an answer from another process.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from superinfer_trt.core.errors import Refused
from superinfer_trt.serve.calls import Ended
from superinfer_trt.serve.errors import WireStatus, status_of
from superinfer_trt.serve.executors import Executor, field_of
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.triton.answers import Answer, Row
from superinfer_trt.triton.mapping import Asked, Item, in_tensors, read
from superinfer_trt.triton.metrics import Metrics
from superinfer_trt.triton.tensors import Face

START_TIMEOUT_S = 600.0  # a large model is opened while Triton waits
STOP_TIMEOUT_S = 30.0

TRITON_CODES: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.INVALID_ARGUMENT: "INVALID_ARG",
    grpc.StatusCode.NOT_FOUND: "NOT_FOUND",
    grpc.StatusCode.ALREADY_EXISTS: "ALREADY_EXISTS",
    grpc.StatusCode.UNIMPLEMENTED: "UNSUPPORTED",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "UNAVAILABLE",
    grpc.StatusCode.UNAVAILABLE: "UNAVAILABLE",
    grpc.StatusCode.CANCELLED: "CANCELLED",
    grpc.StatusCode.DEADLINE_EXCEEDED: "CANCELLED",
}
"""Status of the executor -> name in pb_utils.TritonError; what is not here is INTERNAL."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one model. `cancel_period_s`: between two questions whether a caller has gone. `stats_period_s`:
    between two readings of the executor's numbers; 0: this model reports none."""

    face: Face
    model: str
    version: str = "1"
    exclude_input: bool | None = None
    cancel_period_s: float = 0.01
    stats_period_s: float = 0.5


@dataclass(slots=True, eq=False)
class _Call:
    """One Triton request, until its final flag is sent. `gate` orders the last send against the question
    whether the caller has gone: Triton forgets the request with the one, so the other must not follow."""

    name: str
    sender: Any
    rows: int
    tasks: list[asyncio.Task[_End]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    gate: threading.Lock = field(default_factory=threading.Lock)
    done: bool = False
    why: WireStatus | None = None  # set when somebody here ends it: what its caller is told, if anything


@dataclass(frozen=True, slots=True)
class _End:
    """How a row ended: with its last answer, or with an error."""

    last: Answer | None
    error: WireStatus | None


class Backend:
    """Serves one Triton model. `start`, then `execute` from Triton's thread, then `stop`."""

    def __init__(
        self, pb_utils: Any, settings: Settings, make_executor: Callable[[], Awaitable[Executor]]
    ) -> None:
        self._pb = pb_utils
        self._settings = settings
        self._make_executor = make_executor
        self._loop = asyncio.new_event_loop()
        self._threads = [
            threading.Thread(target=self._loop.run_forever, name="superinfer-loop", daemon=True),
            threading.Thread(target=self._watch_callers, name="superinfer-callers", daemon=True),
        ]
        self._calls: dict[_Call, None] = {}
        self._busy = threading.Event()
        self._stopping = threading.Event()
        self._told: set[str] = set()
        self._executor: Executor | None = None
        self._reporting: asyncio.Task[None] | None = None

    # ---- Triton's thread ------------------------------------------------------------------------

    def start(self) -> None:
        """Makes the executor. Raises what that raises."""
        for thread in self._threads:
            thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result(START_TIMEOUT_S)
        except BaseException:
            self._end_threads()
            raise

    def execute(self, requests: Sequence[Any]) -> None:
        """Takes requests and returns at once; the answers go through the requests' own senders."""
        taken: list[tuple[_Call, Asked, float]] = []
        for request in requests:
            call = _Call(request.request_id(), request.get_response_sender(), 0)
            try:
                asked = self._read(request)
            except Refused as refusal:
                self._finish(call, self._error(status_of(refusal)))
                continue
            except Exception as error:
                self._log(f"a request could not be read: {type(error).__name__}: {error}")
                self._finish(call, self._error(status_of(error)))
                continue
            taken.append((call, asked, request.timeout() / 1e6))
        if taken:
            self._loop.call_soon_threadsafe(self._admit, taken)

    def stop(self) -> None:
        """Ends what is live, then the executor. Idempotent."""
        if self._stopping.is_set():
            return
        try:
            asyncio.run_coroutine_threadsafe(self._finalize(), self._loop).result(STOP_TIMEOUT_S)
        finally:
            self._end_threads()

    def _read(self, request: Any) -> Asked:
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        parameters = json.loads(request.parameters() or "{}")
        settings = self._settings
        return read(settings.face, tensors, parameters, exclude_input=settings.exclude_input)

    def _end_threads(self) -> None:
        self._stopping.set()
        self._busy.set()
        self._loop.call_soon_threadsafe(self._loop.stop)
        for thread in self._threads:
            thread.join(STOP_TIMEOUT_S)

    # ---- the thread that asks for callers ---------------------------------------------------------

    def _watch_callers(self) -> None:
        while not self._stopping.is_set():
            self._busy.wait()
            self._stopping.wait(self._settings.cancel_period_s)
            for call in tuple(self._calls):
                with call.gate:
                    gone = not call.done and call.sender.is_cancelled()
                if gone:
                    self._loop.call_soon_threadsafe(self._cancel, call, _CALLER_GONE)

    # ---- the loop's thread ------------------------------------------------------------------------

    async def _begin(self) -> None:
        self._executor = await self._make_executor()
        if self._settings.stats_period_s:
            self._reporting = self._loop.create_task(self._report())

    async def _finalize(self) -> None:
        if self._reporting is not None:
            self._reporting.cancel()
        tasks = [task for call in self._calls for task in call.tasks]
        for call in tuple(self._calls):
            self._cancel(call, _GOING)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._executor is not None:
            await self._executor.close()

    def _admit(self, taken: Sequence[tuple[_Call, Asked, float]]) -> None:
        for call, asked, timeout_s in taken:
            for remark in asked.remarks:
                self._log(remark)
            if asked.stop:
                self._stop_others(call)
                continue
            call.rows = len(asked.items)
            self._calls[call] = None
            self._busy.set()
            call.tasks = [self._start_row(call, item) for item in asked.items]
            if timeout_s > 0:
                why = f"timeout: {timeout_s * 1e6:.0f} us have passed"
                status = WireStatus(grpc.StatusCode.DEADLINE_EXCEEDED, why)
                call.timer = self._loop.call_later(timeout_s, self._cancel, call, status)

    def _stop_others(self, stopper: _Call) -> None:
        """A `stop` ends the requests of the same id; one that is not live may have ended a moment ago."""
        if not stopper.name:
            why = "stop: needs the id of the request that is to be stopped, as the id of this one"
            self._finish(stopper, self._error(WireStatus(grpc.StatusCode.INVALID_ARGUMENT, why)))
            return
        for call in tuple(self._calls):
            if call.name == stopper.name:
                self._cancel(call, _STOPPED)
        told = self._error(_STOPPED) if self._settings.face.cancel_is_error else None
        self._finish(stopper, told)

    def _cancel(self, call: _Call, why: WireStatus) -> None:
        if call.done or call.why is not None:
            return
        call.why = why
        for task in call.tasks:
            task.cancel()

    def _start_row(self, call: _Call, item: Item) -> asyncio.Task[_End]:
        def ended(task: asyncio.Task[_End]) -> None:
            # a task that is cancelled before it has begun never runs
            self._row_ended(call, _End(None, call.why) if task.cancelled() else task.result())

        task = self._loop.create_task(self._serve(call, item))
        task.add_done_callback(ended)
        return task

    async def _serve(self, call: _Call, item: Item) -> _End:
        """One row from its start to its end, whatever happens; sends all answers but the last."""
        row = Row(self._settings.face, item)
        last: Answer | None = None
        error: WireStatus | None = None

        def write(response: pb.GenerateResponse) -> None:
            nonlocal last
            answer = row.feed(response) if last is None else None
            if answer is None:
                return
            if not answer.final:
                self._send(call, answer)
                return
            last = answer
            if not response.HasField("ending"):  # a stop word was found here: the executor need not go on
                raise _Complete

        try:
            assert self._executor is not None
            await self._executor.generate(item.request, write)
        except _Complete:
            pass
        except asyncio.CancelledError:
            error, last = call.why, row.cut()
        except Ended as end:
            error = end.status
        except Exception as trouble:
            self._log(f"a request failed: {type(trouble).__name__}: {trouble}")
            error = status_of(trouble)
        return _End(last, error)

    def _row_ended(self, call: _Call, end: _End) -> None:
        """The last answer of a row; the final flag rides on it if the others have ended."""
        last, error = end.last, end.error
        call.rows -= 1
        final = call.rows == 0
        if error is _STOPPED and not self._settings.face.cancel_is_error:
            error = None
        if error is None and last is not None and last.cancelled and self._settings.face.cancel_is_error:
            error = _STOPPED
        if error is not None and error is not _CALLER_GONE:
            response = self._error(error)
        elif last is not None and last.tensors and error is None:
            response = self._response(last)
        else:
            response = None
        if final:
            self._calls.pop(call, None)
            if not self._calls and not self._stopping.is_set():
                self._busy.clear()
            if call.timer is not None:
                call.timer.cancel()
            self._finish(call, response)
        elif response is not None:
            self._put(call, response, 0)

    async def _report(self) -> None:
        """Reads the executor's numbers as long as the model lives."""
        metrics = Metrics(self._pb, self._settings.model, self._settings.version)
        info: pb.GetModelInfoResponse | None = None
        while True:
            try:
                assert self._executor is not None
                info = info if info is not None else await self._executor.model_info()
                metrics.update(await self._executor.stats(), info)
            except Ended:
                info = None  # another executor may come in its place
                metrics.down()
            except Exception as error:
                self._log(f"metrics: {type(error).__name__}: {error}")
            await asyncio.sleep(self._settings.stats_period_s)

    # ---- answers, from any thread --------------------------------------------------------------------

    def _send(self, call: _Call, answer: Answer) -> None:
        self._put(call, self._response(answer), 0)

    def _finish(self, call: _Call, response: Any) -> None:
        with call.gate:
            call.done = True
            self._put(call, response, self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _put(self, call: _Call, response: Any, flags: int) -> None:
        try:
            if response is None:
                call.sender.send(flags=flags)
            else:
                call.sender.send(response, flags=flags)
        except Exception as error:
            self._log(f"an answer could not be sent: {type(error).__name__}: {error}")

    def _response(self, answer: Answer) -> Any:
        tensors = [self._pb.Tensor(name, array) for name, array in answer.tensors.items()]
        return self._pb.InferenceResponse(output_tensors=tensors)

    def _error(self, status: WireStatus) -> Any:
        code = getattr(self._pb.TritonError, TRITON_CODES.get(status.code, "INTERNAL"))
        message = in_tensors(self._settings.face, field_of(status), status.message)
        return self._pb.InferenceResponse(output_tensors=[], error=self._pb.TritonError(message, code))

    def _log(self, text: str) -> None:
        """Once for each text."""
        if text not in self._told and len(self._told) < _REMARKS_MAX:
            self._told.add(text)
            self._pb.Logger.log_warn(f"{self._settings.model}: {text}")


class _Complete(Exception):
    """The output is complete before the executor knows it."""


_REMARKS_MAX = 256
_CALLER_GONE = WireStatus(grpc.StatusCode.CANCELLED, "the caller has gone")
_STOPPED = WireStatus(grpc.StatusCode.CANCELLED, "the request was stopped")
_GOING = WireStatus(grpc.StatusCode.UNAVAILABLE, "the model is being unloaded")


def settings_of(face: Face, arguments: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
    """(settings, all parameters of config.pbtxt) from what Triton tells a model. Raises ValueError."""
    config = json.loads(arguments["model_config"])
    parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
    exclude = parameters.get("exclude_input_in_output", "").lower()
    made = Settings(
        face=face,
        model=arguments["model_name"],
        version=arguments["model_version"],
        exclude_input={"true": True, "1": True, "false": False, "0": False}.get(exclude),
        cancel_period_s=float(parameters.get("cancellation_check_period_ms", "10")) / 1000,
        stats_period_s=float(parameters.get("stats_check_period_ms", "500")) / 1000,
    )
    return made, parameters
