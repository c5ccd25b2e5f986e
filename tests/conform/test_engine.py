"""What every ModelEngine must do. A new engine adds one factory."""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from superinfer_trt.core.errors import EngineFailed
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.ports import ModelEngine
from superinfer_trt.core.request import OPTIONAL_SAMPLING, Sampling
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import RequestId
from superinfer_trt.engine.modelled import ModelledEngine, StepCost
from superinfer_trt.engine.pattern import PatternEngine
from support.batches import Job, run_alone, run_mixed, run_rows, step
from support.random_weights import TINY, RandomWeights
from support.virtual_clock import VirtualClock

BLOCKS, BLOCK_TOKENS = 64, 4
PATTERN = Geometry(layers=2, kv_heads=1, head_dim=4, element_bytes=2, block_tokens=BLOCK_TOKENS)


@dataclass
class Bench:
    """An engine and the pool it works on."""

    engine: ModelEngine
    pool: NDArray[np.uint8]


def garbage(geometry: Geometry) -> NDArray[np.uint8]:
    """A pool of 0xFF bytes: NaN in every float format, so that reading too far shows."""
    return np.full((BLOCKS, geometry.block_bytes), 0xFF, np.uint8)


def pattern_bench() -> Bench:
    pool = garbage(PATTERN)
    return Bench(PatternEngine(PATTERN, pool, vocabulary=211, context_tokens_max=256), pool)


def modelled_bench() -> Bench:
    engine = ModelledEngine(VirtualClock(), PATTERN, StepCost(), vocabulary=211, context_tokens_max=256)
    return Bench(engine, garbage(PATTERN))


def native_bench(dtype: str, element_bytes: int) -> Bench:
    from superinfer_trt.engine.native import NativeEngine

    pool = garbage(TINY.geometry(BLOCK_TOKENS, element_bytes))
    engine = NativeEngine(RandomWeights(), pool, block_tokens=BLOCK_TOKENS, dtype=dtype, threads=2)
    return Bench(engine, pool)


FACTORIES: dict[str, Callable[[], Bench]] = {
    "pattern": pattern_bench,
    "modelled": modelled_bench,
    "native-fp32": lambda: native_bench("fp32", 4),
    "native-bf16": lambda: native_bench("bf16", 2),
}


@pytest.fixture(params=FACTORIES)
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[], Bench]]:
    """Makes engines of one kind; they are closed at the end."""
    name: str = request.param
    if name.startswith("native") and importlib.util.find_spec("superinfer_trt._cpu_engine") is None:
        pytest.skip("the native engine is not built")
    made: list[Bench] = []

    def factory() -> Bench:
        made.append(FACTORIES[name]())
        return made[-1]

    yield factory
    for bench in made:
        bench.engine.close()


def sampling(number: int, tokens: int) -> Sampling:
    """Every second request is greedy, the others draw."""
    return Sampling(tokens, temperature=0.8 * (number % 2), top_p=0.95, top_k=40 * (number % 3), seed=number)


def test_a_claim_to_optional_sampling_is_kept(make: Callable[[], Bench]) -> None:
    """No stop id before min_tokens, and a min_p of 1 is greedy."""
    engine = make().engine
    assert engine.supports <= OPTIONAL_SAMPLING
    assert {"min_p", "min_tokens"} <= engine.supports
    ways = [
        Sampling(6),
        Sampling(6, temperature=5.0, min_p=1.0, seed=3),
        Sampling(3, min_tokens=3, stop_ids=frozenset(range(0, 211, 2))),
        Sampling(6, temperature=2.0, min_tokens=6, stop_ids=frozenset(range(0, 211, 2)), seed=4),
    ]
    made = [Job(RequestId(i), [5, 6, 7], how, list(range(4 * i, 4 * i + 4))) for i, how in enumerate(ways)]
    run_mixed(engine, made, random.Random(1))
    greedy, likeliest, forbidden, drawn = (job.output for job in made)
    assert greedy == likeliest
    assert all(token % 2 for token in [*forbidden, *drawn])


def test_penalties_depend_on_a_requests_own_tokens_alone(make: Callable[[], Bench]) -> None:
    bench = make()
    if not {"repetition_penalty", "presence_penalty", "frequency_penalty"} <= bench.engine.supports:
        pytest.skip("this engine refuses penalties by name")
    how = Sampling(8, repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.3)

    def made() -> list[Job]:
        ways = [how, replace(how, temperature=1.0, min_p=0.05, seed=7), Sampling(8)]
        return [
            Job(RequestId(i), [9, 9, 8, i], way, list(range(4 * i, 4 * i + 4))) for i, way in enumerate(ways)
        ]

    alone = [run_alone(make().engine, job) for job in made()]
    mixed = run_mixed(bench.engine, made(), random.Random(2))
    assert list(mixed.values()) == alone
    plain = run_alone(make().engine, replace(made()[0], sampling=Sampling(8)))
    assert alone[0] != plain, "penalties changed nothing"


def jobs(count: int, draw: random.Random, tokens: int = 6) -> list[Job]:
    """Requests 0 .. count - 1, always the same ones; `draw` decides only where their blocks lie."""
    slots = draw.sample(range(BLOCKS), BLOCKS)
    made = []
    for number in range(count):
        prompt = [(number * 29 + at * at * 7 + 3) % 211 for at in range(3 + number * 5)]
        need = -(-(len(prompt) + tokens) // BLOCK_TOKENS)
        made.append(
            Job(RequestId(number), prompt, sampling(number, tokens), [slots.pop() for _ in range(need)])
        )
    return made


def test_it_says_what_it_can(make: Callable[[], Bench]) -> None:
    engine, pool = make().engine, make().pool
    assert engine.geometry.block_tokens == BLOCK_TOKENS
    assert engine.geometry.block_bytes == pool.shape[1]
    assert engine.vocabulary == 211
    assert engine.context_tokens_max == 256


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_tokens_do_not_depend_on_batches_chunks_or_places(make: Callable[[], Bench], seed: int) -> None:
    """C12, the engine's share of it."""
    draw = random.Random(seed)
    alone = make().engine
    expected = {one.id: run_alone(alone, one) for one in jobs(5, random.Random(0))}
    assert run_mixed(make().engine, jobs(5, draw), draw) == expected


def test_tokens_do_not_depend_on_the_id(make: Callable[[], Bench]) -> None:
    one, same = jobs(2, random.Random(0))[1], jobs(2, random.Random(0))[1]
    same.id = RequestId(4711)
    assert run_alone(make().engine, one) == run_alone(make().engine, same)


def test_a_request_computed_again_goes_on_as_if_nothing_had_happened(make: Callable[[], Bench]) -> None:
    expected = run_alone(make().engine, jobs(3, random.Random(0))[2])
    engine = make().engine
    one = jobs(3, random.Random(1))[2]
    for _ in range(3):
        step(engine, [(one, len(one.known) - one.computed)])
    one.computed, one.slots = 0, one.slots[::-1]  # evicted: prompt and output are the new prefill target
    assert run_alone(engine, one) == expected


def test_blocks_may_move_between_two_batches(make: Callable[[], Bench]) -> None:
    draw = random.Random(5)
    alone = make().engine
    expected = {one.id: run_alone(alone, one) for one in jobs(4, random.Random(0))}
    bench = make()
    moving = jobs(4, random.Random(0))

    def move_everything() -> None:
        target = draw.sample(range(BLOCKS), BLOCKS)
        moved = np.full_like(bench.pool, 0xFF)
        moved[target] = bench.pool
        bench.pool[:] = moved
        for one in moving:
            one.slots = [target[slot] for slot in one.slots]

    assert run_mixed(bench.engine, moving, draw, move_everything) == expected


def test_exactly_the_rows_that_ask_are_sampled(make: Callable[[], Bench]) -> None:
    engine = make().engine
    short, long = jobs(2, random.Random(0))
    assert set(run_rows(engine, [short.row(len(short.prompt)), long.row(4)])) == {short.id}


def test_an_empty_batch_is_a_batch(make: Callable[[], Bench]) -> None:
    engine = make().engine
    assert run_rows(engine, []) == {}


def test_greedy_does_not_look_at_the_seed_and_drawing_does(make: Callable[[], Bench]) -> None:
    engine = make().engine
    outputs: dict[float, set[tuple[int, ...]]] = {0.0: set(), 1.0: set()}
    for temperature, found in outputs.items():
        for seed in range(6):
            ask = Sampling(5, temperature=temperature, seed=seed)
            id = RequestId(100 + seed + 10 * int(temperature))
            found.add(tuple(run_alone(engine, Job(id, [5, 17, 99], ask, [0, 1]))))
    assert len(outputs[0.0]) == 1
    assert len(outputs[1.0]) > 1


def test_logprobs_are_given_when_asked_for(make: Callable[[], Bench]) -> None:
    engine = make().engine
    for id, count in enumerate((-1, 0, 3)):
        one = Job(RequestId(id), [5, 17, 99], Sampling(1, logprobs=count), [id])
        engine.launch(Batch(id, (one.row(3),)))
        sampled = engine.collect().sampled[one.id]
        assert math.isnan(sampled.logprob) == (count < 0)
        assert len(sampled.top) == max(count, 0)
        if count > 0:
            assert sampled.top[0] == (sampled.token, sampled.logprob)  # greedy: the likeliest
            values = [logprob for _, logprob in sampled.top]
            assert values == sorted(values, reverse=True)
            assert all(value <= 0 for value in values)


BAD_ROWS: dict[str, dict[str, object]] = {
    "token too large": {"tokens": [1, 2, 211]},
    "token negative": {"tokens": [1, 2, -1]},
    "too few slots": {"slots": []},
    "beyond the context": {"tokens": [1] * 257, "slots": [*range(BLOCKS), 0]},
    "negative start": {"start": -1},
    "no tokens": {"tokens": []},
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_after_a_failed_batch_the_others_go_on(make: Callable[[], Bench], case: str) -> None:
    expected = run_alone(make().engine, jobs(2, random.Random(0))[1])
    engine = make().engine
    good = jobs(2, random.Random(0))[1]
    step(engine, [(good, 5)])
    fields: dict[str, object] = {"start": 0, "tokens": [1, 2, 3], "slots": [63], **BAD_ROWS[case]}
    bad = Row(id=RequestId(99), sample=True, index=0, sampling=Sampling(), **fields)  # type: ignore[arg-type]
    with pytest.raises(EngineFailed):
        run_rows(engine, [good.row(2), bad])
    assert run_alone(engine, good) == expected


def test_close_is_idempotent_and_ends_a_batch_in_the_air(make: Callable[[], Bench]) -> None:
    engine = make().engine
    engine.launch(Batch(0, (jobs(1, random.Random(0))[0].row(3),)))
    engine.close()
    engine.close()
