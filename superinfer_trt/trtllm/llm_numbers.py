"""What is known of a TensorRT-LLM worker from here: its rotation, its iterations, or only our own requests.

A worker in this process shows everything (the rotation's own counters). One in another process shows the
blocks of its iterations, if it was asked for statistics. What neither shows is counted from the requests that
go through here, and what cannot be counted is 0. Read from any thread; torn, as every snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from superinfer_trt.core.outcome import Totals
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.request import Request
from superinfer_trt.core.step import Direction
from superinfer_trt.core.units import Nanos
from superinfer_trt.core.view import Limits
from superinfer_trt.runtime.executor import Snapshot
from superinfer_trt.trtllm.llm_compat import Iteration, iteration_of, rotation_in


class LlmNumbers:
    """See the module. `limits`: what was asked for; a worker that says more is believed."""

    def __init__(self, llm: Any, limits: Limits) -> None:
        self._limits = limits
        self._rotation = rotation_in(llm)
        self._newest: Iteration | None = None

    @property
    def inside(self) -> bool:
        """Whether the worker is in this process, and rotates."""
        return self._rotation is not None

    @property
    def context_tokens_max(self) -> int:
        """The longest sequence of the worker; 0: not known here."""
        return int(self._rotation.parts.sequence_tokens_max) if self._rotation is not None else 0

    @property
    def limits(self) -> Limits:
        """Sizes, as far as they are known by now."""
        if self._rotation is not None:
            limits: Limits = self._rotation.parts.limits
            return limits
        newest = self._newest
        if newest is None or newest.blocks < 1:
            return self._limits
        return replace(self._limits, device_blocks=newest.blocks, block_tokens=newest.block_tokens)

    def saw(self, statistics: object) -> bool:
        """The statistics of one iteration; whether they say anything of blocks."""
        iteration = iteration_of(statistics)
        if iteration is not None:
            self._newest = iteration
        return iteration is not None

    def snapshot(self, now: Nanos, silent: Sequence[Request], speaking: int) -> Snapshot:
        """This moment. `silent`: live requests without a token, `speaking`: how many have one. Without the
        worker's own counts the first are waiting and the second decode, also while they are away."""
        waits = [(now - request.arrival, request.slo.ttft) for request in silent]
        made = Snapshot(
            waiting=len(silent),
            prefill=0,
            decode=speaking,
            rotating_out=0,
            rotary=0,
            rotating_in=0,
            device_free=self._newest.free_blocks if self._newest is not None else self.limits.device_blocks,
            device_total=self.limits.device_blocks,
            host_free=self.limits.host_blocks,
            host_total=self.limits.host_blocks,
            waiting_age=max((age for age, _ in waits), default=0),
            waiting_urgency=max((age / limit for age, limit in waits), default=0.0),
        )
        return made if self._rotation is None else self._seen_inside(made, now)

    def _seen_inside(self, made: Snapshot, now: Nanos) -> Snapshot:
        """With the phases and pools of a worker in this process."""
        assert self._rotation is not None
        records = list(self._rotation.live.values())
        phases = [record.phase for record in records]
        away = [(now - one.last_token, one.slo.tbt) for one in records if one.phase is Phase.ROTARY]
        parts = self._rotation.parts
        return replace(
            made,
            waiting=phases.count(Phase.WAITING) + max(0, made.waiting + made.decode - len(phases)),
            prefill=phases.count(Phase.PREFILL),
            decode=phases.count(Phase.DECODE),
            rotating_out=phases.count(Phase.ROTATING_OUT),
            rotary=phases.count(Phase.ROTARY),
            rotating_in=phases.count(Phase.ROTATING_IN),
            device_free=parts.ledger.device_free,
            host_free=parts.ledger.host_free,
            rotary_age=max((age for age, _ in away), default=0),
            rotary_urgency=max((age / limit for age, limit in away), default=0.0),
            block_bytes=parts.block_bytes,
            link_out_bytes_per_s=parts.transfers.link_bytes_per_s(Direction.D2H),
            link_in_bytes_per_s=parts.transfers.link_bytes_per_s(Direction.H2D),
        )

    def totals(self, own: Totals) -> Totals:
        """Our own counts of requests and tokens, the worker's of turns, rotations and copies."""
        if self._rotation is not None:
            theirs: Totals = self._rotation.totals
            tokens = own.output_tokens
            return replace(theirs, accepted=own.accepted, finished=dict(own.finished), output_tokens=tokens)
        turns = self._newest.number if self._newest is not None else 0
        return replace(own, finished=dict(own.finished), turns=turns)
