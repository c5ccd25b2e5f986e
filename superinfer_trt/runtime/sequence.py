"""The mutable record of one live request. Implements core.view.Candidate and core.ports.KvFacts.

Owned by the roster; block counts are written by the ledger. Token counts include the batch in the
air; `output` holds only what was collected. Not thread-safe.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from superinfer_trt.core.phase import Phase, check_move
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import Nanos, RequestId, div_ceil


@dataclass(slots=True, eq=False)
class Sequence:
    """Plain attributes, so that reading one costs a policy nothing."""

    request: Request
    block_tokens: int
    id: RequestId
    slo: Slo
    tenant: str
    arrival: Nanos
    target_tokens: int
    remaining_tokens: int
    total_blocks: int
    max_blocks: int
    last_token: Nanos
    phase: Phase = Phase.WAITING
    first_token: Nanos = -1
    run_start: Nanos = -1
    admitted: Nanos = -1
    computed_tokens: int = 0
    produced_tokens: int = 0
    stint_tokens: int = 0
    device_blocks: int = 0
    host_blocks: int = 0
    synced_blocks: int = 0
    full_blocks: int = 0
    rotations: int = 0
    evictions: int = 0
    copies_failed: int = 0
    left: Nanos = -1  # when the rotation under way began; -1: none is
    away: Nanos = 0  # in all rotations that are over
    in_air: bool = False  # a row of the batch that was launched and not collected
    ending: FinishReason | None = None  # asked to end; happens when no batch reads it any more
    output: list[int] = field(default_factory=list)
    seen: array[int] | None = None  # of a penalised request: prompt and output, as memory (`history`)

    @classmethod
    def of(cls, request: Request, block_tokens: int) -> Sequence:
        """The record of a request that has just arrived."""
        prompt = len(request.prompt)
        limit = request.sampling.max_tokens
        return cls(
            request=request,
            block_tokens=block_tokens,
            id=request.id,
            slo=request.slo,
            tenant=request.tenant,
            arrival=request.arrival,
            target_tokens=prompt,
            remaining_tokens=limit,
            total_blocks=div_ceil(prompt, block_tokens),
            # The KV of the last token made is never written.
            max_blocks=div_ceil(prompt + limit - 1, block_tokens),
            last_token=request.arrival,
            seen=array("i", request.prompt) if request.sampling.penalised else None,
        )

    def move(self, phase: Phase) -> None:
        """Changes phase by the table of legal moves."""
        check_move(self.phase, phase)
        self.phase = phase

    def tokens(self, start: int, stop: int) -> Seq[int]:
        """Token ids at positions start .. stop - 1 of prompt and output together."""
        prompt = self.request.prompt
        if start >= len(prompt):
            return self.output[start - len(prompt) : stop - len(prompt)]
        if stop <= len(prompt):
            return prompt[start:stop]
        return [*prompt[start:], *self.output[: stop - len(prompt)]]

    def history(self) -> Seq[int]:
        """Row.history: ids of prompt and output so far; O(new tokens). Only where `seen` is kept."""
        assert self.seen is not None
        self.seen.extend(self.output[len(self.seen) - len(self.request.prompt) :])
        return self.seen

    def plan_chunk(self, length: int) -> None:
        """Counts a prefill chunk as if it were done; the last one yields a token."""
        self.computed_tokens += length
        if self.computed_tokens == self.target_tokens:
            self.move(Phase.DECODE)
            self.produced_tokens += 1
            self.stint_tokens += 1
            self.remaining_tokens -= 1

    def enter_device(self, now: Nanos) -> None:
        """A stay in HBM begins."""
        self.run_start = now
        self.stint_tokens = 0

    def come_back(self, now: Nanos) -> None:
        """A rotation is over, if there was one: it decodes again, or it has ended."""
        if self.left >= 0:
            self.away += now - self.left
            self.left = -1

    def restart(self) -> None:
        """Back to waiting without KV; what was produced is prefilled again with the prompt."""
        self.move(Phase.WAITING)
        self.evictions += 1
        self.run_start = -1
        self.computed_tokens = 0
        self.target_tokens = len(self.request.prompt) + self.produced_tokens
        self.total_blocks = div_ceil(self.target_tokens, self.block_tokens)
