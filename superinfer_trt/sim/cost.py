"""How long a step takes on a GPU: a roofline with a soft knee, and what a scheduler costs the host.

    linear    = ((2 P_active n / F)^4 + (W_read / B)^4)^(1/4)      n: all tokens of the step
    attention = K kv / B + sum over chunks of (4 L H d x (y + x / 2) / F_attention + y kv / B)
    step      = base + row * rows + linear + attention

K is the context that decodes read, x the tokens of a prefill chunk on top of y cached ones, kv the bytes
of KV of one token. A mixture of experts reads the share of its experts that n tokens touch. Pure; no
clock, no profile. Any thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import Policy
from superinfer_trt.core.step import Batch
from superinfer_trt.core.units import SECOND, Nanos
from superinfer_trt.core.view import View


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a batch asks of the GPU, counted in tokens."""

    rows: int
    tokens: int  # n: decodes and prefill together
    decode_context_tokens: int  # K: context that decodes read, their own token included
    chunk_pair_tokens: float  # sum of x (y + x / 2)
    chunk_context_tokens: int  # sum of y


def work_of(batch: Batch) -> StepWork:
    """Counts a batch. A row of one token behind a context is a decode, whoever asked for it. O(rows)."""
    decode_context = chunk_context = chunk_tokens = chunks = 0
    pairs = 0.0
    for row in batch.rows:
        start, length = row.start, len(row.tokens)
        if length == 1 and start:
            decode_context += start + 1
        else:
            chunks += 1
            chunk_tokens += length
            chunk_context += start
            pairs += length * (start + length / 2)
    rows = len(batch.rows)
    return StepWork(rows, rows - chunks + chunk_tokens, decode_context, pairs, chunk_context)


@dataclass(frozen=True, slots=True)
class StepModel:
    """Seconds of a step from its work. All rates are effective ones, per second."""

    active_parameters: float  # P_active: weights that one token is multiplied with
    weight_bytes: float
    kv_token_bytes: float  # KV of one token, all layers
    attention_pair_flops: float  # 4 L H d
    flops_per_s: float  # F, of the matrix products
    attention_flops_per_s: float
    hbm_bytes_per_s: float  # B
    base_s: float  # of any step
    row_s: float  # of each row
    dense_share: float = 1.0  # weights that every token reads; < 1 for a mixture of experts
    expert_share: float = 1.0  # experts one token picks, as a share of all

    def __post_init__(self) -> None:
        """Raises ConfigError for sizes and rates that are none."""
        for name in (
            "active_parameters",
            "weight_bytes",
            "kv_token_bytes",
            "flops_per_s",
            "attention_flops_per_s",
            "hbm_bytes_per_s",
        ):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"step model: {name} is {getattr(self, name)}; expected a number > 0")
        for name in ("base_s", "row_s", "attention_pair_flops"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"step model: {name} is {getattr(self, name)}; expected a number >= 0")
        for name in ("dense_share", "expert_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"step model: {name} is {getattr(self, name)}; expected 0 to 1")

    def seconds(self, work: StepWork) -> float:
        """Of one step; 0 for no work."""
        if work.tokens == 0:
            return 0.0
        return self.linear_seconds(work.rows, work.tokens) + self.attention_seconds(work)

    def linear_seconds(self, rows: int, tokens: int) -> float:
        """All of a step but attention; 0 for no tokens."""
        if tokens == 0:
            return 0.0
        compute_s = 2.0 * self.active_parameters * tokens / self.flops_per_s
        weights_s = self.weight_bytes * self._weights_read(tokens) / self.hbm_bytes_per_s
        linear_s = math.sqrt(math.sqrt(compute_s**4 + weights_s**4))
        return self.base_s + self.row_s * rows + linear_s

    def attention_seconds(self, work: StepWork) -> float:
        """Of decodes and chunks."""
        context_tokens = work.decode_context_tokens + work.chunk_context_tokens
        attention_s = context_tokens * self.kv_token_bytes / self.hbm_bytes_per_s
        return attention_s + self.attention_pair_flops * work.chunk_pair_tokens / self.attention_flops_per_s

    def _weights_read(self, tokens: int) -> float:
        if self.dense_share == 1.0:
            return 1.0
        touched = 1.0 - (1.0 - self.expert_share) ** tokens
        return self.dense_share + (1.0 - self.dense_share) * touched

    def __call__(self, batch: Batch) -> Nanos:
        """Nanoseconds of a batch."""
        return round(self.seconds(work_of(batch)) * SECOND)


@dataclass(frozen=True, slots=True)
class HostCost:
    """What one turn of a scheduler takes on the host, nanoseconds."""

    base_ns: Nanos = 1_000_000
    live_ns: Nanos = 10_000  # each running or rotary request
    waiting_ns: Nanos = 2_000  # each waiting one

    def __call__(self, view: View) -> Nanos:
        """Nanoseconds of one turn."""
        live = len(view.running) + len(view.rotary)
        return self.base_ns + self.live_ns * live + self.waiting_ns * len(view.waiting)


class TimedPolicy:
    """A policy whose plans take time: the clock advances by `cost` at each call.

    In a synchronous engine (depth 1) that time adds to the step; in a pipelined one (depth 2) a batch is
    in the air meanwhile, and only what exceeds it is seen.
    """

    def __init__(self, policy: Policy, cost: HostCost, advance: Callable[[Nanos], None]) -> None:
        self._policy = policy
        self._cost = cost
        self._advance = advance
        self.name = policy.name
        self.order = policy.order

    def __call__(self, view: View) -> Plan:
        """The policy's plan, later."""
        self._advance(self._cost(view))
        return self._policy(view)
