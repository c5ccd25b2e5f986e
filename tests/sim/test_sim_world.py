"""Simulated runs of the production parts: everything ends, nothing leaks, the seed decides, time is right."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from typing import Any

import pytest

from superinfer_trt.build.sim import Built, Setup, build_world
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.request import FinishReason
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, SECOND
from superinfer_trt.runtime.run_trace import ENGINE, LANES, REQUESTS
from superinfer_trt.sched.registry import POLICIES
from superinfer_trt.sim.arrivals import Arrivals
from superinfer_trt.sim.cost import HostCost
from superinfer_trt.sim.figures import evaluate
from superinfer_trt.sim.lengths import Lengths
from superinfer_trt.sim.profiles import MODELS, find_hardware, step_model
from superinfer_trt.sim.synthetic import synthetic_lengths
from superinfer_trt.sim.workload import Item, Sessions, Turn, make_items
from superinfer_trt.sim.world import Record

GH200 = find_hardware("gh200-144gb")
QWEN = MODELS["qwen2.5-32b"]
SETUP = Setup(GH200, QWEN, hbm_blocks=700, dram_blocks=6_000)
CROWD = make_items(synthetic_lengths("sharegpt", 200, 1), Arrivals(20, 4))


def simulate(setup: Setup, items: list[Item], *, traced: bool = False) -> tuple[Built, list[Record]]:
    built = build_world(setup, items, "test", traced=traced)
    records = list(built.world.run(items))
    return built, records


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("depth", [1, 2])
def test_every_request_of_a_crowd_ends_with_all_its_tokens(policy: str, depth: int) -> None:
    built, records = simulate(replace(SETUP, policy=policy, depth=depth), CROWD)
    assert len(records) == len(CROWD)
    for record in records:
        assert record.ending is not None
        assert record.ending.reason is FinishReason.LENGTH
        assert len(record.tokens) == record.item.output_tokens
        assert list(record.tokens) == sorted(record.tokens)
        assert record.tokens[0] > record.arrival
    totals = built.world.executor.totals
    assert totals.output_tokens == sum(item.output_tokens for item in CROWD)
    assert totals.rotations_out == totals.rotations_in


def test_the_seed_decides_everything() -> None:
    first, second = (simulate(SETUP, CROWD)[1] for _ in range(2))
    assert [record.tokens for record in first] == [record.tokens for record in second]
    assert evaluate(first) == evaluate(second)


def test_a_lone_request_takes_what_the_cost_model_says() -> None:
    """Synchronous: host, step, host, step; pipelined: the host is hidden but for the first step."""
    host = HostCost(base_ns=3 * MILLISECOND, live_ns=0, waiting_ns=0)
    cost = step_model(GH200, QWEN)
    steps = []
    for depth in (1, 2):
        setup = replace(SETUP, depth=depth, host_cost=host, policy="fcfs")
        _, (record,) = simulate(setup, [Item(SECOND, 512, 3)])
        steps.append([after - before for before, after in pairwise([SECOND, *record.tokens])])
    decodes = [round(cost.seconds(work_of_decode(context)) * SECOND) for context in (513, 514)]
    assert steps[0][1:] == [decode + 3 * MILLISECOND for decode in decodes]
    assert steps[1][1:] == decodes
    assert steps[0][0] == steps[1][0]


def work_of_decode(context: int) -> Any:
    from superinfer_trt.sim.cost import StepWork

    return StepWork(1, 1, context, 0.0, 0)


def test_a_session_goes_on_when_its_answer_has_ended() -> None:
    item = Item(0, 10, 5, Slo(), "talk", (Turn(2 * SECOND, 30, 4), Turn(SECOND, 50, 3)))
    _, records = simulate(SETUP, [item])
    assert [(r.item.prompt_tokens, r.item.output_tokens) for r in records] == [(10, 5), (30, 4), (50, 3)]
    assert records[1].arrival == records[0].tokens[-1] + 2 * SECOND
    assert records[2].arrival == records[1].tokens[-1] + SECOND
    assert {record.item.tenant for record in records} == {"talk"}


def test_sessions_in_a_crowd_all_end() -> None:
    items = make_items([Lengths(50, 20)], Arrivals(5, 4), sessions=Sessions(3, 1.0))
    _, records = simulate(SETUP, items)
    assert len(records) == sum(1 + len(item.then) for item in items)
    assert all(record.completed for record in records)


def test_who_lives_at_the_horizon_has_failed() -> None:
    built = build_world(SETUP, CROWD, "test")
    records = built.world.run(CROWD, horizon=3 * SECOND)
    assert all(record.ending is not None for record in records)
    assert any(not record.completed for record in records)
    assert evaluate(records).failed > 0


def test_rotation_keeps_first_tokens_in_time_where_fcfs_does_not() -> None:
    items = make_items(synthetic_lengths("sharegpt", 300, 1), Arrivals(20, 15))
    setup = Setup(GH200, QWEN, hbm_blocks=3_000)
    shares = {
        policy: evaluate(simulate(replace(setup, policy=policy), items)[1]).ttft_attainment
        for policy in ("fcfs", "rotasched")
    }
    assert shares["rotasched"] > 0.95
    assert shares["fcfs"] < 0.7


def test_naive_copies_cost_what_duplex_saves() -> None:
    items = make_items(synthetic_lengths("sharegpt", 300, 1), Arrivals(20, 15))
    setup = Setup(GH200, QWEN, "rotasched", {"transfer_blocks": 400}, hbm_blocks=3_000)
    setup = replace(setup, unlimited_allowance=True)
    duplex, naive = (
        evaluate(simulate(replace(setup, link=link), items)[1]).tbt_attainment for link in ("duplex", "naive")
    )
    assert duplex > naive + 0.2


def test_what_fits_neither_model_nor_pool_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"test: request 1: .* which the HBM pool holds"):
        build_world(SETUP, [Item(0, 11_000, 1_000)], "test")
    with pytest.raises(ConfigError, match=r"test: request 1: .* which the model takes"):
        build_world(SETUP, [Item(0, 32_000, 1_000)], "test")
    with pytest.raises(ConfigError, match="policy: 'nobody' is unknown"):
        build_world(replace(SETUP, policy="nobody"), CROWD, "test")
    with pytest.raises(ConfigError, match="seats"):
        build_world(replace(SETUP, seats=0), CROWD, "test")


def test_the_trace_of_a_run_is_whole() -> None:
    built, records = simulate(SETUP, CROWD, traced=True)
    text = StringIO()
    assert built.trace is not None
    built.trace.write(text)
    events = json.loads(text.getvalue())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    tracks: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for one in slices:
        assert one["dur"] >= 0
        tracks.setdefault((one["pid"], one["tid"]), []).append(one)
    for track in tracks.values():  # slices of a track follow one another
        track.sort(key=lambda one: one["ts"])
        for before, after in pairwise(track):
            assert before["ts"] + before["dur"] <= after["ts"] + 1e-3
    named = {(e["pid"], e.get("tid")) for e in events if e["ph"] == "M"}
    assert set(tracks) <= named
    assert len(tracks[ENGINE, 1]) == built.world.executor.totals.batches
    moved = {at: sum(one["args"]["blocks"] for one in tracks[LANES, at]) for at in (1, 2)}
    totals = built.world.executor.totals
    assert moved == {1: totals.link_out_blocks, 2: totals.link_in_blocks}
    for at, record in enumerate(records):
        mine = tracks[REQUESTS, at + 1]
        assert mine[0]["ts"] == pytest.approx(record.arrival / 1000)
        assert mine[-1]["ts"] + mine[-1]["dur"] == pytest.approx(record.tokens[-1] / 1000)
    phases = {one["name"] for one in slices if one["pid"] == REQUESTS}
    assert {"waiting", "decode", "rotary", "rotating_in"} <= phases
