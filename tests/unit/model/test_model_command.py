"""`superinfer-trt model get|info`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from superinfer_trt.cli import main
from superinfer_trt.model import cache as cache_module
from superinfer_trt.model.cache import KnownModel
from superinfer_trt.model.folder import folder_tokenizer
from superinfer_trt.model.open import open_model
from support.gguf_writer import tiny_model


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model file that is known as `tiny`."""
    path = tiny_model("llama", experts="merged").write(tmp_path / "tiny.gguf")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    known = KnownModel("tiny", "Tiny", "d", "1", "tiny_pkg", path.name, len(data), digest, "MIT")
    monkeypatch.setattr(cache_module, "KNOWN_MODELS", {"tiny": known})
    return path


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `superinfer-trt model ...`; its exit code, and what it wrote to either stream."""

    def command(*words: str) -> tuple[int, str]:
        code = main.run(["model", *words])
        return code, "".join(capsys.readouterr())

    return command


def test_get_puts_the_file_in_place_and_says_where(run: Run, tiny: Path, tmp_path: Path) -> None:
    where = ("--cache-dir", str(tmp_path / "cache"))
    code, output = run("get", "tiny", "--from", str(tiny), "--json", *where)
    assert code == 0
    answer = json.loads(output)
    assert Path(answer["path"]).read_bytes() == tiny.read_bytes()
    assert (answer["model"], answer["bytes"], answer["licence"]) == ("tiny", tiny.stat().st_size, "MIT")
    code, output = run("get", "tiny", *where)
    assert code == 0
    assert answer["path"] in output.replace("\n", "")


def test_get_of_an_unknown_name_is_one_line(run: Run, tmp_path: Path) -> None:
    code, output = run("get", "gpt9", "--cache-dir", str(tmp_path))
    assert code == 1
    assert output == "error: model 'gpt9' is not known; known: smollm2\n"


def test_info_for_programs(run: Run, tiny: Path) -> None:
    code, output = run("info", str(tiny), "--json")
    assert code == 0
    facts = json.loads(output)
    assert (facts["architecture"], facts["layers"], facts["experts"]) == ("mixtral", 2, 3)
    assert facts["kv_bytes_per_token"] == 2 * 2 * 2 * 8 * 2  # layers, K and V, heads, size, bytes
    assert facts["block_bytes"] == 16 * facts["kv_bytes_per_token"]
    assert facts["blocks_for_tokens"] == {"128": 8}
    assert facts["parameters"] == sum(facts["storage"].values())
    assert facts["chat_template"] is True


def test_info_follows_block_size_and_type(run: Run, tiny: Path) -> None:
    facts = json.loads(run("info", str(tiny), "--json", "--block-tokens", "48", "--kv-dtype", "fp32")[1])
    assert facts["kv_bytes_per_token"] == 2 * 2 * 2 * 8 * 4
    assert facts["blocks_for_tokens"] == {"128": 3}


def test_info_for_people(run: Run, tiny: Path) -> None:
    code, output = run("info", str(tiny))
    assert code == 0
    for word in ("mixtral", "experts", "bytes a token", "16 tokens", "F32 100.0 %"):
        assert word in output


def test_info_of_a_corrupt_file_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03")
    code, output = run("info", str(tmp_path / "bad.gguf"))
    assert code == 1
    assert output.startswith("error: ")
    assert output.count("\n") == 1


def test_the_tokenizer_as_files(run: Run, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "tokenizer"
    code, out = run("tokenizer", str(tiny), str(folder))
    assert (code, out) == (0, f"{folder}: tokenizer.json, tokenizer_config.json\n")
    assert folder_tokenizer(folder).encode("hello") == open_model(str(tiny)).tokenizer.encode("hello")
