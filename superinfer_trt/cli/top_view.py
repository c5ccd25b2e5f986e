"""What `superinfer-trt top` shows: two moments of a server's statistics as one picture. No clock, no call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from superinfer_trt.serve.pb import executor_pb2 as pb

BAR_CELLS = 32
PHASES = (
    ("waiting", "yellow"),
    ("prefill", "cyan"),
    ("decode", "green"),
    ("rotating_out", "magenta"),
    ("rotary", "blue"),
    ("rotating_in", "magenta"),
)


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two moments. Shares are 0..1; None where nothing was to be measured."""

    seconds: float
    output_tokens_per_s: float
    requests_per_s: float  # that ended
    rotations_per_s: float
    evictions_per_s: float
    link_out_bytes_per_s: float
    link_in_bytes_per_s: float
    link_out_utilisation: float | None
    link_in_utilisation: float | None
    step_ms: float | None
    plan_ms: float | None
    apply_ms: float | None
    ttft_met: float | None
    tbt_met: float | None
    joint_met: float | None


def rates(now: pb.Stats, before: pb.Stats) -> Rates:
    """Between `before` and `now`, moments of one server; of its whole life when `before` is empty."""
    seconds = now.uptime_s - before.uptime_s

    def grown(*names: str) -> float:
        return float(sum(getattr(now, name) - getattr(before, name) for name in names))

    def a_second(*names: str) -> float:
        return grown(*names) / seconds if seconds > 0 else 0.0

    def used(name: str) -> float | None:
        limit = getattr(now, f"{name}_per_s")
        return a_second(name) / limit if limit > 0 else None

    turns, batches = grown("turns"), grown("batches")
    ended = [name for name in pb.Stats.DESCRIPTOR.fields_by_name if name.startswith("finished_")]
    return Rates(
        seconds=seconds,
        output_tokens_per_s=a_second("output_tokens"),
        requests_per_s=a_second(*ended),
        rotations_per_s=a_second("rotations_out"),
        evictions_per_s=a_second("evictions"),
        link_out_bytes_per_s=a_second("link_out_bytes"),
        link_in_bytes_per_s=a_second("link_in_bytes"),
        link_out_utilisation=used("link_out_bytes"),
        link_in_utilisation=used("link_in_bytes"),
        step_ms=_share(grown("step_s") * 1000, batches),
        plan_ms=_share(grown("plan_s") * 1000, turns),
        apply_ms=_share(grown("apply_s") * 1000, turns),
        ttft_met=_share(grown("ttft_met"), grown("ttft_met", "ttft_missed")),
        tbt_met=_share(grown("tbt_met"), grown("tbt_met", "tbt_missed")),
        joint_met=_share(grown("joint_met"), grown("joint_met", "joint_missed")),
    )


def frame(info: pb.GetModelInfoResponse, now: pb.Stats, before: pb.Stats) -> RenderableType:
    """One picture that fits 80 columns and 24 lines.

    Beside waiting and rotary: the longest wait, and the largest share of its objective anybody has used up.
    """
    newest, life = rates(now, before), rates(now, pb.Stats())
    return Group(
        _head(info, now),
        Text(),
        _requests(now),
        Text(),
        _memory(now, newest),
        Text(),
        _speed(newest, life),
        Text(),
        _ended(now),
    )


def line(now: pb.Stats, before: pb.Stats) -> str:
    """The same for where there is no terminal: one line."""
    newest = rates(now, before)
    running = now.prefill + now.decode
    moving = now.rotating_out + now.rotating_in
    return (
        f"waiting {now.waiting} running {running} rotary {now.rotary} link {moving} "
        f"urgency {max(now.waiting_urgency, now.rotary_urgency):.2f} "
        f"hbm {now.device_blocks - now.device_blocks_free}/{now.device_blocks} "
        f"dram {now.host_blocks - now.host_blocks_free}/{now.host_blocks} "
        f"tokens/s {newest.output_tokens_per_s:.0f} step_ms {_number(newest.step_ms)} "
        f"plan_ms {_number(newest.plan_ms)} joint {_percent(newest.joint_met)}"
    )


def as_json(info: pb.GetModelInfoResponse, now: pb.Stats, before: pb.Stats) -> dict[str, Any]:
    """Plain values: every field of the statistics, the rates, and what is served."""
    fields = {field.name: getattr(now, field.name) for field in pb.Stats.DESCRIPTOR.fields}
    served = {"engine": info.engine, "policy": info.policy, "model": info.model, "version": info.version}
    return {**served, "stats": fields, "rates": asdict(rates(now, before))}


def _head(info: pb.GetModelInfoResponse, now: pb.Stats) -> Text:
    up = round(now.uptime_s)
    state = ("serving", "bold green") if now.serving else ("not taking requests", "bold red")
    name = " ".join(part for part in (info.engine, info.model, info.policy) if part)
    return Text.assemble(
        state,
        f"  {name}  up {up // 3600}:{up // 60 % 60:02}:{up % 60:02}  streams {now.streams}",
        f"  v{info.version}",
    )


def _requests(now: pb.Stats) -> Table:
    table = _table()
    counts = {name: getattr(now, name) for name, _ in PHASES}
    live = sum(counts.values())
    for name, colour in PHASES:
        waits = {
            "waiting": (now.waiting_oldest_ms, now.waiting_urgency),
            "rotary": (now.rotary_oldest_ms, now.rotary_urgency),
        }.get(name)
        note: Text | str = ""
        if waits is not None and counts[name]:
            note = Text.assemble(
                f"{waits[0] / 1000:.2f} s, ",
                (f"{waits[1]:.0%} of SLO", "bold red" if waits[1] > 1 else ""),
            )
        table.add_row(
            name.replace("_", " "), bar(_share(counts[name], live), colour), str(counts[name]), note
        )
    return table


def _memory(now: pb.Stats, newest: Rates) -> Table:
    table = _table()
    for name, free, whole, colour in (
        ("HBM", now.device_blocks_free, now.device_blocks, "green"),
        ("DRAM", now.host_blocks_free, now.host_blocks, "blue"),
    ):
        used = whole - free
        share = _share(used, whole)
        table.add_row(f"{name} blocks", bar(share, colour), f"{used}/{whole}", _percent(share))
    for name, speed, share in (
        ("HBM > DRAM", newest.link_out_bytes_per_s, newest.link_out_utilisation),
        ("DRAM > HBM", newest.link_in_bytes_per_s, newest.link_in_utilisation),
    ):
        table.add_row(name, bar(share, "magenta"), f"{speed / 1e9:.2f} GB/s", _percent(share))
    return table


def _speed(newest: Rates, life: Rates) -> Table:
    head = ("", "now", "since start")
    table = Table(*head, " ", *head, box=None, pad_edge=False, header_style="dim")
    speeds = (
        ("tokens/s", f"{newest.output_tokens_per_s:.0f}", f"{life.output_tokens_per_s:.0f}"),
        ("requests/s", f"{newest.requests_per_s:.2f}", f"{life.requests_per_s:.2f}"),
        ("rotations/s", f"{newest.rotations_per_s:.1f}", f"{life.rotations_per_s:.1f}"),
        ("evictions/s", f"{newest.evictions_per_s:.1f}", f"{life.evictions_per_s:.1f}"),
        ("step ms", _number(newest.step_ms), _number(life.step_ms)),
        ("plan ms", _number(newest.plan_ms), _number(life.plan_ms)),
    )
    objectives = (
        ("TTFT met", _percent(newest.ttft_met), _percent(life.ttft_met)),
        ("TBT met", _percent(newest.tbt_met), _percent(life.tbt_met)),
        ("both met (mean)", _percent(newest.joint_met), _percent(life.joint_met)),
    )
    for speed, objective in zip_longest(speeds, objectives, fillvalue=("", "", "")):
        table.add_row(*speed, "", *objective)
    return table


def _ended(now: pb.Stats) -> Text:
    reasons = ("stop", "length", "cancelled", "rejected", "failed")
    told = "  ".join(f"{name} {getattr(now, f'finished_{name}')}" for name in reasons)
    return Text(f"ended: {told}  refused {now.refused}")


def bar(share: float | None, colour: str) -> Text:
    """BAR_CELLS cells, a share of them filled; what is above 1 fills all. Unknown: none."""
    cells = round(BAR_CELLS * min(1.0, max(0.0, share or 0.0)))
    return Text.assemble(("█" * cells, colour), ("·" * (BAR_CELLS - cells), "dim"))


def _table() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(width=12)
    table.add_column(width=BAR_CELLS)
    table.add_column(justify="right", min_width=9)
    table.add_column()
    return table


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
