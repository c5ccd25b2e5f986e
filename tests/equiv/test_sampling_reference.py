"""Filters and penalties of the native engine against transformers' logits processors, on the same logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from superinfer_trt.core.request import Sampling
from unit.engine.native_world import TINY
from unit.engine.test_native_sampling import PROMPT, draw, make, uniform

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch", reason="needs torch (extra `equiv`)")
transformers = pytest.importorskip("transformers", reason="needs transformers (extra `equiv`)")


def processors(how: Sampling, index: int) -> list[Any]:
    """Theirs, in our order; presence and frequency they do not have."""
    made: list[Any] = []
    if how.min_tokens:
        prompt = len(PROMPT) - index
        stop_ids = sorted(how.stop_ids)
        made.append(
            transformers.MinNewTokensLengthLogitsProcessor(prompt, how.min_tokens, stop_ids, device="cpu")
        )
    if how.repetition_penalty != 1.0:
        made.append(transformers.RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    if how.temperature:
        made.append(transformers.TemperatureLogitsWarper(how.temperature))
    if how.min_p:
        made.append(transformers.MinPLogitsWarper(how.min_p))
    if how.top_k:
        made.append(transformers.TopKLogitsWarper(how.top_k))
    if how.top_p < 1.0:
        made.append(transformers.TopPLogitsWarper(how.top_p))
    return made


def theirs(logits: NDArray[np.float32], how: Sampling, index: int) -> NDArray[np.float32]:
    ids = torch.tensor([PROMPT])
    scores = torch.tensor(logits)[None]
    for process in processors(how, index):
        scores = process(ids, scores)
    result: NDArray[np.float32] = scores[0].numpy()
    return result


def ways() -> list[Sampling]:
    dice = np.random.default_rng(2)
    made = []
    for at in range(64):
        top_k, top_p = [(0, 1.0), (9, 1.0), (0, 0.8), (25, 0.6)][at % 4]
        made.append(
            Sampling(
                temperature=float(dice.choice([0.0, 0.5, 1.0, 1.5])),
                top_k=top_k,
                top_p=top_p,
                min_p=float(dice.choice([0.0, 0.05, 0.3])),
                repetition_penalty=float(dice.choice([0.75, 1.0, 1.25, 1.5])),
                min_tokens=int(dice.choice([0, 5, 12])),
                stop_ids=frozenset(dice.integers(0, TINY.vocabulary, 30).tolist()),
                seed=at,
            )
        )
    return made


def test_the_same_tokens_as_the_references_processors() -> None:
    engine = make()
    engine.keep_logits(keep=True)
    near = 0
    for index in (0, 3, 9, 16):
        drawn = draw(engine, ways(), index)
        logits = engine.logits(0)
        for how, sampled in zip(ways(), drawn, strict=True):
            scores = theirs(logits, how, index).astype(np.float64)
            if how.temperature == 0.0:
                assert sampled.token == int(scores.argmax()), (how, index)
                continue
            assert np.isfinite(scores[sampled.token]), (how, index)  # none of what they leave out
            limited = how.top_k > 0 or how.top_p < 1.0
            order = np.argsort(-scores, kind="stable") if limited else np.arange(len(scores))
            share = np.exp(scores[order] - scores.max())
            sums = np.cumsum(share / share.sum())
            u = uniform(how.seed, index)
            if np.abs(sums - u).min() < 1e-5:
                near += 1
                continue
            assert sampled.token == order[int(np.searchsorted(sums, u, side="right"))], (how, index)
    assert near < 5
    engine.close()
