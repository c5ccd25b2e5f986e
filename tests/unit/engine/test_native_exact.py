"""A row's logits and KV are its own, bit for bit: neighbours, batch size, chunking, placement, block
size and threads change nothing. The pools are poisoned with NaN, so nothing beyond the tail is read."""

from __future__ import annotations

import numpy as np
import pytest

from superinfer_trt.core.model import ModelConfig
from superinfer_trt.engine.native import NativeEngine, kernel_sets
from unit.engine.native_world import (
    MODELS,
    Course,
    RandomWeights,
    kv_bytes,
    poisoned_pool,
    run_rows,
    tokens_for,
)

SETS = [(dtype, kernels) for dtype in ("bf16", "fp32") for kernels in kernel_sets(dtype)]
LENGTHS = (1, 2, 15, 16, 17, 33, 70, 131, 150)


def alone(
    config: ModelConfig, dtype: str, kernels: str, sequences: list[list[int]]
) -> list[tuple[list[bytes], bytes]]:
    """Each sequence by itself in one-token steps on one thread: logits of every position, and its KV."""
    results = []
    pool = poisoned_pool(config, dtype, 16)
    engine = NativeEngine(RandomWeights(config), pool, dtype=dtype, threads=1, kernels=kernels)
    for tokens in sequences:
        pool[:] = 0xFF
        course = Course(1, tokens, list(range(16)))
        logits = [run_rows(engine, [course.row(1)])[0] for _ in tokens]
        assert all(np.isfinite(line).all() for line in logits)
        kept = kv_bytes(pool, config, dtype, course.slots, len(tokens), 16)
        results.append(([line.tobytes() for line in logits], kept))
    engine.close()
    return results


@pytest.mark.parametrize(("dtype", "kernels"), SETS)
@pytest.mark.parametrize("model", MODELS)
def test_any_composition_equals_one_token_at_a_time(model: str, dtype: str, kernels: str) -> None:
    config = MODELS[model]
    sequences = [tokens_for(config, length, seed) for seed, length in enumerate(LENGTHS)]
    expected = alone(config, dtype, kernels, sequences)
    rng = np.random.default_rng(7)
    for block_tokens, threads in ((16, 2), (5, 3), (32, 1)):
        blocks = [-(-len(tokens) // block_tokens) for tokens in sequences]
        pool = poisoned_pool(config, dtype, sum(blocks) + 3, block_tokens)
        order = rng.permutation(len(pool)).tolist()
        engine = NativeEngine(
            RandomWeights(config),
            pool,
            block_tokens=block_tokens,
            dtype=dtype,
            threads=threads,
            kernels=kernels,
        )
        courses = []
        for i, (tokens, count) in enumerate(zip(sequences, blocks, strict=True)):
            courses.append(Course(i, tokens, [order.pop() for _ in range(count)]))
        while left := [c for c in courses if c.done < len(c.tokens)]:
            chosen = [c for c in left if rng.random() < 0.7] or left[:1]
            rng.shuffle(chosen)
            room = [len(c.tokens) - c.done for c in chosen]
            rows = [c.row(int(rng.integers(1, r + 1))) for c, r in zip(chosen, room, strict=True)]
            for course, logits in zip(chosen, run_rows(engine, rows), strict=True):
                assert logits.tobytes() == expected[course.id][0][course.done - 1], (course.id, course.done)
        for course in courses:
            kept = kv_bytes(pool, config, dtype, course.slots, len(course.tokens), block_tokens)
            assert kept == expected[course.id][1]
        engine.close()


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_large_batches_and_long_prompts(dtype: str) -> None:
    """More rows than any tile or pass holds, and prompts of several sections."""
    config = MODELS["wide"]
    long = tokens_for(config, 600, 1)
    short = [tokens_for(config, 21, seed) for seed in range(2, 42)]
    pool = poisoned_pool(config, dtype, 40 + 2 * len(short))
    engine = NativeEngine(RandomWeights(config), pool, dtype=dtype, threads=2)
    expected = []
    for i, tokens in enumerate([long, *short]):
        course = Course(i, tokens, list(range(40)))
        for length in (len(tokens) - 3, 1, 1):
            run_rows(engine, [course.row(length)])
        expected.append(run_rows(engine, [course.row(1)])[0].tobytes())
    pool[:] = 0xFF
    courses = [Course(0, long, list(range(40)))]
    courses += [Course(i + 1, tokens, [40 + 2 * i, 41 + 2 * i]) for i, tokens in enumerate(short)]
    run_rows(engine, [c.row(20 if c.id else 257) for c in courses])
    for course, logits in zip(courses[1:], run_rows(engine, [c.row(1) for c in courses[1:]]), strict=True):
        assert logits.tobytes() == expected[course.id]
    assert run_rows(engine, [courses[0].row(343)])[0].tobytes() == expected[0]
    engine.close()


def test_kernel_sets_agree_within_rounding() -> None:
    config = MODELS["gqa"]
    tokens = tokens_for(config, 150, 3)
    for dtype, tolerance in (("fp32", 2e-5), ("bf16", 5e-2)):
        lines = []
        for kernels in kernel_sets(dtype):
            pool = poisoned_pool(config, dtype, 10)
            engine = NativeEngine(RandomWeights(config), pool, dtype=dtype, kernels=kernels)
            lines.append(run_rows(engine, [Course(1, tokens, list(range(10))).row(150)])[0])
            engine.close()
        for line in lines[1:]:
            assert np.abs(line - lines[0]).max() <= tolerance
