"""What came of a step, and what the client is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from superinfer_trt.core.request import FinishReason
from superinfer_trt.core.units import Nanos, RequestId


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampled token. `logprob` is NaN unless asked for; `top` are (id, logprob), likeliest first."""

    token: int
    logprob: float = float("nan")
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Tokens by request, for exactly the rows with `sample` set."""

    sampled: Mapping[RequestId, Sampled]


@dataclass(frozen=True, slots=True)
class Ending:
    """The last event of a request: how it ended, and its times on the injected clock (-1: never).

    `away`: how long its rotations took in all, from leaving until it could make tokens again.
    """

    reason: FinishReason
    message: str
    prompt_tokens: int
    output_tokens: int
    rotations: int
    evictions: int
    arrival: Nanos
    admitted: Nanos
    first_token: Nanos
    last_token: Nanos
    away: Nanos = 0


@dataclass(slots=True)
class TokenEvent:
    """One thing a client is told: token number `index` (0,1,2,... without gap: C4), an ending, or both.

    `Final` and not frozen for the reason that core.step gives: there is one a token.
    """

    id: Final[RequestId]
    now: Final[Nanos]
    index: Final[int] = -1
    sampled: Final[Sampled | None] = None
    ending: Final[Ending | None] = None


@dataclass(slots=True)
class Totals:
    """Plain counters since start, kept by the executor; exporters read them."""

    turns: int = 0
    batches: int = 0
    step_tokens: int = 0
    output_tokens: int = 0
    accepted: int = 0
    finished: dict[FinishReason, int] = field(default_factory=dict)
    rotations_out: int = 0
    rotations_in: int = 0
    evictions: int = 0
    copies_failed: int = 0
    link_out_blocks: int = 0
    link_in_blocks: int = 0
    plan_ns: int = 0
    apply_ns: int = 0
    step_ns: int = 0
