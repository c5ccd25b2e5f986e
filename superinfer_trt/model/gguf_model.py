"""A decoder out of a GGUF file: its configuration, and its tensors under Hugging Face's names.

Knows the key and tensor names that llama.cpp's converter writes for the architectures `llama` (also
Mistral and Mixtral) and `qwen2`, and undoes its one change of values: the rows of `attn_q` and `attn_k`
are stored interleaved for the architecture `llama`. Immutable: any thread may read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from superinfer_trt.core.errors import ModelError
from superinfer_trt.core.model import ModelConfig, RopeScaling
from superinfer_trt.model.gguf import GgufFile, read_gguf
from superinfer_trt.model.quantisation import Floats
from superinfer_trt.model.shapes import Shape, check_config, check_tensors
from superinfer_trt.model.shown import shown

GGUF_ARCHITECTURES = ("llama", "qwen2")
LLAMA3_ORIGINAL_CONTEXT = 8192
"""What the converter assumes when it turns Llama-3.1's scaling into `rope_freqs.weight`."""

_TURN_ENDS = {
    "llama-bpe": ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    "qwen2": ("<|im_end|>", "<|endoftext|>"),
}
"""Special tokens that end a turn beside the one `eos_token_id` a GGUF file names, by pre-tokenizer."""

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
_EXPERT = {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_EXPERT_NAME = re.compile(r"block_sparse_moe\.experts\.(\d+)\.(w[123])")


class Keys:
    """Typed reading of metadata: a wrong type or an absent key is a ModelError that names it."""

    def __init__(self, file: GgufFile) -> None:
        self._metadata = file.metadata
        self.source = str(file.path)

    def get(self, key: str, expected: type | tuple[type, ...], what: str, default: Any = None) -> Any:
        """The value of `key` (or `default`, unless that is None)."""
        value = self._metadata.get(key)
        if value is None:
            if default is None:
                raise ModelError(f"{self.source}: metadata key {shown(key)} is missing")
            return default
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise ModelError(f"{self.source}: metadata key {shown(key)} is not {what}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return str(self.get(key, str, "a string", default))

    def whole(self, key: str, default: int | None = None) -> int:
        return int(self.get(key, int, "a whole number", default))

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.get(key, bool, "true or false", default))

    def texts(self, key: str) -> list[str]:
        return list(self.get(key, list, "a list of strings"))

    def number(self, key: str, default: float | None = None) -> float:
        """A float32 of the file, as the shortest decimal that gives it: 1e-05, not 9.99999974e-06."""
        value = float(self.get(key, (float, int), "a number", default))
        with np.errstate(over="ignore"):
            return float(str(np.float32(value)))

    def per_layer(self, key: str, default: int | None = None) -> int:
        """A count that may be given per layer; they must then be equal."""
        value = self.get(key, (int, np.ndarray), "a whole number", default)
        if isinstance(value, np.ndarray):
            if value.size == 0 or value.dtype.kind not in "iu" or (value != value[0]).any():
                raise ModelError(f"{self.source}: {shown(key)} differs between layers: not supported")
            return int(value[0])
        return int(value)

    def has(self, key: str) -> bool:
        return key in self._metadata


class GgufWeights:
    """core.model.Weights over a GGUF file; `storage` counts values by format, `file_bytes` its size."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._keys = Keys(file)
        self._config = _config(file, self._keys)
        self._interleaved = self._keys.text("general.architecture") == "llama"
        check_tensors(self._config, self._shape_of, self._keys.source)
        counts: Counter[str] = Counter()
        for entry in file.tensors.values():
            counts[entry.kind.name] += entry.elements
        self.storage: Mapping[str, int] = dict(counts)
        self.file_bytes = file.file_bytes

    @property
    def config(self) -> ModelConfig:
        return self._config

    @property
    def file(self) -> GgufFile:
        return self._file

    def tensor(self, name: str) -> Floats:
        """See core.model.Weights. A new array on every call; nothing is kept."""
        place = self._place(name)
        if place is None:
            raise ModelError(f"{self._keys.source}: no tensor {shown(name)}")
        stored, part = place
        values = self._file.floats(stored, part)
        heads = self._interleaved_heads(name)
        return _by_halves(values, heads) if heads else values

    def _interleaved_heads(self, name: str) -> int:
        if self._interleaved and ".self_attn.q_proj." in name:
            return self._config.heads
        if self._interleaved and ".self_attn.k_proj." in name:
            return self._config.kv_heads
        return 0

    def _place(self, name: str) -> tuple[str, int | None] | None:
        """(stored tensor, slice of it or None for all), or None when the file has no such tensor."""
        stored, part = _TOP.get(name), None
        match = _LAYER_NAME.fullmatch(name)
        if match:
            layer, inner, suffix = match.groups()
            stored = f"blk.{layer}.{_LAYER[inner]}.{suffix}" if inner in _LAYER else None
            expert = _EXPERT_NAME.fullmatch(inner)
            if expert:
                base = f"blk.{layer}.{_EXPERT[expert[2]]}"
                stored, part = f"{base}_exps.{suffix}", int(expert[1])
                if stored not in self._file.tensors:  # files from before the experts were merged
                    stored, part = f"{base}.{expert[1]}.{suffix}", None
        if stored is None or stored not in self._file.tensors:
            return None
        return stored, part

    def _shape_of(self, name: str) -> Shape | None:
        place = self._place(name)
        if place is None:
            return None
        stored, part = place
        shape = self._file.tensors[stored].shape
        if part is None:
            return shape
        # merged experts: the outermost dimension must be the expert count itself
        return shape[1:] if shape[0] == self._config.experts else shape


def _by_halves(values: Floats, heads: int) -> Floats:
    """Rows of each head from interleaved pairs (0, d/2, 1, d/2+1, ...) to halves (0, 1, ...)."""
    half = values.shape[0] // heads // 2
    grouped = values.reshape(heads, half, 2, -1).swapaxes(1, 2)
    return np.ascontiguousarray(grouped).reshape(values.shape)


def open_gguf(path: Path) -> GgufWeights:
    """The decoder in the file `path`. Raises ModelError when it is corrupt, incomplete or unsupported."""
    return GgufWeights(read_gguf(path))


def _config(file: GgufFile, keys: Keys) -> ModelConfig:
    family = keys.text("general.architecture")
    if family not in GGUF_ARCHITECTURES:
        raise ModelError(
            f"{keys.source}: architecture {shown(family)} is not supported; "
            f"supported: {', '.join(GGUF_ARCHITECTURES)}"
        )
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{keys.source}: tensor 'token_embd.weight' is missing or not a matrix")
    vocabulary, hidden = embedding.shape
    if keys.whole(f"{family}.embedding_length") != hidden:
        raise ModelError(f"{keys.source}: token_embd.weight has {hidden} columns, not the embedding_length")
    heads = keys.per_layer(f"{family}.attention.head_count")
    if heads < 1:
        raise ModelError(f"{keys.source}: {family}.attention.head_count is {heads}, expected >= 1")
    head_dim = keys.whole(f"{family}.attention.key_length", hidden // heads)
    experts = keys.whole(f"{family}.expert_count", 0)
    if experts and family != "llama":
        raise ModelError(f"{keys.source}: experts in architecture {shown(family)} are not supported")
    _refuse_variants(keys, family, head_dim)
    config = ModelConfig(
        name=keys.text("general.name", file.path.stem),
        architecture="mixtral" if experts else family,
        layers=keys.whole(f"{family}.block_count"),
        hidden=hidden,
        intermediate=keys.per_layer(f"{family}.feed_forward_length"),
        heads=heads,
        kv_heads=keys.per_layer(f"{family}.attention.head_count_kv", heads),
        head_dim=head_dim,
        vocabulary=vocabulary,
        context_tokens_max=keys.whole(f"{family}.context_length"),
        rope_theta=keys.number(f"{family}.rope.freq_base", 10_000.0),
        norm_eps=keys.number(f"{family}.attention.layer_norm_rms_epsilon"),
        tied_embedding="output.weight" not in file.tensors,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        experts=experts,
        experts_per_token=keys.whole(f"{family}.expert_used_count") if experts else 0,
        bos_id=keys.whole("tokenizer.ggml.bos_token_id", -1),
        stop_ids=_stop_ids(file, keys),
    )
    check_config(config, keys.source)
    scaling = _rope_scaling(file, keys, config)
    return config if scaling is None else check_config(replace(config, rope_scaling=scaling), keys.source)


def _refuse_variants(keys: Keys, family: str, head_dim: int) -> None:
    """What these files may say and this decoder does not do is refused by name, never ignored."""
    context = keys.whole(f"{family}.context_length")
    window = keys.whole(f"{family}.attention.sliding_window", 0)
    if 0 < window < context:
        raise ModelError(f"{keys.source}: sliding window attention ({window} tokens) is not supported")
    kind = keys.text(f"{family}.rope.scaling.type", "none")
    factor = keys.number(f"{family}.rope.scaling.factor", keys.number(f"{family}.rope.scale_linear", 1.0))
    if kind != "none" and not (kind == "linear" and factor == 1.0):
        raise ModelError(f"{keys.source}: rope scaling {shown(kind)} is not supported; supported: llama3")
    for key in ("rope.dimension_count", "attention.value_length"):
        value = keys.whole(f"{family}.{key}", head_dim)
        if value != head_dim:
            raise ModelError(
                f"{keys.source}: {family}.{key} is {value}; only the head size {head_dim} is supported"
            )


def _stop_ids(file: GgufFile, keys: Keys) -> frozenset[int]:
    ids = [keys.whole(f"tokenizer.ggml.{name}_token_id", -1) for name in ("eos", "eot", "eom")]
    pre = keys.text("tokenizer.ggml.pre", "")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    wanted = _TURN_ENDS.get(pre)
    if wanted and isinstance(tokens, list):
        ids += [id for id, token in enumerate(tokens) if token in wanted]
    return frozenset(id for id in ids if id >= 0)


def _rope_scaling(file: GgufFile, keys: Keys, config: ModelConfig) -> RopeScaling | None:
    """Llama-3.1's scaling from `rope_freqs.weight`, which divides each frequency by a factor.

    The file does not hold the four parameters, only their effect. They are recovered under the
    converter's own assumptions and kept only if they give back the very factors of the file.
    """
    if "rope_freqs.weight" not in file.tensors:
        return None
    factors = file.floats("rope_freqs.weight").reshape(-1)
    if factors.size != config.head_dim // 2 or not np.isfinite(factors).all():
        raise ModelError(
            f"{keys.source}: rope_freqs.weight does not hold {config.head_dim // 2} finite factors"
        )
    if (factors == 1).all():
        return None
    scaling = RopeScaling(float(factors.max()), 1.0, 4.0, LLAMA3_ORIGINAL_CONTEXT)
    if not np.allclose(factors, llama3_factors(scaling, config), rtol=1e-3):
        raise ModelError(
            f"{keys.source}: rope_freqs.weight is not Llama-3.1's scaling; no other is supported"
        )
    return scaling


def llama3_factors(scaling: RopeScaling, config: ModelConfig) -> Floats:
    """What each of the head_dim/2 rotary frequencies is divided by (Llama-3.1's rule)."""
    pairs = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    wavelength = 2 * math.pi * config.rope_theta**pairs
    turns = scaling.original_context / wavelength
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / scaling.factor + smooth)).astype(np.float32)
