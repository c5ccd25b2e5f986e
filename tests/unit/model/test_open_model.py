"""One door: paths, known names, hub ids, and what is said when nothing is found."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models

from superinfer_trt.core.errors import ModelError
from superinfer_trt.model import cache as cache_module
from superinfer_trt.model.cache import ModelCache, known_model
from superinfer_trt.model.open import open_model
from support.gguf_writer import byte_level_metadata, tiny_model


def hf_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    tiny = tiny_model()
    save_file(tiny.expected, path / "model.safetensors")
    tokens = byte_level_metadata()["tokenizer.ggml.tokens"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokens),
        "max_position_embeddings": 128,
    }
    (path / "config.json").write_text(json.dumps(config))
    backend = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, []))
    backend.decoder = decoders.ByteLevel()
    backend.save(str(path / "tokenizer.json"))
    return path


def test_a_gguf_file(tmp_path: Path) -> None:
    tiny = tiny_model()
    path = tiny.write(tmp_path / "m.gguf")
    model = open_model(str(path))
    assert (model.source, model.config.name, model.file_bytes) == (str(path), "tiny", path.stat().st_size)
    assert model.storage == {"F32": sum(kept.size for kept in tiny.expected.values())}
    assert np.array_equal(model.weights.tensor("lm_head.weight"), tiny.expected["lm_head.weight"])
    assert model.weights.config == model.config
    assert model.tokenizer.decode(model.tokenizer.encode("hello")) == "hello"


def test_a_gguf_file_of_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().write(tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    assert open_model("weights").config.name == "tiny"


def test_a_folder(tmp_path: Path) -> None:
    model = open_model(str(hf_folder(tmp_path / "tiny-llama")))
    assert (model.config.name, model.config.architecture) == ("tiny-llama", "llama")
    assert model.tokenizer.stream().push(model.tokenizer.encode("h")[0]) == "h"


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    tiny = tiny_model()
    tiny.metadata["tokenizer.ggml.tokens"] = [*tiny.metadata["tokenizer.ggml.tokens"], "one", "two"]
    tiny.metadata["tokenizer.ggml.token_type"] = [*tiny.metadata["tokenizer.ggml.token_type"], 1, 1]
    with pytest.raises(ModelError, match="the tokenizer has 267 ids, the embedding only 265 rows"):
        open_model(str(tiny.write(tmp_path / "m.gguf")))


def test_a_known_name_that_is_not_fetched_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "installed_file", lambda _model: None)
    with pytest.raises(ModelError, match="run `superinfer-trt model get smollm2`"):
        open_model("smollm2", tmp_path)
    partial = ModelCache(tmp_path).path(known_model("smollm2"))
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="run `superinfer-trt model get smollm2`"):
        open_model("smollm2", tmp_path)


@pytest.mark.parametrize("name", ["missing.gguf", "/no/such/folder", "./here", "~/nowhere-at-all"])
def test_a_path_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        open_model(name, tmp_path)


@pytest.mark.parametrize("name", ["gpt9", "", "a/b/c", "-x/y"])
def test_a_name_that_means_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError):
        open_model(name, tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model.safetensors"):
        open_model(str(tmp_path))


def hub(monkeypatch: pytest.MonkeyPatch, download: Any) -> None:
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_hub_id_is_downloaded_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(id: str, *, cache_dir: Path, allow_patterns: list[str]) -> str:
        asked.append((id, cache_dir, allow_patterns))
        return str(hf_folder(cache_dir / "snapshot"))

    hub(monkeypatch, download)
    assert open_model("owner/name-1.5B", tmp_path).config.architecture == "llama"
    ((id, cache_dir, patterns),) = asked
    assert (id, cache_dir) == ("owner/name-1.5B", tmp_path / "hub")
    assert "config.json" in patterns
    assert not any("bin" in pattern for pattern in patterns)


def test_hub_trouble_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host\nand much more")

    hub(monkeypatch, fails)
    with pytest.raises(ModelError, match=r"ConnectionError: no route to host\); give the path") as caught:
        open_model("owner/name", tmp_path)
    assert "\n" not in str(caught.value)


def test_without_the_hub_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"pip install 'superinfer-trt\[hub\]'"):
        open_model("owner/name", tmp_path)
