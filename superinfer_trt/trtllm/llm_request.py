"""One request on its way through the LLM API: our sampling as theirs, their results as our tokens.

Pure: knows no LLM, no loop and no clock. What TensorRT-LLM understands otherwise than we do is made good
here: stop ids stay in the output (the reader of a stream knows them by id), its end id is only one of ours,
and it gives log-probabilities as a dictionary with the likeliest and the chosen token in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from superinfer_trt.core.outcome import Sampled
from superinfer_trt.core.request import OPTIONAL_SAMPLING, FinishReason, Request, Sampling
from superinfer_trt.core.units import SECOND

NO_ID = -1
SEED_BITS = (1 << 63) - 1  # fits a binding of either sign
_NEUTRAL = Sampling()
NATIVE_SAMPLER = OPTIONAL_SAMPLING - {"min_tokens"}
"""What upstream's TRTLLMSampler can do besides the usual. Its TorchSampler, the default in 1.2, takes these
and does nothing (TensorRT-LLM, issue 9442). For `min_tokens` both keep back the end id, and no stop word."""
FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "cancelled": FinishReason.CANCELLED,
}


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """Keywords for upstream's SamplingParams. Greedy is temperature 0. All stop ids, the model's own among
    them, are stop words there: its single end id is switched off."""
    fields: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "seed": sampling.seed & SEED_BITS,
        "end_id": NO_ID,
        "pad_id": NO_ID,
        "ignore_eos": True,
        "stop_token_ids": sorted(sampling.stop_ids) or None,
        "include_stop_str_in_output": True,
        "detokenize": False,
    }
    if sampling.temperature > 0:
        fields["top_k"] = sampling.top_k
        fields["top_p"] = sampling.top_p
    if sampling.logprobs >= 0:
        fields["logprobs"] = max(1, sampling.logprobs)  # 0 would be none at all
    for name in NATIVE_SAMPLER:
        value = getattr(sampling, name)
        if value != getattr(_NEUTRAL, name):
            fields[name] = value
    return fields


def scheduling_fields(request: Request) -> dict[str, Any]:
    """Keywords for SloSchedulingParams."""
    return {
        "ttft_slo_s": request.slo.ttft / SECOND,
        "tbt_slo_s": request.slo.tbt / SECOND,
        "tenant": request.tenant,
    }


class TokenReader:
    """The new tokens in each state of one completion, which upstream lets grow in place."""

    __slots__ = ("_logprobs", "count", "stop_ids")

    def __init__(self, sampling: Sampling) -> None:
        self._logprobs = sampling.logprobs
        self.stop_ids = sampling.stop_ids
        self.count = 0

    def read(self, completion: Any) -> list[Sampled]:
        """Tokens that came since the last call, in order."""
        ids = completion.token_ids
        first, self.count = self.count, max(self.count, len(ids))
        if self._logprobs < 0:
            return [Sampled(int(token)) for token in ids[first:]]
        chances = completion.logprobs or ()
        return [self._sampled(int(ids[at]), chances, at) for at in range(first, len(ids))]

    def _sampled(self, token: int, chances: Sequence[Any], at: int) -> Sampled:
        found = chances[at] if at < len(chances) else None
        if isinstance(found, Mapping):
            ranked = sorted(((id, _value(one)) for id, one in found.items()), key=lambda pair: -pair[1])
            own = dict(ranked).get(token, math.nan)
            return Sampled(token, own, tuple(ranked[: self._logprobs]))
        return Sampled(token, _value(found))


def _value(chance: Any) -> float:
    """A log-probability, alone or with its rank."""
    value = getattr(chance, "logprob", chance)
    return float(value) if isinstance(value, (int, float)) else math.nan


def ending_of(completion: Any) -> tuple[FinishReason, str]:
    """How a finished completion ended, and what is to be said of it."""
    reason = FINISH_REASONS.get(completion.finish_reason)
    if reason is None:
        return (
            FinishReason.FAILED,
            f"TensorRT-LLM ended the request: {completion.finish_reason or 'no reason'}",
        )
    return reason, ""
