"""Weights of quantised files: steps of few rows read them packed, larger ones plain, with the same bits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from superinfer_trt.core.model import ModelConfig
from superinfer_trt.engine.native import NativeEngine, kernel_sets
from unit.engine.native_world import TINY, Course, RandomWeights, poisoned_pool, run_rows, tokens_for

GROUP = 32
LENGTH = 21
MODELS = {
    "dense": TINY,
    "tied": replace(TINY, tied_embedding=True, vocabulary=128),
    "mixtral": replace(TINY, architecture="mixtral", experts=5, experts_per_token=2),
}


@dataclass
class QuantisedWeights:
    """The random weights in steps of fp16, in groups of 32: `head_bits` 8 around zero, the others 4 bits
    from a least value. Parts named in `plain` are left as they are."""

    weights: RandomWeights
    plain: tuple[str, ...] = ()

    @property
    def config(self) -> ModelConfig:
        return self.weights.config

    def tensor(self, name: str) -> NDArray[np.float32]:
        made = self.weights.tensor(name)
        if made.ndim != 2 or made.shape[1] % GROUP or any(part in name for part in self.plain):
            return made
        groups = made.reshape(len(made), -1, GROUP)
        if "embed" in name or "lm_head" in name:
            scale = np.abs(groups).max(axis=-1, keepdims=True) / 127
            codes = np.rint(groups / scale)
            return (
                (codes * scale.astype(np.float16).astype(np.float32)).astype(np.float32).reshape(made.shape)
            )
        least, most = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
        scale = (most - least) / 15
        codes = np.rint((groups - least) / scale)
        stored = [part.astype(np.float16).astype(np.float32) for part in (scale, least)]
        return (codes * stored[0] + stored[1]).astype(np.float32).reshape(made.shape)


def logits_of(weights: QuantisedWeights, kernels: str, chunk: int, threads: int) -> list[bytes]:
    """Logits of the last token of each chunk of two sequences side by side."""
    config = weights.config
    pool = poisoned_pool(config, "bf16", 16)
    engine = NativeEngine(weights, pool, dtype="bf16", threads=threads, kernels=kernels)
    courses = [Course(i, tokens_for(config, LENGTH, i), [2 * i, 2 * i + 1]) for i in range(2)]
    made = []
    while courses[0].done < LENGTH:
        count = min(chunk, LENGTH - courses[0].done)
        made += [line.tobytes() for line in run_rows(engine, [course.row(count) for course in courses])]
    engine.close()
    return made


@pytest.mark.parametrize("kernels", kernel_sets("bf16"))
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("plain", [(), ("up_proj", "w3", "v_proj")])
def test_few_rows_and_many_give_the_same_bits(model: str, kernels: str, plain: tuple[str, ...]) -> None:
    weights = QuantisedWeights(RandomWeights(MODELS[model]), plain)
    one_by_one = logits_of(weights, kernels, chunk=1, threads=1)
    assert logits_of(weights, kernels, chunk=7, threads=2) == [
        line for i, line in enumerate(one_by_one) if i // 2 % 7 == 6
    ]


@pytest.mark.skipif("avx512-bf16" not in kernel_sets("bf16"), reason="packed weights need AVX512-BF16")
def test_quantised_weights_are_read_packed() -> None:
    def bytes_read(plain: tuple[str, ...]) -> int:
        engine = NativeEngine(
            QuantisedWeights(RandomWeights(TINY), plain),
            poisoned_pool(TINY, "bf16", 4),
            dtype="bf16",
            kernels="avx512-bf16",
        )
        try:
            return engine.weight_bytes
        finally:
            engine.close()

    everything = bytes_read(("model", "lm_head"))
    assert bytes_read(()) < 0.5 * everything
    assert bytes_read(()) < bytes_read(("v_proj",)) < everything
