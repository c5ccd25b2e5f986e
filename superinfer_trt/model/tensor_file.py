"""One safetensors file through a read-only memory map: named tensors as float32.

Knows no model. The header's length, every offset and every shape are checked against the file before
anything is allocated; trouble is a ModelError that names the file and the tensor. Immutable: any thread
may read.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superinfer_trt.core.errors import ModelError
from superinfer_trt.model.quantisation import QUANTISATIONS, Floats, Quantisation, dequantise
from superinfer_trt.model.shown import shown

HEADER_BYTES_MAX = 100_000_000  # the format's own limit
DIMENSIONS_MAX = 8

STORAGE: Mapping[str, Quantisation] = {
    kind.name: kind for kind in QUANTISATIONS.values() if kind.name in {"F32", "F16", "BF16"}
}
"""Storage formats that are read."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's place in the file; `kind` is None when its format is not one of STORAGE."""

    shape: tuple[int, ...]
    dtype: str
    kind: Quantisation | None
    offset: int
    elements: int


class TensorFile:
    """The tensors of one file by name."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError when `path` is not a whole safetensors file."""
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read: {error}") from error
        self.tensors: Mapping[str, StoredTensor] = self._directory()

    @property
    def file_bytes(self) -> int:
        return len(self._data)

    def floats(self, name: str) -> Floats:
        """A new float32 array in the stored shape. Raises ModelError when absent or of another type."""
        entry = self.tensors.get(name)
        if entry is None:
            raise ModelError(f"{self.path}: no tensor {shown(name)}")
        if entry.kind is None:
            raise ModelError(
                f"{self.path}: tensor {shown(name)} is stored as {entry.dtype}, which is not supported; "
                f"supported: {', '.join(STORAGE)}"
            )
        return dequantise(entry.kind, self._data, entry.offset, entry.elements).reshape(entry.shape)

    def _fail(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: corrupt safetensors file: {what}")

    def _directory(self) -> dict[str, StoredTensor]:
        size = len(self._data)
        if size < 8:
            raise self._fail(f"it has {size} bytes, less than the length of a header")
        header_bytes = int.from_bytes(self._data[:8], "little")
        if header_bytes > min(HEADER_BYTES_MAX, size - 8):
            raise self._fail(
                f"the header claims {header_bytes} bytes, the file has {size - 8} after its length"
            )
        try:
            header = json.loads(self._data[8 : 8 + header_bytes])
        except (ValueError, RecursionError) as error:
            raise self._fail(f"the header is not JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._fail("the header is not a JSON object")
        base = 8 + header_bytes
        return {
            name: self._entry(name, line, base, size - base)
            for name, line in header.items()
            if name != "__metadata__"
        }

    def _entry(self, name: str, line: Any, base: int, room: int) -> StoredTensor:
        try:
            dtype, shape, (begin, end) = line["dtype"], tuple(line["shape"]), line["data_offsets"]
        except (TypeError, KeyError, ValueError) as error:
            raise self._fail(f"tensor {shown(name)} has no dtype, shape and two data_offsets") from error
        whole = all(isinstance(value, int) and value >= 0 for value in (*shape, begin, end))
        if not isinstance(dtype, str) or not whole or len(shape) > DIMENSIONS_MAX:
            raise self._fail(
                f"tensor {shown(name)}: dtype {shown(dtype)}, shape {shown(shape)} or offsets out of range"
            )
        if not begin <= end <= room:
            raise self._fail(f"tensor {shown(name)} ends at byte {shown(end)} of {room} (truncated?)")
        elements = 1
        for extent in shape:
            elements *= extent
        kind = STORAGE.get(dtype)
        if kind is not None and kind.bytes_for(elements) != end - begin:
            raise self._fail(f"tensor {shown(name)} of shape {shape} is not {end - begin} bytes of {dtype}")
        return StoredTensor(shape, dtype, kind, base + begin, elements)
