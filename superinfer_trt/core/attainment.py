"""What "good service" means, in numbers: pure definitions over the token times of requests.

Knows no clock, server or simulator; both feed it. docs/metrics.md gives the reason for each
definition. All times are integer nanoseconds of one clock; all comparisons are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, SECOND, Nanos, div_ceil

STALL_MAX: Nanos = SECOND
"""A reader may wait this long in all (joint_stall)."""

LATE_GAPS_PER_HUNDRED_MAX = 1
"""Share of late gaps a request may have (joint_p99)."""

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """One request as its reader saw it.

    `tokens`: when each output token came, never decreasing. `completed`: it ended as asked (stop or
    length); one that failed or was refused stays in the population as a miss, one that its own
    caller cancelled does not belong in it.
    """

    arrival: Nanos
    tokens: Sequence[Nanos]
    slo: Slo = field(default_factory=Slo)
    completed: bool = True


@dataclass(frozen=True, slots=True)
class Attainment:
    """The figures of one run. Shares are 0..1; `None` where nothing was measured."""

    requests: int
    completed: int
    failed: int
    ttft_attainment: float | None
    tbt_attainment: float | None
    joint_mean: float | None
    joint_p99: float | None
    joint_stall: float | None
    output_tokens: int
    tokens_per_s: float
    goodput_rps: float
    longest_gap_ms: float
    ttft_ms: dict[str, float]
    tbt_ms: dict[str, float]
    wall_s: float

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return asdict(self)


def ttft(times: RequestTimes) -> Nanos | None:
    """Arrival to first token; None if there was none."""
    return times.tokens[0] - times.arrival if times.tokens else None


def gaps(times: RequestTimes) -> list[Nanos]:
    """Times between two tokens: one less than there are tokens."""
    return [after - before for before, after in pairwise(times.tokens)]


def ttft_met(times: RequestTimes) -> bool:
    """The first token came within S_F."""
    return bool(times.tokens) and times.tokens[0] - times.arrival <= times.slo.ttft


def mean_tbt_met(times: RequestTimes) -> bool:
    """The mean gap is at most S_B; true without a gap."""
    count = len(times.tokens) - 1
    return count < 1 or times.tokens[-1] - times.tokens[0] <= count * times.slo.tbt


def late_gaps(times: RequestTimes) -> int:
    """Gaps above S_B."""
    return sum(1 for gap in gaps(times) if gap > times.slo.tbt)


def reader_stall(times: RequestTimes) -> Nanos:
    """How long a reader who takes one token every S_B, from the first on, waits in all.

    Token k is wanted at first + k * S_B plus the waits before it, so the sum of the waits is the
    greatest lateness of any token.
    """
    if not times.tokens:
        return 0
    first, pace = times.tokens[0], times.slo.tbt
    return max(token - (first + at * pace) for at, token in enumerate(times.tokens))


def joint_mean_met(times: RequestTimes) -> bool:
    """Completed, TTFT met and mean TBT met."""
    return times.completed and ttft_met(times) and mean_tbt_met(times)


def joint_p99_met(times: RequestTimes) -> bool:
    """Completed, TTFT met and at most 1 % of its gaps late."""
    count = len(times.tokens) - 1
    few = late_gaps(times) * 100 <= count * LATE_GAPS_PER_HUNDRED_MAX if count > 0 else True
    return times.completed and ttft_met(times) and few


def joint_stall_met(times: RequestTimes) -> bool:
    """Completed, TTFT met and its reader waited at most STALL_MAX in all."""
    return times.completed and ttft_met(times) and reader_stall(times) <= STALL_MAX


def percentile(ordered: Sequence[Nanos], percent: int) -> Nanos:
    """Nearest rank: the smallest value that at least `percent` % of the values do not exceed.

    `ordered` ascends and is not empty; 0 < percent <= 100. Always one of the values, never between.
    """
    return ordered[div_ceil(percent * len(ordered), 100) - 1]


def attainment(runs: Iterable[RequestTimes]) -> Attainment:
    """The figures of all requests of one run. O(tokens log tokens)."""
    population = list(runs)
    count = len(population)
    first_tokens = sorted(value for value in map(ttft, population) if value is not None)
    all_gaps = sorted(gap for times in population for gap in gaps(times))
    late = sum(map(late_gaps, population))
    tokens = sum(len(times.tokens) for times in population)
    wall = _wall(population)
    good = sum(map(joint_mean_met, population))

    def share(met: int) -> float | None:
        return met / count if count else None

    def per_s(amount: int) -> float:
        return amount * SECOND / wall if wall else 0.0

    completed = sum(times.completed for times in population)
    return Attainment(
        requests=count,
        completed=completed,
        failed=count - completed,
        ttft_attainment=share(sum(map(ttft_met, population))),
        tbt_attainment=(len(all_gaps) - late) / len(all_gaps) if all_gaps else None,
        joint_mean=share(good),
        joint_p99=share(sum(map(joint_p99_met, population))),
        joint_stall=share(sum(map(joint_stall_met, population))),
        output_tokens=tokens,
        tokens_per_s=per_s(tokens),
        goodput_rps=per_s(good),
        longest_gap_ms=(all_gaps[-1] if all_gaps else 0) / MILLISECOND,
        ttft_ms=_percentiles_ms(first_tokens),
        tbt_ms=_percentiles_ms(all_gaps),
        wall_s=wall / SECOND,
    )


def _wall(population: Sequence[RequestTimes]) -> Nanos:
    """First arrival to last token."""
    if not population:
        return 0
    start = min(times.arrival for times in population)
    end = max(times.tokens[-1] if times.tokens else times.arrival for times in population)
    return end - start


def _percentiles_ms(ordered: Sequence[Nanos]) -> dict[str, float]:
    if not ordered:
        return {}
    return {f"p{percent}": percentile(ordered, percent) / MILLISECOND for percent in PERCENTILES}
