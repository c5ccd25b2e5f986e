"""Small random weights for engines that need a model; the shapes of a Llama, in Hugging Face's names."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from superinfer_trt.core.model import ModelConfig

TINY = ModelConfig(
    name="tiny",
    architecture="llama",
    layers=2,
    hidden=64,
    intermediate=96,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocabulary=211,
    context_tokens_max=256,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    tied_embedding=True,
)


class RandomWeights:
    """Every tensor is a function of its name."""

    def __init__(self, config: ModelConfig = TINY) -> None:
        self.config = config
        c = config
        heads, kv_heads = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self._shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (c.vocabulary, c.hidden),
            "model.norm.weight": (c.hidden,),
        }
        for layer in range(c.layers):
            at = f"model.layers.{layer}"
            self._shapes |= {
                f"{at}.input_layernorm.weight": (c.hidden,),
                f"{at}.post_attention_layernorm.weight": (c.hidden,),
                f"{at}.self_attn.q_proj.weight": (heads, c.hidden),
                f"{at}.self_attn.k_proj.weight": (kv_heads, c.hidden),
                f"{at}.self_attn.v_proj.weight": (kv_heads, c.hidden),
                f"{at}.self_attn.o_proj.weight": (c.hidden, heads),
                f"{at}.mlp.gate_proj.weight": (c.intermediate, c.hidden),
                f"{at}.mlp.up_proj.weight": (c.intermediate, c.hidden),
                f"{at}.mlp.down_proj.weight": (c.hidden, c.intermediate),
            }

    def tensor(self, name: str) -> NDArray[np.float32]:
        shape = self._shapes[name]
        draw = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) == 1:
            return (1 + 0.1 * draw.standard_normal(shape)).astype(np.float32)
        return (draw.standard_normal(shape) * 1.5 / shape[1] ** 0.5).astype(np.float32)
