"""A small GGUF writer and tiny models for tests; written apart from the reader, from the specification."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CODES = {
    "u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"),
    "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d"),
}  # fmt: skip


@dataclass
class Raw:
    """A tensor as stored bytes: shape with the outermost dimension first, and the type number."""

    shape: tuple[int, ...]
    number: int
    data: bytes


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: str, value: Any) -> bytes:
    number, code = CODES[kind]
    return struct.pack("<I", number) + struct.pack("<" + code, value)


def array(kind: str, values: list[Any]) -> bytes:
    if kind == "str":
        return struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(text, values))
    number, code = CODES[kind]
    return struct.pack("<IIQ", 9, number, len(values)) + struct.pack(f"<{len(values)}{code}", *values)


def value(given: Any) -> bytes:
    """Metadata value of a Python value; bytes are taken as already encoded."""
    if isinstance(given, bytes):
        return given
    if isinstance(given, bool):
        return scalar("bool", given)
    if isinstance(given, str):
        return struct.pack("<I", 8) + text(given)
    if isinstance(given, float):
        return scalar("f32", given)
    if isinstance(given, list):
        kind = "str" if isinstance(given[0], str) else "f32" if isinstance(given[0], float) else "i32"
        return array(kind, given)
    return scalar("u32", given)


def stored(tensor: np.ndarray | Raw) -> Raw:
    if isinstance(tensor, Raw):
        return tensor
    return Raw(tensor.shape, 0, tensor.astype("<f4").tobytes())


def gguf_bytes(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray | Raw],
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + value(given) for key, given in metadata.items())
    body = b""
    for name, tensor in tensors.items():
        raw = stored(tensor)
        body += bytes(-len(body) % alignment)
        shape = tuple(reversed(raw.shape))
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", raw.number, len(body))
        body += raw.data
    return head + bytes(-len(head) % alignment) + body


def q8_0(values: np.ndarray) -> Raw:
    blocks = values.reshape(-1, 32).astype(np.float32)
    scale = np.maximum(np.abs(blocks).max(1), 1e-4).astype("<f2") / np.float16(127)
    quants = np.rint(blocks / scale.astype("f4")[:, None]).clip(-127, 127).astype("i1")
    layout = np.dtype([("d", "<f2"), ("q", "i1", 32)])
    raw = np.zeros(len(blocks), layout)
    raw["d"], raw["q"] = scale, quants
    return Raw(values.shape, 8, raw.tobytes())


def byte_alphabet() -> list[str]:
    """GPT-2's stand-in character of each byte, in the order of the bytes."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    free = iter(range(256, 512))
    return [chr(byte) if byte in keep else chr(next(free)) for byte in range(256)]


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġ Ġ"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)


def byte_level_metadata(pre: str = "smollm") -> dict[str, Any]:
    tokens = [*SPECIAL, *byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def sentencepiece_metadata() -> dict[str, Any]:
    words = ["\u2581", "a", "b", "c", "\u2581a", "ab", "\u2581ab", "abc", "\u2581abc", "\u2581\u2581"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(words)],
        "tokenizer.ggml.scores": [0.0] * 259 + [float(-index) for index in range(len(words))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


@dataclass
class Tiny:
    """A tiny model: what to write, and what a reader must give back under Hugging Face's names."""

    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray | Raw]
    expected: dict[str, np.ndarray] = field(default_factory=dict)

    def write(self, path: Path, **options: Any) -> Path:
        path.write_bytes(gguf_bytes(self.metadata, self.tensors, **options))
        return path


HIDDEN, FFN, HEADS, KV_HEADS, LAYERS, EXPERTS = 32, 64, 4, 2, 2, 3
HEAD = HIDDEN // HEADS


def interleaved(weights: np.ndarray, heads: int) -> np.ndarray:
    """What the converter does to the rows of q and k: halves become neighbours."""
    shape = weights.shape
    halves = weights.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return halves.swapaxes(1, 2).reshape(shape)


def tiny_model(family: str = "llama", *, experts: str = "", seed: int = 0, tied: bool = False) -> Tiny:
    """`experts`: "" for dense, "merged" or "split" for the two ways to store them."""
    random = np.random.default_rng(seed)
    metadata: dict[str, Any] = {
        "general.architecture": family,
        "general.name": "tiny",
        f"{family}.block_count": LAYERS,
        f"{family}.context_length": 128,
        f"{family}.embedding_length": HIDDEN,
        f"{family}.feed_forward_length": FFN,
        f"{family}.attention.head_count": HEADS,
        f"{family}.attention.head_count_kv": KV_HEADS,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{family}.rope.freq_base": 10000.0,
        **byte_level_metadata(),
    }
    if experts:
        metadata |= {f"{family}.expert_count": EXPERTS, f"{family}.expert_used_count": 2}
    tiny = Tiny(metadata, {})
    vocabulary = len(metadata["tokenizer.ggml.tokens"])

    def add(stored_as: str, name: str, *shape: int, heads: int = 0) -> None:
        weights = random.standard_normal(shape).astype(np.float32)
        tiny.expected[name] = weights
        tiny.tensors[stored_as] = interleaved(weights, heads) if heads and family == "llama" else weights

    add("token_embd.weight", "model.embed_tokens.weight", vocabulary, HIDDEN)
    for layer in range(LAYERS):
        blk, at = f"blk.{layer}.", f"model.layers.{layer}."
        add(blk + "attn_norm.weight", at + "input_layernorm.weight", HIDDEN)
        add(blk + "ffn_norm.weight", at + "post_attention_layernorm.weight", HIDDEN)
        for letter, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            turn = 0 if letter == "v" else heads
            own = at + f"self_attn.{letter}_proj."
            add(blk + f"attn_{letter}.weight", own + "weight", heads * HEAD, HIDDEN, heads=turn)
            if family == "qwen2":
                add(blk + f"attn_{letter}.bias", own + "bias", heads * HEAD)
        add(blk + "attn_output.weight", at + "self_attn.o_proj.weight", HIDDEN, HIDDEN)
        if experts:
            add(blk + "ffn_gate_inp.weight", at + "block_sparse_moe.gate.weight", EXPERTS, HIDDEN)
            _add_experts(tiny, random, layer, merged=experts == "merged")
            continue
        for stored_as, name, rows, columns in (("gate", "gate", FFN, HIDDEN), ("up", "up", FFN, HIDDEN)):
            add(blk + f"ffn_{stored_as}.weight", at + f"mlp.{name}_proj.weight", rows, columns)
        add(blk + "ffn_down.weight", at + "mlp.down_proj.weight", HIDDEN, FFN)
    add("output_norm.weight", "model.norm.weight", HIDDEN)
    if not tied:
        add("output.weight", "lm_head.weight", vocabulary, HIDDEN)
    return tiny


def _add_experts(tiny: Tiny, random: np.random.Generator, layer: int, *, merged: bool) -> None:
    for stored_as, name, rows, columns in (
        ("gate", "w1", FFN, HIDDEN), ("down", "w2", HIDDEN, FFN), ("up", "w3", FFN, HIDDEN),
    ):  # fmt: skip
        weights = random.standard_normal((EXPERTS, rows, columns)).astype(np.float32)
        for expert in range(EXPERTS):
            of = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight"
            tiny.expected[of] = weights[expert]
            if not merged:
                tiny.tensors[f"blk.{layer}.ffn_{stored_as}.{expert}.weight"] = weights[expert]
        if merged:
            tiny.tensors[f"blk.{layer}.ffn_{stored_as}_exps.weight"] = weights
