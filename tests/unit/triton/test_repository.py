"""The model repository on disk, and the command that writes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from superinfer_trt import config
from superinfer_trt.cli.main import run
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.triton.repository import MARK, Model, config_text, write_repository
from superinfer_trt.triton.tensors import FACES, IDS, LLMAPI, TEXT


def parameter(folder: Path, name: str) -> str:
    found = re.search(
        rf'key: "{name}" value: {{ string_value: "([^"]*)"', (folder / "config.pbtxt").read_text()
    )
    assert found is not None
    return found[1]


@pytest.mark.parametrize("face", FACES.values(), ids=lambda face: face.name)
def test_names_are_told_once(face) -> None:
    for tensors in (face.inputs, face.outputs):
        names = [one.name for one in tensors]
        assert len(names) == len(set(names))


def test_the_configuration_is_that_of_tensorrt_llm() -> None:
    ids = config_text(Model(IDS, "tensorrt_llm", max_batch_size=8, max_queue_size=50))
    assert "max_batch_size: 8" in ids
    assert "decoupled: true" in ids
    assert "max_queue_size: 50" in ids
    assert (
        '{ name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] optional: true allow_ragged_batch: true }'
        in ids
    )
    assert '{ name: "request_output_len" data_type: TYPE_INT32 dims: [ 1 ] reshape { shape: [ ] } }' in ids
    assert '{ name: "output_ids" data_type: TYPE_INT32 dims: [ -1, -1 ] }' in ids
    text = config_text(Model(TEXT, "ensemble"))
    assert '{ name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }' in text
    for genai_perf in ("max_tokens", "stream", "exclude_input_in_output", "min_length", "text_output"):
        assert f'name: "{genai_perf}"' in text
    assert "max_batch_size: 0" in config_text(Model(LLMAPI, "tensorrt_llm"))


def test_a_value_with_quotes_stays_one_value() -> None:
    assert r'string_value: "a\"b\\c\nd"' in config_text(Model(IDS, "m", {"x": 'a"b\\c\nd'}))


def test_somebody_elses_folder_is_not_touched(tmp_path: Path) -> None:
    theirs = tmp_path / "ensemble" / "config.pbtxt"
    theirs.parent.mkdir()
    theirs.write_text("theirs")
    with pytest.raises(ConfigError, match="was not written by this command"):
        write_repository(tmp_path, [Model(IDS, "tensorrt_llm"), Model(TEXT, "ensemble")])
    assert theirs.read_text() == "theirs"
    assert not (tmp_path / "tensorrt_llm").exists()


def test_it_can_be_written_again_and_then_has_nothing_left_over(tmp_path: Path) -> None:
    write_repository(tmp_path, [Model(IDS, "m", executor_yaml="engine: {}\n")])
    assert (tmp_path / "m" / "1" / "executor.yaml").is_file()
    write_repository(tmp_path, [Model(IDS, "m")])
    assert sorted(path.name for path in (tmp_path / "m").rglob("*") if path.is_file()) == [
        "config.pbtxt",
        "model.py",
    ]
    assert (tmp_path / "m" / "1" / "model.py").read_text().startswith(MARK)


def test_proxies_know_their_target_and_one_model_reports(tmp_path: Path) -> None:
    assert (
        run(["triton", "repo", "--out", str(tmp_path), "--target", "10.0.0.7:9", "--name=ensemble=text"]) == 0
    )
    for name, face in (("tensorrt_llm", "ids"), ("text", "text")):
        assert parameter(tmp_path / name, "superinfer_target") == "10.0.0.7:9"
        assert parameter(tmp_path / name, "superinfer_mode") == "proxy"
        assert parameter(tmp_path / name, "superinfer_face") == face
    assert parameter(tmp_path / "tensorrt_llm", "stats_check_period_ms") == "500"
    assert parameter(tmp_path / "text", "stats_check_period_ms") == "0"


def test_in_process_one_model_runs_the_executor_and_the_other_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--mode=in-process", "--engine=sim", "--port=50077", "--hbm-blocks=77", "--trace-file=plans"]
    assert run(["triton", "repo", "--out=repo", *flags]) == 0
    made = config.load(tmp_path / "repo" / "tensorrt_llm" / "1" / "executor.yaml")
    assert (made.engine.name, made.pools.hbm_blocks, made.service.port) == ("sim", 77, 50077)
    assert made.scheduling.trace_file == tmp_path / "plans"
    assert parameter(tmp_path / "repo" / "tensorrt_llm", "superinfer_mode") == "in-process"
    assert parameter(tmp_path / "repo" / "ensemble", "superinfer_target") == "127.0.0.1:50077"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--engine=sim"], "--mode proxy"),
        (["--mode=in-process", "--target=a:1"], "--target"),
        (["--mode=in-process", "--engine=sim", "--port=0"], "service.port"),
        (["--name=other=x"], "--name"),
        (["--name=ensemble=tensorrt_llm"], "--name"),
        (["--name=ensemble=../x"], "--name"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, capsys, flags: list[str], told: str) -> None:
    assert run(["triton", "repo", "--out", str(tmp_path / "repo"), *flags]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "repo").exists()
