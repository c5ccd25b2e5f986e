"""Hugging Face folders written with the safetensors library, read without it."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from superinfer_trt.core.errors import ModelError
from superinfer_trt.core.model import ModelConfig, RopeScaling
from superinfer_trt.model.folder import FolderWeights, folder_tokenizer
from superinfer_trt.model.shapes import tensor_shapes
from superinfer_trt.model.tensor_file import TensorFile

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 20000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPE = ModelConfig("x", "llama", 2, 32, 48, 4, 2, 8, 40, 256, 1e4, 1e-5, tied_embedding=False)
MIXTRAL = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 3, "num_experts_per_tok": 2}


def tensors(shape: ModelConfig = SHAPE, dtype: type = np.float32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {name: random.standard_normal(size).astype(dtype) for name, size in tensor_shapes(shape)}


def like(**changes: Any) -> ModelConfig:
    import dataclasses

    return dataclasses.replace(SHAPE, **changes)


TENSORS = tensors()


def folder(at: Path, kept: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    config = {name: value for name, value in {**BASE, **changes}.items() if value is not None}
    (at / "config.json").write_text(json.dumps(config))
    save_file(tensors() if kept is None else kept, at / "model.safetensors")
    return at


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        (SHAPE, {}),
        (like(tied_embedding=True), {"tie_word_embeddings": True}),
        (like(head_dim=16), {"head_dim": 16}),
        (like(qkv_bias=True), {"architectures": ["Qwen2ForCausalLM"]}),
        (like(architecture="mixtral", experts=3, experts_per_token=2), MIXTRAL),
        (SHAPE, {"architectures": ["MistralForCausalLM"], "sliding_window": None}),
    ],
)
def test_every_tensor_comes_back(tmp_path: Path, shape: ModelConfig, changes: dict[str, Any]) -> None:
    kept = tensors(shape)
    weights = FolderWeights(folder(tmp_path, kept, **changes))
    for name, values in kept.items():
        assert np.array_equal(weights.tensor(name), values), name
    config = weights.config
    assert (config.experts, config.qkv_bias, config.tied_embedding) == (
        *(shape.experts, shape.qkv_bias, shape.tied_embedding),
    )
    assert (config.head_dim, config.rope_theta, config.norm_eps) == (shape.head_dim, 20000.0, 1e-5)
    assert (config.bos_id, config.stop_ids, config.context_tokens_max) == (1, {2}, 256)
    assert weights.storage == {"F32": sum(values.size for values in kept.values())}
    with pytest.raises(ModelError, match="no tensor 'nothing'"):
        weights.tensor("nothing")


def test_half_precision_is_widened(tmp_path: Path) -> None:
    kept = tensors(dtype=np.float16)
    weights = FolderWeights(folder(tmp_path, kept))
    assert np.array_equal(weights.tensor("lm_head.weight"), kept["lm_head.weight"].astype(np.float32))
    wide = tensors()["lm_head.weight"]
    words = (wide.view(np.uint32) >> 16).astype("<u2")
    entry = {"dtype": "BF16", "shape": list(wide.shape), "data_offsets": [0, words.nbytes]}
    path = tmp_path / "b.safetensors"
    text = json.dumps({"lm_head.weight": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + words.tobytes())
    expected = (words.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(TensorFile(path).floats("lm_head.weight"), expected)


def test_shards_are_found_by_the_index(tmp_path: Path) -> None:
    kept = tensors()
    folder(tmp_path, {})
    (tmp_path / "model.safetensors").unlink()
    names = sorted(kept)
    index = {name: f"model-{place % 2}.safetensors" for place, name in enumerate(names)}
    for shard in set(index.values()):
        save_file({name: kept[name] for name in names if index[name] == shard}, tmp_path / shard)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    weights = FolderWeights(tmp_path)
    assert all(np.array_equal(weights.tensor(name), kept[name]) for name in names)
    for wrong, reason in (
        ({**index, names[0]: "../model-0.safetensors"}, "not a file name"),
        ({**index, names[0]: index[names[1]]}, "holds no tensor"),
        ({**index, names[0]: "model-9.safetensors"}, "cannot be read"),
        ({**index, names[0]: 5}, "not a file name"),
        ([], "no weight_map"),
    ):
        path.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(ModelError, match=reason):
            FolderWeights(tmp_path)


SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL = "original_max_position_embeddings"
SCALING |= {ORIGINAL: 64}


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"rope_type": "llama3", **SCALING}},
        {"rope_scaling": {"type": "llama3", **SCALING}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "llama3", "rope_theta": 20000.0, **SCALING}},
    ],
)
def test_llama_3_scaling_in_all_its_spellings(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = FolderWeights(folder(tmp_path, **changes)).config
    assert config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 64)
    assert config.rope_theta == 20000.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        *BASE,
        "head_dim",
        "sliding_window",
        "layer_types",
        "use_sliding_window",
        "quantization_config",
        "rope_scaling",
        "rope_parameters",
        "partial_rotary_factor",
        "hidden_act",
        "num_local_experts",
    ]
)
SECTIONS = st.fixed_dictionaries({"rope_type": st.just("llama3"), "factor": JSON, "low_freq_factor": JSON})


@settings(max_examples=300)
@given(changes=st.dictionaries(KEYS, JSON | SECTIONS, min_size=1, max_size=4))
def test_any_configuration_gives_a_model_error_or_a_model(changes: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as at:
        folder(Path(at), TENSORS)
        (Path(at) / "config.json").write_text(json.dumps({**BASE, **changes}))
        try:
            weights = FolderWeights(Path(at))
        except ModelError:  # and no other exception, ever
            return
        assert weights.config.hidden == 32


def test_generation_config_has_the_last_word_on_stop_ids(tmp_path: Path) -> None:
    folder(tmp_path, eos_token_id=[2, 3])
    assert FolderWeights(tmp_path).config.stop_ids == {2, 3}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 5]}))
    assert FolderWeights(tmp_path).config.stop_ids == {4, 5}
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 1}))
    assert FolderWeights(tmp_path).config.stop_ids == {2, 3}


QWEN = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 64}
REFUSED = {
    "an architecture": (
        {"architectures": ["GemmaForCausalLM"]},
        "'GemmaForCausalLM' is not .*Llama",
    ),
    "no architecture": ({"architectures": None}, "'none' is not supported"),
    "a window": (
        {"architectures": ["MistralForCausalLM"], "sliding_window": 64},
        "sliding window .*64 tokens",
    ),
    "a window switched on": ({**QWEN, "use_sliding_window": True}, "sliding window"),
    "a window in its layers": ({**QWEN, "layer_types": ["sliding_attention"]}, "sliding window"),
    "an infinite context": (
        {"rope_scaling": {"type": "llama3", **SCALING, ORIGINAL: float("inf")}},
        ORIGINAL,
    ),
    "yarn": ({"rope_scaling": {"type": "yarn", "factor": 2}}, "rope scaling 'yarn' .*llama3"),
    "half a scaling": ({"rope_scaling": {"type": "llama3", "factor": 2}}, "low_freq_factor is None"),
    "a scaling that is no object": ({"rope_scaling": 5}, "not an object"),
    "partial rotary": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "an activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    "quantised": ({"quantization_config": {"quant_method": "awq"}}, "quantised by 'awq'"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "a text": ({"hidden_size": "32"}, "hidden_size is '32'"),
    "missing": ({"hidden_size": None}, "hidden_size is None"),
    "a shape": ({"intermediate_size": 50}, "mlp.gate_proj.weight has shape"),
    "layers": ({"num_hidden_layers": 3}, "layers.2.input_layernorm.weight is missing"),
    "a stop id": ({"eos_token_id": 40}, "stop id is 40"),
    "stop ids": ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
    "no epsilon": ({"rms_norm_eps": float("nan")}, "norm_eps is nan"),
    "huge": ({"rope_theta": 10**400}, "rope_theta is too large"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, case: str) -> None:
    changes, reason = REFUSED[case]
    with pytest.raises(ModelError, match=reason) as caught:
        FolderWeights(folder(tmp_path, **changes))
    assert str(tmp_path) in str(caught.value)


def test_a_window_that_is_off_or_too_wide_to_matter_is_accepted(tmp_path: Path) -> None:
    kept = tensors(like(qkv_bias=True))
    assert FolderWeights(folder(tmp_path, kept, **QWEN)).config.architecture == "qwen2"
    wide = {"architectures": ["MistralForCausalLM"], "sliding_window": 256}
    assert FolderWeights(folder(tmp_path, **wide)).config.architecture == "llama"


def test_a_bias_that_would_be_lost_is_refused(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.bias"
    zero = {**tensors(), name: np.zeros(32, np.float32)}
    assert not FolderWeights(folder(tmp_path, zero)).config.qkv_bias
    with pytest.raises(ModelError, match=rf"bias {name} is not supported"):
        FolderWeights(folder(tmp_path, {**zero, name: np.ones(32, np.float32)}))


def test_missing_files_say_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model.safetensors"):
        FolderWeights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="pickled weights"):
        FolderWeights(tmp_path)
    save_file(tensors(), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"config.json: cannot be read"):
        FolderWeights(tmp_path)
    for text in ("{", "[]", "\xff"):
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ModelError, match=r"config.json"):
            FolderWeights(tmp_path)
    with pytest.raises(ModelError, match=r"no tokenizer.json"):
        folder_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read as a tokenizer"):
        folder_tokenizer(tmp_path)


def test_a_stored_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    kept = {**tensors(), "lm_head.weight": np.zeros((40, 32), np.int8)}
    weights = FolderWeights(folder(tmp_path, kept))
    with pytest.raises(ModelError, match="stored as I8, which is not supported; supported: F32, F16, BF16"):
        weights.tensor("lm_head.weight")


def raw(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


BAD = {
    "short": (b"abc", "less than the length"),
    "a huge header": (struct.pack("<Q", 1 << 60) + bytes(8), "header claims"),
    "no JSON": (raw(b"{"), "not JSON"),
    "deep JSON": (raw(b"[" * 100_000), "not JSON"),
    "a list": (raw([]), "not a JSON object"),
    "no fields": (raw({"t": {}}), "no dtype"),
    "not an object": (raw({"t": 5}), "no dtype"),
    "past the end": (raw(entry([4], 0, 16), bytes(15)), "truncated"),
    "backwards": (raw(entry([4], 16, 0), bytes(16)), "ends at byte"),
    "a wrong size": (raw(entry([5], 0, 16), bytes(16)), "is not 16 bytes of F32"),
    "negative": (raw(entry([-4], 0, 16), bytes(16)), "out of range"),
    "a fraction": (raw(entry([4.0], 0, 16), bytes(16)), "out of range"),
    "a huge shape": (raw(entry([1 << 40, 1 << 40], 0, 16), bytes(16)), "is not 16 bytes"),
    "a huge number": (raw(entry([4], 0, 10**30), bytes(16)), "truncated"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_a_bad_safetensors_file_is_refused(tmp_path: Path, case: str) -> None:
    data, reason = BAD[case]
    path = tmp_path / "t.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=reason) as caught:
        TensorFile(path)
    assert str(path) in str(caught.value)


WHOLE = save({"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, np.float16)})


@settings(max_examples=300)
@given(data=st.data())
def test_damage_gives_a_model_error_or_tensors(data: st.DataObject) -> None:
    damaged = bytearray(WHOLE)
    for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    with tempfile.TemporaryDirectory() as at_folder:
        path = Path(at_folder) / "t.safetensors"
        path.write_bytes(damaged)
        try:
            file = TensorFile(path)
            for name in file.tensors:
                file.floats(name)
        except ModelError:  # and no other exception, ever
            pass
