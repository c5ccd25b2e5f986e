"""The figures of a load that is over, as one JSON object and as tables. Knows no server and no schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from superinfer_trt.cli.client import reason_name
from superinfer_trt.cli.load import Client
from superinfer_trt.cli.load_api import Answer
from superinfer_trt.cli.load_requests import objectives_ms
from superinfer_trt.core.attainment import RequestTimes, attainment
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, SECOND, Nanos
from superinfer_trt.serve.pb import executor_pb2 as pb

LATE_SHARE_MAX = 0.1
"""Of the tightest objective: a client that is late by more has made the figures itself."""
LATE_MIN: Nanos = 5 * MILLISECOND
CPU_SHARE_MAX = 0.9
"""Of one core: Python has no second one."""
REST = "rest"
"""Requests of no class."""

SHARES = ("ttft_attainment", "tbt_attainment", "joint_mean", "joint_p99", "joint_stall")
_CLASS_COLUMNS = ("requests", "completed", *SHARES, "goodput_rps", "ttft_ms", "tbt_ms")


def times_of(answer: Answer, info: pb.GetModelInfoResponse) -> RequestTimes:
    """An answer as the metrics want it; objectives the request left out are the server's."""
    ttft_ms, tbt_ms = objectives_ms(answer.job.request, info)
    objectives = Slo(round(ttft_ms * MILLISECOND), round(tbt_ms * MILLISECOND))
    return RequestTimes(answer.due, answer.tokens, objectives, answer.completed)


def counted(answers: Sequence[Answer]) -> list[Answer]:
    """The population: without warm-up, and without those whose own callers cancelled."""
    return [one for one in answers if one.job.measured and not one.cancelled]


def result(
    answers: Sequence[Answer],
    info: pb.GetModelInfoResponse,
    before: pb.Stats | None,
    after: pb.Stats | None,
) -> dict[str, Any]:
    """The figures of the run as one JSON object. Requests that their own caller cancelled are counted,
    and are in no other figure but the server's counters (None without `before` and `after`, which count
    the warm-up too)."""
    measured = counted(answers)
    failures = Counter(
        answer.status if answer.status != "OK" else "ending" for answer in measured if not answer.completed
    )
    figures: dict[str, Any] = attainment(times_of(answer, info) for answer in measured).as_dict()
    figures["requests"] = sum(one.job.measured for one in answers)
    figures["warmup"] = len(answers) - figures["requests"]
    figures["cancelled"] = figures["requests"] - len(measured)
    figures["failures"] = dict(failures)
    for name, counter in (
        ("rotations", "rotations_out"),
        ("evictions", "evictions"),
        ("messages", "messages"),
    ):
        known = before is not None and after is not None
        figures[name] = getattr(after, counter) - getattr(before, counter) if known else None
    figures["rps_offered"] = _rps([one.due for one in answers if one.job.measured])
    figures["classes"] = _classes(measured, info)
    figures["policy"], figures["engine"] = info.policy, info.engine
    figures["hbm_blocks"], figures["dram_blocks"] = info.device_blocks, info.host_blocks
    return figures


def client_figures(
    client: Client, answers: Sequence[Answer], info: pb.GetModelInfoResponse
) -> dict[str, Any]:
    """How far the client kept up: `limited` says that the figures are its own rather than the server's."""
    late = client.late_p99(answers)
    tightest_ms = min(min(objectives_ms(one.job.request, info)) for one in answers)
    late_max = max(LATE_MIN, round(LATE_SHARE_MAX * tightest_ms * MILLISECOND))
    cpu_share = client.cpu_s * SECOND / client.wall if client.wall else 0.0
    return {
        "late_p99_ms": late / MILLISECOND,
        "late_max_ms": late_max / MILLISECOND,
        "cpu_share": cpu_share,
        "limited": late > late_max or cpu_share > CPU_SHARE_MAX,
    }


def client_warning(client: dict[str, Any]) -> str:
    """One line for people; empty when the client kept up."""
    if not client["limited"]:
        return ""
    return (
        f"this client is the bottleneck: late by {client['late_p99_ms']:.1f} ms (p99; at most "
        f"{client['late_max_ms']:.1f} would do), {client['cpu_share']:.0%} of a core; times are upper bounds"
    )


def output_line(answer: Answer) -> dict[str, object]:
    """One answer for a file of outputs: nothing in it depends on time, so runs can be compared."""
    ending = answer.ending
    return {
        "index": answer.job.index,
        "status": answer.status,
        "finish_reason": reason_name(ending.finish_reason) if ending is not None else "",
        "token_ids": answer.token_ids,
        "text": answer.text,
    }


def print_tables(figures: dict[str, Any]) -> None:
    """The figures for people: all, then by class."""
    from rich.console import Console
    from rich.table import Table

    title = f"{figures['engine']}, {figures['policy']}"
    table = Table("figure", "value", title=title, title_justify="left")
    for name, value in figures.items():
        if name not in {"engine", "policy", "classes"}:
            table.add_row(name, _shown(name, value))
    console = Console()
    console.print(table)
    if figures["classes"]:
        names = list(figures["classes"])
        by_class = Table("figure", *names, title="by class", title_justify="left")
        for column in _CLASS_COLUMNS:
            by_class.add_row(column, *(_shown(column, figures["classes"][name][column]) for name in names))
        console.print(by_class)


def _classes(measured: Sequence[Answer], info: pb.GetModelInfoResponse) -> dict[str, dict[str, Any]]:
    """The figures of each class or tenant; nothing where there is only one."""
    groups = sorted({one.job.group for one in measured})
    if len(groups) < 2:
        return {}
    found = {}
    for group in groups:
        mine = [times_of(one, info) for one in measured if one.job.group == group]
        told = attainment(mine).as_dict()
        found[group or REST] = {name: told[name] for name in _CLASS_COLUMNS}
    return found


def _rps(due: Sequence[Nanos]) -> float | None:
    """Arrivals a second between the first and the last; None without a span."""
    span = max(due) - min(due) if due else 0
    return (len(due) - 1) * SECOND / span if span else None


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return "  ".join(f"{key} {_shown(key, one)}" for key, one in value.items()) or "-"
    if name in SHARES or name == "cpu_share":
        return f"{value:.1%}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
