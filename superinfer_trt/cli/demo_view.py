"""What the demo shows people: a live table of phases and pools, and the comparison at the end."""

from __future__ import annotations

import threading
from typing import Any

import grpc
from rich.console import Console
from rich.live import Live
from rich.table import Table

from superinfer_trt.cli.load_api import Answer
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.security_client import open_channel

PERIOD_MS = 250
PLAIN_EVERY = 8  # without a terminal, one line for so many messages
BAR_CELLS = 30


class Watcher:
    """Follows one server's statistics in a thread of its own, from `with` to its end."""

    def __init__(self, target: str, name: str, clients: int, *, quiet: bool) -> None:
        self._name, self._clients, self._quiet = name, clients, quiet
        self._done = 0
        self._console = Console(stderr=True)
        self._channel = open_channel(target)
        stub = ExecutorServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._stream = stub.WatchStats(pb.WatchStatsRequest(period_ms=PERIOD_MS))
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Watcher:  # noqa: PYI034  # typing.Self needs Python 3.11
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.cancel()
        self._thread.join(timeout=5)
        self._channel.close()

    def ended(self, answer: Answer) -> None:
        """One client has its answer."""
        self._done += answer.completed

    def _follow(self) -> None:
        try:
            if self._quiet:
                for _ in self._stream:
                    pass
            elif self._console.is_terminal:
                with Live(console=self._console, refresh_per_second=8, transient=True) as live:
                    for message in self._stream:
                        live.update(self._table(message.stats))
            else:
                for count, message in enumerate(self._stream):
                    if count % PLAIN_EVERY == PLAIN_EVERY - 1:
                        self._console.print(self._line(message.stats), highlight=False)
        except grpc.RpcError:
            return  # the end: cancelled by __exit__, or the server went away

    def _table(self, stats: pb.Stats) -> Table:
        running = stats.prefill + stats.decode
        moving = stats.rotating_out + stats.rotating_in
        table = Table(title=self._name, title_justify="left", show_header=False, min_width=64)
        table.add_row("waiting", _bar(stats.waiting, self._clients, "yellow"), str(stats.waiting))
        table.add_row("running", _bar(running, self._clients, "green"), str(running))
        table.add_row("rotary", _bar(stats.rotary, self._clients, "blue"), str(stats.rotary))
        table.add_row("on the link", _bar(moving, self._clients, "magenta"), str(moving))
        table.add_row("done", _bar(self._done, self._clients, "white"), str(self._done))
        used = stats.device_blocks - stats.device_blocks_free
        away = stats.host_blocks - stats.host_blocks_free
        table.add_row("HBM blocks", _bar(used, stats.device_blocks, "green"), f"{used}/{stats.device_blocks}")
        table.add_row("DRAM blocks", _bar(away, stats.host_blocks, "blue"), f"{away}/{stats.host_blocks}")
        table.add_row("rotations", "", str(stats.rotations_out))
        table.add_row("tokens", "", str(stats.output_tokens))
        return table

    def _line(self, stats: pb.Stats) -> str:
        used = stats.device_blocks - stats.device_blocks_free
        return (
            f"{self._name:<22} waiting {stats.waiting:>2}  running {stats.prefill + stats.decode:>2}  "
            f"rotary {stats.rotary:>2}  done {self._done:>2}  HBM {used:>3}/{stats.device_blocks:<3}  "
            f"rotations {stats.rotations_out:>4}  tokens {stats.output_tokens}"
        )


def _bar(value: int, whole: int, colour: str) -> str:
    cells = round(BAR_CELLS * value / whole) if whole else 0
    return f"[{colour}]{'█' * cells}[/][dim]{'·' * (BAR_CELLS - cells)}[/]"


def print_comparison(report: dict[str, Any]) -> None:
    """The runs side by side, then what had to hold."""
    console = Console()
    runs: dict[str, dict[str, Any]] = report["runs"]
    title = (
        f"{report['clients']} clients need {report['blocks_needed']} blocks; a quarter is "
        f"{report['hbm_blocks']}. TTFT SLO {report['ttft_slo_ms'] / 1000:.2f} s, "
        f"TBT SLO {report['tbt_slo_ms']:.0f} ms"
    )
    table = Table("", *runs, title=title, title_justify="left")
    for name, key, form in (
        ("TTFT attainment", "ttft_attainment", "{:.0%}"),
        ("joint attainment (TTFT and mean TBT)", "joint_mean", "{:.0%}"),
        ("TBT attainment (share of gaps)", "tbt_attainment", "{:.1%}"),
        ("tokens/s", "tokens_per_s", "{:.0f}"),
        ("longest gap, s", "longest_gap_ms", "{:.2f}"),
        ("rotations", "rotations", "{}"),
        ("evictions (KV computed again)", "evictions", "{}"),
    ):
        scale = 1000 if key == "longest_gap_ms" else 1
        table.add_row(
            name, *(form.format(run[key] / scale if scale > 1 else run[key]) for run in runs.values())
        )
    for point in ("p50", "p99"):
        table.add_row(f"TTFT {point}, s", *(f"{run['ttft_ms'][point] / 1000:.2f}" for run in runs.values()))
    console.print(table)
    for check, holds in report["checks"].items():
        console.print(f"[green]✔[/] {check}" if holds else f"[red]✘ {check}[/]")
