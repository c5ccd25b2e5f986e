"""What `neo` believes its two sub-batches take: GPU times, and CPU attention beside them.

Of a sub-batch j:  L_j linear part, A_j attention on the GPU, C_j attention on the CPU. While the GPU does
the linear part of one, the CPU attends for the other:

    spare_j = L_other + A_j - (C_j + launch)        must not be negative: then C_j costs nothing

The GPU's times come from a profile in the parameters (NEO measures one before it serves) or else from the
forecast of the view, which is a line through steps of both kinds. Milliseconds. Knows no request, place or
queue. Profiles are immutable; a `SubBatch` is one planning pass's own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.forecast import StepForecast
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.sched.lag import thousandths


class GpuTimes(Protocol):
    """Of one sub-batch, in milliseconds."""

    def linear_ms(self, rows: int, tokens: int) -> float:
        """All but attention: `rows` requests with `tokens` tokens in all."""
        ...

    def chunk_ms(self, start: int, length: int) -> float:
        """Attention of a prefill chunk."""
        ...

    def decode_ms(self, context_tokens: int) -> float:
        """Attention of decodes that read so much context."""
        ...


@dataclass(frozen=True, slots=True)
class Forecasted:
    """GpuTimes out of a view's forecast, whose prefill tokens carry their attention."""

    forecast: StepForecast

    def linear_ms(self, rows: int, tokens: int) -> float:
        """Decodes are rows without prefill tokens; a chunk's first token is its row's."""
        return self.forecast.step_ns(rows, tokens - rows, 0) / MILLISECOND if rows else 0.0

    def chunk_ms(self, start: int, length: int) -> float:  # noqa: ARG002
        """Only what was cached before."""
        return self.forecast.context_ns * start / MILLISECOND

    def decode_ms(self, context_tokens: int) -> float:
        """A line through 0."""
        return self.forecast.context_ns * context_tokens / MILLISECOND


def _tokens(point: Sequence[float]) -> float:
    return point[0]


@dataclass(frozen=True, slots=True)
class Profiled:
    """GpuTimes out of a profile. `linear`: (tokens, ms), ascending in tokens, interpolated between and
    continued at the last slope beyond. Raises ConfigError for a profile that is none."""

    linear: Sequence[Sequence[float]]
    row_us: float
    decode_tokens_per_ms: float
    chunk_pairs_per_ms: float

    def __post_init__(self) -> None:
        points = self.linear
        pairs = isinstance(points, (list, tuple)) and all(
            isinstance(p, (list, tuple)) and len(p) == 2 for p in points
        )
        if not pairs or len(points) < 2:
            raise ConfigError(f"linear_ms: {points!r} is no list of at least two (tokens, ms)")
        for tokens, took in points:
            thousandths("linear_ms", tokens, 0.0)
            thousandths("linear_ms", took, 0.0)
        if any(low[0] >= high[0] for low, high in pairwise(points)):
            raise ConfigError("linear_ms: tokens do not ascend")
        for name in ("decode_tokens_per_ms", "chunk_pairs_per_ms"):
            if thousandths(f"gpu_{name}", getattr(self, name), 0.0) == 0:
                raise ConfigError(f"gpu_{name}: {getattr(self, name)!r} is not more than 0")

    def linear_ms(self, rows: int, tokens: int) -> float:
        """0 without rows."""
        if not rows:
            return 0.0
        points = self.linear
        at = min(max(1, bisect_left(points, float(tokens), key=_tokens)), len(points) - 1)
        (x0, y0), (x1, y1) = points[at - 1], points[at]
        return max(0.0, y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)) + self.row_us * rows / 1000

    def chunk_ms(self, start: int, length: int) -> float:
        """Of `length` tokens on top of `start`: pairs, and the cached context as decodes read it."""
        pairs = length * (start + length / 2)
        return pairs / self.chunk_pairs_per_ms + start / self.decode_tokens_per_ms

    def decode_ms(self, context_tokens: int) -> float:
        """A line through 0."""
        return context_tokens / self.decode_tokens_per_ms


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Attention on the CPU: `tokens_per_ms` of context, `row_us` a request, and `launch_ms` a step and
    sub-batch for going there and back in every layer. Raises ConfigError."""

    tokens_per_ms: float
    row_us: float
    launch_ms: float

    def __post_init__(self) -> None:
        if thousandths("host_tokens_per_ms", self.tokens_per_ms, 0.0) == 0:
            raise ConfigError(f"host_tokens_per_ms: {self.tokens_per_ms!r} is not more than 0")
        thousandths("host_row_us", self.row_us, 0.0)
        thousandths("host_launch_ms", self.launch_ms, 0.0)


class SubBatch:
    """One of the two, in the making."""

    __slots__ = (
        "_chunks_ms",
        "_context_tokens",
        "_cpu",
        "_cpu_rows",
        "_cpu_tokens",
        "_gpu",
        "rows",
        "tokens",
    )

    def __init__(self, gpu: GpuTimes, cpu: CpuTimes) -> None:
        self._gpu = gpu
        self._cpu = cpu
        self.rows = 0  # requests: what NEO's rate counts
        self.tokens = 0
        self._chunks_ms = 0.0
        self._context_tokens = 0
        self._cpu_rows = 0
        self._cpu_tokens = 0

    def chunk(self, start: int, length: int, sign: int = 1) -> None:
        """Adds a prefill chunk, or takes one back (`sign` -1)."""
        self.rows += sign
        self.tokens += sign * length
        self._chunks_ms += sign * self._gpu.chunk_ms(start, length)

    def gpu_decode(self, context_tokens: int) -> None:
        """Adds a decode whose KV is in HBM."""
        self.rows += 1
        self.tokens += 1
        self._context_tokens += context_tokens

    def cpu_decode(self, context_tokens: int, sign: int = 1) -> None:
        """Adds a decode whose KV is in DRAM, or takes one back."""
        self.rows += sign
        self.tokens += sign
        self._cpu_rows += sign
        self._cpu_tokens += sign * context_tokens

    @property
    def linear_ms(self) -> float:
        """L_j."""
        return self._gpu.linear_ms(self.rows, self.tokens)

    @property
    def attention_ms(self) -> float:
        """A_j."""
        return self._chunks_ms + self._gpu.decode_ms(self._context_tokens)

    @property
    def gpu_ms(self) -> float:
        """What it takes of the GPU."""
        return self.linear_ms + self.attention_ms

    @property
    def cpu_ms(self) -> float:
        """C_j + launch."""
        cpu = self._cpu
        reading_ms = self._cpu_tokens / cpu.tokens_per_ms
        return reading_ms + self._cpu_rows * cpu.row_us / 1000 + cpu.launch_ms


def spare_ms(mine: SubBatch, other: SubBatch) -> float:
    """How much more CPU attention of `mine` would still hide."""
    return other.linear_ms + mine.attention_ms - mine.cpu_ms


def rate(*batches: SubBatch) -> float:
    """Requests a millisecond of the GPU, as NEO compares: each brings one token, a prefill too."""
    gpu_ms = sum(batch.gpu_ms for batch in batches)
    return sum(batch.rows for batch in batches) / gpu_ms if gpu_ms > 0 else 0.0
