"""A decoder out of a Hugging Face folder: config.json, safetensors files and tokenizer.json.

Knows the configurations of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and MixtralForCausalLM,
written by transformers 4 or 5. What such a file may ask for and this decoder does not do (sliding window,
other rotary scalings, quantised checkpoints, biases outside q, k, v) is refused by name. Pickled weights
are never read. Immutable: any thread may read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from superinfer_trt.core.errors import ModelError
from superinfer_trt.core.model import ModelConfig, RopeScaling
from superinfer_trt.model.chat import ChatTemplate
from superinfer_trt.model.quantisation import Floats
from superinfer_trt.model.shapes import Shape, check_config, check_tensors
from superinfer_trt.model.shown import shown
from superinfer_trt.model.tensor_file import TensorFile
from superinfer_trt.model.tokenizer import ModelTokenizer

HF_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "MixtralForCausalLM": "mixtral",
}
JSON_BYTES_MAX = 64 << 20
_DEFAULTS = {"llama": (1e-6, 1e4), "qwen2": (1e-6, 1e4), "mixtral": (1e-5, 1e6)}
"""rms_norm_eps and rope_theta where config.json leaves them out, as in transformers."""


class FolderWeights:
    """core.model.Weights over safetensors; `storage` counts values by format, `file_bytes` the sizes."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelError when the folder is incomplete or unsupported."""
        self._folder = folder
        self._home = _tensor_homes(folder)
        self._config = _config(folder, self._home)
        check_tensors(self._config, self._shape_of, str(folder))
        self._refuse_biases()
        counts: Counter[str] = Counter()
        for file in {id(file): file for file in self._home.values()}.values():
            for entry in file.tensors.values():
                counts[entry.dtype] += entry.elements
        self.storage: Mapping[str, int] = dict(counts)
        self.file_bytes = sum({file.path: file.file_bytes for file in self._home.values()}.values())

    @property
    def config(self) -> ModelConfig:
        return self._config

    def tensor(self, name: str) -> Floats:
        """See core.model.Weights. A new array on every call; nothing is kept."""
        file = self._home.get(name)
        if file is None:
            raise ModelError(f"{self._folder}: no tensor {shown(name)}")
        return file.floats(name)

    def _shape_of(self, name: str) -> Shape | None:
        file = self._home.get(name)
        return None if file is None else file.tensors[name].shape

    def _refuse_biases(self) -> None:
        """A bias the decoder would leave out is refused, unless it is zero."""
        kept = (".q_proj.bias", ".k_proj.bias", ".v_proj.bias") if self._config.qkv_bias else ()
        for name in self._home:
            if name.endswith(".bias") and not name.endswith(kept or ("\0",)) and self.tensor(name).any():
                raise ModelError(f"{self._folder}: the bias {name} is not supported")


def folder_tokenizer(folder: Path, strftime_now: Callable[[str], str] | None = None) -> ModelTokenizer:
    """The tokenizer of a Hugging Face folder. Raises ModelError."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder}: no tokenizer.json (a 'fast' tokenizer is required)")
    try:
        backend = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain Exception for a file it cannot read
        raise ModelError(f"{path}: cannot be read as a tokenizer: {str(error)[:300]}") from error
    return ModelTokenizer(backend, _template(folder, strftime_now), str(path))


def _template(folder: Path, strftime_now: Callable[[str], str] | None) -> ChatTemplate | None:
    settings = _json(folder / "tokenizer_config.json", required=False)
    file = folder / "chat_template.jinja"
    source = _text(file) if file.is_file() else settings.get("chat_template")
    if isinstance(source, list):  # several templates, each with its name
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise ModelError(f"{folder / 'tokenizer_config.json'}: chat_template is not a string")
    special: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[name] = token
    return ChatTemplate(source, special, strftime_now)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > JSON_BYTES_MAX:
            raise ModelError(f"{path}: more than {JSON_BYTES_MAX} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error


def _json(path: Path, *, required: bool = True) -> dict[str, Any]:
    if not required and not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: not a JSON object")
    return value


def _tensor_homes(folder: Path) -> dict[str, TensorFile]:
    """Which file holds each tensor, from the index or the one file."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if not index.is_file():
        if not single.is_file():
            pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pth"))
            note = (
                "; pickled weights (.bin, .pth) are not read: convert them to safetensors" if pickled else ""
            )
            raise ModelError(f"{folder}: no model.safetensors or model.safetensors.index.json{note}")
        file = TensorFile(single)
        return dict.fromkeys(file.tensors, file)
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(f"{index}: no weight_map")
    files: dict[str, TensorFile] = {}
    homes: dict[str, TensorFile] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ModelError(f"{index}: {shown(name)} is in {shown(shard)}, which is not a file name")
        if shard not in files:
            files[shard] = TensorFile(folder / shard)
        if name not in files[shard].tensors:
            raise ModelError(f"{index}: {shard} holds no tensor {shown(name)}")
        homes[name] = files[shard]
    return homes


class _Fields:
    """Typed reading of config.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = _json(path)

    def whole(self, name: str, default: int | None = None, of: Mapping[str, Any] | None = None) -> int:
        value = (self.values if of is None else of).get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool):
            raise ModelError(f"{self.path}: {name} is {shown(value)}, expected a whole number")
        return value

    def number(self, name: str, default: float | None, of: Mapping[str, Any] | None = None) -> float:
        value = (self.values if of is None else of).get(name)
        value = default if value is None else value
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ModelError(f"{self.path}: {name} is {shown(value)}, expected a number")
        try:
            return float(value)
        except OverflowError as error:
            raise ModelError(f"{self.path}: {name} is too large") from error

    def flag(self, name: str) -> bool:
        return bool(self.values.get(name, False))

    def refuse(self, what: str, supported: str) -> ModelError:
        return ModelError(f"{self.path}: {what} is not supported; supported: {supported}")


def _config(folder: Path, tensors: Mapping[str, TensorFile]) -> ModelConfig:
    fields = _Fields(folder / "config.json")
    named = fields.values.get("architectures") or ["none"]
    called = named[0] if isinstance(named, list) and isinstance(named[0], str) else str(named)
    architecture = HF_ARCHITECTURES.get(called)
    if architecture is None:
        raise fields.refuse(f"architecture {shown(called)}", ", ".join(HF_ARCHITECTURES))
    _refuse_variants(fields, called)
    heads = fields.whole("num_attention_heads")
    hidden = fields.whole("hidden_size")
    if heads < 1:
        raise ModelError(f"{fields.path}: num_attention_heads is {heads}, expected >= 1")
    default_eps, default_theta = _DEFAULTS[architecture]
    rope, rope_theta = _rope(fields, default_theta)
    config = ModelConfig(
        name=folder.resolve().name,
        architecture=architecture,
        layers=fields.whole("num_hidden_layers"),
        hidden=hidden,
        intermediate=fields.whole("intermediate_size"),
        heads=heads,
        kv_heads=fields.whole("num_key_value_heads", heads),
        head_dim=fields.whole("head_dim", hidden // heads),
        vocabulary=fields.whole("vocab_size"),
        context_tokens_max=fields.whole("max_position_embeddings"),
        rope_theta=rope_theta,
        norm_eps=fields.number("rms_norm_eps", default_eps),
        tied_embedding=fields.flag("tie_word_embeddings"),
        qkv_bias="model.layers.0.self_attn.q_proj.bias" in tensors,
        experts=fields.whole("num_local_experts") if architecture == "mixtral" else 0,
        experts_per_token=fields.whole("num_experts_per_tok") if architecture == "mixtral" else 0,
        rope_scaling=_rope_scaling(fields, rope),
        bos_id=fields.whole("bos_token_id", -1),
        stop_ids=_stop_ids(folder, fields),
    )
    return check_config(config, str(fields.path))


def _refuse_variants(fields: _Fields, called: str) -> None:
    activation = fields.values.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise fields.refuse(f"hidden_act {shown(activation)}", "silu")
    if fields.values.get("quantization_config"):
        method = fields.values["quantization_config"]
        name = method.get("quant_method") if isinstance(method, dict) else method
        raise fields.refuse(
            f"a checkpoint quantised by {shown(name)}", "F32, F16, BF16 safetensors, or a GGUF file"
        )
    kinds = fields.values.get("layer_types") or []
    sliding = "sliding_attention" in kinds if isinstance(kinds, list) else True
    switched_on = called != "Qwen2ForCausalLM" or fields.flag("use_sliding_window") or sliding
    context = fields.whole("max_position_embeddings")
    window = fields.whole("sliding_window", context)
    if switched_on and window < context:
        raise fields.refuse(f"sliding window attention ({window} tokens)", "full attention")
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise fields.refuse("partial_rotary_factor", "1.0")


def _rope(fields: _Fields, default: float) -> tuple[Mapping[str, Any], float]:
    """(scaling section, theta). Version 5 of transformers keeps both in `rope_parameters`."""
    newer = fields.values.get("rope_parameters")
    older = fields.values.get("rope_scaling")
    section = newer if newer is not None else older if older is not None else {}
    if not isinstance(section, dict):
        raise ModelError(f"{fields.path}: the rope scaling is not an object")
    theta = fields.number("rope_theta", fields.number("rope_theta", default, section))
    return section, theta


def _rope_scaling(fields: _Fields, section: Mapping[str, Any]) -> RopeScaling | None:
    kind = section.get("rope_type", section.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise fields.refuse(f"rope scaling {shown(kind)}", "default, llama3")
    return RopeScaling(
        factor=fields.number("factor", None, section),
        low_freq_factor=fields.number("low_freq_factor", None, section),
        high_freq_factor=fields.number("high_freq_factor", None, section),
        original_context=fields.whole("original_max_position_embeddings", of=section),
    )


def _stop_ids(folder: Path, fields: _Fields) -> frozenset[int]:
    """`eos_token_id` of generation_config.json (what generation really uses), else of config.json."""
    generation = _json(folder / "generation_config.json", required=False)
    value = generation.get("eos_token_id")
    value = fields.values.get("eos_token_id") if value is None else value
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise ModelError(f"{fields.path}: eos_token_id is {shown(value)}, expected token ids")
    return frozenset(ids)
