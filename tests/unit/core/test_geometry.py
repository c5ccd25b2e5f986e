"""Sizes of blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.model import ModelConfig
from superinfer_trt.core.units import div_ceil


@pytest.mark.parametrize(
    ("layers", "kv_heads", "head_dim", "block_bytes"),
    [
        (32, 8, 128, 2 << 20),  # Llama-3-8B
        (64, 8, 128, 4 << 20),  # Qwen2.5-32B
        (30, 3, 64, 368_640),  # SmolLM2-135M
    ],
)
def test_bytes_of_a_block_of_16_tokens_in_bf16(
    layers: int, kv_heads: int, head_dim: int, block_bytes: int
) -> None:
    assert Geometry(layers, kv_heads, head_dim, 2).block_bytes == block_bytes


@given(tokens=st.integers(0, 10**9), block_tokens=st.integers(1, 1024))
def test_blocks_hold_the_tokens_and_not_one_block_less_would(tokens: int, block_tokens: int) -> None:
    blocks = Geometry(1, 1, 1, 1, block_tokens).blocks_for(tokens)
    assert (blocks - 1) * block_tokens < tokens <= blocks * block_tokens or tokens == blocks == 0
    assert blocks == div_ceil(tokens, block_tokens)


def test_a_model_knows_the_geometry_of_its_blocks() -> None:
    config = ModelConfig(
        name="SmolLM2-135M",
        architecture="llama",
        layers=30,
        hidden=576,
        intermediate=1536,
        heads=9,
        kv_heads=3,
        head_dim=64,
        vocabulary=49_152,
        context_tokens_max=8192,
        rope_theta=100_000.0,
        norm_eps=1e-5,
        tied_embedding=True,
    )
    assert config.geometry(32, 4) == Geometry(30, 3, 64, 4, 32)
