"""A model as a Hugging Face folder: config.json, one safetensors file and the tokenizer's files.

What a GGUF file becomes for software that reads folders (TensorRT-LLM, transformers). Quantised weights are
written as they are used here, dequantised. One tensor is in memory at a time. Not thread-safe.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from superinfer_trt.core.errors import ModelError
from superinfer_trt.core.model import ModelConfig
from superinfer_trt.model.folder import HF_ARCHITECTURES
from superinfer_trt.model.open import OpenModel
from superinfer_trt.model.shapes import tensor_shapes

Progress = Callable[[int, int], None]
"""Told (bytes written, bytes in all)."""


@dataclass(frozen=True, slots=True)
class StorageType:
    """How a value is stored: names in safetensors and in config.json."""

    safetensors: str
    torch: str
    value_bytes: int


STORAGE_TYPES: Mapping[str, StorageType] = {
    "bf16": StorageType("BF16", "bfloat16", 2),
    "fp16": StorageType("F16", "float16", 2),
    "fp32": StorageType("F32", "float32", 4),
}


def write_folder(model: OpenModel, folder: Path, dtype: str = "bf16", tell: Progress | None = None) -> int:
    """Writes `folder`, which must be absent or empty; returns the bytes of the weights. Raises ModelError.

    config.json comes last, so a folder that has one is whole.
    """
    stored = STORAGE_TYPES[dtype]
    config = config_json(model.config, stored)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ModelError(f"{folder}: is there already, and not an empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in model.tokenizer.files().items():
            (folder / name).write_bytes(data)
        written = _write_tensors(model, folder / "model.safetensors", stored, tell or _silent)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written ({error.strerror})") from error
    return written


def config_json(config: ModelConfig, stored: StorageType) -> dict[str, Any]:
    """The fields of config.json that transformers and TensorRT-LLM read. Raises ModelError for a combination
    that they have no name for."""
    if config.qkv_bias != (config.architecture == "qwen2"):
        which = "with" if config.qkv_bias else "without"
        raise ModelError(
            f"{config.name}: {config.architecture} {which} biases of q, k and v has no name in Hugging "
            "Face's format"
        )
    named = next(name for name, kind in HF_ARCHITECTURES.items() if kind == config.architecture)
    made: dict[str, Any] = {
        "architectures": [named],
        "model_type": config.architecture,
        "hidden_act": "silu",
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context_tokens_max,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embedding,
        "torch_dtype": stored.torch,
        "eos_token_id": sorted(config.stop_ids),
    }
    if config.bos_id >= 0:
        made["bos_token_id"] = config.bos_id
    if config.architecture == "mixtral":
        made["num_local_experts"] = config.experts
        made["num_experts_per_tok"] = config.experts_per_token
        made["sliding_window"] = None
    scaling = config.rope_scaling
    if scaling is not None:
        made["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return made


def stored_bytes(values: npt.NDArray[np.float32], stored: StorageType, name: str) -> bytes:
    """Little endian, rounded to nearest, ties to even. Raises ModelError for values that become infinite."""
    if stored.safetensors == "F32":
        return values.astype("<f4", copy=False).tobytes()
    with np.errstate(over="ignore"):
        if stored.safetensors == "F16":
            half = values.astype("<f2")
            if not np.isfinite(half).all():
                raise ModelError(f"{name}: has values that fp16 cannot hold; take bf16")
            return half.tobytes()
    bits = values.astype("<f4", copy=False).view("<u4")
    rounded = bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
    return bytes((rounded >> 16).astype("<u2").data)


def _write_tensors(model: OpenModel, path: Path, stored: StorageType, tell: Progress) -> int:
    """The file appears under its name when it is whole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensor_shapes(model.config):
        end = at + math.prod(shape) * stored.value_bytes
        header[name] = {"dtype": stored.safetensors, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    partial = path.with_name(f"{path.name}.partial")
    done = 0
    with partial.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, _ in tensor_shapes(model.config):
            values = model.weights.tensor(name)
            if not np.isfinite(values).all():
                raise ModelError(f"{model.source}: {name} has values that are not finite")
            done += file.write(stored_bytes(values, stored, name))
            tell(done, at)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return at


def _silent(_done: int, _total: int) -> None:
    pass
