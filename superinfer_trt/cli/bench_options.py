"""The flags of `bench`, and what they say together. Knows no server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from superinfer_trt.cli.client import base_request
from superinfer_trt.cli.goodput import METRICS
from superinfer_trt.cli.load_api import APIS, Api
from superinfer_trt.cli.load_requests import FOREVER_S, Workload, class_option
from superinfer_trt.cli.options import token_range
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.sim.arrivals import KINDS, Arrivals

Command = TypeVar("Command", bound=Callable[..., Any])

_ABOVE_ZERO = click.FloatRange(0, min_open=True)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

# flags -> (field, type, default, help)
_WORKLOAD: dict[str, tuple[str, Any, Any, str]] = {
    "--requests": ("requests", click.IntRange(1), None, "How many, at most [32]."),
    "--duration-s": ("duration_s", _ABOVE_ZERO, None, "Of arrivals, at most."),
    "--rps": ("rps", click.FloatRange(0), None, "Mean rate; 0: all at once [0; of a trace its own times]."),
    "--arrivals": ("arrivals", click.Choice(KINDS), "gamma", "How they come [gamma]."),
    "--shape --burstiness": (
        "shape",
        _ABOVE_ZERO,
        1.0,
        "Of gamma: 1 is Poisson, less burstier, 1e4 even [1].",
    ),
    "--period-s": ("period_s", _ABOVE_ZERO, 60.0, "Of bursts and days [60]."),
    "--burst-s": ("burst_s", _ABOVE_ZERO, 10.0, "How long a burst lasts [10]."),
    "--swing": (
        "swing",
        click.FloatRange(0),
        None,
        "Rate in a burst over the rest [4]; swing of a day [0.8].",
    ),
    "--concurrency": (
        "concurrency",
        click.IntRange(1),
        None,
        "Closed loop: callers, one request at a time each.",
    ),
    "--seed": ("seed", int, 0, "Of all that is drawn [0]."),
    "--trace": (
        "trace",
        str,
        None,
        "Lengths as in `simulate`: a file, or sharegpt | azure-conversation | ...",
    ),
    "--drop-longer": ("drop_longer", bool, False, "Leave out rows of the trace that the server cannot take."),
    "--prompt-tokens": ("prompt_tokens", token_range, "32:64", "LOW[:HIGH], of random prompts [32:64]."),
    "--output-tokens": ("output_tokens", token_range, "32:64", "LOW[:HIGH], of their answers [32:64]."),
    "--prompts": ("prompts_file", _FILE, None, 'JSONL of requests in proto JSON, e.g. {"text": "..."}.'),
    "--cancel-share": ("cancel_share", click.FloatRange(0, 1), 0.0, "Callers that give up [0]."),
    "--cancel-after-s": ("cancel_after_s", click.FloatRange(0), 1.0, "When they do [1]."),
    "--warmup-requests": (
        "warmup_requests",
        click.IntRange(0),
        None,
        "The first ones, sent and not counted [0; a tenth of a probe].",
    ),
}
_SEARCH: dict[str, tuple[str, Any, Any, str]] = {
    "--find-goodput": ("find_goodput", bool, False, "Search the highest --rps that meets --slo-share."),
    "--slo-share": (
        "slo_share",
        click.FloatRange(0, 1, min_open=True),
        0.95,
        "Of requests that meet [0.95].",
    ),
    "--slo-metric": (
        "slo_metric",
        click.Choice(list(METRICS)),
        "joint_mean",
        "What to meet is [joint_mean].",
    ),
    "--precision": (
        "precision",
        click.FloatRange(0.001, 1),
        0.05,
        "Between what meets and what misses [0.05].",
    ),
    "--probes-max": ("probes_max", click.IntRange(1, 100), 16, "Loads of a search [16]."),
    "--search-time-s": ("search_time_s", _ABOVE_ZERO, 900.0, "No probe begins after it [900]."),
}


def bench_options(command: Command) -> Command:
    """What is sent and when, and the search."""
    classes = click.option(
        "--class",
        "classes",
        multiple=True,
        metavar="NAME:SHARE:ttft=MS,tbt=MS",
        help="A share of the requests with its own objectives; the name is their tenant.",
    )
    for flags, (name, kind, default, text) in reversed({**_WORKLOAD, **_SEARCH}.items()):
        switch = kind is bool
        option = click.option(*flags.split(), name, type=kind, is_flag=switch, default=default, help=text)
        command = option(command)
    return classes(command)


@dataclass(frozen=True, slots=True)
class Search:
    """Of the highest rate: begins at `first_rps`; each probe lasts `probe_s`, and has at least
    `probe_requests`. `warmup_requests` None: a tenth of them."""

    first_rps: float
    slo_share: float
    slo_metric: str
    precision: float
    probes_max: int
    search_time_s: float
    probe_s: float | None
    probe_requests: int | None
    warmup_requests: int | None


@dataclass(frozen=True, slots=True)
class Options:
    """What is needed to run a load, or many. `concurrency`: of a closed loop. `outputs`: file of answers."""

    target: str
    api: Api
    workload: Workload
    base: pb.GenerateRequest
    concurrency: int | None
    timeout_s: float
    outputs: Path | None
    as_json: bool
    search: Search | None


def make_options(values: Mapping[str, Any]) -> Options:
    """Raises click.UsageError and ConfigError for flags that contradict each other."""
    _check(values)
    rps, searches = values["rps"], values["find_goodput"]
    open_loop = values["concurrency"] is None
    names = (
        *("requests", "duration_s", "seed", "prompt_tokens", "output_tokens", "trace", "drop_longer"),
        *("prompts_file", "cancel_share", "cancel_after_s"),
    )
    workload = Workload(
        **{name: values[name] for name in names},
        arrivals=_arrivals(values) if rps or searches else None,
        own_times=values["trace"] is not None and rps is None and open_loop and not searches,
        classes=tuple(map(class_option, values["classes"])),
        warmup_requests=values["warmup_requests"] or 0,
    )
    asked = ("temperature", "top_k", "top_p", "ttft_slo_ms", "tbt_slo_ms", "tenant")
    search = ("slo_share", "slo_metric", "precision", "probes_max", "search_time_s", "warmup_requests")
    return Options(
        target=values["target"],
        api=APIS[values["api"]],
        workload=workload,
        base=base_request(**{name: values[name] for name in asked}),
        concurrency=values["concurrency"],
        timeout_s=values["timeout_s"],
        outputs=values["outputs"],
        as_json=values["as_json"],
        search=Search(
            first_rps=rps or 1.0,
            probe_s=values["duration_s"],
            probe_requests=values["requests"],
            **{name: values[name] for name in search},
        )
        if searches
        else None,
    )


def _check(values: Mapping[str, Any]) -> None:
    rps, searches = values["rps"], values["find_goodput"]
    if values["concurrency"] is not None:
        for name in ("rps", "duration_s", "find_goodput"):
            if values[name]:
                flag = f"--{name.replace('_', '-')}"
                raise click.UsageError(f"--concurrency: a closed loop has no rate; not with {flag}")
    if values["trace"] is not None and values["prompts_file"] is not None:
        raise click.UsageError("--trace and --prompts: one of them says what is sent")
    if values["duration_s"] is not None and not (rps or searches or values["trace"]):
        raise click.UsageError("--duration-s: needs --rps")
    if searches and rps == 0:
        raise click.UsageError("--rps: a search begins at a rate above 0")
    if searches and values["outputs"] is not None:
        raise click.UsageError("--outputs: a search has many; run the rate that it found")
    shares = sum(class_option(text).share for text in values["classes"])
    if shares > 1 + 1e-9:
        raise click.UsageError(f"--class: shares add up to {shares:g}; at most 1")


def _arrivals(values: Mapping[str, Any]) -> Arrivals:
    kind, swing = values["arrivals"], values["swing"]
    return Arrivals(
        rps=values["rps"] or 1.0,
        duration_s=values["duration_s"] or FOREVER_S,
        seed=values["seed"],
        kind=kind,
        shape=values["shape"],
        period_s=values["period_s"],
        burst_s=values["burst_s"],
        swing=swing if swing is not None else 4.0 if kind == "bursts" else 0.8,
    )
