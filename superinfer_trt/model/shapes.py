"""What a model must hold: the checks both loaders share. Knows no file format.

A file that passes here has every tensor the decoder reads, in the shape that its configuration implies;
anything else is refused when the model is opened, not in the middle of packing its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from superinfer_trt.core.errors import ModelError
from superinfer_trt.core.model import ARCHITECTURES, ModelConfig

Shape = tuple[int, ...]
SIZE_MAX = (1 << 31) - 1
"""Largest size or count of a configuration: what a signed 32-bit index can name."""


def check_config(config: ModelConfig, source: str) -> ModelConfig:
    """Returns `config`; raises ModelError naming `source`, the field and the limit."""

    def require(condition: bool, field: str, value: object, limit: str) -> None:
        if not condition:
            raise ModelError(f"{source}: {field} is {value}, expected {limit}")

    require(config.architecture in ARCHITECTURES, "architecture", config.architecture, str(ARCHITECTURES))
    sizes = ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocabulary")
    for field in (*sizes, "context_tokens_max"):
        value = getattr(config, field)
        require(0 < value <= SIZE_MAX, field, value, f"1 to {SIZE_MAX}")
    require(config.heads % config.kv_heads == 0, "kv_heads", config.kv_heads, f"a divisor of {config.heads}")
    require(config.head_dim % 2 == 0, "head_dim", config.head_dim, "an even number")
    for field in ("rope_theta", "norm_eps"):
        value = getattr(config, field)
        require(math.isfinite(value) and value > 0, field, value, "a finite number > 0")
    require(0 <= config.experts <= 65_536, "experts", config.experts, "0 to 65536")
    if config.architecture == "mixtral":
        limit = f"1 to {config.experts}"
        require(
            0 < config.experts_per_token <= config.experts,
            "experts_per_token",
            config.experts_per_token,
            limit,
        )
    require(-1 <= config.bos_id < config.vocabulary, "bos_id", config.bos_id, f"< {config.vocabulary}")
    for stop in config.stop_ids:
        require(0 <= stop < config.vocabulary, "a stop id", stop, f"0 to {config.vocabulary - 1}")
    scaling = config.rope_scaling
    if scaling is not None:
        factors = (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor)
        require(
            all(math.isfinite(f) and f > 0 for f in factors), "rope_scaling", factors, "finite numbers > 0"
        )
        ordered = scaling.low_freq_factor < scaling.high_freq_factor
        require(ordered, "rope_scaling", factors, "low_freq_factor < high_freq_factor")
        original = scaling.original_context
        require(0 < original <= SIZE_MAX, "rope_scaling", original, "an original context of >= 1 token")
    return config


def tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """Every tensor of a model with its shape, in the names of core.model.Weights."""
    hidden, ffn = config.hidden, config.intermediate
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    yield "model.embed_tokens.weight", (config.vocabulary, hidden)
    for layer in range(config.layers):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (hidden,)
        for letter, rows in (("q", query), ("k", key), ("v", key)):
            yield f"{at}self_attn.{letter}_proj.weight", (rows, hidden)
            if config.qkv_bias:
                yield f"{at}self_attn.{letter}_proj.bias", (rows,)
        yield at + "self_attn.o_proj.weight", (hidden, query)
        yield at + "post_attention_layernorm.weight", (hidden,)
        if config.experts:
            yield at + "block_sparse_moe.gate.weight", (config.experts, hidden)
            for expert in range(config.experts):
                of = f"{at}block_sparse_moe.experts.{expert}."
                yield of + "w1.weight", (ffn, hidden)
                yield of + "w2.weight", (hidden, ffn)
                yield of + "w3.weight", (ffn, hidden)
        else:
            yield at + "mlp.gate_proj.weight", (ffn, hidden)
            yield at + "mlp.up_proj.weight", (ffn, hidden)
            yield at + "mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)
    if not config.tied_embedding:
        yield "lm_head.weight", (config.vocabulary, hidden)


def check_tensors(config: ModelConfig, shape_of: Callable[[str], Shape | None], source: str) -> None:
    """Raises ModelError for the first tensor that is absent or of another shape."""
    for name, wanted in tensor_shapes(config):
        found = shape_of(name)
        if found is None:
            raise ModelError(f"{source}: tensor {name} is missing")
        if found != wanted:
            raise ModelError(f"{source}: tensor {name} has shape {list(found)}, expected {list(wanted)}")


def parameter_count(config: ModelConfig) -> int:
    """Number of weights, tied ones once."""
    return sum(math.prod(shape) for _, shape in tensor_shapes(config))
