"""What `neo` believes its two sub-batches take: GPU times, and CPU attention beside them.

Of a sub-batch j:  L_j linear part, A_j attention on the GPU, C_j attention on the CPU. While the GPU does
the linear part of one, the CPU attends for the other:

    spare_j = L_other + A_j - (C_j + launch)        must not be negative: then C_j costs nothing

The GPU's times come from the forecast of the view, a line through the newest steps of both kinds, where NEO
measures a profile before it serves. Milliseconds. Knows no request, place or queue. `CpuTimes` is immutable;
a `SubBatch` is one planning pass's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.forecast import StepForecast
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.sched.lag import thousandths


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Attention on the CPU: `tokens_per_ms` of context, `row_us` a request, and `launch_ms` a sub-batch
    for going there and back in every layer. Raises ConfigError."""

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
        "_context_tokens",
        "_cpu",
        "_cpu_rows",
        "_cpu_tokens",
        "_gpu",
        "_prefill_tokens",
        "rows",
        "tokens",
    )

    def __init__(self, gpu: StepForecast, cpu: CpuTimes) -> None:
        self._gpu = gpu
        self._cpu = cpu
        self.rows = 0  # requests: what NEO's rate counts
        self.tokens = 0
        self._prefill_tokens = 0
        self._context_tokens = 0  # read by the GPU
        self._cpu_rows = 0
        self._cpu_tokens = 0  # read by the CPU

    def chunk(self, start: int, length: int, sign: int = 1) -> None:
        """Adds a prefill chunk, or takes one back (`sign` -1)."""
        self.rows += sign
        self.tokens += sign * length
        self._prefill_tokens += sign * length
        self._context_tokens += sign * start

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
        """L_j, base and attention among a chunk's own tokens included; 0 without rows."""
        return self._gpu.step_ns(self.rows, self._prefill_tokens, 0) / MILLISECOND if self.rows else 0.0

    @property
    def attention_ms(self) -> float:
        """A_j: reading what was cached."""
        return self._gpu.context_ns * self._context_tokens / MILLISECOND

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
