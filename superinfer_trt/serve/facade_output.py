"""The way out of one request through the facade: messages of superinfer.v1 -> trtllm.GenerateResponse.

Knows no call and no server. Not thread-safe: one per request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from superinfer_trt.core.model import Tokenizer
from superinfer_trt.core.units import MILLISECOND, SECOND
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt

_SECONDS_PER_MS = MILLISECOND / SECOND
_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_CANCELLED: "cancelled",
}
"""Other endings are told by the status of the call, with no `complete` before it. The service knows
"stop_word" as well, but a gateway hands it on to clients that do not: `matched_stop` says what it was."""


class FacadeOutput:
    """Collects the output of `request` and says it as a gateway wants it: in chunks, or once.

    `model_stop_ids`: the model's own.
    """

    def __init__(
        self, request: trt.GenerateRequest, model_stop_ids: frozenset[int], tokenizer: Tokenizer | None
    ) -> None:
        self._request = request
        self._request_id = request.request_id
        self._streams = request.streaming
        self._asked_stop_ids = frozenset(request.stop_token_ids)
        keeps = request.include_stop_token_in_output
        stop_ids = self._asked_stop_ids | (frozenset() if request.ignore_eos else model_stop_ids)
        self._dropped = frozenset() if keeps else stop_ids
        self._tokenizer = tokenizer if request.stop and not keeps else None
        self._prompt_tokens = len(request.tokenized.input_token_ids)
        self._made = 0
        self._ids: list[int] = []
        self._text = ""
        self._logprobs: list[trt.TokenLogprob] = []

    def feed(self, response: pb.GenerateResponse) -> Iterator[trt.GenerateResponse]:
        """What `response` brings, as none, one or two messages."""
        fresh = len(self._ids)
        self._take(response.delta)
        if self._streams and len(self._ids) > fresh:
            yield self._chunk(fresh)
        if response.HasField("ending") and response.ending.finish_reason in _REASONS:
            yield self._complete(response.ending)

    def _take(self, delta: pb.Delta) -> None:
        self._made += len(delta.token_ids)
        if self._tokenizer is not None:
            self._text += delta.text
        told = delta.logprobs
        for at, token in enumerate(delta.token_ids):
            if token in self._dropped:
                continue
            self._ids.append(token)
            if told:
                top = [trt.TopLogprob(token_id=one.token_id, logprob=one.logprob) for one in told[at].top]
                one = trt.TokenLogprob(token_id=token, logprob=told[at].logprob, top_logprobs=top)
                self._logprobs.append(one)

    def _chunk(self, fresh: int) -> trt.GenerateResponse:
        response = trt.GenerateResponse()  # filled in place: there is one a token, and arguments cost more
        response.request_id = self._request_id
        chunk = response.chunk
        chunk.token_ids.extend(self._ids[fresh:])
        chunk.prompt_tokens = self._prompt_tokens
        chunk.completion_tokens = self._made
        if self._logprobs:
            chunk.logprobs.extend(self._logprobs[fresh:])
        return response

    def _complete(self, ending: pb.Ending) -> trt.GenerateResponse:
        kept = len(self._ids)
        if ending.HasField("matched_string") and self._tokenizer is not None:
            kept = tokens_of_text(self._ids, len(self._text), self._tokenizer)
        complete = trt.GenerateComplete(
            output_token_ids=self._ids[:kept],
            finish_reason=_REASONS[ending.finish_reason],
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._made,
            logprobs=self._logprobs[:kept],
        )
        if ending.HasField("matched_string"):
            complete.matched_stop_str = ending.matched_string
        elif ending.HasField("matched_token_id") and ending.matched_token_id in self._asked_stop_ids:
            complete.matched_token_id = ending.matched_token_id
        if self._request.output_config.return_perf_metrics:
            _write_metrics(complete.perf_metrics, ending.timings, ending.usage.output_tokens)
        return trt.GenerateResponse(request_id=self._request_id, complete=complete)


def tokens_of_text(ids: Sequence[int], characters: int, tokenizer: Tokenizer) -> int:
    """How many of `ids` it takes to write the first `characters` of their text."""
    stream = tokenizer.stream()
    for count, token in enumerate(ids):
        if characters <= 0:
            return count
        characters -= len(stream.push(token))
    return len(ids)


def _write_metrics(metrics: trt.PerfMetrics, timings: pb.Timings, tokens: int) -> None:
    """Seconds behind the arrival."""
    metrics.arrival_time = 0.0
    metrics.first_scheduled_time = timings.queue_ms * _SECONDS_PER_MS
    metrics.first_token_time = timings.ttft_ms * _SECONDS_PER_MS
    last_ms = timings.ttft_ms + timings.tbt_mean_ms * max(0, tokens - 1)
    metrics.last_token_time = last_ms * _SECONDS_PER_MS
