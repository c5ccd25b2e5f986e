"""What the fake LLM stands on, a rotating fake worker and an installed package; and a server over it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import grpc
import pytest

from superinfer_trt.core.outcome import TokenEvent
from superinfer_trt.core.units import RequestId
from superinfer_trt.core.view import Limits
from superinfer_trt.runtime.clock import SystemClock
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.server import Server, ServerOptions
from superinfer_trt.serve.streams import StreamOutbox
from superinfer_trt.trtllm.compat import PACKAGE
from superinfer_trt.trtllm.executor import LlmCalls, Served, TrtllmExecutor
from superinfer_trt.trtllm.llm_request import NATIVE_SAMPLER
from superinfer_trt.trtllm.params import scheduling_params_class
from support.echo_service import MODEL, LetterTokenizer
from support.trtllm import llm as fake
from support.trtllm.package import SchedulingParams, fake_modules
from support.trtllm.request import LlmRequest
from support.trtllm.rotating import RotatingWorker, RotationShape
from support.trtllm.worker import WorkerShape

VOCABULARY = 256
LIMITS = Limits(step_tokens=64, seats=8, block_tokens=16, device_blocks=64, host_blocks=0)
SCHEDULING = scheduling_params_class(SchedulingParams)


class WorkerBackend:
    """A backend that is a whole fake worker with rotation in its loop."""

    def __init__(self, shape: WorkerShape, rotation: RotationShape) -> None:
        self.worker = RotatingWorker(shape, rotation)
        self._lock = threading.Lock()
        self._arrived: list[LlmRequest] = []
        self._aborted: list[int] = []
        self._live: dict[int, tuple[LlmRequest, int]] = {}

    def submit(self, id: int, prompt: list[int], sampling: fake.SamplingParams, scheduling: Any) -> None:
        ends = sampling.stop_token_ids or [-1]
        request = LlmRequest(id, prompt, sampling.max_tokens, end_id=ends[0])
        request.py_scheduling_params = scheduling
        with self._lock:
            self._arrived.append(request)

    def abort(self, id: int) -> None:
        with self._lock:
            self._aborted.append(id)

    def step(self) -> list[fake.Response]:
        with self._lock:
            arrived, self._arrived = self._arrived, []
            aborted, self._aborted = self._aborted, []
        for request in arrived:
            self._live[request.py_request_id] = (request, 0)
            self.worker.enqueue(request)
        for id in aborted:
            self.worker.executor.cancel(id)
        self.worker.step()
        return [one for id in list(self._live) for one in self._response(id)]

    def statistics(self) -> dict[str, Any]:
        return {}

    def _response(self, id: int) -> list[fake.Response]:
        request, sent = self._live[id]
        said = request.output
        finish = None
        if request.is_finished:
            del self._live[id]
            ended = said and said[-1] == request.end_id
            finish = "cancelled" if request.cancelled else "stop_words" if ended else "length"
        else:
            self._live[id] = (request, len(said))
        return [fake.Response(id, said[sent:], finish)] if len(said) > sent or finish else []


def fake_llm_modules(version: str = "1.2.1") -> dict[str, ModuleType]:
    """The fake package with its LLM API."""
    modules = fake_modules(version)
    modules[PACKAGE].LLM = fake.LLM  # type: ignore[attr-defined]
    modules[PACKAGE].SamplingParams = fake.SamplingParams  # type: ignore[attr-defined]
    for name, attribute in (
        (f"{PACKAGE}.executor", "RequestError"),
        (f"{PACKAGE}.llmapi.llm_args", "update_llm_args_with_extra_dict"),
    ):
        modules[name] = ModuleType(name)
        setattr(modules[name], attribute, getattr(fake, attribute))
    return modules


def install_modules(patch: pytest.MonkeyPatch, modules: dict[str, ModuleType]) -> None:
    """As if installed and imported."""
    for name, module in modules.items():
        patch.setitem(sys.modules, name, module)
    patch.setattr(fake.LLM, "made", [])
    patch.delitem(sys.modules, "superinfer_trt.trtllm.params", raising=False)


def make_llm(**arguments: Any) -> fake.LLM:
    """A fake LLM with chunked prefill."""
    return fake.LLM("somewhere", **{"enable_chunked_prefill": True, **arguments})


def make_executor(llm: fake.LLM, outbox: Any, **options: Any) -> TrtllmExecutor:
    """Not started."""
    supports = options.pop("supports", NATIVE_SAMPLER)
    served = Served(LIMITS, VOCABULARY, 4096, "rota-slack", MODEL, LetterTokenizer(), supports)
    calls = LlmCalls(llm, fake.SamplingParams, SCHEDULING)
    options.setdefault("requests_max", 1000)
    return TrtllmExecutor(calls, served, outbox, SystemClock(), on_close=llm.shutdown, **options)


@dataclass
class Heard:
    """core.ports.Outbox that keeps all, and checks each stream as it comes (C3, C4)."""

    events: dict[RequestId, list[TokenEvent]] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def emit(self, events: Any) -> None:
        with self._changed:
            for event in events:
                stream = self.events.setdefault(event.id, [])
                assert not (stream and stream[-1].ending), "nothing comes behind the ending"
                if event.sampled is not None:
                    assert event.index == sum(one.sampled is not None for one in stream)
                stream.append(event)
            self._changed.notify_all()

    def wait(self, id: RequestId, *, tokens: int = 0, ended: bool = False) -> list[TokenEvent]:
        """The events of `id`, once they are that many or the last."""

        def there() -> bool:
            stream = self.events.get(id, [])
            is_over = bool(stream) and stream[-1].ending is not None
            return is_over or (not ended and len(stream) >= tokens)

        with self._changed:
            assert self._changed.wait_for(there, 30), f"request {id} was forgotten"
            return list(self.events[id])


@dataclass
class LlmWire:
    """A listening server over a fake LLM."""

    server: Server
    service: TrtllmExecutor
    llm: fake.LLM
    channel: grpc.aio.Channel
    stub: Any

    @property
    def backend(self) -> Any:
        return self.llm.backend


@asynccontextmanager
async def serving_llm(llm: fake.LLM, service_options: Any = None, **options: Any) -> AsyncIterator[LlmWire]:
    """Afterwards no stream is open and every accepted request has ended (C2, C3)."""
    outbox = StreamOutbox(asyncio.get_running_loop())
    service = make_executor(llm, outbox, **(service_options or {}))
    await asyncio.to_thread(service.start)
    server = Server(service, outbox, ServerOptions(**options))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.target) as channel:
            yield LlmWire(server, service, llm, channel, ExecutorServiceStub(channel))
    finally:
        await server.stop()
        assert len(outbox) == 0
        assert server.calls.live == 0
        await asyncio.to_thread(service.close)
        totals = service.totals
        assert totals.accepted == sum(totals.finished.values())
