"""Shares of a model: together they are the whole, and no rank is without one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.model.shapes import tensor_shapes
from superinfer_trt.ranks.split import SplitWeights
from unit.engine.native_world import MODELS, TINY, RandomWeights

UNEVEN = replace(TINY, heads=9, kv_heads=3, head_dim=16, hidden=144, intermediate=168)
CASES = {**MODELS, "uneven": UNEVEN}


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("model", CASES)
def test_the_shares_together_are_the_whole(model: str, ranks: int) -> None:
    config = CASES[model]
    if config.kv_heads < ranks:
        pytest.skip(f"{config.kv_heads} KV heads for {ranks} ranks: refused, see below")
    weights = RandomWeights(config)
    shares = [SplitWeights(weights, rank, ranks) for rank in range(ranks)]
    assert sum(share.config.kv_heads for share in shares) == config.kv_heads
    assert sum(share.config.heads for share in shares) == config.heads
    assert sum(share.config.intermediate for share in shares) == config.intermediate
    for share in shares:
        assert share.config.heads * config.kv_heads == config.heads * share.config.kv_heads
        assert share.config.intermediate % 8 == 0
        wanted = dict(tensor_shapes(share.config))
        assert {name: share.tensor(name).shape for name in wanted} == wanted
    for name, shape in tensor_shapes(config):
        whole = weights.tensor(name)
        parts = [share.tensor(name) for share in shares]
        if parts[0].shape == shape:
            assert all(np.array_equal(part, whole) for part in parts)
        else:
            axis = next(i for i, size in enumerate(parts[0].shape) if size != shape[i])
            assert np.array_equal(np.concatenate(parts, axis=axis), whole), name


def test_three_kv_heads_go_to_two_ranks_as_one_and_two() -> None:
    shares = [SplitWeights(RandomWeights(UNEVEN), rank, 2).config for rank in range(2)]
    assert [(s.heads, s.kv_heads, s.intermediate) for s in shares] == [(3, 1, 64), (6, 2, 104)]


@pytest.mark.parametrize(
    ("config", "ranks", "words"),
    [
        (MODELS["wider"], 2, "engine.tp: 2 is more than tiny has KV heads .1.; at most 1"),
        (replace(UNEVEN, intermediate=16), 3, "engine.tp: 3 ranks cannot share the 16 columns"),
        (replace(UNEVEN, intermediate=100), 2, "engine.tp: 2 ranks cannot share the 100 columns"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name(config: object, ranks: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SplitWeights(RandomWeights(config), 0, ranks)  # type: ignore[arg-type]
