"""A Service whose executor echoes: output token n is prompt[n % len(prompt)]. One thread, no model.

`hold` stops it between two turns and `step` lets one pass, so tests need no sleeps. Every accepted
request ends exactly once; `endings` says how.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.model import ModelConfig
from superinfer_trt.core.outcome import Ending, Sampled, TokenEvent, Totals
from superinfer_trt.core.ports import Observer, Outbox
from superinfer_trt.core.request import OPTIONAL_SAMPLING, FinishReason, Request
from superinfer_trt.core.units import RequestId
from superinfer_trt.core.view import Limits
from superinfer_trt.runtime.clock import SystemClock
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Snapshot


@dataclass(slots=True)
class _Running:
    request: Request
    times: list[int] = field(default_factory=list)


class EchoExecutor:
    """One token for every live request a turn."""

    def __init__(self, inbox: BoundedInbox, outbox: Outbox, clock: SystemClock) -> None:
        self.totals = Totals()
        self.endings: dict[RequestId, FinishReason] = {}
        self.reject_prompts_of = 0  # a prompt of this length is rejected
        self.observers: list[Observer] = []
        self.fail_prompts_of = 0  # and one of this length fails at its second token
        self._inbox, self._outbox, self._clock = inbox, outbox, clock
        self._live: dict[RequestId, _Running] = {}

    def turn(self) -> bool:
        """Returns whether anything happened."""
        now = self._clock.now()
        events: list[TokenEvent] = []
        arrived, cancels = self._inbox.drain()
        for request in arrived:
            self._live[request.id] = _Running(request)
            self.totals.accepted += 1
        for id, reason in cancels:
            if id in self._live:
                events.append(TokenEvent(id, now, ending=self._end(id, reason)))
        for id in list(self._live):
            events.append(self._token(id, now))
        self.totals.turns += 1
        if events:
            self._inbox.ended([event.id for event in events if event.ending is not None])
            self._outbox.emit(events)
        return bool(events)

    def abandon(self, message: str) -> None:
        """Ends everybody as failed."""
        self._inbox.drain()
        now = self._clock.now()
        events = [
            TokenEvent(id, now, ending=self._end(id, FinishReason.FAILED, message)) for id in list(self._live)
        ]
        self._outbox.emit(events)

    def snapshot(self) -> Snapshot:
        return Snapshot(0, 0, len(self._live), 0, 0, 0, 64, 64, 128, 128)

    def observe(self, observer: Observer) -> None:
        self.observers.append(observer)

    def unobserve(self, observer: Observer) -> None:
        self.observers.remove(observer)

    def _token(self, id: RequestId, now: int) -> TokenEvent:
        running = self._live[id]
        request, index = running.request, len(running.times)
        if len(request.prompt) == self.reject_prompts_of:
            return TokenEvent(id, now, ending=self._end(id, FinishReason.REJECTED, "never fits"))
        if index and len(request.prompt) == self.fail_prompts_of:
            return TokenEvent(id, now, ending=self._end(id, FinishReason.FAILED, "the engine broke"))
        token = request.prompt[index % len(request.prompt)]
        running.times.append(now)
        self.totals.output_tokens += 1
        sampling = request.sampling
        top = tuple((token + at, -0.5 - at) for at in range(max(0, sampling.logprobs)))
        sampled = Sampled(token, -0.5, top) if sampling.logprobs >= 0 else Sampled(token)
        reason = None
        if token in sampling.stop_ids:
            reason = FinishReason.STOP
        elif index + 1 == sampling.max_tokens:
            reason = FinishReason.LENGTH
        ending = self._end(id, reason) if reason is not None else None
        return TokenEvent(id, now, index, sampled, ending)

    def _end(self, id: RequestId, reason: FinishReason, message: str = "") -> Ending:
        running = self._live.pop(id)
        assert id not in self.endings
        self.endings[id] = reason
        self.totals.finished[reason] = self.totals.finished.get(reason, 0) + 1
        times = running.times
        return Ending(
            reason,
            message,
            len(running.request.prompt),
            len(times),
            0,
            0,
            running.request.arrival,
            running.request.arrival,
            times[0] if times else -1,
            times[-1] if times else -1,
        )


class EchoDriver:
    """The thread, with a gate."""

    def __init__(self, executor: EchoExecutor, inbox: BoundedInbox, clock: SystemClock) -> None:
        self._executor, self._inbox, self._clock = executor, inbox, clock
        self._open = threading.Event()
        self._open.set()
        self._permits = threading.Semaphore(0)
        self._stopping = False
        self._killed = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._killed

    def drain(self, timeout_s: float) -> bool:
        self._inbox.close("draining")
        return True

    def stop(self) -> None:
        self._stopping = True
        self.release()
        self._clock.wake()
        if self._thread.is_alive():
            self._thread.join()

    def kill(self) -> None:
        """As if a turn had raised."""
        self._killed = True
        self.stop()

    def hold(self) -> None:
        """No turn passes from now on, but by `step`."""
        self._open.clear()
        self._clock.wake()

    def step(self, turns: int = 1) -> None:
        for _ in range(turns):
            self._permits.release()

    def release(self) -> None:
        self._open.set()
        self._permits.release()

    def _run(self) -> None:
        while not self._stopping:
            if not self._open.is_set():
                self._permits.acquire()
            if not self._executor.turn() and self._open.is_set():
                self._clock.park(None)
        if not self._killed:
            self._executor.abandon("the server stopped before this request had ended")
        self._inbox.close("stopped")


class LetterStream:
    """Text of a LetterTokenizer, one character a token."""

    def push(self, token: int) -> str:
        return LetterTokenizer.letter(token)

    def finish(self) -> str:
        return ""


class LetterTokenizer:
    """Token id = code point; the chat template writes `<role>content`."""

    @staticmethod
    def letter(token: int) -> str:
        return chr(token)

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(self.letter, ids))

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if any(message["role"] == "tool" for message in messages):
            raise Refused(RefusalCode.INVALID, "chat", "the template knows no role tool")
        return self.encode("".join(f"<{one['role']}>{one['content']}" for one in messages))

    def stream(self) -> LetterStream:
        return LetterStream()

    def files(self) -> Mapping[str, bytes]:
        return {"tokenizer.json": b"{}", "letters.txt": bytes(range(256)) * 4096}


MODEL = ModelConfig(
    name="echo",
    architecture="llama",
    layers=1,
    hidden=8,
    intermediate=8,
    heads=1,
    kv_heads=1,
    head_dim=8,
    vocabulary=256,
    context_tokens_max=4096,
    rope_theta=1e4,
    norm_eps=1e-5,
    tied_embedding=True,
    stop_ids=frozenset({0}),
)


class EchoService:
    """serve.service.Service over an EchoExecutor."""

    def __init__(
        self,
        outbox: Outbox,
        *,
        requests_max: int = 1 << 20,
        text: bool = True,
        device_blocks: int = 64,
        context_tokens_max: int = 4096,
        supports: frozenset[str] = OPTIONAL_SAMPLING,
    ) -> None:
        self.clock = SystemClock()
        self.inbox = BoundedInbox(self.clock, requests_max)
        self.executor = EchoExecutor(self.inbox, outbox, self.clock)
        self.driver = EchoDriver(self.executor, self.inbox, self.clock)
        self.tokenizer = LetterTokenizer() if text else None
        self.model = replace(MODEL) if text else None
        self.limits = Limits(
            step_tokens=512, seats=64, block_tokens=16, device_blocks=device_blocks, host_blocks=128
        )
        self.vocabulary = 256
        self.context_tokens_max = context_tokens_max
        self.supports = supports
        self.engine = "echo"
        self.policy = "none"
        self.driver.start()

    def close(self) -> None:
        self.driver.stop()
