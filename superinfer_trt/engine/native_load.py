"""Hands a model's tensors to the native engine under its own names, one at a time.

Knows the names of `core.model.Weights` and the native parts; no file format, no kernel, no thread.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from superinfer_trt.core.errors import ModelError
from superinfer_trt.core.model import ModelConfig, Weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from superinfer_trt import _cpu_engine

_ATTENTION = (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"))
_DENSE = (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj"))
_EXPERT = (("gate", "w1"), ("up", "w3"), ("down", "w2"))


def load_weights(engine: _cpu_engine.Engine, weights: Weights) -> None:
    """Fills `engine` from `weights` and ends with the rotary frequencies.

    Raises ModelError for a tensor that is absent or of the wrong kind, ValueError for a wrong shape.
    """
    config = weights.config
    _matrix(engine, weights, "embedding", -1, 0, "model.embed_tokens.weight")
    if not config.tied_embedding:
        _matrix(engine, weights, "head", -1, 0, "lm_head.weight")
    _vector(engine, weights, "norm", -1, "model.norm.weight")
    for layer in range(config.layers):
        _load_layer(engine, weights, layer)
    engine.finish(rotary_frequencies(config))


def _load_layer(engine: _cpu_engine.Engine, weights: Weights, layer: int) -> None:
    config = weights.config
    prefix = f"model.layers.{layer}."
    attention = f"{prefix}self_attn."
    _vector(engine, weights, "attention_norm", layer, f"{prefix}input_layernorm.weight")
    _vector(engine, weights, "mlp_norm", layer, f"{prefix}post_attention_layernorm.weight")
    for part, name in _ATTENTION:
        _matrix(engine, weights, part, layer, 0, f"{attention}{name}.weight")
        if config.qkv_bias:
            _vector(engine, weights, f"{part}_bias", layer, f"{attention}{name}.bias")
    _matrix(engine, weights, "o", layer, 0, f"{attention}o_proj.weight")
    if not config.experts:
        for part, name in _DENSE:
            _matrix(engine, weights, part, layer, 0, f"{prefix}mlp.{name}.weight")
        return
    moe = f"{prefix}block_sparse_moe."
    _matrix(engine, weights, "router", layer, 0, f"{moe}gate.weight")
    for expert in range(config.experts):
        for part, name in _EXPERT:
            _matrix(engine, weights, part, layer, expert, f"{moe}experts.{expert}.{name}.weight")


def _tensor(weights: Weights, name: str, dimensions: int) -> NDArray[np.float32]:
    tensor: Any = weights.tensor(name)
    if tensor.dtype != np.float32 or tensor.ndim != dimensions:
        raise ModelError(
            f"{name}: {tensor.dtype} with {tensor.ndim} dimensions, not float32 with {dimensions}"
        )
    return np.ascontiguousarray(tensor)


def _matrix(
    engine: _cpu_engine.Engine, weights: Weights, part: str, layer: int, expert: int, name: str
) -> None:
    engine.load_matrix(part, layer, expert, _tensor(weights, name, 2))


def _vector(engine: _cpu_engine.Engine, weights: Weights, part: str, layer: int, name: str) -> None:
    engine.load_vector(part, layer, _tensor(weights, name, 1))


def rotary_frequencies(config: ModelConfig) -> NDArray[np.float32]:
    """Inverse frequencies [head_dim / 2], radians per token, with Llama-3.1's scaling if it has one.

    Computed in float32 in the reference's order, so that angles agree at long positions too.
    """
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    base = np.float32(config.rope_theta)
    inverse: NDArray[np.float32] = np.float32(1.0) / np.power(base, exponent, dtype=np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    wavelength = 2 * math.pi / inverse
    low = scaling.original_context / scaling.low_freq_factor
    high = scaling.original_context / scaling.high_freq_factor
    smooth = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - smooth) * inverse / scaling.factor + smooth * inverse
    scaled = np.where(wavelength > low, inverse / scaling.factor, between)
    return np.where(wavelength < high, inverse, scaled).astype(np.float32)
