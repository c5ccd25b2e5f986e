"""YAML and flags to a configuration, or one line that names field and limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from superinfer_trt import config
from superinfer_trt.config import Config, load
from superinfer_trt.core.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def test_defaults_are_a_configuration_that_reads_itself(tmp_path: Path) -> None:
    made = load()
    assert made == Config()
    assert load(written(tmp_path, config.dump(made))) == made
    assert load(written(tmp_path, "")) == made


def test_a_flag_wins_over_the_file_and_an_absent_one_does_not(tmp_path: Path) -> None:
    path = written(tmp_path, "pools: {hbm_blocks: 8, dram_blocks: 9}\nscheduling: {policy: fcfs}\n")
    made = load(path, {"pools.hbm_blocks": 64, "pools.dram_blocks": None, "scheduling.parameters.alpha": 2})
    assert (made.pools.hbm_blocks, made.pools.dram_blocks) == (64, 9)
    assert (made.scheduling.policy, made.scheduling.parameters) == ("fcfs", {"alpha": 2})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"pools.hbm_blocks": 0}, ["pools.hbm_blocks", "greater than or equal to 1", "not 0"]),
        ({"pools.hbm_blocks": "many"}, ["pools.hbm_blocks", "integer", "'many'"]),
        ({"pools.blocks": 1}, ["pools.blocks", "unknown field", "block_tokens", "hbm_blocks"]),
        (
            {"pool.hbm_blocks": 1},
            ["pool", "unknown field", "engine, model, pools, scheduling, service", "trtllm"],
        ),
        ({"engine.name": "torch"}, ["engine.name", "'native', 'sim', 'pattern' or 'trtllm'", "'torch'"]),
        (
            {"engine.tp": 2, "engine.name": "sim"},
            ["engine.tp", "2 ranks have nothing to share in the engine sim"],
        ),
        ({"service.port": 65536}, ["service.port", "65535"]),
        ({"service.drain_timeout_s": float("nan")}, ["service.drain_timeout_s", "finite"]),
        ({"scheduling.ttft_slo_ms": float("inf")}, ["scheduling.ttft_slo_ms", "finite"]),
        ({"scheduling.tbt_slo_ms": 0}, ["scheduling.tbt_slo_ms", "greater than 0"]),
        ({"scheduling.depth": 3}, ["scheduling.depth", "1 or 2"]),
        ({"scheduling.policy": "Bad Name"}, ["scheduling.policy", "pattern"]),
        ({"scheduling.step_tokens": 8}, ["scheduling.step_tokens", "8 is less than scheduling.seats (64)"]),
        ({"pools": 3}, ["pools", "dictionary"]),
        ({"pools": 3, "pools.hbm_blocks": 1}, ["pools.hbm_blocks", "pools is not a section"]),
        ({"engine.step_cost.c0": "x"}, ["engine.step_cost.c0", "number"]),
    ],
)
def test_refusals_name_field_and_limit(flags: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, flags)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {"pools.hbm_blocks": 0, "service.port": -1})
    assert "pools.hbm_blocks" in str(caught.value)
    assert "service.port" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "must be a mapping of sections"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("x" * ((1 << 20) + 1), "larger than 1048576 bytes"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.yaml")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_configuration_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("c") / "c.yaml"
    path.write_bytes(data)
    try:
        load(path)
    except ConfigError as error:
        refused = str(error)
        assert refused


def test_it_is_frozen() -> None:
    made = load()
    with pytest.raises(ValidationError):
        made.pools.hbm_blocks = 3  # type: ignore[misc]


def test_every_field_is_described_and_they_stay_few() -> None:
    rows = list(config.describe())
    assert 20 <= len(rows) <= 60
    assert all(text for _, _, _, text in rows)
    assert {row[0]: row[2] for row in rows}["scheduling.depth"] == "1 | 2"


@pytest.mark.parametrize(
    ("host", "flag", "reflects"),
    [
        ("127.0.0.1", None, True),
        ("::1", None, True),
        ("localhost", None, True),
        ("0.0.0.0", None, False),
        ("0.0.0.0", True, True),
        ("127.0.0.1", False, False),
    ],
)
def test_reflection_is_for_loopback_unless_said(host: str, flag: bool | None, reflects: bool) -> None:
    made = load(None, {"service.host": host, "service.reflection": flag})
    assert made.service.reflects is reflects
