"""The highest rate of requests at which a share of them still meets its objectives: a search over probes.

Doubles or halves from a first rate until it has one that meets and one that misses, then bisects between the
two (geometrically). Pure but for what a probe does; knows no server and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from superinfer_trt.cli.load_api import Answer
from superinfer_trt.cli.load_report import counted, times_of
from superinfer_trt.core.attainment import (
    RequestTimes,
    joint_mean_met,
    joint_p99_met,
    joint_stall_met,
    ttft_met,
)
from superinfer_trt.core.units import Nanos
from superinfer_trt.serve.pb import executor_pb2 as pb

METRICS: dict[str, Callable[[RequestTimes], bool]] = {
    "joint_mean": joint_mean_met,
    "joint_p99": joint_p99_met,
    "joint_stall": joint_stall_met,
    "ttft_attainment": ttft_met,
}
"""Those that a single request meets or misses."""

MET, PROBES, TIME, CLIENT, NEVER = "precision", "probes", "time", "client", "never met"


@dataclass(frozen=True, slots=True)
class Probe:
    """One load at one rate. `share`: of its requests that met; of a probe that was `cut` as soon as it could
    only miss, the most that it could still have reached. `limited`: the client was the bottleneck."""

    rps: float
    share: float
    met: bool
    cut: bool
    limited: bool
    requests: int
    figures: dict[str, Any]

    def as_dict(self) -> dict[str, object]:
        """Without the figures."""
        names = ("rps", "share", "met", "cut", "limited", "requests")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Found:
    """How the search ended. `best`: the probe of the highest rate that met; `missed_rps`: the lowest rate
    above it that missed; `why`: precision, probes, time, client (no higher rate can be offered from
    here), or never met."""

    best: Probe | None
    missed_rps: float | None
    why: str
    probes: tuple[Probe, ...]


def search(
    probe: Callable[[float], Probe],
    first_rps: float,
    *,
    precision: float,
    probes_max: int,
    time_left: Callable[[], bool],
) -> Found:
    """Stops when the two rates are within `precision` of each other, or when probes or time are used up.

    A probe that missed while the client was the bottleneck says nothing about the server: it bounds the
    search from above all the same, and the reason is then `client`.
    """
    probes: list[Probe] = []
    best: Probe | None = None
    missed: Probe | None = None
    rps, why = first_rps, PROBES
    while len(probes) < probes_max:
        if probes and not time_left():
            why = TIME
            break
        probes.append(probe(rps))
        if probes[-1].met:
            best = probes[-1]
        else:
            missed = probes[-1]
        if best is None:
            rps /= 2
        elif missed is None:
            rps *= 2
        elif missed.rps / best.rps <= 1 + precision:
            why = MET
            break
        else:
            rps = math.sqrt(best.rps * missed.rps)
    if best is None:
        why = NEVER
    elif missed is not None and missed.limited:
        why = CLIENT
    return Found(best, missed.rps if missed is not None else None, why, tuple(probes))


class Verdict:
    """Whether a load can only miss any more: load.Verdict. `allowed`: misses that are none yet."""

    def __init__(self, info: pb.GetModelInfoResponse, metric: str, slo_share: float, requests: int) -> None:
        self._info, self._met = info, METRICS[metric]
        self._requests = requests
        self.allowed = math.floor((1 - slo_share) * requests + 1e-9)

    def __call__(self, answers: Sequence[Answer], now: Nanos) -> bool:
        """After a look at who has ended, and who waits for a first token in vain."""
        return self.misses(answers, now) > self.allowed

    def misses(self, answers: Sequence[Answer], now: Nanos) -> int:
        """Requests of the population that have missed, whatever comes."""
        return sum(self._lost(one, now) for one in counted(answers))

    def share(self, answers: Sequence[Answer], now: Nanos) -> float:
        """Of the population: those that met, or still may."""
        population = counted(answers)
        return 1 - self.misses(answers, now) / len(population) if population else 0.0

    def _lost(self, answer: Answer, now: Nanos) -> bool:
        times = times_of(answer, self._info)
        if answer.ending is not None or answer.status != "OK":
            return not self._met(times)
        first = answer.tokens[0] if answer.tokens else now
        return first - answer.due > times.slo.ttft
