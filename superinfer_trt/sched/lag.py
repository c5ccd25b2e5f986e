"""Virtual Lag Time, the paper's measure of urgency, in integer nanoseconds.

    waiting   max(0, now - arrival - beta_F * S_F)             S_F: the request's TTFT objective
    rotary    alpha * max(0, now - last_token - beta_B * S_B)  S_B: its TBT objective
    running   -(now - run_start)

The factors are kept in thousandths and every product is floored, so that a lag is the same number on
every machine. Inside a class the order by lag is the order of a sum that does not move with time
(`*_due`, `run_start`): queues are kept in that order and never sorted again.

Source: SuperInfer (RotaSched), Algorithm 1; defaults alpha 3, beta_B 0, beta_F 0.5.
Knows no block, budget or queue. Immutable, safe from any thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.units import Nanos
from superinfer_trt.core.view import Candidate, Order

THOUSAND = 1000


@dataclass(frozen=True, slots=True)
class VirtualLag:
    """The three formulas for one set of factors, each in thousandths."""

    alpha_thousandths: int = 3 * THOUSAND
    beta_ttft_thousandths: int = THOUSAND // 2
    beta_tbt_thousandths: int = 0

    def waiting_due(self, candidate: Candidate) -> Nanos:
        """When a waiting request begins to lag."""
        return candidate.arrival + candidate.slo.ttft * self.beta_ttft_thousandths // THOUSAND

    def rotary_due(self, candidate: Candidate) -> Nanos:
        """When a rotary request begins to lag."""
        return candidate.last_token + candidate.slo.tbt * self.beta_tbt_thousandths // THOUSAND

    def waiting(self, candidate: Candidate, now: Nanos) -> Nanos:
        """Lag of a waiting request, >= 0."""
        return max(0, now - self.waiting_due(candidate))

    def rotary(self, candidate: Candidate, now: Nanos) -> Nanos:
        """Lag of a rotary request, >= 0."""
        return max(0, now - self.rotary_due(candidate)) * self.alpha_thousandths // THOUSAND

    def running(self, candidate: Candidate, now: Nanos) -> Nanos:
        """Lag of a running request, <= 0: the longer its stay, the sooner it leaves."""
        return candidate.run_start - now

    def order(self) -> Order:
        """Each class by lag, largest first; the running ones by stay, longest (most negative) first."""
        return Order(waiting=self.waiting_due, rotary=self.rotary_due, running=stay_began)


def stay_began(candidate: Candidate) -> Nanos:
    """Order key of the running ones: when the present stay in HBM began."""
    return candidate.run_start


def thousandths(field: str, factor: float, least: float = -math.inf) -> int:
    """`factor` in whole thousandths; raises ConfigError unless it is a finite number >= `least`."""
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not math.isfinite(factor):
        raise ConfigError(f"{field}: {factor!r} is not a finite number")
    if factor < least:
        raise ConfigError(f"{field}: {factor!r} is less than {least}")
    return round(factor * THOUSAND)


def fraction(field: str, part: float) -> int:
    """`part` in whole thousandths; raises ConfigError unless 0 <= part < 1."""
    result = thousandths(field, part, 0.0)
    if result >= THOUSAND:
        raise ConfigError(f"{field}: {part!r} is not less than 1")
    return result


def whole(field: str, value: object, least: int) -> None:
    """Raises ConfigError unless `value` is an integer >= `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{field}: {value!r} is not a whole number")
    if value < least:
        raise ConfigError(f"{field}: {value} is less than {least}")
