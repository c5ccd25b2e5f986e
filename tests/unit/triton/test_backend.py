"""A Triton model's life of requests, with a stand-in for Triton and one for the executor.

Nothing waits by the clock: the executor answers when it is told to, and a sender says when it has ended.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from superinfer_trt.serve.calls import Ended
from superinfer_trt.serve.errors import WireStatus
from superinfer_trt.serve.executors import Write
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.triton.backend import Backend, Settings
from superinfer_trt.triton.tensors import IDS, LLMAPI, Face

PATIENCE_S = 20.0


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class TritonError:
    INVALID_ARG, INTERNAL, CANCELLED, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, NOT_FOUND = range(7)

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


class Metric:
    def __init__(self) -> None:
        self.value = 0.0
        self.told = threading.Event()

    def set(self, value: float) -> None:
        self.value = value
        self.told.set()

    def increment(self, value: float) -> None:
        self.value += value


class Family:
    GAUGE, COUNTER = "gauge", "counter"
    made: dict[tuple[str, str], Metric]

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name

    def Metric(self, labels: dict[str, str]) -> Metric:
        rest = [value for name, value in labels.items() if name not in ("model", "version")]
        return self.made.setdefault((self.name, rest[0] if rest else ""), Metric())


def triton() -> Any:
    """Triton's module, as far as a model uses it."""
    logged: list[str] = []
    return SimpleNamespace(
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=lambda output_tensors, error=None: SimpleNamespace(
            tensors={one.name(): one.as_numpy() for one in output_tensors}, error=error
        ),
        MetricFamily=type("Family_", (Family,), {"made": {("superinfer_executor_up", ""): Metric()}}),
        Logger=SimpleNamespace(log_warn=logged.append),
        logged=logged,
    )


class Sender:
    """Triton's side of one request. Fails the test when it is asked after its end."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.errors: list[TritonError] = []
        self.first, self.ended, self.asked = threading.Event(), threading.Event(), threading.Event()
        self.gone = False
        self.wrong: list[str] = []

    def send(self, response: Any = None, flags: int = 0) -> None:
        if self.ended.is_set():
            self.wrong.append("sent behind the end")
        if response is not None:
            (self.errors if response.error else self.answers).append(response.error or response.tensors)
        self.first.set()
        if flags:
            self.ended.set()

    def is_cancelled(self) -> bool:
        if self.ended.is_set():
            self.wrong.append("asked behind the end")
        self.asked.set()
        return self.gone

    def wait(self) -> Sender:
        assert self.ended.wait(PATIENCE_S)
        assert self.wrong == []
        return self

    def ids(self) -> list[int]:
        return [int(id) for answer in self.answers for id in answer["output_ids"].reshape(-1)]


class Request:
    def __init__(self, name: str = "", timeout_us: int = 0, parameters: Any = None, **tensors: Any) -> None:
        given = {
            "input_ids": np.array([[1, 2]], np.int32),
            "input_lengths": np.array([2], np.int32),
            "request_output_len": np.array([9], np.int32),
            "streaming": np.array([True]),
            **tensors,
        }
        self._name, self._timeout_us = name, timeout_us
        self._parameters = json.dumps(parameters or {})
        self._tensors = [Tensor(name, array) for name, array in given.items()]
        self.sender = Sender()

    def request_id(self) -> str:
        return self._name

    def get_response_sender(self) -> Sender:
        return self.sender

    def inputs(self) -> list[Tensor]:
        return self._tensors

    def parameters(self) -> str:
        return self._parameters

    def timeout(self) -> int:
        return self._timeout_us


class Script:
    """An executor: one token at once, then `tokens` more when `go` is set; counts who was cancelled."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.started: list[pb.GenerateRequest] = []
        self.cancelled = 0
        self.closed = False
        self.refusal: WireStatus | None = None
        self.reachable = True

    async def generate(self, request: pb.GenerateRequest, write: Write) -> None:
        self.started.append(request)
        if self.refusal is not None:
            raise Ended(self.refusal)
        write(pb.GenerateResponse(delta=pb.Delta(token_ids=[10], text="a")))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        ending = pb.Ending(finish_reason=pb.FINISH_REASON_LENGTH)
        write(pb.GenerateResponse(delta=pb.Delta(token_ids=[11, 12], text="b"), ending=ending))

    async def stats(self) -> pb.Stats:
        if not self.reachable:
            raise Ended(WireStatus(grpc.StatusCode.UNAVAILABLE, "away"))
        return pb.Stats(serving=True, device_blocks=8, device_blocks_free=6, rotations_out=5)

    async def model_info(self) -> pb.GetModelInfoResponse:
        return pb.GetModelInfoResponse(block_tokens=16, requests_max=99)

    async def close(self) -> None:
        self.closed = True


class Model:
    """A started backend."""

    def __init__(self, face: Face = IDS, **settings: Any) -> None:
        self.pb, self.script = triton(), Script()

        async def make() -> Script:
            return self.script

        settings = {"cancel_period_s": 0.001, "stats_period_s": 0.0, **settings}
        self.backend = Backend(self.pb, Settings(face, "model", **settings), make)
        self.backend.start()

    def go(self) -> None:
        self.backend._loop.call_soon_threadsafe(self.script.go.set)

    def ask(self, *requests: Request) -> list[Sender]:
        self.backend.execute(requests)
        return [request.sender for request in requests]


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()
    yield made
    made.backend.stop()
    assert made.script.closed
    assert not made.backend._calls


def test_answers_come_as_they_are_made_and_the_last_is_final(model: Model) -> None:
    (sender,) = model.ask(Request())
    assert sender.first.wait(PATIENCE_S)
    assert not sender.ended.is_set()
    model.go()
    assert sender.wait().ids() == [10, 11, 12]
    assert len(sender.answers) == 2


def test_a_caller_that_has_gone_ends_its_request_and_no_other(model: Model) -> None:
    first, second = model.ask(Request(), Request())
    assert second.first.wait(PATIENCE_S)
    first.gone = True
    first.wait()
    assert (first.errors, model.script.cancelled) == ([], 1)
    model.go()
    assert second.wait().ids() == [10, 11, 12]


def test_a_caller_that_has_gone_before_its_request_began_is_ended_too(model: Model) -> None:
    """The row's task is cancelled before its first step."""
    model.script.go.set()
    request, stopper = Request("a"), Request("a", stop=np.array([True]))
    request_sender, stopper_sender = model.ask(request, stopper)
    request_sender.wait()
    stopper_sender.wait()
    assert request_sender.errors == stopper_sender.errors == []
    assert model.script.started == []


def test_stop_ends_the_requests_of_its_id(model: Model) -> None:
    first, second = model.ask(Request("a"), Request("b"))
    assert second.first.wait(PATIENCE_S)
    (stopper,) = model.ask(Request("a", stop=np.array([True])))
    assert stopper.wait().answers == stopper.errors == []
    assert first.wait().ids() == [10]
    assert not second.ended.is_set()
    model.go()
    second.wait()
    assert model.ask(Request("a", stop=np.array([True])))[0].wait().errors == []
    (nameless,) = model.ask(Request(stop=np.array([True])))
    assert nameless.wait().errors[0].code == TritonError.INVALID_ARG


def test_the_llm_api_calls_a_stop_an_error() -> None:
    model = Model(LLMAPI)
    text = {"text_input": np.array([b"x"], np.object_), "streaming": np.array([True])}
    (sender,) = model.ask(Request("a", **text))
    assert sender.first.wait(PATIENCE_S)
    (stopper,) = model.ask(Request("a", stop=np.array([True]), **text))
    assert [one.code for one in stopper.wait().errors + sender.wait().errors] == [TritonError.CANCELLED] * 2
    model.backend.stop()


def test_a_timeout_ends_the_request(model: Model) -> None:
    (sender,) = model.ask(Request(timeout_us=1000))
    sender.wait()
    assert sender.errors[0].message == "timeout: 1000 us have passed"
    assert model.script.cancelled == 1


def test_a_batch_has_one_end(model: Model) -> None:
    rows = {
        "input_ids": np.array([[1, 2], [3, 4]], np.int32),
        "input_lengths": np.array([2, 2], np.int32),
        "request_output_len": np.array([9, 9], np.int32),
        "streaming": np.array([True, True]),
    }
    (sender,) = model.ask(Request(**rows))
    model.go()
    sender.wait()
    assert sorted(sender.ids()) == [10, 10, 11, 11, 12, 12]
    assert {int(answer["batch_index"].item()) for answer in sender.answers} == {0, 1}


def test_a_refusal_is_told_in_the_tensors_name_with_tritons_code(model: Model) -> None:
    trailers = (("superinfer-field", "sampling.max_tokens"),)
    message = "sampling.max_tokens: too many"
    model.script.refusal = WireStatus(grpc.StatusCode.INVALID_ARGUMENT, message, trailers)
    (sender,) = model.ask(Request())
    error = sender.wait().errors[0]
    assert (error.message, error.code) == ("request_output_len: too many", TritonError.INVALID_ARG)
    model.script.refusal = WireStatus(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
    assert model.ask(Request())[0].wait().errors[0].code == TritonError.UNAVAILABLE
    (wrong,) = model.ask(Request(beam_width=np.array([4], np.int32)))
    assert wrong.wait().errors[0].message.startswith("beam_width: ")


def test_a_stop_word_ends_the_request_before_the_executor_knows(model: Model) -> None:
    model.go()
    words = np.array([[[10, 11], [2, -1]]], np.int32)
    (sender,) = model.ask(Request(stop_words_list=words))
    assert sender.wait().ids() == [10, 11]


def test_priority_is_remarked_once(model: Model) -> None:
    model.go()
    for _ in range(3):
        model.ask(Request(parameters={"priority": 1}))[0].wait()
    assert len(model.pb.logged) == 1
    assert "priority has no effect" in model.pb.logged[0]


def test_unloading_ends_what_is_live() -> None:
    model = Model()
    (sender,) = model.ask(Request())
    assert sender.first.wait(PATIENCE_S)
    model.backend.stop()
    assert sender.wait().errors[0].message == "the model is being unloaded"
    model.backend.stop()


def test_an_executor_that_cannot_be_made_is_told_to_triton() -> None:
    async def make() -> Any:
        raise RuntimeError("no model there")

    backend = Backend(triton(), Settings(IDS, "model"), make)
    with pytest.raises(RuntimeError, match="no model there"):
        backend.start()
    assert not any(thread.is_alive() for thread in backend._threads)


def test_the_numbers_have_tensorrt_llms_names_and_counters_only_grow() -> None:
    model = Model(stats_period_s=0.001)
    made = model.pb.MetricFamily.made
    up = made["superinfer_executor_up", ""]
    assert up.told.wait(PATIENCE_S)
    assert made["nv_trt_llm_kv_cache_block_metrics", "used"].value == 2
    assert made["nv_trt_llm_request_metrics", "max"].value == 99
    up.told.clear()
    assert up.told.wait(PATIENCE_S)
    assert made["superinfer_rotations_total", "out"].value == 5
    model.script.reachable = False
    while up.value:
        up.told.clear()
        assert up.told.wait(PATIENCE_S)
    model.backend.stop()
