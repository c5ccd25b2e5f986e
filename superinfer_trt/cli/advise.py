"""`superinfer-trt advise`: how much traffic a machine carries within its objectives, and how to set it.

Four questions, in the order of their worth, each with a share of the time: the highest rates, better
parameters, the smallest DRAM pool, and whether it all holds on seeds that no search has seen.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from superinfer_trt.cli.advise_runs import Figures, Row, Runner, Setting, row_of
from superinfer_trt.cli.simulation import Job, build_job, job_options, make_job, prepare, read_job
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sim.advice import (
    GRIDS,
    Curve,
    Found,
    Parameters,
    PoolSearch,
    Score,
    capacity_rps,
    changes,
    nothing_lost,
    round_up,
    rounded,
    tune,
    worth_it,
)

TARGETS = (0.99, 0.95)
RATES_SHARE, TUNING_SHARE, POOLS_SHARE = 0.5, 0.8, 0.93
REQUESTS_MIN, REQUESTS_MAX = 30, 100_000
"""Expected requests of a run at the lowest and the highest rate that is tried."""
SEATS_UNIT, STEP_TOKENS_UNIT, BLOCKS_UNIT = 64, 256, 64


@dataclass(slots=True)
class Advice:
    """All that was found, in plain values but for the settings."""

    job: Job
    setting: Setting
    beside: Setting
    seeds: tuple[int, ...]
    held_out_seeds: tuple[int, ...]
    curves: dict[Setting, list[Row]] = field(default_factory=dict)
    found: dict[Setting, list[Found]] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)
    pools: dict[str, Any] = field(default_factory=dict)
    confirmed: list[Row] = field(default_factory=list)
    given: dict[str, Row] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    runs: int = 0
    elapsed_s: float = 0.0


@click.command("advise")
@job_options
@click.option("--beside", default="fcfs-async", show_default=True, help="Policy to compare with.")
@click.option("--seeds", default="42,43,44", show_default=True, metavar="SEED,SEED", help="Of the searches.")
@click.option(
    "--held-out", default="142,143,144", show_default=True, metavar="SEED,SEED", help="For the judgement."
)
@click.option("--budget-s", type=click.FloatRange(1), default=300, show_default=True, help="Wall time.")
@click.option("--processes", type=click.IntRange(1, 1024), help="Runs at a time; else one for each core.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for advice.json, serve.yaml and curve.png.",
)
def advise(
    *,
    beside: str,
    seeds: str,
    held_out: str,
    budget_s: float,
    processes: int | None,
    as_json: bool,
    output: Path | None,
    **values: Any,
) -> int:
    """Find the highest rate that keeps the objectives, and parameters and pools for it.

    Simulates the policy (rota-slack, if none is named) and another one beside it. --rps is a load that you
    expect: it is looked at too, and pools are sized for it.

    Example: superinfer-trt advise --hardware gh200-144gb --model qwen2.5-32b --trace sharegpt --output advice
    """
    from superinfer_trt.cli import advise_shown

    job = _job(values)
    if beside == job.policy:
        raise ConfigError(f"--beside: {beside} is the policy itself; expected another one")
    searched, judged = _seeds("--seeds", seeds), _seeds("--held-out", held_out)
    if set(searched) & set(judged):
        raise ConfigError("--held-out: shares seeds with --seeds; expected others")
    advice = Advice(job, Setting(job.policy, job.policy_params), Setting(beside), searched, judged)
    if output is not None:
        advise_shown.check_output(output)
    runner = Runner(processes or os.cpu_count() or 1, budget_s, time.monotonic, _teller())
    Adviser(advice, runner).work()
    if output is not None:
        advise_shown.write(advice, output)
    advise_shown.show(advice, as_json=as_json)
    return 0


def _job(values: dict[str, Any]) -> Job:
    """The load and the machine. Raises ConfigError."""
    if values.get("seed") is not None:
        raise ConfigError("--seed: advise runs several; expected --seeds and --held-out")
    file = values.get("config_file")
    named = values.get("policy") or (file is not None and read_job(file).get("policy"))
    job = make_job({**values, "policy": named or "rota-slack"})
    if job.requests_max is not None:
        raise ConfigError("--requests-max: would cut runs short as rates rise; expected --duration-s")
    return job


def _seeds(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError:
        raise ConfigError(f"{option}: {text!r}; expected whole numbers with commas between") from None


def _teller() -> Callable[[str], None]:
    """Lines for people, nothing for files and pipes."""
    shown = sys.stderr.isatty()
    return (lambda line: click.echo(line, err=True)) if shown else (lambda _: None)


class Adviser:
    """Fills an Advice, phase by phase."""

    def __init__(self, advice: Advice, runner: Runner) -> None:
        self._advice = advice
        self._runner = runner
        self._job = advice.job
        job = advice.job
        self._lowest = rounded(REQUESTS_MIN / job.duration_s)
        self._highest = rounded(REQUESTS_MAX / job.duration_s)
        if job.rps is not None and not self._lowest <= job.rps <= self._highest:
            raise ConfigError(
                f"--rps: {job.rps}; expected {self._lowest} to {self._highest} "
                f"with --duration-s {job.duration_s:g}"
            )
        settings = (advice.setting, advice.beside)
        build_job(settings[0].job(job, self._lowest, advice.seeds[0]))
        start = self._start()
        self._curves = {setting: Curve(start, self._lowest, self._highest) for setting in settings}
        for setting in settings:
            build_job(setting.job(job, 4 * start, advice.seeds[0]))  # nothing is run unless both can be
        if job.duration_s < 120:
            advice.notes.append(f"{job.duration_s:g} s of arrivals are short; 120 and more mean something")

    def work(self) -> None:
        """All phases. Raises SuperInferError."""
        advice = self._advice
        settings = list(self._curves)
        if not self._search(settings, RATES_SHARE):
            self._search(settings[:1], RATES_SHARE)
        self._tune()
        settings = [advice.setting, advice.beside]
        self._search(settings[:1], TUNING_SHARE)  # with what time is left
        if not self._search(settings, TUNING_SHARE):
            advice.left_out.append("part of the search for the highest rates; the table has brackets")
        if self._best_rps() is None:
            advice.notes.append("pools were not looked for: no rate keeps a target")
        else:
            self._size()
            self._confirm()
        for setting, curve in self._curves.items():
            advice.found[setting] = [curve.found(target) for target in TARGETS]
        if self._job.rps is not None:
            for setting in (advice.setting, advice.beside):
                rows = [row for row in advice.curves[setting] if row.rps == self._job.rps]
                advice.given[setting.policy] = rows[0]
        advice.runs, advice.elapsed_s = self._runner.runs, self._runner.elapsed_s

    # --- rates ------------------------------------------------------------------------------------

    def _start(self) -> float:
        """Where the search begins: below what requests of mean length would allow."""
        from superinfer_trt.sim.profiles import pool_blocks, step_model

        setup, items, _ = prepare(
            self._advice.setting.job(self._job, self._lowest * 40, self._advice.seeds[0])
        )
        blocks = setup.hbm_blocks or pool_blocks(setup.hardware, setup.model, setup.block_tokens)[0]
        prompt_tokens = sum(item.prompt_tokens for item in items) / len(items)
        output_tokens = sum(item.output_tokens for item in items) / len(items)
        most = capacity_rps(
            step_model(setup.hardware, setup.model),
            blocks * setup.block_tokens,
            prompt_tokens,
            output_tokens,
            self._job.tbt_slo_ms / 1000,
            setup.seats,
        )
        return most * 0.6

    def _search(self, settings: Sequence[Setting], share: float) -> bool:
        """Narrows the brackets of all targets; False when time ran out."""
        given = [(setting, self._job.rps) for setting in settings if self._job.rps is not None]
        if not self._measure(given, share):
            return False
        while True:
            wanted = [
                (setting, rps)
                for setting in settings
                for rps in {self._curves[setting].wanted(target) for target in TARGETS}
                if rps is not None
            ]
            if not wanted:
                return True
            if not self._measure(wanted, share):
                return False

    def _measure(self, points: Sequence[tuple[Setting, float]], share: float) -> bool:
        """Adds points to the curves."""
        seeds = self._advice.seeds
        if not self._runner.run([s.job(self._job, rps, seed) for s, rps in points for seed in seeds], share):
            return False
        for setting, rps in points:
            row = row_of(rps, self._figures(setting, rps, seeds))
            self._curves[setting].add(rps, row.joint_mean, row.requests)
            rows = self._advice.curves.setdefault(setting, [])
            rows.append(row)
            rows.sort(key=lambda one: one.rps)
            self._tell(f"{setting.policy} at {rps:g} RPS: {row.joint_mean:.2%} joint")
        return True

    def _figures(self, setting: Setting, rps: float, seeds: Sequence[int]) -> list[Figures]:
        return self._runner.figures([setting.job(self._job, rps, seed) for seed in seeds])

    def _best_rps(self) -> float | None:
        """The highest rate that keeps any target, or the one that was asked for."""
        curve = self._curves[self._advice.setting]
        kept = [rps for rps in (curve.found(target).rps for target in TARGETS) if rps is not None]
        return max(kept + ([self._job.rps] if self._job.rps is not None else []), default=None)

    def _tell(self, line: str) -> None:
        self._runner.tell(f"{self._runner.elapsed_s:5.0f} s  {line}")

    # --- parameters -------------------------------------------------------------------------------

    def _tune(self) -> None:
        """Looks for a change that beats the setting where it begins to fail."""
        advice, default = self._advice, self._advice.setting
        candidates = changes(GRIDS.get(default.policy, {}), default.params)
        end = self._curves[default].found(TARGETS[-1])
        rps = end.fails_rps
        if not candidates:
            advice.notes.append(f"{default.policy} has no parameters to look for")
            return
        if rps is None:
            advice.notes.append("parameters were not looked for: no rate was found at which they matter")
            return

        def changed(change: Parameters) -> Setting:
            return Setting(default.policy, {**default.params, **change})

        def trial(tried: Sequence[Parameters], count: int) -> list[Score] | None:
            seeds = advice.seeds[:count]
            settings = [changed(change) for change in tried]
            jobs = [setting.job(self._job, rps, seed) for setting in settings for seed in seeds]
            if not self._runner.run(jobs, TUNING_SHARE):
                return None
            self._tell(f"{len(tried) - 1} settings at {rps:g} RPS, {count} seeds")
            return [self._score(setting, rps, seeds) for setting in settings]

        tuned = tune(candidates, trial, len(advice.seeds))
        advice.tuning = {"rps": rps, "tried": tuned.tried, "complete": tuned.complete, "change": {}}
        if not tuned.complete:
            advice.left_out.append(f"part of the search for parameters: {tuned.tried} settings were tried")
        if tuned.change:
            self._judge(changed(tuned.change), dict(tuned.change), rps)

    def _score(self, setting: Setting, rps: float, seeds: Sequence[int]) -> Score:
        runs = self._figures(setting, rps, seeds)
        return Score(tuple(run["joint_mean"] for run in runs), row_of(rps, runs).longest_prompts)

    def _judge(self, setting: Setting, change: dict[str, Any], rps: float) -> None:
        """The default stays unless held-out seeds and both highest rates speak for the change."""
        advice, default, seeds = self._advice, self._advice.setting, self._advice.held_out_seeds
        jobs = [one.job(self._job, rps, seed) for one in (setting, default) for seed in seeds]
        if not self._runner.run(jobs, TUNING_SHARE):
            advice.left_out.append(f"the judgement of {change} on held-out seeds; the default stays")
            return
        new, old = (self._score(one, rps, seeds) for one in (setting, default))
        advice.tuning |= {"best": change, "held_out_best": new.share, "held_out_default": old.share}
        if not worth_it(new.shares, old.shares):
            return
        ends = [self._curves[default].found(target) for target in TARGETS]
        start = ends[-1].rps or rps
        self._curves[setting] = curve = Curve(start, self._lowest, self._highest)
        complete = self._search([setting], TUNING_SHARE)
        found = [curve.found(target) for target in TARGETS]
        advice.tuning["rates"] = [one.rps for one in found]
        if not complete:
            advice.left_out.append(f"the highest rates with {change}; the default stays")
        elif all((new.rps or 0.0) >= (old.rps or 0.0) for new, old in zip(found, ends, strict=True)):
            advice.tuning["change"] = change
            advice.setting = setting

    # --- pools ------------------------------------------------------------------------------------

    def _size(self) -> None:
        """The smallest DRAM pool that loses nothing at the highest advised rate; seats and step tokens."""
        advice, setting, seeds = self._advice, self._advice.setting, self._advice.seeds
        rps = self._best_rps()
        assert rps is not None
        runs = self._figures(setting, rps, seeds)

        def most(name: str) -> int:
            return max(int(run[name]) for run in runs)

        ample = most("dram_blocks")
        seats = min(round_up(most("seats_peak"), SEATS_UNIT), self._job.seats)
        step_tokens = min(round_up(most("step_tokens_peak"), STEP_TOKENS_UNIT), self._job.step_tokens)
        search = PoolSearch(max(most("dram_blocks_peak"), most("dram_blocks_promised")), ample)
        while ample and (sizes := search.wanted()):
            trials = [Setting(setting.policy, setting.params, dram_blocks=size) for size in sizes]
            if not self._runner.run([t.job(self._job, rps, s) for t in trials for s in seeds], POOLS_SHARE):
                advice.left_out.append("part of the search for the smallest DRAM pool; it may be smaller")
                break
            for size, one in zip(sizes, trials, strict=True):
                found = _joint_and_tbt(row_of(rps, self._figures(one, rps, seeds)))
                enough = nothing_lost(found, _joint_and_tbt(row_of(rps, runs)))
                search.add(size, enough=enough)
                self._tell(f"{size} DRAM blocks at {rps:g} RPS: {'enough' if enough else 'too few'}")
        dram_blocks = min(round_up(search.smallest, BLOCKS_UNIT), ample) if search.smallest else 0
        advice.pools = {
            "rps": rps,
            "hbm_blocks": most("hbm_blocks"),
            "dram_blocks": dram_blocks,
            "dram_blocks_ample": ample,
            "dram_blocks_peak": most("dram_blocks_peak"),
            "dram_blocks_promised": most("dram_blocks_promised"),
            "block_bytes": _block_bytes(self._job),
            "seats": seats,
            "seats_peak": most("seats_peak"),
            "step_tokens": max(step_tokens, seats),
            "step_tokens_peak": most("step_tokens_peak"),
        }

    # --- the judgement ----------------------------------------------------------------------------

    def _confirm(self) -> None:
        """The advised setting, as it would be served, at the advised rates on seeds no search has seen."""
        advice, seeds, curve = self._advice, self._advice.held_out_seeds, self._curves[self._advice.setting]
        pools = {name: advice.pools[name] for name in ("dram_blocks", "seats", "step_tokens")}
        served = Setting(advice.setting.policy, advice.setting.params, **pools)
        rates = {curve.found(target).rps: None for target in TARGETS}
        for rps in filter(None, rates):
            if not self._runner.run([served.job(self._job, rps, seed) for seed in seeds], 1.0):
                advice.left_out.append(f"the confirmation at {rps:g} RPS on held-out seeds")
                continue
            advice.confirmed.append(row_of(rps, self._figures(served, rps, seeds)))
            self._tell(f"confirmed at {rps:g} RPS: {advice.confirmed[-1].joint_mean:.2%} joint")


def _joint_and_tbt(row: Row) -> tuple[float, float]:
    return row.joint_mean, row.tbt_attainment


def _block_bytes(job: Job) -> int:
    from superinfer_trt.sim.model_file import find_model

    return find_model(job.model).geometry(job.block_tokens).block_bytes
