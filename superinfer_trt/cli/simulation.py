"""What `simulate` and `sweep` share: the flags of one simulation, and running it.

A Job is plain values, so that it can go to another process and stand in a result file. Options that are
not given come from --config (YAML, the flags' names with underscores), then from the defaults here.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from superinfer_trt.cli.options import assignment
from superinfer_trt.core.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])
_YAML_BYTES_MAX = 1 << 20
_NEW_OBJECTS_MAX = 50_000
"""Containers that may be made between two looks for garbage while a simulation runs."""


@dataclass(frozen=True, slots=True)
class Job:
    """One simulation, by the names of its flags."""

    hardware: str = "gh200-144gb"
    hardware_params: dict[str, Any] = field(default_factory=dict)
    model: str = "qwen2.5-32b"
    context_tokens: int | None = None
    trace: str = "sharegpt"
    drop_longer: bool = False
    rps: float | None = None
    duration_s: float = 120.0
    arrivals: str = "gamma"
    shape: float = 1.0
    period_s: float = 60.0
    burst_s: float = 10.0
    swing: float | None = None
    requests_max: int | None = None
    session_turns: int = 1
    think_s: float = 10.0
    classes: tuple[str, ...] = ()
    ttft_slo_s: float = 5.0
    tbt_slo_ms: float = 100.0
    seed: int = 42
    policy: str = "rota-slack"
    policy_params: dict[str, Any] = field(default_factory=dict)
    depth: int | None = None
    link: str | None = None
    unlimited_allowance: bool = False
    block_tokens: int = 16
    step_tokens: int = 16_384
    seats: int = 16_384
    hbm_blocks: int | None = None
    dram_blocks: int | None = None
    horizon_s: float = 86_400.0


# flag -> (field of Job, type, help)
FLAGS: dict[str, tuple[str, Any, str]] = {
    "--hardware": ("hardware", str, "gh200-144gb | h100-pcie5 | gb200 | gb300 | custom [gh200-144gb]"),
    "--model": ("model", str, "llama-3-8b | qwen2.5-32b | mixtral-8x7b, or a config.json [qwen2.5-32b]"),
    "--context-tokens": ("context_tokens", click.IntRange(2), "Longest request of the model."),
    "--trace": (
        "trace",
        str,
        "CSV or JSONL of lengths, or sharegpt | azure-conversation | arxiv | mooncake.",
    ),
    "--drop-longer": ("drop_longer", bool, "Leave out rows longer than model or pool, and count them."),
    "--rps": (
        "rps",
        click.FloatRange(0, min_open=True),
        "Requests a second; without it the trace's own times.",
    ),
    "--duration-s": ("duration_s", click.FloatRange(0, min_open=True), "Of arrivals [120]."),
    "--arrivals": ("arrivals", str, "gamma | bursts | diurnal [gamma]."),
    "--shape": ("shape", click.FloatRange(0, min_open=True), "Of gamma; 1 is Poisson, less is burstier [1]."),
    "--period-s": ("period_s", click.FloatRange(0, min_open=True), "Of bursts and days [60]."),
    "--burst-s": ("burst_s", click.FloatRange(0, min_open=True), "How long a burst lasts [10]."),
    "--swing": ("swing", click.FloatRange(0), "Rate in a burst over the rest [4]; amplitude of a day [0.8]."),
    "--requests-max": ("requests_max", click.IntRange(1), "Stop arrivals after so many."),
    "--session-turns": ("session_turns", click.IntRange(1), "Questions of a conversation, at most [1]."),
    "--think-s": ("think_s", click.FloatRange(0, min_open=True), "Mean time between two questions [10]."),
    "--ttft-slo-s": ("ttft_slo_s", click.FloatRange(0, min_open=True), "Objective of the first token [5]."),
    "--tbt-slo-ms": ("tbt_slo_ms", click.FloatRange(0, min_open=True), "Objective between tokens [100]."),
    "--seed": ("seed", int, "Of arrivals and everything drawn [42]."),
    "--policy": ("policy", str, "Scheduling policy [rota-slack]."),
    "--depth": ("depth", click.IntRange(1, 2), "1: synchronous engine, 2: pipelined; else the policy's own."),
    "--link": ("link", str, "duplex | merged-kernels | merged-segments | naive | naive-blocking | free."),
    "--unlimited-allowance": (
        "unlimited_allowance",
        bool,
        "Only the policy's own budget bounds what moves, even if the link cannot hide it.",
    ),
    "--block-tokens": ("block_tokens", click.IntRange(1), "Tokens of a KV block [16]."),
    "--step-tokens": ("step_tokens", click.IntRange(1), "Tokens of a step, at most [16384]."),
    "--seats": ("seats", click.IntRange(1), "Requests of a step, at most [16384]."),
    "--hbm-blocks": ("hbm_blocks", click.IntRange(1), "KV blocks in HBM, else what the hardware leaves."),
    "--dram-blocks": ("dram_blocks", click.IntRange(0), "KV blocks in DRAM, else what the hardware has."),
    "--horizon-s": ("horizon_s", click.FloatRange(0, min_open=True), "Who lives then has failed [86400]."),
}


def job_options(command: Command) -> Command:
    """Adds --config, the flags of a Job, --policy-param, --hardware-param and --class."""
    for flag, name, text in (
        ("--class", "classes", "NAME:SHARE:TTFT_S:TBT_MS, a share of requests with its own objectives."),
        ("--hardware-param", "hardware_params", "NAME=VALUE, a figure of the hardware."),
        (
            "--policy-param",
            "policy_params",
            "NAME=VALUE, of the policy; history=trace: the trace's outputs.",
        ),
    ):
        command = click.option(flag, name, multiple=True, metavar=text.split(",")[0], help=text)(command)
    for flag, (name, kind, text) in reversed(FLAGS.items()):
        switch = kind is bool
        command = click.option(flag, name, type=kind, is_flag=switch, default=None, help=text)(command)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="YAML of these flags (names with underscores); flags win over it.",
    )(command)


def make_job(values: Mapping[str, Any]) -> Job:
    """The job of a command's flags over its --config. Raises ConfigError."""
    given = {name: value for name, value in values.items() if value not in (None, ())}
    file = given.pop("config_file", None)
    base = read_job(file) if file is not None else {}
    for name, option in (("policy_params", "--policy-param"), ("hardware_params", "--hardware-param")):
        pairs = dict(assignment(text, option) for text in given.pop(name, ()))
        merged = {**(base.get(name) or {}), **pairs}
        given[name] = {key: number_or_word(value) for key, value in merged.items()}
    return Job(**{**base, **given})


def number_or_word(value: object) -> object:
    """YAML takes 1e12 for a word."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def read_job(path: Path) -> dict[str, Any]:
    """Fields of a Job from YAML, checked by name and kind. Raises ConfigError."""
    try:
        if path.stat().st_size > _YAML_BYTES_MAX:
            raise ConfigError(f"{path}: larger than {_YAML_BYTES_MAX} bytes")
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of flags")
    kinds = {name: kind for name, kind, _ in FLAGS.values()}
    kinds |= {"policy_params": dict, "hardware_params": dict, "classes": list}
    for name, value in tree.items():
        if name not in kinds:
            raise ConfigError(f"{path}: {name!r} is unknown; known: {', '.join(kinds)}")
        tree[name] = _checked(path, name, kinds[name], value)
    return tree


def _checked(path: Path, name: str, kind: Any, value: object) -> object:
    if kind is dict or kind is list:
        if not isinstance(value, kind):
            expected = "a mapping" if kind is dict else "a list"
            raise ConfigError(f"{path}: {name} is {value!r}; expected {expected}")
        return tuple(map(str, value)) if isinstance(value, list) else value
    if kind is bool or value is None:
        if not isinstance(value, bool | None):
            raise ConfigError(f"{path}: {name} is {value!r}; expected true or false")
        return value
    if isinstance(value, (bool, dict, list)):
        raise ConfigError(f"{path}: {name} is {value!r}; expected one value")
    try:
        return click.types.convert_type(kind).convert(value, None, None)
    except click.BadParameter as error:
        raise ConfigError(f"{path}: {name}: {error.message}") from None


@dataclass(frozen=True, slots=True)
class Finished:
    """A run's figures, and what `--perfetto` writes."""

    figures: dict[str, Any]
    trace: Any = None


def run_job(job: Job, *, traced: bool = False) -> Finished:
    """Runs one simulation. Raises ConfigError."""
    from superinfer_trt.core.units import SECOND

    built, items, dropped = build_job(job, traced=traced)
    with _rare_collections():
        began = time.process_time()
        records = built.world.run(items, round(job.horizon_s * SECOND))
        process_s = time.process_time() - began
    return Finished(_figures(job, built, records, dropped, process_s), built.trace)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """A run makes no cycles: looking for them took a quarter of it. What was there before is not looked
    at again, and what is new only every `_NEW_OBJECTS_MAX`, so that memory stays bounded whatever happens.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS_MAX, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def build_job(job: Job, *, traced: bool = False) -> tuple[Any, Any, int]:
    """(world, items, rows left out) of a job, ready to run. Raises ConfigError."""
    from superinfer_trt.build.sim import build_world

    setup, items, dropped = prepare(job)
    return build_world(setup, items, job.trace, traced=traced), items, dropped


def prepare(job: Job) -> tuple[Any, Any, int]:
    """(setup, items, rows left out) of a job. Raises ConfigError."""
    from superinfer_trt.build.sim import Setup
    from superinfer_trt.core.slo import Slo
    from superinfer_trt.core.units import MILLISECOND, SECOND
    from superinfer_trt.sim.arrivals import Arrivals
    from superinfer_trt.sim.model_file import find_model
    from superinfer_trt.sim.profiles import find_hardware, pool_blocks
    from superinfer_trt.sim.workload import Sessions, load_lengths, make_items

    hardware, model = find_hardware(job.hardware, job.hardware_params), find_model(job.model)
    if job.context_tokens is not None:
        model = replace(model, context_tokens_max=job.context_tokens)
    lengths = load_lengths(job.trace, job.seed)
    rows = len(lengths)
    if job.drop_longer:
        blocks = job.hbm_blocks or pool_blocks(hardware, model, job.block_tokens)[0]
        tokens_max = min(model.context_tokens_max, blocks * job.block_tokens)
        lengths = [row for row in lengths if row.prompt_tokens + row.output_tokens <= tokens_max]
        if not lengths:
            raise ConfigError(f"{job.trace}: every row is longer than {tokens_max} tokens")
    swing = job.swing if job.swing is not None else 4.0 if job.arrivals == "bursts" else 0.8
    arrivals = None
    if job.rps is not None:
        arrivals = Arrivals(
            job.rps, job.duration_s, job.seed, job.arrivals, job.shape, job.period_s, job.burst_s, swing
        )
    items = make_items(
        lengths,
        arrivals,
        slo=Slo(round(job.ttft_slo_s * SECOND), round(job.tbt_slo_ms * MILLISECOND)),
        classes=[slo_class(text) for text in job.classes],
        sessions=Sessions(job.session_turns, job.think_s),
        seed=job.seed,
        requests_max=job.requests_max,
    )
    names = {one.name for one in fields(Setup)} - {"hardware", "model", "parameters", "host_cost"}
    chosen = {name: value for name, value in asdict(job).items() if name in names}
    parameters = dict(job.policy_params)
    if parameters.get("history") == "trace":
        parameters["history"] = [row.output_tokens for row in lengths]
    return Setup(hardware, model, parameters=parameters, **chosen), items, rows - len(lengths)


def slo_class(text: str) -> Any:
    """NAME:SHARE:TTFT_S:TBT_MS. Raises ConfigError."""
    from superinfer_trt.core.slo import Slo
    from superinfer_trt.core.units import MILLISECOND, SECOND
    from superinfer_trt.sim.workload import SloClass

    name, *numbers = text.split(":")
    try:
        share, ttft_s, tbt_ms = map(float, numbers)
    except ValueError:
        raise ConfigError(f"class: {text!r}; expected NAME:SHARE:TTFT_S:TBT_MS") from None
    if not (name and 0 < share <= 1 and 0 < ttft_s < 1e6 and 0 < tbt_ms < 1e9):
        raise ConfigError(f"class: {text!r}; expected a name, a share of 0..1 and two times > 0")
    return SloClass(name, share, Slo(round(ttft_s * SECOND), round(tbt_ms * MILLISECOND)))


def _figures(job: Job, built: Any, records: Any, dropped: int, process_s: float) -> dict[str, Any]:
    """All that is reported, in plain values."""
    from superinfer_trt.core.units import MILLISECOND, SECOND
    from superinfer_trt.sim import figures

    totals = built.world.executor.totals
    attained = figures.evaluate(records)
    last = max(record.arrival for record in records)
    window = round(job.duration_s * SECOND) if job.rps is not None else last
    simulated_s = built.clock.now() / SECOND
    batches = max(1, totals.batches)
    return {
        "policy": job.policy,
        "hardware": job.hardware,
        "model": job.model,
        "trace": Path(job.trace).name,
        "rps": job.rps,
        "seed": job.seed,
        **attained.as_dict(),
        "longest_gap_s": attained.longest_gap_ms / 1000,
        "ttft_attainment_longest_prompts": figures.longest_prompts_ttft(records),
        "tokens_per_s_arrivals": figures.tokens_per_s_until(records, window),
        "rotations": totals.rotations_out,
        "evictions": totals.evictions,
        "steps": totals.batches,
        "step_ms": totals.step_ns / batches / MILLISECOND,
        "planning_ms": totals.plan_ns / max(1, totals.turns) / MILLISECOND,
        "link_out_blocks": totals.link_out_blocks,
        "link_in_blocks": totals.link_in_blocks,
        "link_bytes": (totals.link_out_blocks + totals.link_in_blocks) * built.block_bytes,
        "hbm_blocks": built.limits.device_blocks,
        "dram_blocks": built.limits.host_blocks,
        "dram_blocks_peak": built.peaks.dram_blocks,
        "dram_blocks_promised": built.peaks.dram_blocks_promised,
        "seats_peak": built.peaks.seats,
        "step_tokens_peak": built.peaks.step_tokens,
        "rows_dropped": dropped,
        "tenants": figures.by_tenant(records),
        "process_s": process_s,
        "speed": simulated_s / process_s if process_s > 0 else None,
    }
