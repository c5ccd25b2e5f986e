"""The embedded model itself. Ids and texts were recorded from transformers' tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.model.cache import ModelCache, known_model
from superinfer_trt.model.open import OpenModel, open_model
from superinfer_trt.model.shapes import parameter_count, tensor_shapes

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        ModelCache().find(known_model("smollm2")) is None,
        reason="smollm2 is not in the cache (superinfer-trt model get smollm2)",
    ),
]


@pytest.fixture(scope="module")
def model() -> OpenModel:
    return open_model("smollm2")


def test_its_shape(model: OpenModel) -> None:
    config = model.config
    assert (config.architecture, config.layers, config.hidden, config.intermediate) == (
        "llama",
        30,
        576,
        1536,
    )
    assert (config.heads, config.kv_heads, config.head_dim, config.vocabulary) == (9, 3, 64, 49152)
    assert (config.context_tokens_max, config.rope_theta, config.norm_eps) == (8192, 100000.0, 1e-5)
    assert (config.tied_embedding, config.stop_ids, config.bos_id) == (True, {2}, 1)
    assert parameter_count(config) == 134_515_008
    assert config.geometry(16, 2).block_bytes == 368_640


def test_every_tensor_is_finite_and_of_its_shape(model: OpenModel) -> None:
    for name, shape in tensor_shapes(model.config):
        values = model.weights.tensor(name)
        assert values.shape == shape
        assert np.isfinite(values).all(), name


TEXTS = {
    "Hello world": [19556, 905],
    "Hello  world": [19556, 216, 905],
    "1234567890 12.5%": [33, 34, 35, 36, 37, 38, 39, 40, 41, 32, 216, 33, 34, 30, 37, 21],
}


def test_ids(model: OpenModel) -> None:
    for text, ids in TEXTS.items():
        assert model.tokenizer.encode(text) == ids
        assert model.tokenizer.decode(ids) == text


def test_a_conversation(model: OpenModel) -> None:
    ids = model.tokenizer.chat([{"role": "user", "content": "hi"}])
    assert ids[:4] == [1, 9690, 198, 2683]  # <|im_start|>system\nYou
    assert ids[-6:] == [2, 198, 1, 520, 9531, 198]  # <|im_end|>\n<|im_start|>assistant\n
    assert model.tokenizer.decode(ids).startswith(
        "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\nuser\nhi"
    )


# the vocabulary has no token for seven control characters and for the first bytes beyond U+3FFFF
WRITABLE = st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t", max_codepoint=0x3FFFF)


@given(text=st.text(WRITABLE, max_size=60))
def test_text_comes_back(model: OpenModel, text: str) -> None:
    ids = model.tokenizer.encode(text)
    stream = model.tokenizer.stream()
    assert model.tokenizer.decode(ids) == text
    assert "".join([stream.push(id) for id in ids] + [stream.finish()]) == text


@given(ids=st.lists(st.integers(0, 49_151), max_size=40))
def test_a_stream_of_any_ids_equals_decode(model: OpenModel, ids: list[int]) -> None:
    stream = model.tokenizer.stream()
    assert "".join([stream.push(id) for id in ids] + [stream.finish()]) == model.tokenizer.decode(ids)
