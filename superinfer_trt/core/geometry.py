"""Sizes that follow from a model and its pools. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

from superinfer_trt.core.units import div_ceil


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shape of one KV block, block-first: [layers, 2, block_tokens, kv_heads, head_dim].

    All layers of a block, K and V, are one contiguous range in both tiers (paper, section 5).
    """

    layers: int
    kv_heads: int
    head_dim: int
    element_bytes: int
    block_tokens: int = 16

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in either tier."""
        return self.layers * 2 * self.block_tokens * self.kv_heads * self.head_dim * self.element_bytes

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold the KV of `tokens` tokens."""
        return div_ceil(tokens, self.block_tokens)
