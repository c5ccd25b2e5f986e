"""How long a step takes in which part of the requests decode with their KV in DRAM (NEO's engine).

Two sub-batches share the GPU layer by layer: while it does the linear part of one, the CPU attends for the
other. Of sub-batch j: L_j all but attention (base and rows too), A_j attention on the GPU, C_j on the CPU.

    step = max(L_0 + A_1, C_1) + max(L_1 + A_0, C_0)

Requests that change place, and KV of prefills into DRAM, cross the link meanwhile, layer by layer: the
step takes as long as the slower of the two. Queries, outputs and the new token's KV are left out:
kilobytes a token. So is that link and CPU read the same DRAM at the same time.

Knows no policy: `tell` says where KV lies and which decodes are the second's. One thread.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from superinfer_trt.core.errors import ConfigError, InvariantViolation
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import SECOND, Nanos, RequestId
from superinfer_trt.sim.cost import StepModel, work_of
from superinfer_trt.sim.link import LinkModel


@dataclass(frozen=True, slots=True)
class CpuAttention:
    """What attention on the CPU takes. Raises ConfigError for rates that are none."""

    bytes_per_s: float  # of KV
    row_s: float  # each decode
    launch_s: float  # each sub-batch with such decodes: there and back in every layer

    def __post_init__(self) -> None:
        if not 0 < self.bytes_per_s < float("inf"):
            raise ConfigError(f"CPU attention: bytes_per_s is {self.bytes_per_s}; expected a number > 0")
        for name in ("row_s", "launch_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"CPU attention: {name} is {getattr(self, name)}; expected a number >= 0")


class OffloadStep:
    """Nanoseconds of a batch, where `tell` was called for its turn."""

    def __init__(self, model: StepModel, cpu: CpuAttention, link: LinkModel) -> None:
        self._model = model
        self._cpu = cpu
        self._link = link
        self._turn = -1
        self._in_dram: Mapping[RequestId, int] = {}
        self._second: Collection[RequestId] = frozenset()
        self._lay_in_dram: frozenset[RequestId] = frozenset()  # when the last batch was launched

    def tell(self, turn: int, in_dram: Mapping[RequestId, int], second: Collection[RequestId]) -> None:
        """The batch of `turn`: whose KV lies in DRAM with how many tokens, and who is in the second
        sub-batch."""
        self._turn, self._in_dram, self._second = turn, in_dram, second

    def __call__(self, batch: Batch) -> Nanos:
        """Nanoseconds. Raises InvariantViolation for a batch it was not told of."""
        if batch.turn != self._turn:
            raise InvariantViolation(f"batch of turn {batch.turn}: told of turn {self._turn}")
        took_s = max(self._compute_s(batch), self._link_s(batch))
        self._lay_in_dram = frozenset(self._in_dram)
        return round(took_s * SECOND)

    def _compute_s(self, batch: Batch) -> float:
        in_dram, second = self._in_dram, self._second
        if not any(row.id in in_dram and _decodes(row) for row in batch.rows):
            return self._model.seconds(work_of(batch))
        rows: tuple[list[Row], list[Row]] = ([], [])
        for row in batch.rows:
            rows[row.id in second].append(row)
        (linear_0, gpu_0, cpu_0), (linear_1, gpu_1, cpu_1) = (self._parts_s(batch.turn, r) for r in rows)
        return max(linear_0 + gpu_1, cpu_1) + max(linear_1 + gpu_0, cpu_0)

    def _parts_s(self, turn: int, rows: list[Row]) -> tuple[float, float, float]:
        """(L, A, C) of one sub-batch."""
        on_cpu = [row for row in rows if row.id in self._in_dram and _decodes(row)]
        on_gpu = [row for row in rows if not (row.id in self._in_dram and _decodes(row))]
        work = work_of(Batch(turn, tuple(on_gpu)))
        linear_s = self._model.linear_seconds(len(rows), work.tokens + len(on_cpu))
        cpu_s = 0.0
        if on_cpu:
            context_tokens = sum(row.start + 1 for row in on_cpu)
            reading_s = context_tokens * self._model.kv_token_bytes / self._cpu.bytes_per_s
            cpu_s = reading_s + len(on_cpu) * self._cpu.row_s + self._cpu.launch_s
        return linear_s, self._model.attention_seconds(work), cpu_s

    def _link_s(self, batch: Batch) -> float:
        """Of what changes place: both directions at once."""
        in_dram, before = self._in_dram, self._lay_in_dram
        fresh = {row.id for row in batch.rows if not row.start}
        out_tokens = sum(n for id, n in in_dram.items() if id not in before and id not in fresh)
        in_tokens = 0
        for row in batch.rows:
            if row.id not in in_dram:
                in_tokens += row.start if row.id in before else 0
            elif not _decodes(row):  # a prefill into DRAM; what was cached there is read again
                out_tokens += len(row.tokens)
                in_tokens += row.start
        link, token_bytes = self._link, self._model.kv_token_bytes
        return max(
            out_tokens * token_bytes / link.d2h_bytes_per_s,
            in_tokens * token_bytes / link.h2d_bytes_per_s,
            (out_tokens + in_tokens) * token_bytes / link.dram_bytes_per_s,
        )


def _decodes(row: Row) -> bool:
    """As `work_of` counts it."""
    return len(row.tokens) == 1 and row.start > 0
