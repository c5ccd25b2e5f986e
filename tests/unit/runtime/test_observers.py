"""Observers hear what the executor's counters count, and change nothing; a recording is a Chrome trace."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.request import Request, Sampling
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.step import Copy, CopyDone, Direction, Row
from superinfer_trt.core.units import MILLISECOND, Nanos, RequestId, Ticket
from superinfer_trt.core.view import Candidate, Limits
from superinfer_trt.engine.modelled import ModelledEngine, StepCost
from superinfer_trt.runtime.recording import Recording
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.transfer.modelled import ModelledLink
from support.requests import random_requests
from support.world import Box, BoxClock, Result

GEOMETRY = Geometry(layers=30, kv_heads=3, head_dim=64, element_bytes=2)
HURRY = Slo(50 * MILLISECOND, 20 * MILLISECOND)
REQUESTS = [replace(one, slo=HURRY) for one in random_requests(5, 60, vocabulary=32_000, span_ms=300)]


class Counting:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.plans = self.steps = self.turns = self.blocks_out = self.blocks_in = 0
        self.plan_ns = self.apply_ns = self.step_ns = 0
        self.air: set[Ticket] = set()
        self.strangers = 0

    def planned(self, plan: Plan, start: Nanos, planned: Nanos, applied: Nanos) -> None:
        assert not plan.idle
        self.plans += 1
        self.plan_ns += planned - start
        self.apply_ns += applied - planned

    def stepped(self, turn: int, rows: Sequence[Row], launched: Nanos, ended: Nanos) -> None:
        assert turn >= 0
        assert rows
        self.steps += 1
        self.step_ns += ended - launched

    def submitted(self, copies: Sequence[Copy], tickets: Sequence[Ticket], now: Nanos) -> None:
        assert now > 0
        self.air.update(tickets)
        for copy in copies:
            if copy.direction is Direction.D2H:
                self.blocks_out += len(copy.source)
            else:
                self.blocks_in += len(copy.source)

    def landed(self, done: Sequence[CopyDone], now: Nanos) -> None:
        assert now > 0
        assert done
        for item in done:
            self.strangers += item.ticket not in self.air
            self.air.discard(item.ticket)

    def turned(self, live: Iterable[Candidate], now: Nanos) -> None:
        assert now > 0
        self.turns += 1


def box(policy: str = "rotasched", depth: int = 2) -> Box:
    limits = Limits(64, 16, GEOMETRY.block_tokens, 24, 400)
    clock = BoxClock()
    link = ModelledLink(clock, GEOMETRY.block_bytes, 1e9, 1e9)
    engine = ModelledEngine(clock, GEOMETRY, StepCost())
    return Box(make_policy(policy), engine, link, limits, depth=depth, clock=clock)


def run(made: Box) -> Result:
    return made.run(REQUESTS, audit=False)


@pytest.mark.parametrize("depth", [1, 2])
def test_an_observer_hears_what_the_totals_count(depth: int) -> None:
    made, counting = box(depth=depth), Counting()
    made.executor.observe(counting)
    result = run(made)
    totals = made.executor.totals
    assert result.rotations > 0
    assert (counting.plans, counting.steps) == (totals.turns, totals.batches)
    assert (counting.blocks_out, counting.blocks_in) == (totals.link_out_blocks, totals.link_in_blocks)
    assert (counting.apply_ns, counting.step_ns) == (totals.apply_ns, totals.step_ns)
    assert 0 < counting.plan_ns <= totals.plan_ns  # the totals have idle turns as well
    assert counting.turns >= counting.plans
    assert (counting.strangers, counting.air) == (0, set())


@pytest.mark.parametrize("depth", [1, 2])
def test_endings_tell_how_long_a_request_was_away(depth: int) -> None:
    made, recording = box(depth=depth), None
    recording = Recording(made.clock)
    made.executor.observe(recording)
    result = run(made)
    spans: dict[int, float] = {}
    for event in slices(recording):
        if event["name"] in {"rotating_out", "rotary", "rotating_in"}:
            id = event["args"]["request"]
            spans[id] = spans.get(id, 0) + event["dur"] / 1000
    assert spans
    for id, ending in result.endings.items():
        assert (ending.away > 0) == (ending.rotations > 0)
        # a recording notes phases at the end of a turn, the roster within it
        assert ending.away / MILLISECOND == pytest.approx(spans.get(id, 0), abs=30 * max(1, ending.rotations))


def test_nobody_is_told_after_unobserve_and_others_go_on() -> None:
    made, first, second = box(), Counting(), Counting()
    made.executor.observe(first)
    made.executor.observe(second)
    made.executor.unobserve(first)
    run(made)
    assert (first.plans, first.turns) == (0, 0)
    assert second.plans == made.executor.totals.turns


def slices(recording: Recording) -> list[dict[str, Any]]:
    found = json.loads("".join(recording.pieces()))
    assert found["otherData"]["dropped_slices"] == recording.dropped
    return [event for event in found["traceEvents"] if event["ph"] == "X"]


def test_a_recording_has_turns_steps_phases_and_both_lanes() -> None:
    made = box()
    recording = Recording(made.clock)
    made.executor.observe(recording)
    run(made)
    made.executor.unobserve(recording)
    found, totals = slices(recording), made.executor.totals
    names = [event["name"] for event in found]
    assert names.count("plan") == names.count("apply") == totals.turns
    steps = [event for event in found if event["pid"] == 2]
    assert len(steps) == totals.batches
    assert sum(e["args"]["blocks"] for e in found if e["name"] == "d2h") == totals.link_out_blocks
    assert sum(e["args"]["blocks"] for e in found if e["name"] == "h2d") == totals.link_in_blocks
    assert {"waiting", "decode", "rotary"} <= set(names)
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in found)
    for lane in (1, 2):  # slices of one lane do not overlap
        spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in found if (e["pid"], e["tid"]) == (3, lane))
        assert spans
        assert all(first[1] <= second[0] + 1e-6 for first, second in pairwise(spans))


def test_a_recording_may_begin_and_end_in_the_middle() -> None:
    made = box()
    recordings: list[Recording] = []

    def each_turn(box: Box) -> None:
        turns = box.executor.totals.turns
        if turns == 30 and not recordings:
            recordings.append(Recording(box.clock))
            box.executor.observe(recordings[0])
        if turns == 90:
            box.executor.unobserve(recordings[0])

    made.run(REQUESTS, audit=False, each_turn=each_turn)
    found = slices(recordings[0])
    assert 58 <= [event["name"] for event in found].count("plan") <= 61
    assert all(event["ts"] >= 0 for event in found)
    assert recordings[0].dropped == 0
    before = len(found)
    recordings[0].stepped(1, (), 0, 1)  # the last words of a turn under way are not kept
    assert len(slices(recordings[0])) == before


def test_a_recording_is_bounded() -> None:
    made = box()
    recording = Recording(made.clock, slices_max=100)
    made.executor.observe(recording)
    run(made)
    assert len(slices(recording)) == 100
    assert recording.dropped > 0


def test_a_snapshot_tells_who_has_waited_longest() -> None:
    made = box()
    seen = []

    def each_turn(box: Box) -> None:
        now = box.executor.snapshot()
        seen.append(now)
        assert (now.waiting_age > 0) == (now.waiting > 0)
        assert (now.rotary_age > 0) == (now.rotary > 0)
        assert (now.block_bytes, now.link_out_bytes_per_s) == (GEOMETRY.block_bytes, 1e9)

    made.run(REQUESTS, audit=False, each_turn=each_turn)
    assert any(now.rotary_urgency > 0 for now in seen)
    assert any(now.waiting_urgency > 0 for now in seen)


def test_urgency_is_the_share_of_the_objective() -> None:
    made = box()
    made.inbox.submit(Request(RequestId(0), (1, 2, 3), Sampling(max_tokens=2), arrival=0))
    made.executor._drain(0)
    made.clock.time = 500 * MILLISECOND
    now = made.executor.snapshot()
    assert now.waiting == 1
    assert now.waiting_age == pytest.approx(500 * MILLISECOND, rel=1e-3)
    assert now.waiting_urgency == pytest.approx(0.1, rel=1e-3)  # of 5 s
