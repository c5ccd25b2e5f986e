"""Sampling in the native engine against a twin in numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from superinfer_trt.core.errors import EngineFailed
from superinfer_trt.core.outcome import Sampled
from superinfer_trt.core.request import Sampling
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import RequestId
from superinfer_trt.engine.native import NativeEngine, kernel_sets
from unit.engine.native_world import TINY, RandomWeights, poisoned_pool, tokens_for

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
PROMPT = tokens_for(TINY, 20, 1)


def mix(x: int) -> int:
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & MASK
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def uniform(seed: int, index: int) -> float:
    return (mix(mix((seed + GOLDEN) & MASK) + (index + 1) * GOLDEN & MASK) >> 11) * 2.0**-53


def probabilities(logits: NDArray[np.float32], how: Sampling) -> tuple[list[int], NDArray[np.float64]]:
    """Candidates in the engine's order of walking, and their probabilities."""
    scaled = (logits.astype(np.float64) - float(logits.max())) / np.float32(how.temperature)
    weights = np.exp(scaled)
    weights[weights < how.min_p] = 0.0
    if (how.top_k == 0 or how.top_k >= len(logits)) and how.top_p >= 1.0:
        return list(range(len(logits))), weights / weights.sum()
    ids = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if 0 < how.top_k < len(ids):
        ids = ids[: how.top_k]
    chosen = weights[ids]
    if how.min_p:
        ids, chosen = [i for i in ids if weights[i] > 0], chosen[chosen > 0]
    if how.top_p < 1.0:
        before = np.cumsum(chosen) - chosen
        kept = max(1, int(np.count_nonzero(before < how.top_p * chosen.sum())))
        ids, chosen = ids[:kept], chosen[:kept]
    return ids, chosen / chosen.sum()


def adjusted(
    logits: NDArray[np.float32], how: Sampling, tokens: list[int], index: int
) -> NDArray[np.float32]:
    """The logits to choose by after `tokens`, the last `index` of them output; each step rounds to fp32."""
    made = logits.copy()
    output = tokens[len(tokens) - index :]
    if how.penalised:
        seen = sorted(set(tokens))
        penalty = np.float32(how.repetition_penalty)
        made[seen] = np.where(made[seen] > 0, made[seen] / penalty, made[seen] * penalty)
        for token in set(output):
            made[token] -= np.float32(how.frequency_penalty) * np.float32(output.count(token))
            made[token] -= np.float32(how.presence_penalty)
    if index < how.min_tokens:
        made[sorted(how.stop_ids)] = -np.inf
    return made


def twin(logits: NDArray[np.float32], how: Sampling, index: int) -> tuple[int, float]:
    """The token, and how far the dice were from the next one (a share of the whole)."""
    if how.temperature == 0.0:
        return int(logits.argmax()), 1.0
    ids, share = probabilities(logits, how)
    sums = np.cumsum(share)
    u = uniform(how.seed, index)
    at = min(int(np.searchsorted(sums, u, side="right")), len(ids) - 1)
    return ids[at], float(np.abs(sums - u).min())


def rows_of(sampling: list[Sampling], index: int) -> tuple[Row, ...]:
    """The same prompt many times, in blocks of its own."""
    return tuple(
        Row(RequestId(i), 0, PROMPT, [2 * i, 2 * i + 1], True, index, how, PROMPT if how.penalised else ())
        for i, how in enumerate(sampling)
    )


def draw(engine: NativeEngine, sampling: list[Sampling], index: int = 0) -> list[Sampled]:
    engine.launch(Batch(0, rows_of(sampling, index)))
    sampled = engine.collect().sampled
    return [sampled[RequestId(i)] for i in range(len(sampling))]


def make(kernels: str = "auto", rows: int = 64) -> NativeEngine:
    pool = poisoned_pool(TINY, "fp32", 2 * rows)
    return NativeEngine(RandomWeights(TINY), pool, dtype="fp32", threads=2, kernels=kernels)


@pytest.mark.parametrize("kernels", kernel_sets("fp32"))
def test_equals_the_twin(kernels: str) -> None:
    ways = [
        Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        for temperature in (0.0, 0.3, 1.0, 2.5)
        for top_k, top_p in ((0, 1.0), (1, 1.0), (7, 1.0), (0, 0.8), (0, 0.05), (20, 0.9), (200, 1.0))
        for seed in (0, MASK)
    ]
    engine = make(kernels)
    engine.keep_logits(keep=True)
    for index in range(6):
        drawn = draw(engine, ways, index)
        logits = engine.logits(0)
        for how, sampled in zip(ways, drawn, strict=True):
            token, margin = twin(logits, how, index)
            assert sampled.token == token or margin < 1e-5, (how, index)
    engine.close()


def test_draws_follow_the_distribution() -> None:
    """Chi-square with fixed seeds; the limit is mean + 5 standard deviations of the statistic."""
    engine = make()
    engine.keep_logits(keep=True)
    for top_k, top_p in ((0, 1.0), (12, 1.0), (0, 0.7)):
        counts = np.zeros(TINY.vocabulary)
        for turn in range(60):
            ways = [
                Sampling(temperature=1.3, top_k=top_k, top_p=top_p, seed=64 * turn + i) for i in range(64)
            ]
            for sampled in draw(engine, ways, turn % 3):
                counts[sampled.token] += 1
        ids, share = probabilities(engine.logits(0), ways[0])
        expected = share * counts.sum()
        assert counts[ids].sum() == counts.sum()
        chi_square = float(((counts[ids] - expected) ** 2 / expected).sum())
        freedom = len(ids) - 1
        assert chi_square < freedom + 5 * math.sqrt(2 * freedom)
    engine.close()


def test_logprobs_are_of_the_raw_logits() -> None:
    engine = make()
    engine.keep_logits(keep=True)
    ways = [
        Sampling(logprobs=5),
        Sampling(temperature=1.7, top_k=3, logprobs=0),
        Sampling(),
        Sampling(temperature=0.5, logprobs=500),
    ]
    drawn = draw(engine, ways)
    logits = engine.logits(0).astype(np.float64)
    logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    for sampled in (drawn[0], drawn[1], drawn[3]):
        assert sampled.logprob == pytest.approx(logprobs[sampled.token], abs=1e-5)
    assert math.isnan(drawn[2].logprob)
    assert drawn[1].top == drawn[2].top == ()
    likeliest = np.argsort(-logits, kind="stable").tolist()
    assert [id for id, _ in drawn[0].top] == likeliest[:5]
    assert [id for id, _ in drawn[3].top] == likeliest
    assert [value for _, value in drawn[3].top] == pytest.approx(logprobs[likeliest].tolist(), abs=1e-5)
    engine.close()


def test_lowest_id_wins_ties() -> None:
    weights = RandomWeights(TINY)
    table = weights.tensor("lm_head.weight").copy()
    table[40:] = table[33]
    table[33:] *= 4  # the same logit for 33 and 40 .. 100, often the largest one
    weights.tensors["lm_head.weight"] = table
    pool = poisoned_pool(TINY, "fp32", 2)
    engine = NativeEngine(weights, pool, dtype="fp32", threads=2)
    engine.keep_logits(keep=True)
    seen = set()
    for seed in range(20):
        row = Row(RequestId(1), 0, tokens_for(TINY, 9, seed), [0, 1], True, 0, Sampling(logprobs=3))
        engine.launch(Batch(0, (row,)))
        sampled = engine.collect().sampled[row.id]
        logits = engine.logits(0)
        assert sampled.token == int(logits.argmax())
        assert [id for id, _ in sampled.top] == np.argsort(-logits, kind="stable").tolist()[:3]
        seen.add(sampled.token)
    assert 33 in seen
    engine.close()


def test_a_draw_does_not_depend_on_its_neighbours() -> None:
    engine = make()
    how = Sampling(temperature=1.1, top_p=0.95, seed=77)
    alone = [draw(engine, [how], index)[0].token for index in range(8)]
    crowd = [how, *(Sampling(temperature=2.0, seed=i) for i in range(30))]
    assert [draw(engine, crowd, index)[0].token for index in range(8)] == alone
    assert len(set(alone)) > 1
    engine.close()


def random_ways(seed: int, count: int) -> list[Sampling]:
    """Every filter and penalty, each on in about half of the ways."""
    dice = np.random.default_rng(seed)

    def maybe(low: float, high: float, off: float) -> float:
        return float(np.float32(dice.uniform(low, high))) if dice.random() < 0.5 else off

    return [
        Sampling(
            temperature=maybe(0.3, 2.0, 0.0),
            top_k=int(maybe(1, 30, 0)),
            top_p=maybe(0.2, 0.99, 1.0),
            min_p=maybe(0.01, 0.6, 0.0),
            repetition_penalty=maybe(0.5, 2.0, 1.0),
            presence_penalty=maybe(-2, 2, 0.0),
            frequency_penalty=maybe(-2, 2, 0.0),
            min_tokens=int(maybe(0, 14, 0)),
            stop_ids=frozenset(dice.integers(0, TINY.vocabulary, 40).tolist()),
            seed=int(dice.integers(0, 1 << 63)),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("kernels", kernel_sets("fp32"))
def test_filters_and_penalties_equal_the_twin(kernels: str) -> None:
    """The last `index` tokens of the prompt stand for the output, so counts go up to several of a kind."""
    engine = make(kernels)
    engine.keep_logits(keep=True)
    ways = random_ways(5, 64)
    moved = 0
    for index in (0, 1, 7, 13, 20):
        drawn = draw(engine, ways, index)
        logits = engine.logits(0)
        for how, sampled in zip(ways, drawn, strict=True):
            made = adjusted(logits, how, PROMPT, index)
            token, margin = twin(made, how, index)
            if how.temperature == 0.0:
                assert sampled.token == token, (how, index)
                moved += token != int(logits.argmax())
            else:
                weights = np.exp((made - made.max()).astype(np.float64) / how.temperature)
                margin = min(margin, float(np.abs(weights - how.min_p).min()) if how.min_p else 1.0)
                assert sampled.token == token or margin < 1e-5, (how, index)
            if index < how.min_tokens:
                assert sampled.token not in how.stop_ids
    assert moved > 20, "penalties changed next to nothing"
    engine.close()


def test_min_p_draws_follow_the_distribution() -> None:
    """Chi-square as above, with penalties before the filter."""
    engine = make()
    engine.keep_logits(keep=True)
    how = Sampling(temperature=1.3, min_p=0.2, repetition_penalty=1.3, frequency_penalty=0.2)
    counts = np.zeros(TINY.vocabulary)
    for turn in range(60):
        for sampled in draw(engine, [replace(how, seed=64 * turn + i) for i in range(64)], turn % 3):
            counts[sampled.token] += 1
    # Output of 0, 1 and 2 tokens in turn: three distributions of equal weight.
    spread = np.zeros(TINY.vocabulary)
    for index in range(3):
        ids, share = probabilities(adjusted(engine.logits(0), how, PROMPT, index), how)
        spread[ids] += share / 3
    expected = spread * counts.sum()
    assert counts[expected == 0].sum() == 0
    some = expected > 0
    assert 3 < some.sum() < 60
    chi_square = float(((counts[some] - expected[some]) ** 2 / expected[some]).sum())
    freedom = int(some.sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)
    engine.close()


def test_logprobs_stay_raw_under_penalties_and_forbidden_ids() -> None:
    engine = make()
    engine.keep_logits(keep=True)
    plain = draw(engine, [Sampling(logprobs=3)])[0]
    ways = [
        Sampling(logprobs=3, repetition_penalty=2.0, presence_penalty=2.0),
        Sampling(logprobs=3, min_tokens=1, stop_ids=frozenset({plain.token})),
        Sampling(logprobs=3, temperature=1.0, min_p=0.5, seed=3),
    ]
    drawn = draw(engine, ways)
    logits = engine.logits(0).astype(np.float64)
    logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    for sampled in drawn:
        assert sampled.top == plain.top
        assert sampled.logprob == pytest.approx(logprobs[sampled.token], abs=1e-5)
    assert drawn[1].token == np.argsort(-logits, kind="stable")[1]
    engine.close()


def test_a_penalised_row_does_not_depend_on_its_neighbours_or_its_chunks() -> None:
    """Alone, in a crowd of penalised rows, and with the prompt in three chunks: the same tokens."""
    how = Sampling(temperature=0.9, min_p=0.02, repetition_penalty=1.4, frequency_penalty=0.5, seed=11)
    crowd = random_ways(9, 30)

    def made(neighbours: list[Sampling], cuts: tuple[int, ...]) -> list[int]:
        engine = make()
        tokens = list(PROMPT)
        done = 0
        for stop in (*cuts, len(PROMPT)):
            last = stop == len(PROMPT)
            row = Row(RequestId(0), done, tokens[done:stop], [0, 1], last, 0, how, tokens if last else ())
            engine.launch(Batch(0, (row, *rows_of([how, *neighbours], 0)[1:])))
            sampled = engine.collect().sampled
            done = stop
        for index in range(1, 10):
            tokens.append(sampled[RequestId(0)].token)
            row = Row(RequestId(0), len(tokens) - 1, tokens[-1:], [0, 1], True, index, how, tokens)
            engine.launch(Batch(index, (row, *rows_of([how, *neighbours], 0)[1:])))
            sampled = engine.collect().sampled
        engine.close()
        return tokens

    alone = made([], ())
    assert made(crowd, ()) == alone
    assert made(crowd, (5, 16)) == alone
    assert len(set(alone[len(PROMPT) :])) > 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row(RequestId(0), 0, [1, 2], [0], True, 0, Sampling(presence_penalty=1.0)), "need all 2 tokens"),
        (
            Row(RequestId(0), 0, [1, 2], [0], True, 0, Sampling(presence_penalty=1.0), [1]),
            "need all 2 tokens",
        ),
        (Row(RequestId(0), 0, [1], [0], True, 2, Sampling(presence_penalty=1.0), [1]), "shorter than"),
        (Row(RequestId(0), 0, [1], [0], True, 0, Sampling(presence_penalty=1.0), [101]), "outside the voc"),
        (
            Row(RequestId(0), 0, [1], [0], True, 0, Sampling(min_tokens=1, stop_ids=frozenset({101}))),
            "outside",
        ),
        (
            Row(RequestId(0), 0, [1], [0], True, 0, Sampling(min_tokens=1, stop_ids=frozenset(range(101)))),
            "whole vocabulary",
        ),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(row: Row, message: str) -> None:
    engine = make(rows=1)
    with pytest.raises(EngineFailed, match=message):
        engine.launch(Batch(0, (row,)))
    engine.launch(Batch(1, rows_of([Sampling()], 0)))  # and nothing is left behind
    engine.collect()
    engine.close()
