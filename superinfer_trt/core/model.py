"""What the rest of the house needs to know of a model: its shape, its tensors, its text.

Knows no file format and no kernel. Implementations: `superinfer_trt.model`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from superinfer_trt.core.geometry import Geometry

ARCHITECTURES = ("llama", "qwen2", "mixtral")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama-3.1's frequency scaling (rope_type "llama3"); lengths in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a decoder of one of ARCHITECTURES. Rotary embedding is by halves, as in Hugging Face."""

    name: str
    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_tokens_max: int
    rope_theta: float
    norm_eps: float
    tied_embedding: bool
    qkv_bias: bool = False
    experts: int = 0  # 0: dense
    experts_per_token: int = 0
    rope_scaling: RopeScaling | None = None
    bos_id: int = -1  # -1: none
    stop_ids: frozenset[int] = frozenset()

    def geometry(self, block_tokens: int, element_bytes: int) -> Geometry:
        """The geometry of its KV blocks."""
        return Geometry(self.layers, self.kv_heads, self.head_dim, element_bytes, block_tokens)


class Weights(Protocol):
    """The tensors of a model, one at a time.

    Names are Hugging Face's: `model.embed_tokens.weight`, `model.layers.N.self_attn.q_proj.weight`,
    `model.layers.N.mlp.gate_proj.weight`, Mixtral's `model.layers.N.block_sparse_moe.gate.weight` and
    `....block_sparse_moe.experts.E.w1.weight` (gate), `w3` (up), `w2` (down), `model.norm.weight`,
    `lm_head.weight`.
    """

    @property
    def config(self) -> ModelConfig: ...

    def tensor(self, name: str) -> Any:
        """A C-contiguous float32 numpy array, [out, in] for matrices. Raises ModelError if absent."""
        ...


class TextStream(Protocol):
    """Turns one request's token ids into text as they come; never splits a character."""

    def push(self, token: int) -> str:
        """Text that became certain with `token`; may be empty."""
        ...

    def finish(self) -> str:
        """The rest."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation ({"role", "content"} each) with the generation prompt added.
        Raises Refused when the model has no chat template or the template refuses."""
        ...

    def stream(self) -> TextStream: ...

    def files(self) -> Mapping[str, bytes]:
        """The files of a Hugging Face folder that make this tokenizer, by name; empty where it has none."""
        ...
