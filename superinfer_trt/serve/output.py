"""The way out of one request: token events -> messages of the wire, text and stop strings included.

Knows no stream, server or clock. Not thread-safe: one per request.
"""

from __future__ import annotations

from collections.abc import Sequence

from superinfer_trt.core.model import TextStream, Tokenizer
from superinfer_trt.core.outcome import Ending, Sampled, TokenEvent
from superinfer_trt.core.request import FinishReason
from superinfer_trt.core.units import MILLISECOND, Nanos
from superinfer_trt.serve.mapping import Accepted
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.text import StopMatcher

_REASON = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
    FinishReason.REJECTED: pb.FINISH_REASON_REJECTED,
    FinishReason.FAILED: pb.FINISH_REASON_FAILED,
}
_NO_STOPS = StopMatcher(())  # keeps nothing, so that all requests without stop strings can share it


class Output:
    """Turns a request's events into deltas and one ending.

    Ids leave at once; text leaves when it is certain that it is no part of a stop string. Tokens
    behind a matched stop string, made before the executor heard of it, are dropped.
    """

    __slots__ = (
        "_last_token",
        "_matcher",
        "_min_tokens",
        "_name",
        "_sent",
        "_stop_ids",
        "_stops",
        "_text",
        "_wants_logprobs",
        "ending",
    )

    def __init__(self, accepted: Accepted, tokenizer: Tokenizer | None) -> None:
        sampling = accepted.request.sampling
        self._name = accepted.name
        self._stop_ids = sampling.stop_ids
        self._min_tokens = sampling.min_tokens
        self._wants_logprobs = sampling.logprobs >= 0
        self._text = tokenizer.stream() if tokenizer is not None else None
        self._stops = bool(accepted.stop)
        self._matcher = StopMatcher(accepted.stop) if accepted.stop else _NO_STOPS
        self._sent = 0
        self._last_token = -1
        self.ending: FinishReason | None = None

    @property
    def stopped(self) -> bool:
        """A stop string has been found: the executor need not go on."""
        return self._matcher.matched is not None

    def feed(self, events: Sequence[TokenEvent]) -> pb.GenerateResponse | None:
        """One message with all that `events` bring, or None when that is nothing yet."""
        first = self._sent
        ids: list[int] = []
        texts: list[str] = []
        logprobs: list[pb.TokenLogprobs] = []
        ended: TokenEvent | None = None
        matcher, text_stream, stop_ids = self._matcher, self._text, self._stop_ids
        for event in events:  # the long loop of the service: a token costs a few look-ups beside its text
            sampled = event.sampled
            if sampled is not None and matcher.matched is None:
                token = sampled.token
                ids.append(token)
                self._sent += 1
                if self._wants_logprobs:
                    logprobs.append(_logprobs(sampled))
                if text_stream is not None and token not in stop_ids:
                    piece = text_stream.push(token)
                    if piece:
                        texts.append(matcher.push(piece, armed=self._armed) if self._stops else piece)
            if event.ending is not None:
                ended = event
        if ids:
            self._last_token = ids[-1]
        if ended is not None and text_stream is not None and matcher.matched is None:
            texts.append(self._rest(text_stream))
        text = "".join(texts) if texts else ""
        if not ids and not text and ended is None:
            return None
        response = pb.GenerateResponse()
        if ids or text:
            delta = response.delta
            delta.first_index = first
            delta.token_ids.extend(ids)
            if text:
                delta.text = text
            if logprobs:
                delta.logprobs.extend(logprobs)
        if ended is not None:
            assert ended.ending is not None
            self._end(response.ending, ended.ending, ended.now)
        return response

    def _rest(self, text: TextStream) -> str:
        """Text that waited for more, now that no more comes; a stop string may end in it."""
        rest = self._matcher.push(text.finish(), armed=self._armed)
        return rest if self.stopped else rest + self._matcher.finish()

    @property
    def _armed(self) -> bool:
        """Whether a stop string may end in the newest token's text, as a stop id may be that token."""
        return self._sent > self._min_tokens

    def _end(self, message: pb.Ending, ending: Ending, now: Nanos) -> None:
        matched = self._matcher.matched
        self.ending = FinishReason.STOP if matched is not None else ending.reason
        message.request_id = self._name
        message.finish_reason = _REASON[self.ending]
        message.message = ending.message
        usage = message.usage
        usage.prompt_tokens = ending.prompt_tokens
        usage.output_tokens = self._sent
        message.rotations = ending.rotations
        message.evictions = ending.evictions
        if matched is not None:
            message.matched_string = matched
        elif self.ending is FinishReason.STOP and self._last_token in self._stop_ids:
            message.matched_token_id = self._last_token
        write_timings(message.timings, ending, now)


def _logprobs(sampled: Sampled) -> pb.TokenLogprobs:
    top = [pb.TopLogprob(token_id=id, logprob=value) for id, value in sampled.top]
    return pb.TokenLogprobs(logprob=sampled.logprob, top=top)


def write_timings(message: pb.Timings, ending: Ending, now: Nanos) -> None:
    """Durations of a request that ended at `now`; what never happened stays unset."""
    if ending.admitted >= 0:
        message.queue_ms = (ending.admitted - ending.arrival) / MILLISECOND
    if ending.first_token >= 0:
        message.ttft_ms = (ending.first_token - ending.arrival) / MILLISECOND
        if ending.output_tokens > 1:
            gaps = ending.output_tokens - 1
            message.tbt_mean_ms = (ending.last_token - ending.first_token) / gaps / MILLISECOND
    message.total_ms = (now - ending.arrival) / MILLISECOND
