"""`superinfer-trt top`: a server's statistics, live."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click
import grpc
from rich.console import Console
from rich.live import Live

from superinfer_trt.cli.client import call_failed, target_option
from superinfer_trt.cli.top_view import as_json, frame, line
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.security_client import open_channel

ONCE_PERIOD_MS = 500  # one frame needs two moments
Moments = Iterator[tuple[pb.Stats, pb.Stats]]


@click.command("top")
@target_option
@click.option(
    "--period-ms", type=click.IntRange(100, 60_000), default=1000, show_default=True, help="Between frames."
)
@click.option("--once", is_flag=True, help="Show one frame and end.")
@click.option("--json", "wants_json", is_flag=True, help="One JSON object a frame.")
def top(*, target: str, period_ms: int, once: bool, wants_json: bool) -> int:
    """Watch a server: requests by phase, urgency, pools, the link, speed, objectives.

    Without a terminal it prints one line a frame. Ends with the server, or on Ctrl-C.
    """
    with open_channel(target) as channel:
        stub = ExecutorServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            info = stub.GetModelInfo(pb.GetModelInfoRequest())
            stream = stub.WatchStats(pb.WatchStatsRequest(period_ms=ONCE_PERIOD_MS if once else period_ms))
            moments = _pairs(message.stats for message in stream)
            if once:
                _one(info, next(moments, None), wants_json=wants_json)
            else:
                _all(info, moments, wants_json=wants_json)
        except grpc.RpcError as error:
            raise call_failed(error, target) from None
        except KeyboardInterrupt:
            return 0
    return 0


def _pairs(stats: Iterator[pb.Stats]) -> Moments:
    """Each moment with the one before it."""
    before = next(stats, None)
    for now in stats:
        assert before is not None
        yield now, before
        before = now


def _one(
    info: pb.GetModelInfoResponse, moment: tuple[pb.Stats, pb.Stats] | None, *, wants_json: bool
) -> None:
    if moment is None:
        raise click.ClickException("the server ended before there was anything to show")
    if wants_json:
        click.echo(json.dumps(as_json(info, *moment)))
    else:
        Console().print(frame(info, *moment))


def _all(info: pb.GetModelInfoResponse, moments: Moments, *, wants_json: bool) -> None:
    console = Console()
    if wants_json:
        for now, before in moments:
            click.echo(json.dumps(as_json(info, now, before)))
    elif console.is_terminal:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for now, before in moments:
                live.update(frame(info, now, before), refresh=True)
    else:
        for now, before in moments:
            click.echo(line(now, before))
