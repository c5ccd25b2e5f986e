"""Hardware and models: the paper's pools, shapes out of config.json, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sim.model_file import find_model, model_shape
from superinfer_trt.sim.profiles import MODELS, find_hardware, pool_blocks

QWEN: dict[str, Any] = {
    "hidden_size": 5120,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "intermediate_size": 27648,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
MIXTRAL: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


@pytest.mark.parametrize(
    ("model", "hbm", "dram"),
    [("qwen2.5-32b", 12_421, 95_367), ("llama-3-8b", 48_418, 190_734), ("mixtral-8x7b", 11_539, 190_734)],
)
def test_pools_are_the_papers(model: str, hbm: int, dram: int) -> None:
    blocks = pool_blocks(find_hardware("gh200-144gb"), MODELS[model], 16)
    assert blocks == pytest.approx((hbm, dram), rel=0.002)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no room for KV on h100-pcie5"):
        pool_blocks(find_hardware("h100-pcie5"), MODELS["mixtral-8x7b"], 16)


def test_hardware_can_be_changed_by_name() -> None:
    custom = find_hardware("custom", {"hbm_bytes": 1e12})
    assert (custom.name, custom.hbm_bytes) == ("custom", 1e12)
    with pytest.raises(ConfigError, match="known: gh200-144gb"):
        find_hardware("gh9000")
    with pytest.raises(ConfigError, match="'colour' is unknown"):
        find_hardware("gb200", {"colour": 1})
    with pytest.raises(ConfigError, match="hbm_bytes is 'big'"):
        find_hardware("gb200", {"hbm_bytes": "big"})
    with pytest.raises(ConfigError, match="name"):
        find_hardware("gb200", {"name": "x"})


@pytest.mark.parametrize(
    ("config", "known"), [(QWEN, "qwen2.5-32b"), (MIXTRAL, "mixtral-8x7b")], ids=["dense", "experts"]
)
def test_a_config_gives_the_shape_that_is_known(config: dict[str, Any], known: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    found, expected = find_model(str(tmp_path)), MODELS[known]
    assert found.parameters == pytest.approx(expected.parameters, rel=0.005)
    assert found.active_parameters == pytest.approx(expected.active_parameters, rel=0.03)
    assert found.geometry(16) == expected.geometry(16)
    assert found.expert_share == expected.expert_share
    assert found.dense_share == pytest.approx(expected.dense_share, abs=0.01)
    assert find_model(str(tmp_path / "config.json")) == found


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"torch_dtype": "int3"}, "int3"),
        ({"num_local_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok"),
    ],
)
def test_a_wrong_config_is_refused_by_field(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        model_shape({**QWEN, **change}, "config.json")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="JSON"):
        find_model(str(tmp_path))


def test_an_unknown_model_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"known .*mixtral"):
        find_model("gpt-9")
