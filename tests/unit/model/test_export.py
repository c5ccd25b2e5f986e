"""A model written as a folder is the model that is read from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from superinfer_trt.core.errors import ModelError
from superinfer_trt.core.model import ModelConfig, RopeScaling
from superinfer_trt.model.export import STORAGE_TYPES, config_json, stored_bytes, write_folder
from superinfer_trt.model.open import OpenModel, open_model
from superinfer_trt.model.shapes import tensor_shapes
from support.gguf_writer import tiny_model


@pytest.fixture
def tiny(tmp_path: Path) -> OpenModel:
    return open_model(str(tiny_model().write(tmp_path / "tiny.gguf")))


def test_a_gguf_file_becomes_a_folder(tiny: OpenModel, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    folder = tmp_path / "folder"
    written = write_folder(tiny, folder, "fp32", lambda done, total: told.append((done, total)))
    again = open_model(str(folder))
    assert replace(again.config, name="tiny") == tiny.config
    assert told[-1] == (written, written)
    read = load_file(folder / "model.safetensors")
    for name, shape in tensor_shapes(tiny.config):
        assert read[name].shape == shape
        np.testing.assert_array_equal(read[name], tiny.weights.tensor(name))
        np.testing.assert_array_equal(again.weights.tensor(name), tiny.weights.tensor(name))
    assert again.tokenizer.encode("hello") == tiny.tokenizer.encode("hello")
    assert again.tokenizer.decode([40, 41]) == tiny.tokenizer.decode([40, 41])


@pytest.mark.parametrize(("dtype", "error"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_narrow_weights_are_the_nearest(tiny: OpenModel, tmp_path: Path, dtype: str, error: float) -> None:
    folder = tmp_path / dtype
    write_folder(tiny, folder, dtype)
    again = open_model(str(folder))
    assert set(again.storage) == {STORAGE_TYPES[dtype].safetensors}
    for name, _ in tensor_shapes(tiny.config):
        given, kept = tiny.weights.tensor(name), again.weights.tensor(name)
        assert (np.abs(given - kept) <= np.abs(given) * error + 1e-7).all()


def test_bf16_rounds_to_nearest_ties_to_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF808001], dtype="<u4")
    data = stored_bytes(bits.view("<f4"), STORAGE_TYPES["bf16"], "w")
    assert np.frombuffer(data, "<u2").tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0xBF81]


def test_what_fp16_cannot_hold_is_refused() -> None:
    with pytest.raises(ModelError, match="w: has values that fp16 cannot hold"):
        stored_bytes(np.array([1e6], np.float32), STORAGE_TYPES["fp16"], "w")


def test_a_folder_that_is_there_is_left_alone(tiny: OpenModel, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(ModelError, match="is there already"):
        write_folder(tiny, tmp_path)
    assert (tmp_path / "mine").read_text() == "keep"


def test_all_of_a_configuration_is_written(tiny: OpenModel) -> None:
    scaling = RopeScaling(8.0, 1.0, 4.0, 8192)
    config: ModelConfig = replace(
        tiny.config, architecture="mixtral", experts=4, experts_per_token=2, rope_scaling=scaling, bos_id=1
    )
    made = json.loads(json.dumps(config_json(config, STORAGE_TYPES["bf16"])))
    assert made["architectures"] == ["MixtralForCausalLM"]
    assert (made["num_local_experts"], made["num_experts_per_tok"], made["bos_token_id"]) == (4, 2, 1)
    assert made["rope_scaling"]["original_max_position_embeddings"] == 8192
    with pytest.raises(ModelError, match="llama with biases"):
        config_json(replace(tiny.config, qkv_bias=True), STORAGE_TYPES["bf16"])
