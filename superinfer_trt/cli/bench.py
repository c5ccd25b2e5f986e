"""`superinfer-trt bench`: a load on a server, how it kept its objectives, and how much load it can keep."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from superinfer_trt.cli import goodput, load_report
from superinfer_trt.cli.bench_options import Options, Search, bench_options, make_options
from superinfer_trt.cli.client import CallFailed, request_options, target_option
from superinfer_trt.cli.load import Progress, Ran, run_load
from superinfer_trt.cli.load_api import APIS, FACADE, Job, ask, facade_request
from superinfer_trt.cli.load_requests import Workload, due_times, make_jobs
from superinfer_trt.core.units import SECOND
from superinfer_trt.serve.pb import executor_pb2 as pb

PROBE_REQUESTS, PROBE_S = 100, 20.0
QUIET_S, LOOK_S = 30.0, 0.05


@click.command("bench")
@target_option
@click.option("--api", type=click.Choice(list(APIS)), default="executor", show_default=True, help="Service.")
@bench_options
@request_options
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True)
@click.option("--outputs", type=click.Path(dir_okay=False, path_type=Path), help="Write the answers, JSONL.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def bench(**values: Any) -> int:
    """Load a server and report how it kept its objectives, or search how much load it can keep.

    Exit 1 when no request was completed, or no probe met; failures of some are in the report.
    """
    options = make_options(values)
    if options.search is not None:
        return _search(options, options.search)
    return _once(options)


def _once(options: Options) -> int:
    info, before = ask(options.target, options.api)
    jobs = _jobs(options, options.workload, info)
    if options.workload.warmup_requests >= len(jobs):
        raise click.UsageError(f"--warmup-requests: leaves none of {len(jobs)} requests to count")
    ran = _run(options, jobs)
    figures = _figures(options, ran, info, before)
    if options.outputs is not None:
        lines = (json.dumps(load_report.output_line(answer)) for answer in ran.answers)
        options.outputs.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if options.as_json:
        click.echo(json.dumps(figures))
    else:
        load_report.print_tables(figures)
    warning = load_report.client_warning(figures["client"])
    if warning:
        click.secho(warning, fg="yellow", err=True)
    return 0 if any(answer.completed for answer in ran.answers) else 1


def _jobs(options: Options, workload: Workload, info: pb.GetModelInfoResponse) -> list[Job]:
    """Raises click.UsageError before anything is sent."""
    jobs = make_jobs(workload, options.base, info)
    if options.api is FACADE:
        for job in jobs:
            facade_request(job.request, "")
    return jobs


def _figures(
    options: Options, ran: Ran, info: pb.GetModelInfoResponse, before: pb.Stats | None
) -> dict[str, Any]:
    figures = load_report.result(ran.answers, info, before, _stats(options))
    figures["client"] = load_report.client_figures(ran.client, ran.answers, info)
    figures["api"] = options.api.name
    return figures


def _search(options: Options, asked: Search) -> int:
    """Probe after probe, each with the same draws at another rate."""
    began = time.monotonic()
    info, _ = ask(options.target, options.api)

    def probe(rps: float) -> goodput.Probe:
        made = _probe(options, asked, info, rps)
        click.echo(_line(made, asked.slo_metric), err=options.as_json)
        _until_quiet(options)
        return made

    found = goodput.search(
        probe,
        asked.first_rps,
        precision=asked.precision,
        probes_max=asked.probes_max,
        time_left=lambda: time.monotonic() - began < asked.search_time_s,
    )
    best = found.best
    told = {
        "rps": best.rps if best is not None else None,
        "missed_rps": found.missed_rps,
        "slo_share": asked.slo_share,
        "slo_metric": asked.slo_metric,
        "ended": found.why,
        "search_s": time.monotonic() - began,
        "probes": [one.as_dict() for one in found.probes],
        "figures": best.figures if best is not None else None,
    }
    if options.as_json:
        click.echo(json.dumps(told))
    elif best is not None:
        load_report.print_tables(best.figures)
    click.echo(_verdict(found, asked), err=options.as_json)
    return 0 if best is not None else 1


def _probe(options: Options, asked: Search, info: pb.GetModelInfoResponse, rps: float) -> goodput.Probe:
    """One load at one rate."""
    jobs = _jobs(options, probe_workload(options.workload, asked, rps), info)
    measured = sum(job.measured for job in jobs)
    verdict = goodput.Verdict(info, asked.slo_metric, asked.slo_share, measured)
    _, before = ask(options.target, options.api)
    ran = _run(options, jobs, verdict)
    share = verdict.share(ran.answers, round(time.monotonic() * SECOND))
    figures = _figures(options, ran, info, before)
    met = not ran.cut and share >= asked.slo_share - 1e-9
    return goodput.Probe(rps, share, met, ran.cut, figures["client"]["limited"], measured, figures)


def probe_workload(workload: Workload, asked: Search, rps: float) -> Workload:
    """The same draws at `rps`: for the time of a probe, and at least its number of requests."""
    assert workload.arrivals is not None
    process = replace(workload.arrivals, rps=rps)
    wanted_s = asked.probe_s or PROBE_S
    few = asked.probe_requests or PROBE_REQUESTS
    lasting = replace(workload, arrivals=process, requests=None, duration_s=wanted_s)
    in_time = len(due_times(lasting)) if rps * wanted_s > few / 2 else 0
    requests = max(few, in_time)
    warmup = requests // 10 if asked.warmup_requests is None else asked.warmup_requests
    return replace(lasting, requests=requests, duration_s=None, warmup_requests=min(warmup, requests - 1))


def _line(probe: goodput.Probe, metric: str) -> str:
    verdict = "meets" if probe.met else "misses"
    share = f"{'at most ' if probe.cut else ''}{probe.share:.1%} of {probe.requests}"
    limited = "; this client is the bottleneck" if probe.limited else ""
    return f"{probe.rps:9.3f} requests/s  {verdict:<6}  {metric} {share}{limited}"


def _verdict(found: goodput.Found, asked: Search) -> str:
    wanted = f"{asked.slo_metric} >= {asked.slo_share:.1%}"
    if found.best is None:
        return f"no probe met {wanted}; the lowest rate was {found.probes[-1].rps:.3f} requests/s"
    above = f"; {found.missed_rps:.3f} misses" if found.missed_rps is not None else ""
    why = {
        goodput.PROBES: " (stopped by --probes-max: it may be higher)",
        goodput.TIME: " (stopped by --search-time-s: it may be higher)",
        goodput.CLIENT: " (this client could not offer more: the server's may be higher)",
    }.get(found.why, "")
    return f"{found.best.rps:.3f} requests/s meet {wanted}{above}{why}"


def _stats(options: Options) -> pb.Stats | None:
    """None when the server has gone meanwhile: what it did until then is still worth a report."""
    try:
        return ask(options.target, options.api)[1]
    except CallFailed as error:
        error.show()
        return None


def _until_quiet(options: Options) -> None:
    """Requests of a cut probe end within a turn or two; the next probe must not meet them."""
    deadline = time.monotonic() + QUIET_S
    while time.monotonic() < deadline:
        now = _stats(options)
        if now is None:
            return
        live = (now.waiting, now.prefill, now.decode, now.rotating_out, now.rotary, now.rotating_in)
        if not any(live) and not now.streams:
            return
        time.sleep(LOOK_S)


def _run(options: Options, jobs: list[Job], verdict: goodput.Verdict | None = None) -> Ran:
    """Runs the load; shows progress to people only."""

    def loaded(progress: Progress) -> Ran:
        return asyncio.run(
            run_load(
                options.target,
                jobs,
                options.timeout_s,
                progress,
                api=options.api,
                concurrency=options.concurrency,
                verdict=verdict,
            )
        )

    if options.as_json or not sys.stderr.isatty():
        return loaded(lambda _: None)
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as shown:
        bar = shown.add_task("requests", total=len(jobs))
        return loaded(lambda _: shown.advance(bar))
