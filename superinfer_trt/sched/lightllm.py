"""`lightllm`: LightLLM's Past-Future admission.

First come, first served; a request is admitted if the memory that all admitted ones will use at their worst
moment stays within capacity. With a = tokens it occupies now and l = tokens it will still make, the
requests sorted by l, largest first:

    peak = max over k of (l_k * k + a_1 + ... + a_k)

for at the moment the k-th ends the k longest are alive, each grown by l_k. Blocks are rounded up: one
block a request is set aside. Admission stops at the first refusal.

Where l comes from: exact by default, the most the request may make (LightLLM's conservative mode, and exact
when the end of sequence is ignored). With `history`, l is drawn from lengths of earlier outputs: of one
that made g tokens, from the part of the history above g and its own limit; the largest peak of `draws`
draws must stay within 1 - `reserve` of capacity. A draw that was too short shows when a decode finds no
block: the newest request is paused, its KV dropped and computed again.

Differs from its source in that the history is given and does not move with the requests that end (a policy
remembers nothing), and each request's draws are its own, fixed by `seed`.

Source: LightLLM (main, July 2025) and the Past-Future scheduler's published code, ASPLOS 2025. Knows no
slot and no clock. Stateless, any thread.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.view import Candidate, Order, View
from superinfer_trt.sched.budget import Budget
from superinfer_trt.sched.chance import RANGE, uniform
from superinfer_trt.sched.fcfs import arrival, may_overcommit
from superinfer_trt.sched.lag import THOUSAND, fraction, whole


@dataclass(frozen=True, slots=True)
class LightLlmParameters:
    """`history`: output lengths of earlier requests, each >= 1; empty: exact. `draws`, `reserve`, `seed`:
    only with a history; 0 <= reserve < 1. Raises ConfigError otherwise."""

    history: Sequence[int] = ()
    draws: int = 5
    reserve: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.history, (list, tuple)):
            raise ConfigError(f"history: {self.history!r} is no list of output lengths")
        for length in self.history:
            whole("history", length, 1)
        whole("draws", self.draws, 1)
        fraction("reserve", self.reserve)
        whole("seed", self.seed, 0)


class LightLlm:
    """The policy; see the module."""

    name = "lightllm"
    rotates = False
    order = Order(waiting=arrival, rotary=arrival, running=arrival)

    def __init__(self, parameters: LightLlmParameters | None = None) -> None:
        self.parameters = parameters or LightLlmParameters()
        self._history = sorted(self.parameters.history)
        self._draws = self.parameters.draws if self._history else 1
        self._kept_free = fraction("reserve", self.parameters.reserve) if self._history else 0

    def __call__(self, view: View) -> Plan:
        budget = Budget(view)
        if budget.shortage > 0:
            budget.evict_newest(budget.shortage)
        budget.run()
        if view.waiting and not budget.moved_out and not budget.starved:
            self._admit(budget)
        return budget.plan()

    def _admit(self, budget: Budget) -> None:
        limits = budget.view.limits
        running = list(budget.view.running)
        futures = [sorted(self._future(c, draw) for c in running) for draw in range(self._draws)]
        count = len(running)
        for candidate in budget.waiting():
            if not may_overcommit(budget, candidate):
                break
            for draw, future in enumerate(futures):
                insort(future, self._future(candidate, draw))
            count += 1
            capacity = (limits.device_blocks - count) * limits.block_tokens
            capacity -= capacity * self._kept_free // THOUSAND
            # Alone it fits, whatever the rounding: the pool holds it.
            if count > 1 and max(peak_tokens(future) for future in futures) > capacity:
                break
            budget.admit(candidate)

    def _future(self, candidate: Candidate, draw: int) -> tuple[int, int]:
        """(-tokens to come, tokens now), so that the longest sorts first."""
        now = max(candidate.target_tokens, candidate.computed_tokens)
        if candidate.phase is Phase.DECODE:
            now = candidate.computed_tokens
        left = candidate.remaining_tokens
        if self._history and left > 0:
            left = self._drawn(candidate, draw)
        return -left, now

    def _drawn(self, candidate: Candidate, draw: int) -> int:
        """Tokens to come by the history above what was made, its own limit at the upper end."""
        made = candidate.produced_tokens
        limit = made + candidate.remaining_tokens
        history = self._history
        first, end = bisect_right(history, made), bisect_left(history, limit)
        # Between neighbours the length is interpolated, as in the source.
        ends = [*history[first:end], limit]
        place = uniform(self.parameters.seed, candidate.id, draw) * (len(ends) - 1)
        index, rest = divmod(place, RANGE)
        if not rest:
            return ends[index] - made
        return ends[index] + (ends[index + 1] - ends[index]) * rest // RANGE - made


def peak_tokens(future: Sequence[tuple[int, int]]) -> int:
    """The most tokens held at once by requests of (-tokens to come, tokens now), longest first."""
    held = most = 0
    for count, (left, now) in enumerate(future, 1):
        held += now
        most = max(most, held - left * count)
    return most
