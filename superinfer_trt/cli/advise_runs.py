"""The runs behind `superinfer-trt advise`: in parallel, each at most once, and no longer than a budget.

A phase of the advice may use a share of the budget; a batch of runs that would not fit into it, by what runs
have cost so far, is not begun. Knows what a run is, not what is asked of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from superinfer_trt.cli.simulation import Job
from superinfer_trt.cli.sweep import job_key, run_all
from superinfer_trt.core.errors import SuperInferError

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """A policy, its parameters and what it runs with: what differs between runs of one load. Its own key."""

    policy: str
    params: Mapping[str, Any] = field(default_factory=dict)
    dram_blocks: int | None = None
    seats: int | None = None
    step_tokens: int | None = None

    def job(self, base: Job, rps: float, seed: int) -> Job:
        """`base` with this setting at this load."""
        given = {name: getattr(self, name) for name in ("dram_blocks", "seats", "step_tokens")}
        chosen = {name: value for name, value in given.items() if value is not None}
        params = dict(self.params)
        return replace(base, policy=self.policy, policy_params=params, rps=rps, seed=seed, **chosen)


@dataclass(frozen=True, slots=True)
class Row:
    """One setting at one rate: means over the seeds, `requests` and `longest_gap_s` over all of them."""

    rps: float
    seeds: int
    requests: int
    joint_mean: float
    joint_lowest: float
    ttft_attainment: float
    tbt_attainment: float
    ttft_p99_s: float | None
    tbt_p99_ms: float | None
    longest_gap_s: float
    longest_prompts: float


def row_of(rps: float, runs: Sequence[Figures]) -> Row:
    """The runs of some seeds as one row. What was not measured (no gap) counts as met."""

    def mean(name: str) -> float:
        return fmean(1.0 if run[name] is None else run[name] for run in runs)

    def p99(name: str) -> float | None:
        values = [run[name]["p99"] for run in runs if run[name]]
        return fmean(values) if values else None

    first_ms = p99("ttft_ms")
    return Row(
        rps=rps,
        seeds=len(runs),
        requests=sum(run["requests"] for run in runs),
        joint_mean=mean("joint_mean"),
        joint_lowest=min(run["joint_mean"] for run in runs),
        ttft_attainment=mean("ttft_attainment"),
        tbt_attainment=mean("tbt_attainment"),
        ttft_p99_s=first_ms / 1000 if first_ms is not None else None,
        tbt_p99_ms=p99("tbt_ms"),
        longest_gap_s=max(run["longest_gap_s"] for run in runs),
        longest_prompts=mean("ttft_attainment_longest_prompts"),
    )


class Runner:
    """Runs jobs and remembers their figures. `clock` in seconds; `tell` takes a line of progress."""

    def __init__(
        self, processes: int, budget_s: float, clock: Callable[[], float], tell: Callable[[str], None]
    ) -> None:
        self.processes = processes
        self.budget_s = budget_s
        self.tell = tell
        self._clock = clock
        self._began = clock()
        self._found: dict[str, Figures] = {}
        self._request_s = 0.0  # what a request of the last batch took of one process, wall time

    @property
    def runs(self) -> int:
        """How many there were."""
        return len(self._found)

    @property
    def elapsed_s(self) -> float:
        """Since the start."""
        return self._clock() - self._began

    def figures(self, jobs: Sequence[Job]) -> list[Figures]:
        """Of jobs that were run."""
        return [self._found[job_key(job)] for job in jobs]

    def run(self, jobs: Sequence[Job], share: float) -> bool:
        """Runs those of `jobs` that were not run yet; False when there is no time for them within `share`
        of the budget. The very first ones are run in any case. Raises SuperInferError."""
        todo = list({job_key(job): job for job in jobs if job_key(job) not in self._found}.values())
        if not todo:
            return True
        first = not self._found
        limit_s = self.budget_s * share
        if not first and self.elapsed_s + self._estimate_s(todo) > limit_s:
            return False
        began_s, requests = self.elapsed_s, 0
        for job, figures, error in run_all(todo, self.processes):
            if error:
                raise SuperInferError(f"{job.policy} at {job.rps} RPS, seed {job.seed}: {error}")
            self._found[job_key(job)] = figures
            requests += figures["requests"]
            if not first and self.elapsed_s > self.budget_s:
                break
        spent_s = (self.elapsed_s - began_s) * min(self.processes, len(todo))
        self._request_s = spent_s / requests
        return all(job_key(job) in self._found for job in todo)

    def _estimate_s(self, jobs: Sequence[Job]) -> float:
        costs_s = [(job.rps or 0.0) * job.duration_s * self._request_s for job in jobs]
        return max(sum(costs_s) / self.processes, *costs_s)
