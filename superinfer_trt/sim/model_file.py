"""The shape of a model out of a Hugging Face config.json: what the models of step and pool need.

Any decoder of the Llama family, dense or with experts in every layer; weights are counted, not read.
Any thread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sim.profiles import MODELS, ModelShape

_FILE_BYTES_MAX = 1 << 20
_SIZE_MAX = (1 << 31) - 1
_ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def find_model(name: str) -> ModelShape:
    """A known model, a config.json or the folder that holds one. Raises ConfigError."""
    if name in MODELS:
        return MODELS[name]
    path = Path(name)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        raise ConfigError(f"model: {name!r} is neither a config.json nor known ({', '.join(MODELS)})")
    return model_shape(_read(path), str(path))


def model_shape(config: Mapping[str, Any], source: str) -> ModelShape:
    """The shape that a config.json describes. Raises ConfigError, which names field and limit."""

    def size(field: str, default: int | None = None) -> int:
        value = config.get(field)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _SIZE_MAX:
            raise ConfigError(
                f"{source}: {field} is {value!r}; expected a whole number from 1 to {_SIZE_MAX}"
            )
        return value

    hidden, layers, heads = (
        size("hidden_size"),
        size("num_hidden_layers"),
        size("num_attention_heads"),
    )
    kv_heads = size("num_key_value_heads", heads)
    head_dim = size("head_dim", max(1, hidden // heads))
    vocabulary = size("vocab_size")
    experts = size("num_local_experts", size("num_experts", 1))
    chosen = size("num_experts_per_tok", 1)
    if chosen > experts:
        raise ConfigError(f"{source}: num_experts_per_tok is {chosen}; expected 1 to {experts}")
    width = (
        size("moe_intermediate_size", size("intermediate_size")) if experts > 1 else size("intermediate_size")
    )
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    expert = 3 * hidden * width
    router = hidden * experts if experts > 1 else 0
    table = hidden * vocabulary
    tied = bool(config.get("tie_word_embeddings", False))
    dense = layers * (attention + router + (expert if experts == 1 else 0)) + table * (1 if tied else 2)
    total = dense + (layers * experts * expert if experts > 1 else 0)
    active = dense - (0 if tied else table) + (layers * chosen * expert if experts > 1 else 0)
    return ModelShape(
        name=str(config.get("_name_or_path") or Path(source).parent.name or source),
        parameters=float(total),
        active_parameters=float(active),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context_tokens_max=size("max_position_embeddings"),
        element_bytes=_element_bytes(config, source),
        dense_share=dense / total,
        expert_share=chosen / experts,
    )


def _element_bytes(config: Mapping[str, Any], source: str) -> int:
    name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if not isinstance(name, str) or name not in _ELEMENT_BYTES:
        raise ConfigError(f"{source}: dtype is {name!r}; expected one of {', '.join(_ELEMENT_BYTES)}")
    return _ELEMENT_BYTES[name]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _FILE_BYTES_MAX:
            raise ConfigError(f"{path}: larger than {_FILE_BYTES_MAX} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return config
