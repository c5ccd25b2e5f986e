"""The output file of a run: appended to, made durable, taken up again after any end of the process.

A line is done when it stands in the output, whole. Beside the output stands `<output>.state.json`: which
input and which settings the lines in it are of. A killed process leaves a torn last line at worst, a power
failure a torn tail; both are cut at the next start, and their requests run again. Two processes never write
one output: it is locked. Knows no request. `append` and the rest belong to one thread, but `sync` may run
beside them.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from superinfer_trt.batch.lines import LineSet
from superinfer_trt.core.errors import ConfigError, SuperInferError

FORMAT = 1
STATE_SUFFIX = ".state.json"
_STATE_BYTES_MAX = 1 << 20
_TORN_LINES_MAX = 1000  # whole lines of rubbish at the end that a power failure may leave


class OutputFailed(SuperInferError):
    """The output can no longer be written (a full disk)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What the lines of an output are of. `settings`: all that may change a result."""

    input_sha256: str
    settings: Mapping[str, Any]


@dataclass(slots=True)
class Found:
    """What stood in the output. `failed`: of `done`, lines without an answer. `cut_bytes`: a torn tail."""

    done: LineSet = field(default_factory=LineSet)
    failed: int = 0
    cut_bytes: int = 0


class Journal:
    """An open, locked output. Close it."""

    def __init__(self, output: Path, identity: Identity, *, restart: bool = False) -> None:
        """Raises ConfigError: another run has it, it is of another input or of other settings, or it is no
        output of a run. `restart`: throws away what is there."""
        self.output = output
        self.state = output.with_name(output.name + STATE_SUFFIX)
        self.found = Found()
        try:
            self._fd = os.open(output, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"{output}: cannot be written ({error.strerror})") from None
        try:
            self._open(identity, restart=restart)
        except OSError as error:
            os.close(self._fd)
            raise ConfigError(f"{output}: {error.strerror}") from None
        except BaseException:
            os.close(self._fd)
            raise
        self._written = self._synced = 0
        self._syncing = threading.Lock()

    def append(self, line: bytes) -> None:
        """Adds one line; it survives the end of this process, and with `sync` that of the machine. Raises
        OutputFailed."""
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            raise OutputFailed(f"{self.output}: cannot be written ({error.strerror})") from None
        self._written += 1

    def sync(self) -> None:
        """Makes durable what was appended before the call. Raises OutputFailed."""
        with self._syncing:
            written = self._written
            if written == self._synced or self._fd < 0:
                return
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise OutputFailed(f"{self.output}: cannot be made durable ({error.strerror})") from None
            self._synced = written

    def close(self) -> None:
        """Syncs and unlocks. Idempotent."""
        try:
            self.sync()
        finally:
            with self._syncing:
                if self._fd >= 0:
                    os.close(self._fd)
                self._fd = -1

    def _open(self, identity: Identity, *, restart: bool) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{self.output}: another run is writing it") from None
        if restart:
            self._check_is_ours()
            os.ftruncate(self._fd, 0)
        if os.fstat(self._fd).st_size == 0:
            self._write_state(identity)
            return
        self._check_identity(identity)
        with self.output.open("rb") as file:
            end = self._read(file)
        self.found.cut_bytes = os.fstat(self._fd).st_size - end
        if self.found.cut_bytes:
            os.ftruncate(self._fd, end)
            os.fsync(self._fd)

    def _check_is_ours(self) -> None:
        if os.fstat(self._fd).st_size and not self.state.is_file():
            raise ConfigError(
                f"{self.output}: holds something, and no {self.state.name} says that it is the output of a "
                "run; move it away or name another output"
            )

    def _check_identity(self, identity: Identity) -> None:
        self._check_is_ours()
        try:
            with self.state.open("rb") as file:
                state = json.loads(file.read(_STATE_BYTES_MAX))
            found = Identity(state["input_sha256"], dict(state["settings"]))
            known = state["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"{self.state}: cannot be understood; --restart begins anew") from None
        if not known:
            raise ConfigError(f"{self.state}: of another release; --restart begins anew")
        if found.input_sha256 != identity.input_sha256:
            raise ConfigError(
                f"{self.output}: is of another input (SHA-256 {found.input_sha256[:16]}..., now "
                f"{identity.input_sha256[:16]}...); the file was changed, or name another output; --restart "
                "begins anew"
            )
        wanted = json.loads(json.dumps(dict(identity.settings)))
        for name in (*wanted, *found.settings):
            if found.settings.get(name) != wanted.get(name):
                was, now = found.settings.get(name), wanted.get(name)
                raise ConfigError(
                    f"{self.output}: was begun with {name} {was!r}, now it is {now!r}: the lines would not "
                    "belong together; --restart begins anew"
                )

    def _write_state(self, identity: Identity) -> None:
        """At once or not at all, before the first line is there."""
        state = {
            "format": FORMAT,
            "input_sha256": identity.input_sha256,
            "settings": dict(identity.settings),
        }
        temporary = self.state.with_name(self.state.name + ".new")
        with temporary.open("wb") as file:
            file.write(json.dumps(state, indent=2).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.state)
        folder = os.open(self.output.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # some file systems cannot sync a folder
                os.fsync(folder)
        finally:
            os.close(folder)

    def _read(self, file: BinaryIO) -> int:
        """Enters the lines that are there; returns where the last whole one ends."""
        end, at, bad, first_bad = 0, 0, 0, 0
        for line in file:
            at += len(line)
            entry = _entry(line)
            if entry is None:
                first_bad = first_bad or at - len(line) + 1
                bad += 1
                continue
            if bad:
                raise ConfigError(
                    f"{self.output}: byte {first_bad - 1} is in a line that no run has written, and good "
                    "ones follow; --restart begins anew"
                )
            number, failed = entry
            if not self.found.done.add(number):
                raise ConfigError(f"{self.output}: line {number} of the input is in it twice")
            self.found.failed += failed
            end = at
        if bad > _TORN_LINES_MAX:
            raise ConfigError(f"{self.output}: ends in {bad} lines that no run has written")
        return end


def _entry(line: bytes) -> tuple[int, bool] | None:
    """(number of the input line, whether it has no answer); None if it is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
        number, failed = value["line"], value["error"] is not None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return (number, failed) if isinstance(number, int) and number > 0 else None
