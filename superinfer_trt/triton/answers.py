"""What the executor says of one row -> output tensors. Pure; knows no stream and no server.

Streaming, an answer has what is new since the last one (but for a face whose text is `so_far`); otherwise
there is one answer, with everything. Not thread-safe: one object a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.triton.mapping import Item
from superinfer_trt.triton.tensors import Face

_NANOS_PER_MS = 1_000_000
_GOOD = (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH)
_REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class Answer:
    """Tensors to send (none: nothing but the end), and whether the row has ended with them."""

    tensors: dict[str, NDArray[Any]]
    final: bool
    cancelled: bool = False


class Row:
    """The answers to one row."""

    def __init__(self, face: Face, item: Item) -> None:
        self._face = face
        self._item = item
        self._wants = item.wants
        self._words = _StopWords(item.stop_sequences)
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._text: list[str] = []
        self._new_text = False
        self._sum = 0.0  # of all log-probabilities so far
        self._tokens = 0

    def feed(self, response: pb.GenerateResponse) -> Answer | None:
        """The answer to one message; None: nothing to send yet. Not to be called after a final one."""
        self._take(response.delta)
        ended = response.HasField("ending")
        matched = self._words.matched is not None
        if not ended and not matched:
            return self._part() if self._wants.streaming else None
        reason = response.ending.finish_reason
        if not matched and reason not in _GOOD:
            return self.cut()
        return self._last(response.ending if ended else None)

    def cut(self) -> Answer:
        """The end of a row that was cancelled: what had been held back, if there is any."""
        tensors = self._tensors() if self._ids or self._new_text else {}
        return Answer(tensors, final=True, cancelled=True)

    def _take(self, delta: pb.Delta) -> None:
        count = self._words.feed(delta.token_ids)
        self._ids += delta.token_ids[:count]
        self._tokens += count
        fresh = [one.logprob for one in delta.logprobs[:count]]
        self._logprobs += fresh
        self._sum += sum(fresh)
        if delta.text:
            self._text.append(delta.text)
            self._new_text = True

    def _part(self) -> Answer | None:
        """Tokens whose text is not certain yet wait for it, unless their log-probabilities are wanted."""
        if not self._new_text and (not self._ids or (self._face.text and not self._wants.log_probs)):
            return None
        return Answer(self._tensors(), final=False)

    def _last(self, ending: pb.Ending | None) -> Answer:
        tensors = self._tensors()
        if self._wants.finish_reason:
            reason = ending.finish_reason if ending is not None else pb.FINISH_REASON_STOP
            tensors["finish_reason"] = _strings(_REASONS[reason])
        if self._wants.stop_reason and ending is not None:
            which = ending.WhichOneof("matched_stop")
            tensors["stop_reason"] = _strings(str(getattr(ending, which)) if which else "")
        if self._wants.num_input_tokens and (ending is not None or not self._face.text):
            prompt = len(self._item.request.token_ids.ids)
            tensors["num_input_tokens"] = self._int32(prompt or (ending.usage.prompt_tokens if ending else 0))
        if self._wants.num_output_tokens:
            tensors["num_output_tokens"] = self._int32(self._tokens)
        if self._wants.times and ending is not None:
            tensors.update(self._times(ending.timings))
        return Answer(tensors, final=True)

    def _tensors(self) -> dict[str, NDArray[Any]]:
        """What has been gathered; what is not part of every answer is forgotten."""
        if self._face.text:
            tensors = {"text_output": self._shape(_strings(self._prefix() + "".join(self._text)))}
        else:
            echo = self._echo()
            ids = np.array([*self._item.request.token_ids.ids, *self._ids] if echo else self._ids, np.int32)
            tensors = {
                "output_ids": ids.reshape(1, 1, -1),
                "sequence_length": np.array([[ids.size]], np.int32),
            }
        if self._face.batched:
            tensors["batch_index"] = self._int32(self._item.batch_index)
            tensors["sequence_index"] = self._int32(0)
        if self._wants.log_probs:
            tensors["cum_log_probs"] = np.array([[self._sum]], np.float32)
            tensors["output_log_probs"] = np.array(self._logprobs, np.float32).reshape(1, 1, -1)
        if self._wants.cumulative_logprob:
            tensors["cumulative_logprob"] = np.array([self._sum], np.float32)
        self._ids, self._logprobs, self._new_text = [], [], False
        if not self._face.so_far:
            self._text = []
        return tensors

    def _echo(self) -> bool:
        return not self._wants.streaming and not self._wants.exclude_input

    def _prefix(self) -> str:
        return self._item.request.text if self._echo() else ""

    def _times(self, timings: pb.Timings) -> dict[str, NDArray[Any]]:
        """Nanoseconds from the arrival on: times of the executor's clock do not leave it."""
        first = timings.ttft_ms
        times_ms = {
            "arrival_time_ns": 0.0,
            "first_scheduled_time_ns": timings.queue_ms,
            "first_token_time_ns": first,
            "last_token_time_ns": first + timings.tbt_mean_ms * max(0, self._tokens - 1),
        }
        return {
            name: self._shape(np.array([round(value * _NANOS_PER_MS)], np.int64))
            for name, value in times_ms.items()
        }

    def _int32(self, value: int) -> NDArray[Any]:
        return self._shape(np.array([value], np.int32))

    def _shape(self, flat: NDArray[Any]) -> NDArray[Any]:
        return flat.reshape(1, -1) if self._face.batched else flat


def _strings(text: str) -> NDArray[Any]:
    return np.array([text.encode()], dtype=np.object_)


class _StopWords:
    """Finds the first run of tokens that ends the output, whatever pieces the output comes in."""

    def __init__(self, sequences: Sequence[tuple[int, ...]]) -> None:
        self._sequences = sequences
        self._keep = max((len(sequence) for sequence in sequences), default=0)
        self._tail: tuple[int, ...] = ()
        self.matched: tuple[int, ...] | None = None

    def feed(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` belong to the output: all, or those up to the end of a stop word."""
        if not self._sequences:
            return len(tokens)
        if self.matched is not None:
            return 0
        for at, token in enumerate(tokens):
            self._tail = (*self._tail, token)[-self._keep :]
            for sequence in self._sequences:
                if self._tail[-len(sequence) :] == sequence:
                    self.matched = sequence
                    return at + 1
        return len(tokens)
