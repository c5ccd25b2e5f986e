"""Configurations and tensors out of GGUF files, against models written by the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from superinfer_trt.core.errors import ModelError
from superinfer_trt.core.model import RopeScaling
from superinfer_trt.model.gguf_model import llama3_factors, open_gguf
from superinfer_trt.model.shapes import parameter_count, tensor_shapes
from support.gguf_writer import HEADS, KV_HEADS, Tiny, array, tiny_model, value

CASES = [("llama", ""), ("llama", "merged"), ("llama", "split"), ("qwen2", "")]


@pytest.mark.parametrize(("family", "experts"), CASES)
@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_comes_back_under_its_hugging_face_name(
    tmp_path: Path, family: str, experts: str, tied: bool
) -> None:
    tiny = tiny_model(family, experts=experts, tied=tied)
    weights = open_gguf(tiny.write(tmp_path / "m.gguf"))
    config = weights.config
    assert config.architecture == ("mixtral" if experts else family)
    assert config.tied_embedding is tied
    assert config.qkv_bias is (family == "qwen2")
    assert dict(tensor_shapes(config)) == {name: kept.shape for name, kept in tiny.expected.items()}
    for name, kept in tiny.expected.items():
        found = weights.tensor(name)
        assert np.array_equal(found, kept), name
        assert found.flags.c_contiguous
        assert found.dtype == np.float32
    assert parameter_count(config) == sum(kept.size for kept in tiny.expected.values())


def test_the_configuration_is_read_as_written(tmp_path: Path) -> None:
    config = open_gguf(tiny_model().write(tmp_path / "m.gguf")).config
    assert (config.name, config.layers, config.hidden, config.intermediate) == ("tiny", 2, 32, 64)
    assert (config.heads, config.kv_heads, config.head_dim) == (HEADS, KV_HEADS, 8)
    assert (config.context_tokens_max, config.rope_theta, config.norm_eps) == (128, 10000.0, 1e-5)
    assert (config.bos_id, config.stop_ids, config.rope_scaling) == (1, frozenset({2}), None)


def test_what_is_not_there_is_a_model_error(tmp_path: Path) -> None:
    weights = open_gguf(tiny_model("llama", experts="merged", tied=True).write(tmp_path / "m.gguf"))
    for name in (
        "lm_head.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.block_sparse_moe.experts.3.w1.weight",
        "blk.0.attn_q.weight",
        "",
    ):
        with pytest.raises(ModelError, match="no "):
            weights.tensor(name)


def changed(tiny: Tiny, **metadata: Any) -> Tiny:
    for key, given in metadata.items():
        tiny.metadata[key.replace("__", ".")] = given
    return tiny


REFUSED = {
    "an architecture": (
        {"general__architecture": "gemma3"},
        "'gemma3' is not .*: llama, qwen2",
    ),
    "a sliding window": ({"llama__attention__sliding_window": 64}, "sliding window attention .64 tokens"),
    "yarn": ({"llama__rope__scaling__type": "yarn"}, "rope scaling 'yarn'"),
    "linear scaling": (
        {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 2.0},
        "rope scaling 'linear'",
    ),
    "partial rotary": ({"llama__rope__dimension_count": 4}, "rope.dimension_count is 4"),
    "another value size": ({"llama__attention__value_length": 4}, "value_length is 4"),
    "heads per layer": ({"llama__attention__head_count": [4, 2]}, "differs between layers"),
    "no heads": ({"llama__attention__head_count": 0}, "head_count is 0"),
    "kv heads": ({"llama__attention__head_count_kv": 3}, "kv_heads is 3, expected a divisor of 4"),
    "no layers": ({"llama__block_count": 0}, "layers is 0"),
    "more layers than tensors": ({"llama__block_count": 1 << 31}, "layers is 2147483648"),
    "one layer too many": ({"llama__block_count": 3}, "model.layers.2.input_layernorm.weight is missing"),
    "a wrong size": (
        {"llama__feed_forward_length": 96},
        r"gate_proj.weight has shape \[64, 32\]",
    ),
    "another width": ({"llama__embedding_length": 64}, "not the embedding_length"),
    "no epsilon": ({"llama__attention__layer_norm_rms_epsilon": 0.0}, "norm_eps is 0.0"),
    "an infinite base": ({"llama__rope__freq_base": float("inf")}, "rope_theta is inf"),
    "a text for a number": ({"llama__block_count": "two"}, "'llama.block_count' is not a whole number"),
    "true for a number": ({"llama__block_count": True}, "'llama.block_count' is not a whole number"),
    "a stop id": ({"tokenizer__ggml__eos_token_id": 70000}, "stop id is 70000"),
    "a bos id": ({"tokenizer__ggml__bos_token_id": 70000}, "bos_id is 70000"),
    "experts in qwen2": ({"general__architecture": "qwen2", "qwen2__expert_count": 4}, "qwen2"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, case: str) -> None:
    metadata, reason = REFUSED[case]
    path = changed(tiny_model(), **metadata).write(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=reason) as caught:
        open_gguf(path)
    assert str(path) in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    tiny = tiny_model()
    del tiny.metadata["llama.context_length"]
    with pytest.raises(ModelError, match=r"'llama.context_length' is missing"):
        open_gguf(tiny.write(tmp_path / "m.gguf"))


def test_settings_that_change_nothing_are_accepted(tmp_path: Path) -> None:
    tiny = changed(
        tiny_model(),
        llama__attention__sliding_window=128,
        llama__rope__scaling__type="linear",
        llama__rope__scaling__factor=1.0,
        llama__rope__dimension_count=8,
        llama__attention__head_count=array("u32", [HEADS, HEADS]),
        llama__context_length=value(128),
    )
    assert open_gguf(tiny.write(tmp_path / "m.gguf")).config.heads == HEADS


def test_llama_3_scaling_is_recovered_from_its_factors(tmp_path: Path) -> None:
    tiny = changed(tiny_model(), llama__rope__freq_base=500000.0)
    config = open_gguf(tiny.write(tmp_path / "plain.gguf")).config
    scaling = RopeScaling(32.0, 1.0, 4.0, 8192)
    tiny.tensors["rope_freqs.weight"] = llama3_factors(scaling, config)
    assert open_gguf(tiny.write(tmp_path / "scaled.gguf")).config.rope_scaling == scaling
    tiny.tensors["rope_freqs.weight"] = np.ones(4, np.float32)
    assert open_gguf(tiny.write(tmp_path / "ones.gguf")).config.rope_scaling is None
    for odd in (np.array([1, 2, 3, 4]), np.array([1, 1, 1, np.nan]), np.ones(8)):
        tiny.tensors["rope_freqs.weight"] = odd.astype(np.float32)
        with pytest.raises(ModelError, match=r"rope_freqs.weight"):
            open_gguf(tiny.write(tmp_path / "odd.gguf"))


def test_llama_3_factors_are_one_for_fast_pairs_and_the_factor_for_slow_ones(tmp_path: Path) -> None:
    tiny = changed(tiny_model(), llama__rope__freq_base=500000.0)
    config = open_gguf(tiny.write(tmp_path / "m.gguf")).config
    factors = llama3_factors(RopeScaling(8.0, 1.0, 4.0, 8192), config)
    # pairs turn with 1, 0.0376, 0.00141 and 0.0000532 radians a token: 1304, 49, 1.84 and 0.07 turns in 8192
    assert factors[:2].tolist() == [1.0, 1.0]
    assert factors[3] == 8.0
    turns = 8192 * 500000.0 ** (-4 / 8) / (2 * np.pi)
    smooth = (turns - 1.0) / 3.0
    assert factors[2] == pytest.approx(1 / ((1 - smooth) / 8 + smooth), rel=1e-5)


def test_turn_ends_of_a_pre_tokenizer_are_stop_ids(tmp_path: Path) -> None:
    tiny = changed(tiny_model("qwen2"), tokenizer__ggml__pre="qwen2")
    assert open_gguf(tiny.write(tmp_path / "m.gguf")).config.stop_ids == {0, 2}
