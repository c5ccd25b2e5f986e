"""The input of a run, line by line, in bounded memory; and which lines and ids have been met.

Line numbers are those of an editor, from 1; blank lines have a number and no request. Not thread-safe.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from superinfer_trt.core.errors import ConfigError

LINE_BYTES_MAX = 16 << 20
_BUFFER_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Input:
    """A file of requests as it was when the run began. `requests`: lines that are not blank."""

    path: Path
    sha256: str
    file_bytes: int
    modified_ns: int
    requests: int

    def unchanged(self) -> bool:
        """Whether size and time of the file are still those."""
        now = self.path.stat()
        return (now.st_size, now.st_mtime_ns) == (self.file_bytes, self.modified_ns)


def survey(path: Path) -> Input:
    """Reads the whole file once. Raises ConfigError when it cannot be read twice."""
    try:
        found = path.stat()
        if not path.is_file():
            raise ConfigError(f"{path}: not a regular file; the input is read twice")
        digest, requests = hashlib.sha256(), 0
        with path.open("rb", buffering=_BUFFER_BYTES) as file:
            begins = True
            counted = False
            while piece := file.readline(_BUFFER_BYTES):
                digest.update(piece)
                counted = (not begins and counted) or bool(piece.strip())
                begins = piece.endswith(b"\n")
                if begins:
                    requests += counted
            requests += not begins and counted
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    return Input(path, digest.hexdigest(), found.st_size, found.st_mtime_ns, requests)


def numbered(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """(number, line) of each line that is not blank; None for one longer than LINE_BYTES_MAX."""
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        number = 0
        while line := file.readline(LINE_BYTES_MAX + 1):
            number += 1
            if len(line) > LINE_BYTES_MAX:
                _skip_rest(file, line)
                yield number, None
                continue
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.strip():
                yield number, line


def _skip_rest(file: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(_BUFFER_BYTES)


class LineSet:
    """Line numbers, one bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: int) -> bool:
        at = number >> 3
        return at < len(self._bits) and bool(self._bits[at] >> (number & 7) & 1)

    def add(self, number: int) -> bool:
        """False: it was there already."""
        if number in self:
            return False
        at = number >> 3
        if at >= len(self._bits):
            self._bits.extend(bytes(max(at + 1 - len(self._bits), len(self._bits) // 2)))
        self._bits[at] |= 1 << (number & 7)
        self._count += 1
        return True


class FirstLines:
    """custom_id -> the line that had it first: an open table of hashes, 32 to 64 bytes an id.

    Two ids with equal 64-bit hashes count as one: at ten million lines a chance of 3 in a million.
    """

    def __init__(self) -> None:
        self._mask = (1 << 10) - 1
        self._hashes = array("Q", bytes(8 << 10))  # 0: empty
        self._lines = array("Q", bytes(8 << 10))
        self._count = 0

    def enter(self, custom_id: str, number: int) -> int:
        """The line that had this id first; `number` if it is the first."""
        hashed = int.from_bytes(hashlib.blake2b(custom_id.encode(), digest_size=8).digest(), "little") or 1
        at = self._place(hashed)
        if self._hashes[at]:
            return self._lines[at]
        self._hashes[at], self._lines[at] = hashed, number
        self._count += 1
        if 2 * self._count > self._mask:
            self._grow()
        return number

    def _place(self, hashed: int) -> int:
        at = hashed & self._mask
        while self._hashes[at] not in (0, hashed):
            at = (at + 1) & self._mask
        return at

    def _grow(self) -> None:
        old = zip(self._hashes, self._lines, strict=True)
        slots = 2 * (self._mask + 1)
        self._mask = slots - 1
        self._hashes, self._lines = array("Q", bytes(8 * slots)), array("Q", bytes(8 * slots))
        for hashed, line in old:
            if hashed:
                at = self._place(hashed)
                self._hashes[at], self._lines[at] = hashed, line
