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


def test_reflection_is_off_unless_asked_for() -> None:
    assert not load().service.reflection
    assert load(None, {"service.reflection": True}).service.reflection


SECURE = {"service.tls_cert": "c", "service.tls_key": "k", "service.auth_file": "t"}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    assert load(None, {"service.host": host, "service.metrics_host": host, "service.metrics_port": 1})


@pytest.mark.parametrize("name", ["host", "metrics_host"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "127.example.org"])
@pytest.mark.parametrize("missing", [("auth_file",), ("tls_cert", "tls_key"), tuple(n[8:] for n in SECURE)])
def test_beyond_loopback_needs_tls_and_somebody_who_asks(
    name: str, host: str, missing: tuple[str, ...]
) -> None:
    flags = {**SECURE, f"service.{name}": host, "service.metrics_port": 1}
    assert load(None, flags)
    left = {key: value for key, value in flags.items() if key.removeprefix("service.") not in missing}
    with pytest.raises(ConfigError, match=rf"service: {name}: {host} is beyond loopback"):
        load(None, left)
    assert load(None, {**left, "service.insecure": True})
    with pytest.raises(ConfigError, match="insecure"):
        load(None, {**left, "service.insecure": False})


def test_clients_certificates_are_enough_and_a_metrics_host_without_a_port_is_nothing() -> None:
    by_certificate = {**SECURE, "service.auth_file": None, "service.tls_client_ca": "a"}
    assert load(None, {**by_certificate, "service.host": "0.0.0.0"})
    assert load(None, {"service.metrics_host": "0.0.0.0"})


@pytest.mark.parametrize("given", [{"tls_cert": "c"}, {"tls_key": "k"}, {"tls_client_ca": "a"}])
def test_halves_of_tls_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="tls_"):
        load(None, {f"service.{name}": value for name, value in given.items()})
