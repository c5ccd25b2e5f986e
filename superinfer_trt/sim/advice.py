"""Searches for advice: the highest rate that keeps a target, a better setting, the smallest pool.

Each search says what it wants to know next and is told what was found; what a trial is and how it is run
stays outside, so they are tested on functions. Attainment falls with load, but what is measured wobbles, so
a curve is made monotone before it is read. Pure: no clock, no simulation. One thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from types import MappingProxyType

from superinfer_trt.sim.cost import StepModel, StepWork

RATE_SHARE = 0.02
RATE_STEP_RPS = 0.25
GAIN_MIN = 0.002
"""Share of requests that a setting must win to be worth leaving the default for."""
LOSS_MAX = 0.001
"""Share of requests (or gaps) that counts as nothing lost."""
LONGEST_LOSS_MAX = 0.05
"""TTFT attainment that the longest prompts may lose to a better joint attainment."""

Parameters = Mapping[str, object]

GRIDS: Mapping[str, Mapping[str, Sequence[object]]] = MappingProxyType(
    {
        "rota-slack": {
            "step_share": (0.7, 0.92),
            "length_weight_ms": (0.0, 2.0, 10.0, 20.0),
            "ahead_min_s": (1.5, 6.0),
            "patience": (0.2, 0.7),
            "late_share": (0.0, 0.1),
            "min_stint_tokens": (4, 64),
        },
        "rotasched": {
            "beta_ttft": (0.25, 0.75),
            "beta_tbt": (2.0, 10.0),
            "min_stint_tokens": (4, 16, 64),
            "alpha": (1.0, 10.0),
        },
    }
)
"""What is tried beside a policy's own values, one parameter at a time; the ones that matter most first."""


# --- the highest rate ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """Where a target ends. `rps`: the highest measured rate that keeps it; None: not even the lowest one
    does. `fails_rps`: the next measured one that does not; None: even the highest one keeps it. `exact`:
    nothing more is to be measured."""

    target: float
    rps: float | None
    fails_rps: float | None
    exact: bool


def tolerance(rps: float) -> float:
    """How wide a bracket from `rps` may stay: 2 % or 0.25 RPS, but never wider than 5 %, or 2 %."""
    return max(RATE_SHARE * rps, min(RATE_STEP_RPS, 0.05 * rps))


class Curve:
    """Attainment over the rate, as far as it was measured, and which rate to measure next.

    A bracket grows by doubling (or halving) from `start` within lowest .. highest, less where the curve shows
    its end, then is bisected.
    """

    def __init__(self, start: float, lowest: float, highest: float) -> None:
        self._start = rounded(min(max(start, lowest), highest))
        self._lowest = lowest
        self._highest = highest
        self._shares: dict[float, tuple[float, float]] = {}

    def add(self, rps: float, share: float, weight: float) -> None:
        """What was measured at `rps`; `weight` in requests."""
        self._shares[rps] = share, weight

    def smoothed(self) -> list[tuple[float, float]]:
        """(rate, share), the shares never rising: the closest such curve by weighted squares."""
        pools: list[list[float]] = []  # share, weight, points
        for rps in sorted(self._shares):
            share, weight = self._shares[rps]
            pools.append([share, weight, 1])
            while len(pools) > 1 and pools[-1][0] > pools[-2][0]:
                share, weight, points = pools.pop()
                before = pools[-1]
                together = before[1] + weight
                before[0] += (share - before[0]) * weight / together
                before[1] = together
                before[2] += points
        shares = [pool[0] for pool in pools for _ in range(int(pool[2]))]
        return list(zip(sorted(self._shares), shares, strict=True))

    def wanted(self, target: float) -> float | None:
        """The rate to measure next for `target`; None when its end is found."""
        if not self._shares:
            return self._start
        low, high = self._bracket(target)
        if low is None:
            assert high is not None
            return None if high <= self._lowest else rounded(max(high / 2, self._lowest))
        if high is None:
            return None if low >= self._highest else rounded(min(self._beyond(target), self._highest))
        if high - low <= tolerance(low):
            return None
        middle = rounded((low + high) / 2)
        return middle if low < middle < high else None

    def _beyond(self, target: float) -> float:
        """Above the highest measured rate: twice that, or less where the curve falls already. The fall grows
        with load, so a straight line through the last two points meets the target too late."""
        *before, (rps, share) = self.smoothed()
        if not before or before[-1][1] <= share:
            return 2 * rps
        lower_rps, more = before[-1]
        meets = rps + (share - target) * (rps - lower_rps) / (more - share)
        return min(2 * rps, max(meets, rps + 2 * tolerance(rps)))

    def found(self, target: float) -> Found:
        """What is known of `target` now."""
        low, high = self._bracket(target)
        return Found(target, low, high, self.wanted(target) is None)

    def _bracket(self, target: float) -> tuple[float | None, float | None]:
        """(highest rate that keeps the target, lowest that does not)."""
        low = high = None
        for rps, share in self.smoothed():
            if share >= target:
                low = rps
            elif high is None:
                high = rps
        return low, high


def rounded(rps: float) -> float:
    """Three digits: what people can read, and less than any tolerance away."""
    return float(f"{rps:.3g}")


def capacity_rps(
    model: StepModel, pool_tokens: float, prompt_tokens: float, output_tokens: float, tbt_s: float, seats: int
) -> float:
    """Where to start: the rate at which requests of mean length fill HBM or the step's time, whichever is
    first. A request holds its prompt and half its output on average; its prompt is computed once."""

    def step_s(requests: float) -> float:
        prompts = requests / output_tokens  # that begin in each step
        work = StepWork(
            rows=round(requests + prompts),
            tokens=max(1, round(requests + prompts * prompt_tokens)),
            decode_context_tokens=round(requests * (prompt_tokens + output_tokens / 2)),
            chunk_pair_tokens=prompts * prompt_tokens**2 / 2,
            chunk_context_tokens=0,
        )
        return model.seconds(work)

    requests = min(pool_tokens / (prompt_tokens + output_tokens / 2), float(seats))
    while requests > 1 and step_s(requests) > tbt_s:
        requests *= 0.95
    return requests / (output_tokens * step_s(requests))


# --- a better setting ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Score:
    """A setting on some seeds: joint attainment of each, and TTFT attainment of the longest prompts."""

    shares: tuple[float, ...]
    longest: float

    @property
    def share(self) -> float:
        """Over all seeds."""
        return fmean(self.shares)


Trial = Callable[[Sequence[Parameters], int], "Sequence[Score] | None"]
"""Scores settings on the first so many seeds, in one go; None: there is no time for it."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best setting found (a change of the default, or nothing), how many were tried, and whether the
    search came to its end."""

    change: Parameters
    tried: int
    complete: bool


def changes(grid: Mapping[str, Sequence[object]], fixed: Iterable[str]) -> list[Parameters]:
    """One changed parameter each, those in `fixed` left alone."""
    kept = set(fixed)
    return [{name: value} for name, values in grid.items() if name not in kept for value in values]


def tune(candidates: Sequence[Parameters], trial: Trial, seeds: int, keep: int = 4) -> Tuned:
    """Successive halving with the default in every round: all of them on one seed, the best `keep` on all
    `seeds`, then the best together with the next best of other parameters. What takes more than
    LONGEST_LOSS_MAX from the longest prompts is no improvement."""
    first = trial([{}, *candidates], 1)
    if first is None:
        return Tuned({}, 0, complete=False)
    tried = len(candidates)
    better = _better(candidates, first)[:keep]
    if not better:
        return Tuned({}, tried, complete=True)
    second = trial([{}, *better], seeds)
    if second is None:
        return Tuned({}, tried, complete=False)
    better = _better(better, second)
    joined: list[Parameters] = []
    together: dict[str, object] = dict(better[0]) if better else {}
    for change in better[1:]:
        if not set(change) & set(together):
            together = {**together, **change}
            joined.append(together)
    if not joined:
        return Tuned(better[0] if better else {}, tried, complete=True)
    third = trial([{}, better[0], *joined], seeds)
    if third is None:
        return Tuned(better[0], tried, complete=False)
    best = _better([better[0], *joined], third)
    return Tuned(best[0] if best else {}, tried + len(joined), complete=True)


def _better(candidates: Sequence[Parameters], scores: Sequence[Score]) -> list[Parameters]:
    """Those above the default (the first score), best first; of equals the first."""
    default, *others = scores
    ranked = sorted(
        (
            (-score.share, at)
            for at, score in enumerate(others)
            if score.share > default.share and score.longest >= default.longest - LONGEST_LOSS_MAX
        ),
    )
    return [candidates[at] for _, at in ranked]


def worth_it(changed: Sequence[float], default: Sequence[float]) -> bool:
    """Whether a setting beats the default by more than the noise over seeds (the same ones for both): on
    every seed, by GAIN_MIN on average, and by more than three standard errors: of three seeds two would let
    chance through once in eleven times."""
    gains = [one - other for one, other in zip(changed, default, strict=True)]
    if not gains or min(gains) <= 0 or fmean(gains) < GAIN_MIN:
        return False
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return fmean(gains) > 3 * error


# --- the smallest pool ---------------------------------------------------------------------------


class PoolSearch:
    """The smallest pool that loses nothing, to a third: first `need` (what the runs used at most), its
    eighth, and none at all; then bisection by ratio. `ample` blocks are known to be enough."""

    RATIO = 4 / 3

    def __init__(self, need: int, ample: int) -> None:
        self._need = min(need, ample)
        self._fails = -1
        self.smallest = ample
        self.begun = False

    def wanted(self) -> list[int]:
        """Sizes to try next, at once; empty when the smallest is found."""
        if not self.begun:
            sizes = {self._need, self._need // 8, 0}
            return sorted(size for size in sizes if size < self.smallest)
        low, high = max(self._fails, 0), self.smallest
        if high <= max(low, 1) * self.RATIO or high - low <= 1:
            return []
        return [max(low + 1, round(math.sqrt(max(low, 1) * high)))]

    def add(self, size: int, *, enough: bool) -> None:
        """What came of `size`. A pool that is enough makes smaller failures the bound, and no larger."""
        self.begun = True
        if enough:
            self.smallest = min(self.smallest, size)
            if self._fails >= self.smallest:
                self._fails = self.smallest - 1
        elif size < self.smallest:
            self._fails = max(self._fails, size)


def nothing_lost(found: Sequence[float | None], ample: Sequence[float | None]) -> bool:
    """Whether each mean is at most LOSS_MAX below the one with an ample pool; None: nothing measured."""
    pairs = zip(found, ample, strict=True)
    return all(one is None or other is None or one >= other - LOSS_MAX for one, other in pairs)


def round_up(count: int, unit: int) -> int:
    """The next multiple of `unit`, at least one."""
    return max(1, -(-count // unit)) * unit
