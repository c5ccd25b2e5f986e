"""PatternEngine: every way to lose a block is noticed, and named (C5)."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.core.errors import ConfigError, EngineFailed, InvariantViolation
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.request import Sampling
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import RequestId
from superinfer_trt.engine import pattern
from superinfer_trt.engine.pattern import PatternEngine
from support.batches import Job, run_alone, run_mixed, run_rows, step

GEOMETRY = Geometry(layers=2, kv_heads=1, head_dim=8, element_bytes=2, block_tokens=4)
BLOCKS = 24


def make(
    geometry: Geometry = GEOMETRY, blocks: int = BLOCKS, **options: int
) -> tuple[PatternEngine, np.ndarray]:
    pool = np.frombuffer(np.random.default_rng(1).bytes(blocks * geometry.block_bytes), np.uint8)
    pool = pool.reshape(blocks, geometry.block_bytes).copy()
    return PatternEngine(geometry, pool, **options), pool


def job(number: int = 7, prompt: int = 10, tokens: int = 8, slots: tuple[int, ...] = (3, 9, 1, 20, 5)) -> Job:
    ids = [(number * 31 + at * 17) % 1000 for at in range(prompt)]
    return Job(RequestId(number), ids, Sampling(max_tokens=tokens), list(slots))


def test_undisturbed_requests_run_to_their_end() -> None:
    engine, _ = make()
    assert len(run_alone(engine, job())) == 8


def test_every_cell_of_the_history_is_checked() -> None:
    engine, pool = make()
    one = job(prompt=10, slots=(3, 9, 1, 20, 5))
    step(engine, [(one, 10)])
    cells = pool.reshape(BLOCKS, GEOMETRY.layers, 2, GEOMETRY.block_tokens, 16)
    for position in range(10):
        slot, offset = one.slots[position // 4], position % 4
        for layer in range(2):
            for plane in range(2):
                cells[slot, layer, plane, offset, (position * 5) % 16] ^= 1
                where = rf"request 7 at position {position} \(layer {layer}, {'KV'[plane]}, slot {slot}\)"
                with pytest.raises(EngineFailed, match=where):
                    run_rows(engine, [one.row(1)])
                cells[slot, layer, plane, offset, (position * 5) % 16] ^= 1
    step(engine, [(one, 1)])  # all is well again, and the engine is usable


@given(byte=st.integers(0, GEOMETRY.block_bytes - 1), block=st.integers(0, 2), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed_unless_nothing_was_written_there(byte: int, block: int, bit: int) -> None:
    engine, pool = make()
    one = job(prompt=11)
    step(engine, [(one, 11)])
    pool[one.slots[block], byte] ^= 1 << bit
    position = block * 4 + byte // 16 % 4
    if position < 11:
        with pytest.raises(EngineFailed, match=f"position {position} "):
            run_rows(engine, [one.row(1)])
    else:
        step(engine, [(one, 1)])


def test_a_lost_block_is_all_zero() -> None:
    engine, pool = make()
    one = job()
    step(engine, [(one, 10)])
    pool[9] = 0
    with pytest.raises(EngineFailed, match=r"request 7 at position 4 .*all zero"):
        run_rows(engine, [one.row(1)])


def test_a_crossed_block_names_its_owner() -> None:
    engine, pool = make()
    one, other = job(7), job(8, slots=(0, 2, 4, 6, 8))
    step(engine, [(one, 10), (other, 10)])
    pool[9] = pool[4]
    with pytest.raises(EngineFailed, match=r"request 7 at position 4 .*belongs to position 8 of request 8"):
        run_rows(engine, [one.row(1)])


def test_swapped_slots_of_one_request_are_noticed() -> None:
    engine, _ = make()
    one = job()
    step(engine, [(one, 10)])
    one.slots[0], one.slots[1] = one.slots[1], one.slots[0]
    with pytest.raises(EngineFailed, match=r"position 0 .*belongs to position 4 of request 7"):
        run_rows(engine, [one.row(1)])


def test_a_stale_copy_is_noticed() -> None:
    engine, pool = make()
    one = job()
    step(engine, [(one, 10)])
    parked = pool[1].copy()  # the third block, two of four tokens
    step(engine, [(one, 1)])
    step(engine, [(one, 1)])
    pool[1] = parked
    with pytest.raises(EngineFailed, match="request 7 at position 10 "):
        run_rows(engine, [one.row(1)])


def test_a_torn_copy_is_noticed() -> None:
    engine, pool = make()
    one = job()
    step(engine, [(one, 10)])
    half = GEOMETRY.block_bytes // 2
    pool[9, half:] = pool[3, half:]
    with pytest.raises(EngineFailed, match=r"position 4 \(layer 1, K"):
        run_rows(engine, [one.row(1)])


def test_moved_blocks_are_found_in_their_new_slots() -> None:
    engine, pool = make()
    one, twin = job(), job()
    expected = run_alone(make()[0], twin)
    step(engine, [(one, 10)])
    host = pool[[3, 9, 1]].copy()
    pool[[3, 9, 1]] = 0xFF
    one.slots = [14, 15, 16, 17, 18]
    pool[[14, 15, 16]] = host
    assert run_alone(engine, one) == expected


def test_what_lies_behind_the_last_token_may_be_anything() -> None:
    engine, pool = make()
    one = job()
    step(engine, [(one, 10)])
    pool.reshape(BLOCKS, 2, 2, 4, 16)[1, :, :, 2:] = 0xAB
    step(engine, [(one, 1)])


def test_a_block_disturbed_while_the_batch_is_in_the_air_is_noticed() -> None:
    engine, pool = make()
    one = job()
    step(engine, [(one, 10)])
    engine.launch(Batch(1, (one.row(1),)))
    pool[3, 0] ^= 1
    with pytest.raises(EngineFailed, match="position 0 "):
        engine.collect()


def test_a_block_that_lands_only_after_the_launch_is_noticed() -> None:
    engine, pool = make()
    one = job()
    step(engine, [(one, 10)])
    landed = pool[9].copy()
    pool[9] = 0
    engine.launch(Batch(1, (one.row(1),)))
    pool[9] = landed
    with pytest.raises(EngineFailed, match="position 4 "):
        engine.collect()


def test_own_tokens_are_written_when_the_batch_ends() -> None:
    engine, pool = make()
    one = job()
    before = pool.copy()
    engine.launch(Batch(1, (one.row(10),)))
    assert (pool == before).all()
    engine.collect()
    changed = np.flatnonzero((pool != before).any(axis=1))
    assert changed.tolist() == [1, 3, 9]


def test_the_ledgers_live_array_may_change_under_the_batch() -> None:
    engine, _ = make()
    one = job()
    engine.launch(Batch(1, (one.row(10),)))
    slots = list(one.slots)
    one.slots.clear()
    engine.collect()
    one.slots, one.computed = slots, 10
    one.output.append(5)
    step(engine, [(one, 1)])


def test_one_slot_in_two_requests_is_refused() -> None:
    engine, _ = make()
    one, other = job(7), job(8, slots=(0, 2, 9, 6, 8))
    with pytest.raises(EngineFailed, match=r"slot 9 belongs to more than one block, of requests \[7, 8\]"):
        run_rows(engine, [one.row(10), other.row(10)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": [3, 9, BLOCKS]}, "slot is outside 0 .. 23"),
        ({"slots": [3, 9, -1]}, "slot is outside 0 .. 23"),
        ({"slots": [3, 9]}, "2 slots do not cover 10 positions"),
        ({"tokens": [1, 32_000]}, r"token id is outside 0 \.\. 31999"),
        ({"tokens": [1, -1]}, r"token id is outside 0 \.\. 31999"),
        ({"tokens": []}, "0 tokens from position 0"),
        ({"start": -1}, "tokens from position -1"),
        ({"start": 4}, "goes on at position 4, but 0 positions were computed"),
        ({"tokens": [1] * 33}, "position 32 is not below 32"),
    ],
)
def test_rows_that_cannot_run_are_refused_by_name(change: dict[str, object], message: str) -> None:
    engine, _ = make(context_tokens_max=32)
    row = job().row(10)
    fields = {name: getattr(row, name) for name in Row.__slots__}
    with pytest.raises(EngineFailed, match=f"request 7.*{message}"):
        run_rows(engine, [Row(**{**fields, **change})])
    assert len(run_alone(engine, job())) == 8


def test_a_failed_batch_writes_nothing_and_forgets_nothing() -> None:
    engine, pool = make()
    one, other = job(7), job(8, slots=(0, 2, 4, 6, 8))
    step(engine, [(one, 10), (other, 10)])
    pool[0, 0] ^= 1
    before = pool.copy()
    with pytest.raises(EngineFailed, match="request 8"):
        run_rows(engine, [one.row(1), other.row(1)])
    assert (pool == before).all()
    step(engine, [(one, 1)])


def test_records_are_bounded_and_the_oldest_goes_first() -> None:
    engine, _ = make(requests_max=2)
    jobs = [job(number, prompt=3, tokens=5, slots=(2 * number, 2 * number + 1)) for number in range(3)]
    for one in jobs:
        step(engine, [(one, 3)])
    step(engine, [(jobs[2], 1)])
    with pytest.raises(EngineFailed, match="request 0 goes on at position 3, but 0 positions"):
        run_rows(engine, [jobs[0].row(1)])


def test_who_has_ended_costs_the_others_no_record() -> None:
    engine, _ = make(requests_max=2)
    parked = job(99, slots=(19, 21, 22, 23, 18))
    step(engine, [(parked, 10)])
    for number in range(10):
        run_alone(engine, job(number))
    ask = Sampling(max_tokens=50, stop_ids=frozenset(range(32_000)))
    for number in range(10, 20):
        run_rows(engine, [Job(RequestId(number), [1, 2], ask, [0]).row(2)])
    assert len(run_alone(engine, parked)) == 8


@pytest.mark.parametrize("head_dim", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("element_bytes", [1, 2, 4])
def test_any_cell_size(head_dim: int, element_bytes: int) -> None:
    geometry = Geometry(layers=3, kv_heads=1, head_dim=head_dim, element_bytes=element_bytes, block_tokens=3)
    engine, pool = make(geometry)
    one = job(slots=tuple(range(6)))
    step(engine, [(one, 10)])
    pool[2, -1] ^= 0x80
    with pytest.raises(EngineFailed, match="position 8 "):
        run_rows(engine, [one.row(1)])
    pool[2, -1] ^= 0x80
    assert len(run_alone(engine, one)) == 8


def test_groups_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job(number, prompt=13, slots=tuple(range(number * 6, number * 6 + 6))) for number in range(4)]
    whole = run_mixed(make()[0], jobs, random.Random(3))
    monkeypatch.setattr(pattern, "GROUP_BYTES", GEOMETRY.block_bytes)
    pieces = [job(number, prompt=13, slots=tuple(range(number * 6, number * 6 + 6))) for number in range(4)]
    engine, pool = make()
    assert run_mixed(engine, pieces, random.Random(3)) == whole
    again = [job(number, prompt=13, slots=tuple(range(number * 6, number * 6 + 6))) for number in range(4)]
    step(engine, [(one, 13) for one in again])
    pool[again[3].slots[2], 5] ^= 1
    with pytest.raises(EngineFailed, match="request 3 at position 8 "):
        run_rows(engine, [one.row(1) for one in again])


def test_bad_pools_are_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape(f"uint8 [blocks, {GEOMETRY.block_bytes}]")):
        PatternEngine(GEOMETRY, np.zeros((4, 8), np.uint8))
    with pytest.raises(ConfigError, match="C-contiguous"):
        PatternEngine(GEOMETRY, np.zeros((GEOMETRY.block_bytes, 4), np.uint8).T)
    fixed = np.zeros((4, GEOMETRY.block_bytes), np.uint8)
    fixed.flags.writeable = False
    with pytest.raises(ConfigError, match="writable"):
        PatternEngine(GEOMETRY, fixed)


def test_one_batch_in_the_air_at_a_time() -> None:
    engine, _ = make()
    with pytest.raises(InvariantViolation, match="no batch"):
        engine.collect()
    engine.launch(Batch(1, ()))
    with pytest.raises(InvariantViolation, match="in the air"):
        engine.launch(Batch(2, ()))
    assert engine.collect().sampled == {}
    engine.close()
    with pytest.raises(InvariantViolation, match="closed"):
        engine.launch(Batch(3, ()))


def test_sampling_follows_its_distribution() -> None:
    """Ranks have probabilities 1/2, 1/4, ...: logprobs say it, and the seeds draw it."""
    engine, _ = make()
    counts = {-1: 0, -2: 0, -3: 0}
    for seed in range(2_000):
        sampling = Sampling(max_tokens=1, temperature=1.0, seed=seed, logprobs=3)
        one = Job(RequestId(seed), [1, 2, 3], sampling, [0])
        engine.launch(Batch(seed, (one.row(3),)))
        sampled = engine.collect().sampled[one.id]
        rank = round(sampled.logprob / math.log(2.0))
        counts[rank] = counts.get(rank, 0) + 1
        assert [round(logprob / math.log(2.0)) for _, logprob in sampled.top] == [-1, -2, -3]
        assert rank < -3 or dict(sampled.top)[sampled.token] == sampled.logprob
    # 2,000 draws: five standard deviations are 112, 97 and 74.
    assert abs(counts[-1] - 1000) < 112
    assert abs(counts[-2] - 500) < 97
    assert abs(counts[-3] - 250) < 74


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 0.1}, {"min_p": 1.0}, {"temperature": 1e-9}])
def test_cutting_the_distribution_to_its_head_is_greedy(cut: dict[str, float]) -> None:
    tokens = set()
    for seed in range(20):
        sampling = Sampling(max_tokens=4, **{"temperature": 5.0, "seed": seed, **cut})  # type: ignore[arg-type]
        one = Job(RequestId(1), [1, 2, 3], sampling, [0, 1])
        tokens.add(tuple(run_alone(make()[0], one)))
    greedy = Job(RequestId(1), [1, 2, 3], Sampling(max_tokens=4), [0, 1])
    assert tokens == {tuple(run_alone(make()[0], greedy))}


@pytest.mark.parametrize("temperature", [0.0, 0.1, 1.0])
def test_no_stop_id_before_min_tokens(temperature: float) -> None:
    """Without it the third token would be the end; with it the likeliest that is no stop id comes."""
    free = run_alone(make()[0], Job(RequestId(1), [1, 2, 3], Sampling(max_tokens=4), [0, 1]))
    stop_ids = frozenset(token + more for token in free for more in range(3))
    sampling = Sampling(max_tokens=4, temperature=temperature, stop_ids=stop_ids, min_tokens=3, logprobs=0)
    engine, _ = make()
    one = Job(RequestId(1), [1, 2, 3], sampling, [0, 1])
    engine.launch(Batch(0, (one.row(3),)))
    first = engine.collect().sampled[one.id]
    assert first.token not in stop_ids
    assert round(first.logprob / math.log(2.0)) <= -4  # raw: three likelier ones were passed over
    everything = replace(sampling, stop_ids=frozenset(range(engine.vocabulary)))
    engine.launch(Batch(1, (Job(RequestId(2), [1, 2], everything, [1]).row(2),)))
    with pytest.raises(EngineFailed, match="no token is left"):
        engine.collect()
