"""The GGUF container, versions 2 and 3, through a read-only memory map.

Knows metadata keys and a tensor directory; no architecture, no tensor's meaning. Every count, length
and offset is checked against the size of the file before anything is allocated for it, so a corrupt or
truncated file raises ModelError and nothing else. Objects are immutable: any thread may read. The file
must not be shortened while it is open (a memory map cannot turn that into an exception).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from superinfer_trt.core.errors import ModelError
from superinfer_trt.model.quantisation import (
    OTHER_NAMES,
    QUANTISATIONS,
    Floats,
    Quantisation,
    dequantise,
    supported_names,
)
from superinfer_trt.model.shown import shown

Value: TypeAlias = "str | int | float | bool | list[str] | npt.NDArray[Any]"

KEY_BYTES_MAX = 65_535  # the specification's limit
DIMENSIONS_MAX = 4
ALIGNMENT_DEFAULT = 32
ALIGNMENT_MAX = 1 << 20

_SCALARS: Mapping[int, struct.Struct] = {
    number: struct.Struct("<" + code)
    for number, code in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
    }.items()
}  # fmt: skip
_ARRAYS: Mapping[int, str] = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_LEAST_VALUE_BYTES = 8 + 4 + 1  # an empty key, a type and one byte
_LEAST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # an empty name, a count, one dimension, a type and an offset


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One line of the tensor directory. `shape` has the outermost dimension first (as numpy does)."""

    name: str
    shape: tuple[int, ...]
    kind: Quantisation
    offset: int  # bytes from the start of the file
    elements: int


class GgufFile:
    """A parsed GGUF file. `metadata` by key, `tensors` by the file's own names."""

    def __init__(
        self,
        path: Path,
        data: mmap.mmap,
        version: int,
        metadata: Mapping[str, Value],
        tensors: Mapping[str, TensorEntry],
    ) -> None:
        self.path = path
        self.version = version
        self.metadata = metadata
        self.tensors = tensors
        self._data = data

    @property
    def file_bytes(self) -> int:
        return len(self._data)

    def floats(self, name: str, part: int | None = None) -> Floats:
        """A new float32 array of tensor `name`, or of slice `part` of its outermost dimension, in the
        shape of the directory. Raises ModelError when there is no such tensor or slice.
        """
        entry = self.tensors.get(name)
        if entry is None:
            raise ModelError(f"{self.path}: no tensor {shown(name)}")
        if part is None:
            return dequantise(entry.kind, self._data, entry.offset, entry.elements).reshape(entry.shape)
        if len(entry.shape) < 2 or not 0 <= part < entry.shape[0]:
            raise ModelError(f"{self.path}: tensor {shown(name)} of shape {entry.shape} has no slice {part}")
        # rows are whole blocks (checked when opened), so a slice begins at a block
        elements = entry.elements // entry.shape[0]
        offset = entry.offset + part * entry.kind.bytes_for(elements)
        return dequantise(entry.kind, self._data, offset, elements).reshape(entry.shape[1:])


def read_gguf(path: Path) -> GgufFile:
    """Parses the header of `path`; tensors are read when asked for. Raises ModelError."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ModelError(f"{path}: cannot be read: {error}") from error
    return _Parser(path, data).file()


_Line = tuple[str, tuple[int, ...], int, int]  # name, shape, type number, offset in the data


class _Parser:
    """One pass over the header; lives for one call."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._size = len(data)
        self._at = 0

    def _fail(self, what: str) -> ModelError:
        return ModelError(f"{self._path}: corrupt GGUF at byte {self._at}: {what}")

    def _need(self, count: int, what: str) -> int:
        """Where `count` bytes of `what` begin; the cursor moves behind them."""
        start = self._at
        if count > self._size - start:
            raise self._fail(f"{what} needs {count} bytes, the file has {self._size - start} left")
        self._at = start + count
        return start

    def _scalar(self, code: struct.Struct, what: str) -> Any:
        return code.unpack_from(self._data, self._need(code.size, what))[0]

    def _text(self, what: str, limit: int | None = None) -> str:
        length = self._scalar(_U64, f"length of {what}")
        if limit is not None and length > limit:
            raise self._fail(f"{what} is {length} bytes long, at most {limit} are allowed")
        start = self._need(length, what)
        try:
            return self._data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._fail(f"{what} is not UTF-8") from error

    def _value(self, key: str) -> Value:
        number = self._scalar(_U32, f"type of {shown(key)}")
        if number == _STRING:
            return self._text(f"value of {shown(key)}")
        if number == _ARRAY:
            return self._array(key)
        code = _SCALARS.get(number)
        if code is None:
            raise self._fail(f"{shown(key)} has the unknown value type {number}")
        scalar: int | float | bool = self._scalar(code, f"value of {shown(key)}")
        return scalar

    def _array(self, key: str) -> Value:
        number = self._scalar(_U32, f"element type of {shown(key)}")
        count = self._scalar(_U64, f"length of {shown(key)}")
        if number == _STRING:
            # each string takes at least its length field, so this bounds the list before it grows
            if count > (self._size - self._at) // _U64.size:
                raise self._fail(f"{shown(key)} claims {count} strings, more than the file can hold")
            what = f"string of {shown(key)}"
            return [self._text(what) for _ in range(count)]
        layout = _ARRAYS.get(number)
        if layout is None:
            raise self._fail(f"{shown(key)} has the unknown element type {number}")
        start = self._need(count * np.dtype(layout).itemsize, f"{count} elements of {shown(key)}")
        array: npt.NDArray[Any] = np.frombuffer(self._data, layout, count, start).copy()
        return array

    def file(self) -> GgufFile:
        if self._data[:4] != b"GGUF":
            raise ModelError(f"{self._path}: not a GGUF file (it does not start with 'GGUF')")
        self._at = 4
        version = self._scalar(_U32, "version")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
            note = " (a big-endian file)" if swapped else ""
            raise ModelError(f"{self._path}: GGUF version {version}{note}; supported: 2, 3 little-endian")
        tensor_count = self._scalar(_U64, "tensor count")
        value_count = self._scalar(_U64, "metadata count")
        self._bound(value_count, _LEAST_VALUE_BYTES, "metadata values")
        metadata: dict[str, Value] = {}
        for _ in range(value_count):
            key = self._text("metadata key", KEY_BYTES_MAX)
            if key in metadata:
                raise self._fail(f"metadata key {shown(key)} appears twice")
            metadata[key] = self._value(key)
        self._bound(tensor_count, _LEAST_TENSOR_BYTES, "tensors")
        lines = [self._line() for _ in range(tensor_count)]
        alignment = self._alignment(metadata)
        base = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorEntry] = {}
        for line in lines:
            if line[0] in tensors:
                raise self._fail(f"tensor {shown(line[0])} appears twice")
            tensors[line[0]] = self._entry(line, base, alignment)
        return GgufFile(self._path, self._data, version, metadata, tensors)

    def _bound(self, count: int, least_bytes: int, what: str) -> None:
        if count > (self._size - self._at) // least_bytes:
            raise self._fail(f"claims {count} {what}, more than the file can hold")

    def _alignment(self, metadata: Mapping[str, Value]) -> int:
        alignment = metadata.get("general.alignment", ALIGNMENT_DEFAULT)
        if (
            not isinstance(alignment, int)
            or not 0 < alignment <= ALIGNMENT_MAX
            or alignment & (alignment - 1)
        ):
            raise self._fail(f"general.alignment is {shown(alignment)}, no power of two <= {ALIGNMENT_MAX}")
        return alignment

    def _line(self) -> _Line:
        name = self._text("tensor name", KEY_BYTES_MAX)
        dimensions = self._scalar(_U32, f"dimension count of tensor {shown(name)}")
        if not 0 < dimensions <= DIMENSIONS_MAX:
            raise self._fail(
                f"tensor {shown(name)} has {dimensions} dimensions, 1 to {DIMENSIONS_MAX} are allowed"
            )
        sizes = [self._scalar(_U64, f"shape of tensor {shown(name)}") for _ in range(dimensions)]
        number = self._scalar(_U32, f"type of tensor {shown(name)}")
        return name, tuple(reversed(sizes)), number, self._scalar(_U64, f"offset of tensor {shown(name)}")

    def _entry(self, line: _Line, base: int, alignment: int) -> TensorEntry:
        name, shape, number, offset = line
        kind = QUANTISATIONS.get(number)
        if kind is None:
            called = OTHER_NAMES.get(number, f"type {number}")
            raise ModelError(
                f"{self._path}: tensor {shown(name)} is stored as {called}, which is not supported; "
                f"supported: {supported_names()}"
            )
        elements = 1
        for size in shape:
            elements *= size
        if elements < 1 or shape[-1] % kind.block_elements:
            raise self._fail(f"tensor {shown(name)} of shape {shape} cannot be stored as {kind.name}")
        room = self._size - base - offset
        if kind.bytes_for(elements) > room:
            raise self._fail(
                f"tensor {shown(name)} needs {kind.bytes_for(elements)} bytes from byte {base + offset}, "
                f"the file has {max(room, 0)} there (truncated?)"
            )
        if offset % alignment:
            raise self._fail(f"tensor {shown(name)} at offset {offset} is not aligned to {alignment}")
        return TensorEntry(name, shape, kind, base + offset, elements)
