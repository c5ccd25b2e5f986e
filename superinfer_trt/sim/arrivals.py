"""When requests arrive: Poisson and gamma as the paper draws them, bursts, a day's wave.

Each function is a generator of ascending nanoseconds below `duration_s`, a function of its seed alone:
nothing else is drawn from its generator. Knows no request. Any thread.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.units import SECOND, Nanos

KINDS = ("gamma", "bursts", "diurnal")


@dataclass(frozen=True, slots=True)
class Arrivals:
    """An arrival process of mean rate `rps`. `shape` 1 is Poisson, less is burstier (gamma).

    bursts: for `burst_s` out of every `period_s` the rate is `swing` times that of the rest. diurnal: the
    rate is a sine over `period_s` from rps * (1 - swing) to rps * (1 + swing), swing <= 1.
    """

    rps: float
    duration_s: float = 120.0
    seed: int = 42
    kind: str = "gamma"
    shape: float = 1.0
    period_s: float = 60.0
    burst_s: float = 10.0
    swing: float = 0.8

    def __post_init__(self) -> None:
        """Raises ConfigError for a rate, a time or a shape that is none."""
        if self.kind not in KINDS:
            raise ConfigError(f"arrivals: {self.kind!r} is unknown; known: {', '.join(KINDS)}")
        for name in ("rps", "duration_s", "shape", "period_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"arrivals: {name} is {getattr(self, name)}; expected a number > 0")
        if self.kind == "bursts" and not (0 < self.burst_s < self.period_s and self.swing >= 1):
            raise ConfigError(
                f"arrivals: burst_s {self.burst_s} of period_s {self.period_s} at swing {self.swing}; "
                "expected 0 < burst_s < period_s and swing >= 1"
            )
        if self.kind == "diurnal" and not 0 <= self.swing <= 1:
            raise ConfigError(f"arrivals: swing is {self.swing}; expected 0 to 1 for a diurnal wave")

    def times(self) -> Iterator[Nanos]:
        """The moments, ascending."""
        if self.kind == "gamma":
            seconds = self._gamma()
        else:
            seconds = self._thinned(self._burst_rate if self.kind == "bursts" else self._diurnal_rate)
        return (round(second * SECOND) for second in seconds)

    def _gamma(self) -> Iterator[float]:
        """The paper's generator: sums of random.Random(seed).gammavariate(shape, 1 / (rps shape))."""
        draw = random.Random(self.seed)
        now = draw.gammavariate(self.shape, 1 / (self.rps * self.shape))
        while now <= self.duration_s:
            yield now
            now += draw.gammavariate(self.shape, 1 / (self.rps * self.shape))

    def _thinned(self, rate_at: Callable[[float], float]) -> Iterator[float]:
        """A Poisson process of varying rate: candidates at the highest rate, kept by the rate's share."""
        draw = random.Random(self.seed)
        highest = max(rate_at(self.period_s * step / 1000) for step in range(1000))
        now = draw.expovariate(highest)
        while now <= self.duration_s:
            if draw.random() * highest <= rate_at(now):
                yield now
            now += draw.expovariate(highest)

    def _burst_rate(self, now: float) -> float:
        part = self.burst_s / self.period_s
        calm = self.rps / (1 - part + part * self.swing)
        return calm * self.swing if now % self.period_s < self.burst_s else calm

    def _diurnal_rate(self, now: float) -> float:
        return self.rps * (1 - self.swing * math.cos(2 * math.pi * now / self.period_s))
