"""`ltr`: learning to rank (vllm-ltr), shortest predicted output first, with preemption by swapping.

All requests, running, swapped and waiting, stand in one order of a score given once: shorter predicted
outputs first. Each turn:

1. walk the order and give each what it needs (one token, or its prompt) until tokens or seats are spent:
   these are pinned;
2. if their blocks (growth; a swapped one's own and one more; a prompt's) do not fit into free HBM less a
   watermark, running decodes that are not pinned are swapped out from the lowest rank up; if that is not
   enough, the pinned ones are let go from the tail, and swapped out if they run;
3. pinned swapped and waiting requests come in; if nobody had to leave, further swapped ones as well.

The score is log(output tokens) and a normal error of `noise`, by request: with 0.9 of the standard
deviation of the logarithms the order has a Kendall tau of about 0.53. `noise` 0 is an oracle. Long
requests starve while short ones come: the source's starvation control is an option that its main results
run without, and it is left out here, since it counts idle steps and a policy remembers nothing.

Differs from its source where the design says so: copies are asynchronous, a stay lasts at least one token,
and admission keeps the no-deadlock inequality.

Source: vllm-ltr, NeurIPS 2024, on vLLM V0. Knows no slot and no clock. Stateless, any thread.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.view import Candidate, Order, View
from superinfer_trt.sched.budget import Budget
from superinfer_trt.sched.chance import normal
from superinfer_trt.sched.lag import THOUSAND, fraction, thousandths, whole

_SCORE_UNIT = 1_000_000


@dataclass(frozen=True, slots=True)
class LtrParameters:
    """`noise`: standard deviation of the error of log(output tokens), >= 0. `watermark`: part of HBM that
    stays free, 0 <= watermark < 1. `seed`: of the errors. Raises ConfigError otherwise."""

    noise: float = 0.9
    watermark: float = 0.01
    seed: int = 1

    def __post_init__(self) -> None:
        thousandths("noise", self.noise, 0.0)
        fraction("watermark", self.watermark)
        whole("seed", self.seed, 0)


class Ltr:
    """The policy; see the module."""

    name = "ltr"
    rotates = True

    def __init__(self, parameters: LtrParameters | None = None) -> None:
        self.parameters = parameters or LtrParameters()
        self._watermark = fraction("watermark", self.parameters.watermark)
        self.order = Order(waiting=self.score, rotary=self.score, running=self.score)

    def score(self, candidate: Candidate) -> int:
        """Order key: the predicted logarithm of its output, in millionths."""
        output_tokens = candidate.produced_tokens + candidate.remaining_tokens
        error = self.parameters.noise * normal(self.parameters.seed, candidate.id)
        return round(_SCORE_UNIT * (math.log(output_tokens) + error))

    def __call__(self, view: View) -> Plan:
        reserve = self._watermark * view.limits.device_blocks // THOUSAND
        budget = Budget(view)
        pinned = self._pin(budget)
        leaving = _make_room(budget, pinned, reserve)
        if leaving:
            wanted = sum(c.device_blocks for c in leaving)
            budget.rotate_out(wanted, stint_tokens=1, among=leaving)
        if budget.shortage > 0:
            lowest = [c for c in view.running if c.phase is Phase.DECODE and c.remaining_tokens > 0]
            budget.rotate_out(budget.shortage, stint_tokens=0, keep=1, among=reversed(lowest))
        budget.run()
        self._enter(budget, pinned, reserve)
        return budget.plan()

    def _pin(self, budget: Budget) -> list[Candidate]:
        """Those that tokens and seats allow to run, by rank."""
        view, tokens, seats = budget.view, budget.tokens, budget.seats
        ranked = heapq.merge(
            view.running, budget.rotary(), budget.waiting(), key=lambda c: (self.score(c), c.id)
        )
        pinned: list[Candidate] = []
        closed = False  # admission: whom it refuses, nobody of a lower rank overtakes
        for candidate in ranked:
            if tokens <= 0 or seats <= 0:
                break
            phase = candidate.phase
            if phase is Phase.DECODE and candidate.remaining_tokens <= 0:
                continue
            if phase is Phase.WAITING:
                closed = closed or not budget.admission_open(candidate)
                if closed:
                    continue
            outside = phase in (Phase.WAITING, Phase.PREFILL)
            tokens -= candidate.target_tokens - candidate.computed_tokens if outside else 1
            seats -= 1
            pinned.append(candidate)
        return pinned

    @staticmethod
    def _enter(budget: Budget, pinned: list[Candidate], reserve: int) -> None:
        owed = False  # somebody of higher rank waits for slots on their way
        closed: set[Phase] = set()  # a closed gate never blocks the other one
        for candidate in pinned:
            phase = candidate.phase
            if phase not in (Phase.WAITING, Phase.ROTARY) or phase in closed:
                continue
            back = phase is Phase.ROTARY
            if not (budget.resumption_open(candidate) if back else budget.may_admit(candidate)):
                closed.add(phase)
                continue
            blocks = budget.blocks_back(candidate) if back else candidate.total_blocks
            if owed or not budget.fits(blocks, reserve):
                owed = True
            elif back:
                budget.resume(candidate)
            else:
                budget.admit(candidate)
        if owed or budget.moved_out or Phase.ROTARY in closed:
            return
        named = {c.id for c in pinned}
        for candidate in budget.rotary():
            if candidate.id in named:
                continue
            if not budget.fits(budget.blocks_back(candidate), reserve) or not budget.resumption_open(
                candidate
            ):
                break
            budget.resume(candidate)


def _make_room(budget: Budget, pinned: list[Candidate], reserve: int) -> list[Candidate]:
    """Shortens `pinned` from the tail until its blocks fit; returns those that leave, lowest rank first."""
    view = budget.view

    def need(candidate: Candidate) -> int:
        if candidate.phase is Phase.ROTARY:
            return budget.blocks_back(candidate)
        if candidate.phase is Phase.WAITING:
            return candidate.total_blocks
        return int(candidate.phase is Phase.DECODE and view.decode_needs_block(candidate))

    def movable(candidate: Candidate) -> bool:
        return (
            candidate.phase is Phase.DECODE and candidate.remaining_tokens > 0 and candidate.stint_tokens > 0
        )

    lacking = sum(map(need, pinned)) + reserve - budget.free - budget.coming
    leaving: list[Candidate] = []
    if lacking <= 0:
        return leaving
    named = {c.id for c in pinned}
    for candidate in reversed([c for c in view.running if c.id not in named and movable(c)]):
        if lacking <= 0:
            return leaving
        leaving.append(candidate)
        lacking -= candidate.device_blocks
    while lacking > 0 and len(pinned) > 1:
        candidate = pinned.pop()
        lacking -= need(candidate)
        if movable(candidate):
            leaving.append(candidate)
            lacking -= candidate.device_blocks
    return leaving
