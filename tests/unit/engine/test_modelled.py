"""ModelledEngine: a batch takes its time on the injected clock, and its tokens depend on nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest

from superinfer_trt.core.errors import ConfigError, EngineFailed, InvariantViolation
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.request import Sampling
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import RequestId
from superinfer_trt.engine.modelled import PRESETS, ModelledEngine, StepCost, step_cost
from superinfer_trt.engine.pattern import PatternEngine
from support.batches import Job, run_alone, run_mixed, run_rows
from support.virtual_clock import VirtualClock

GEOMETRY = Geometry(layers=1, kv_heads=1, head_dim=8, element_bytes=2, block_tokens=4)
COST = StepCost(base_ns=1000, row_ns=100, prefill_token_ns=10, context_token_ns=1)


def rows(*spans: tuple[int, int]) -> tuple[Row, ...]:
    """One row a span (start, length)."""
    return tuple(
        Row(RequestId(id), start, [1] * length, list(range(512)), True, 0, Sampling())
        for id, (start, length) in enumerate(spans)
    )


def job(number: int = 1, tokens: int = 6) -> Job:
    return Job(RequestId(number), [number, 5, 9, 2, 6], Sampling(max_tokens=tokens), list(range(3)))


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], 1000),
        ([(40, 1)], 1000 + 100 + 41),
        ([(0, 16)], 1000 + 100 + 160 + 16),
        ([(16, 16), (40, 1)], 1000 + 200 + 160 + 32 + 41),
        ([(0, 1)], 1000 + 100 + 10 + 1),
    ],
)
def test_cost_is_linear_in_the_work(spans: list[tuple[int, int]], expected: int) -> None:
    assert COST(Batch(0, rows(*spans))) == expected


@pytest.mark.parametrize(
    ("preset", "spans", "milliseconds"),
    [
        ("smollm2-2-cores", [(255, 1)], 8.2),
        ("smollm2-2-cores", [(255, 1)] * 32, 22.3),
        ("smollm2-2-cores", [(1023, 1)] * 32, 53.2),
        ("smollm2-2-cores", [(0, 256)], 68.0),
        ("qwen2.5-32b-gh200", [(499, 1)], 19.8),
        ("qwen2.5-32b-gh200", [(499, 1)] * 256, 37.0),
        ("qwen2.5-32b-gh200", [(0, 2048)], 187.0),
        ("llama-3-8b-gh200", [(499, 1)] * 256, 15.1),
    ],
)
def test_presets_are_near_what_they_stand_for(
    preset: str, spans: list[tuple[int, int]], milliseconds: float
) -> None:
    assert PRESETS[preset](Batch(0, rows(*spans))) == pytest.approx(milliseconds * 1e6, rel=0.15)


def test_terms_of_a_preset_can_be_replaced() -> None:
    cost = step_cost("qwen2.5-32b-gh200", {"row_ns": 5})
    assert (cost.row_ns, cost.base_ns) == (5, PRESETS["qwen2.5-32b-gh200"].base_ns)
    assert step_cost() == StepCost()


@pytest.mark.parametrize(
    ("preset", "terms", "message"),
    [
        ("abacus", {}, "'abacus' is unknown; known are smollm2-2-cores, "),
        ("smollm2-2-cores", {"row_ms": 1.0}, "no term 'row_ms'; terms are base_ns, row_ns"),
        ("smollm2-2-cores", {"row_ns": -1.0}, "row_ns is -1.0"),
        ("smollm2-2-cores", {"base_ns": float("nan")}, "base_ns is nan"),
        ("smollm2-2-cores", {"base_ns": float("inf")}, "base_ns is inf"),
    ],
)
def test_bad_terms_are_refused_by_name(preset: str, terms: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        step_cost(preset, terms)


def test_launch_returns_at_once_and_collect_waits_for_the_rest() -> None:
    clock = VirtualClock()
    engine = ModelledEngine(clock, GEOMETRY, COST)
    engine.launch(Batch(0, (job().row(5),)))
    assert clock.time == 0
    clock.time = 400  # planning the next turn took a while
    engine.collect()
    assert clock.time == 1000 + 100 + 50 + 5
    assert clock.parked == [clock.time]


def test_a_batch_that_has_ended_is_not_waited_for() -> None:
    clock = VirtualClock()
    engine = ModelledEngine(clock, GEOMETRY, COST)
    engine.launch(Batch(0, (job().row(5),)))
    clock.time = 10_000
    engine.collect()
    assert clock.parked == []


def test_a_wake_meant_for_the_driver_is_passed_on() -> None:
    clock = VirtualClock()
    clock.wakes = [300, 700]
    engine = ModelledEngine(clock, GEOMETRY, COST)
    engine.launch(Batch(0, (job().row(5),)))
    engine.collect()
    assert clock.time == 1155
    assert clock.woken == 1


def test_nobody_is_woken_without_a_wake() -> None:
    clock = VirtualClock()
    run_alone(ModelledEngine(clock, GEOMETRY, COST), job())
    assert clock.woken == 0


def test_tokens_are_those_of_the_pattern_engine() -> None:
    pool = np.zeros((12, GEOMETRY.block_bytes), np.uint8)
    slots = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    jobs = [Job(RequestId(n), [n, 5, 9], Sampling(max_tokens=6), slots[n]) for n in range(3)]
    twins = [Job(RequestId(n), [n, 5, 9], Sampling(max_tokens=6), slots[n]) for n in range(3)]
    modelled = run_mixed(ModelledEngine(VirtualClock(), GEOMETRY, COST), jobs, random.Random(1))
    assert modelled == run_mixed(PatternEngine(GEOMETRY, pool), twins, random.Random(2))


def test_a_history_that_was_not_computed_is_refused() -> None:
    engine = ModelledEngine(VirtualClock(), GEOMETRY, COST)
    one = job()
    with pytest.raises(EngineFailed, match="request 1 goes on at position 2, but 0 positions"):
        run_rows(engine, [Row(one.id, 2, [1], one.slots, True, 0, one.sampling)])
    run_rows(engine, [one.row(5)])
    with pytest.raises(EngineFailed, match="request 1 goes on at position 4, but 5 positions"):
        run_rows(engine, [Row(one.id, 4, [1], one.slots, True, 0, one.sampling)])


def test_one_batch_in_the_air_at_a_time() -> None:
    engine = ModelledEngine(VirtualClock(), GEOMETRY, COST)
    with pytest.raises(InvariantViolation, match="no batch"):
        engine.collect()
    engine.launch(Batch(1, ()))
    with pytest.raises(InvariantViolation, match="in the air"):
        engine.launch(Batch(2, ()))
    assert engine.collect().sampled == {}
    engine.close()
    with pytest.raises(InvariantViolation, match="closed"):
        engine.launch(Batch(3, ()))
