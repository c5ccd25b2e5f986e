"""The one table of phases: every edge in it is allowed, every other refused (C8)."""

from __future__ import annotations

import itertools

import pytest

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.phase import LEGAL, RUNNING, Phase, check_move, drawing

PAIRS = list(itertools.product(Phase, Phase))


@pytest.mark.parametrize(("source", "target"), [pair for pair in PAIRS if pair in LEGAL])
def test_edges_of_the_table_are_legal(source: Phase, target: Phase) -> None:
    check_move(source, target)


@pytest.mark.parametrize(("source", "target"), [pair for pair in PAIRS if pair not in LEGAL])
def test_everything_else_is_refused(source: Phase, target: Phase) -> None:
    with pytest.raises(InvariantViolation, match=f"{source.value} -> {target.value}"):
        check_move(source, target)


def test_the_table_is_the_life_that_is_meant() -> None:
    """Written out a second time, so that an edge cannot slip in."""
    edges = """
        waiting>prefill prefill>decode decode>rotating_out rotating_out>rotary rotating_out>decode
        rotary>rotating_in rotating_in>decode rotating_in>rotary prefill>waiting decode>waiting
        waiting>finished prefill>finished decode>finished rotating_out>finished rotary>finished
        rotating_in>finished
    """
    assert {f"{a.value}>{b.value}" for a, b in LEGAL} == set(edges.split())


def test_nothing_leaves_the_end_and_everything_reaches_it() -> None:
    assert all(source is not Phase.FINISHED for source, _ in LEGAL)
    assert {source for source, target in LEGAL if target is Phase.FINISHED} == set(Phase) - {Phase.FINISHED}


def test_every_phase_but_the_first_is_reached_from_it() -> None:
    reached = {Phase.WAITING}
    while more := {b for a, b in LEGAL if a in reached} - reached:
        reached |= more
    assert reached == set(Phase)


def test_only_running_requests_are_evicted() -> None:
    evicted = {a for (a, b), _ in LEGAL.items() if b is Phase.WAITING}
    assert evicted == RUNNING == {Phase.PREFILL, Phase.DECODE}


def test_the_drawing_has_a_line_for_every_edge() -> None:
    lines = drawing().splitlines()
    assert len(lines) == len(LEGAL)
    for line, ((source, target), why) in zip(lines, LEGAL.items(), strict=True):
        assert line.split()[:3] == [source.value, "->", target.value]
        assert line.endswith(why)
