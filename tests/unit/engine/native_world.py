"""Random models and batches for the tests of the native engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from superinfer_trt.core.errors import ModelError
from superinfer_trt.core.model import ModelConfig, RopeScaling
from superinfer_trt.core.request import Sampling
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import RequestId
from superinfer_trt.engine.native import NativeEngine, element_bytes_for

TINY = ModelConfig(
    name="tiny",
    architecture="llama",
    layers=2,
    hidden=64,
    intermediate=96,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocabulary=101,
    context_tokens_max=640,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    tied_embedding=False,
)

MODELS = {
    "gqa": TINY,
    "mha": replace(TINY, kv_heads=4, head_dim=24, hidden=72, intermediate=40, tied_embedding=True),
    "wide": replace(TINY, heads=6, kv_heads=2, head_dim=64, hidden=144),
    "wider": replace(TINY, heads=2, kv_heads=1, head_dim=128, vocabulary=64),
    "qwen2": replace(TINY, architecture="qwen2", qkv_bias=True),
    "mixtral": replace(TINY, architecture="mixtral", experts=5, experts_per_token=2),
    "llama3": replace(TINY, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64), rope_theta=500_000.0),
}


@dataclass
class RandomWeights:
    """Weights made of a seed; `tensors` keeps what was made."""

    config: ModelConfig
    seed: int = 0
    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def _shape(self, name: str) -> tuple[int, ...]:
        c = self.config
        last = name.split(".")[-2]
        sizes = {
            "embed_tokens": (c.vocabulary, c.hidden),
            "lm_head": (c.vocabulary, c.hidden),
            "q_proj": (c.heads * c.head_dim, c.hidden),
            "k_proj": (c.kv_heads * c.head_dim, c.hidden),
            "v_proj": (c.kv_heads * c.head_dim, c.hidden),
            "o_proj": (c.hidden, c.heads * c.head_dim),
            "gate": (c.experts, c.hidden),
            **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), (c.intermediate, c.hidden)),
            **dict.fromkeys(("down_proj", "w2"), (c.hidden, c.intermediate)),
        }
        if "norm" in last:
            return (c.hidden,)
        return sizes[last][:1] if name.endswith(".bias") else sizes[last]

    def tensor(self, name: str) -> NDArray[np.float32]:
        if name not in self.tensors:
            if name == "lm_head.weight" and self.config.tied_embedding:
                raise ModelError("tied")
            rng = np.random.default_rng([self.seed, *name.encode()])
            made = rng.standard_normal(self._shape(name)).astype(np.float32)
            self.tensors[name] = 1 + 0.1 * made if "norm" in name else 0.12 * made
        return np.ascontiguousarray(self.tensors[name], dtype=np.float32)


def poisoned_pool(config: ModelConfig, dtype: str, blocks: int, block_tokens: int = 16) -> NDArray[np.uint8]:
    """A pool whose every element is a NaN."""
    bytes_ = config.geometry(block_tokens, element_bytes_for(dtype)).block_bytes
    return np.full((blocks, bytes_), 0xFF, dtype=np.uint8)


def tokens_for(config: ModelConfig, count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, config.vocabulary, count).tolist()


def kv_bytes(
    pool: NDArray[np.uint8],
    config: ModelConfig,
    dtype: str,
    slots: Sequence[int],
    tokens: int,
    block_tokens: int,
) -> bytes:
    """The KV of the first `tokens` tokens, in token order, wherever the blocks lie."""
    size = element_bytes_for(dtype)
    shape = (len(slots), config.layers, 2, block_tokens, config.kv_heads * config.head_dim * size)
    blocks = pool[list(slots)].reshape(shape)
    return np.moveaxis(blocks, 3, 1).reshape(len(slots) * block_tokens, -1)[:tokens].tobytes()


@dataclass
class Course:
    """A sequence on its way through an engine, a chunk at a time."""

    id: int
    tokens: list[int]
    slots: list[int]
    sampling: Sampling = field(default_factory=Sampling)
    done: int = 0

    def row(self, length: int, index: int = 0) -> Row:
        start = self.done
        self.done += length
        return Row(
            RequestId(self.id),
            start,
            self.tokens[start : start + length],
            self.slots,
            sample=True,
            index=index,
            sampling=self.sampling,
        )


def run_rows(engine: NativeEngine, rows: Sequence[Row], turn: int = 0) -> list[NDArray[np.float32]]:
    """Logits of the last position of every row."""
    engine.keep_logits(keep=True)
    engine.launch(Batch(turn, tuple(rows)))
    engine.collect()
    return [engine.logits(i) for i in range(len(rows))]
