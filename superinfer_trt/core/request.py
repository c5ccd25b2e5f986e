"""What a client asks for, already valid. Parsed once at the door, never changed, never checked again."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import Nanos, RequestId


class FinishReason(Enum):
    """How a request ended. Every accepted request ends exactly once with one of these."""

    STOP = "stop"  # a stop id was sampled, or the reader found its stop string
    LENGTH = "length"  # max_tokens were made
    CANCELLED = "cancelled"  # the client went away or asked for it
    REJECTED = "rejected"  # a policy refused it (Plan.reject)
    FAILED = "failed"  # engine or link failed; the message says which


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. `temperature == 0` is greedy (lowest id wins a tie).

    The random number of the n-th output token is a function of (seed, n) alone, so a request's
    tokens do not depend on its neighbours, on chunking or on rotation.

    In this order: stop ids that `min_tokens` forbids, the three penalties (on logits, as Hugging Face and
    OpenAI define them), temperature, min_p, top_k, top_p (a share of what those before it have left).
    Greedy too is after forbidden ids and penalties; log-probabilities are before everything.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    seed: int = 0  # unsigned 64 bit
    stop_ids: frozenset[int] = frozenset()
    logprobs: int = -1  # -1: none; 0: of the chosen token; n: and of the n most likely ones
    min_p: float = 0.0  # least probability, as a share of the likeliest token's
    repetition_penalty: float = 1.0  # divides logits > 0 of ids in prompt or output, multiplies the others
    presence_penalty: float = 0.0  # taken once from the logits of ids in the output
    frequency_penalty: float = 0.0  # taken as often as the id is in the output
    min_tokens: int = 0  # no stop id is chosen before so many tokens were made

    @property
    def penalised(self) -> bool:
        """Whether choosing needs to know all tokens so far (Row.history)."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def forbidden(self, index: int) -> frozenset[int]:
        """Ids that output token `index` may not be."""
        return self.stop_ids if index < self.min_tokens else frozenset()


OPTIONAL_SAMPLING = frozenset(
    {"min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens"}
)
"""Fields of Sampling that an engine may not know (ModelEngine.supports); the others every engine does."""


@dataclass(frozen=True, slots=True)
class Request:
    """One valid request. `prompt` is never empty; len(prompt) + max_tokens fits model and pools."""

    id: RequestId
    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    slo: Slo = field(default_factory=Slo)
    arrival: Nanos = 0
    tenant: str = ""
