"""`superinfer-trt chaos`: worlds in which everything goes wrong, from a seed each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count

import click

from superinfer_trt.core.errors import ConfigError

TAIL_LINES = 40


@click.command("chaos")
@click.option(
    "--seed", type=click.IntRange(min=0), required=True, help="Of the first world; the next has the next."
)
@click.option("--worlds", type=click.IntRange(min=1), help="How many; 1 without --seconds.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Start none after so long.")
@click.option("--keep-going", is_flag=True, help="Go on behind a world that failed.")
def chaos(*, seed: int, worlds: int | None, seconds: float | None, keep_going: bool) -> int:
    """Run the production executor, ledger and policies in worlds of faults, and check them each turn.

    Late, failed and reordered copies, busy lanes, failing and crawling steps, a clock that stands still,
    cancels, readers that never read, pools of a few blocks; then all heals, and everybody must end. Exit 1
    with the newest turns and the command that replays it when a world breaks a property.

    Example: superinfer-trt chaos --seed 7 --seconds 120
    """
    from superinfer_trt.build.chaos import run_seed

    if worlds is None and seconds is None:
        worlds = 1
    started = time.monotonic()
    done = requests = tokens = rotations = evictions = faults = 0
    failed: list[int] = []
    slowest = 0.0  # turns until all had ended after healing, as a share of the bound
    for one in _seeds(seed, worlds, seconds, started):
        report = run_seed(one)
        done += 1
        figures = report.figures
        if figures is None:
            failed.append(one)
            click.echo(f"seed {one}: {report.options.line()}")
            click.echo("\n".join(f"  {line}" for line in report.tail[-TAIL_LINES:]))
            click.echo(f"{report.failure}\nreplay: superinfer-trt chaos --seed {one}")
            if not keep_going:
                break
            continue
        slowest = max(slowest, figures.healing_turns / figures.healing_bound)
        requests += figures.accepted
        tokens += figures.tokens
        rotations += figures.rotations
        evictions += figures.evictions
        faults += figures.copies_failed + figures.steps_failed
    if not done:
        raise ConfigError(f"--seconds: {seconds} is too short for one world")
    named = f": {' '.join(map(str, failed))}" if failed else ""
    click.echo(
        f"{done} worlds from seed {seed} in {time.monotonic() - started:.1f} s: {requests} requests, "
        f"{tokens} tokens, {rotations} rotations, {evictions} evictions, {faults} failed copies and steps; "
        f"slowest healing {slowest:.0%} of its bound; {len(failed)} failed{named}"
    )
    return 1 if failed else 0


def _seeds(first: int, worlds: int | None, seconds: float | None, started: float) -> Iterator[int]:
    """From `first` on, until either limit."""
    for seed in count(first):
        if worlds is not None and seed - first >= worlds:
            return
        if seconds is not None and time.monotonic() - started >= seconds:
            return
        yield seed
