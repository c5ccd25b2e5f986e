"""Block formats of GGUF tensors, and their values as float32. Arithmetic on bytes only.

Knows no file: it is handed the bytes of whole blocks. Thread-safe (no state). The layouts are those of
the GGUF specification: every format stores runs of `block_elements` values in `block_bytes` bytes,
little-endian, with one half-precision scale per run (and, in the `_1` formats, a minimum).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Decoder = Callable[[npt.NDArray[Any], Floats], None]

CHUNK_ELEMENTS = 1 << 21
"""Values decoded at once: bounds the scratch memory beside the result to a few times 8 MiB."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """One storage format: `decode` turns an array of `layout` records into [blocks, block_elements]."""

    name: str
    block_elements: int
    layout: np.dtype[Any]
    decode: Decoder

    @property
    def block_bytes(self) -> int:
        return self.layout.itemsize

    def bytes_for(self, elements: int) -> int:
        """Bytes of `elements` values; `elements` must be a multiple of block_elements."""
        return elements // self.block_elements * self.block_bytes


def dequantise(kind: Quantisation, data: Any, offset: int, elements: int) -> Floats:
    """`elements` values stored at byte `offset` of the buffer `data`, as a new float32 array.

    The caller has checked that they lie inside the buffer and fill whole blocks.
    """
    blocks = elements // kind.block_elements
    stored = np.frombuffer(data, kind.layout, blocks, offset)
    values = np.empty((blocks, kind.block_elements), np.float32)
    step = max(CHUNK_ELEMENTS // kind.block_elements, 1)
    for first in range(0, blocks, step):
        last = first + step
        kind.decode(stored[first:last], values[first:last])
    return values.reshape(-1)


def _plain(stored: npt.NDArray[Any], out: Floats) -> None:
    out[:, 0] = stored["value"]


def _bf16(stored: npt.NDArray[Any], out: Floats) -> None:
    # bf16 is the upper half of a float32
    out.view(np.uint32)[:, 0] = stored["value"].astype(np.uint32) << 16


def _nibbles(quants: npt.NDArray[np.uint8], out: Floats) -> None:
    """Low nibbles are the first half of a block, high nibbles the second."""
    half = quants.shape[1]
    out[:, :half] = quants & 15
    out[:, half:] = quants >> 4


def _scale(stored: npt.NDArray[Any], out: Floats) -> None:
    out *= stored["d"].astype(np.float32)[:, None]


def _minimum(stored: npt.NDArray[Any], out: Floats) -> None:
    out += stored["m"].astype(np.float32)[:, None]


def _q4_0(stored: npt.NDArray[Any], out: Floats) -> None:
    _nibbles(stored["q"], out)
    out -= 8
    _scale(stored, out)


def _q4_1(stored: npt.NDArray[Any], out: Floats) -> None:
    _nibbles(stored["q"], out)
    _scale(stored, out)
    _minimum(stored, out)


def _fifth_bits(stored: npt.NDArray[Any], out: Floats) -> None:
    """Bit j of the 32-bit word belongs to value j."""
    out += np.unpackbits(stored["h"], axis=1, bitorder="little") * np.float32(16)


def _q5_0(stored: npt.NDArray[Any], out: Floats) -> None:
    _nibbles(stored["q"], out)
    _fifth_bits(stored, out)
    out -= 16
    _scale(stored, out)


def _q5_1(stored: npt.NDArray[Any], out: Floats) -> None:
    _nibbles(stored["q"], out)
    _fifth_bits(stored, out)
    _scale(stored, out)
    _minimum(stored, out)


def _q8_0(stored: npt.NDArray[Any], out: Floats) -> None:
    out[:] = stored["q"]
    _scale(stored, out)


def _scales_and_minima(stored: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """The eight 6-bit scales and minima of a 256-value block, each [blocks, 8, 1], packed in 12 bytes:
    0-3 and 4-7 hold the first four of each, with the upper bits of the last four above them; 8-11 hold
    the lower nibbles of the last four."""
    packed = stored["s"]
    first, second, low = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, low & 15 | (first >> 6) << 4], axis=1)
    minima = np.concatenate([second & 63, low >> 4 | (second >> 6) << 4], axis=1)
    d, m = stored["d"].astype(np.float32)[:, None], stored["m"].astype(np.float32)[:, None]
    return (d * scales)[:, :, None], (m * minima)[:, :, None]


def _eighths(stored: npt.NDArray[Any], out: Floats) -> Floats:
    """The nibbles of a 256-value block as [blocks, 8, 32]: 32 bytes hold two runs, low nibbles first."""
    quants = stored["q"].reshape(-1, 4, 1, 32)
    runs = out.reshape(-1, 4, 2, 32)
    runs[:, :, :1] = quants & 15
    runs[:, :, 1:] = quants >> 4
    return out.reshape(-1, 8, 32)


def _q4_k(stored: npt.NDArray[Any], out: Floats) -> None:
    scales, minima = _scales_and_minima(stored)
    runs = _eighths(stored, out)
    runs *= scales
    runs -= minima


def _q5_k(stored: npt.NDArray[Any], out: Floats) -> None:
    scales, minima = _scales_and_minima(stored)
    runs = _eighths(stored, out)
    # bit r of byte v is the fifth bit of value v of run r
    bits = np.unpackbits(stored["h"][:, :, None], axis=2, bitorder="little").swapaxes(1, 2)
    runs += bits * np.float32(16)
    runs *= scales
    runs -= minima


def _q6_k(stored: npt.NDArray[Any], out: Floats) -> None:
    # half a block is 64 bytes of low nibbles and 32 bytes of high pairs of bits, for four runs of 32
    low = stored["q"].reshape(-1, 2, 64)
    high = stored["h"].reshape(-1, 2, 1, 32)
    runs = out.reshape(-1, 2, 4, 32)
    runs[:, :, :2] = (low & 15).reshape(-1, 2, 2, 32)
    runs[:, :, 2:] = (low >> 4).reshape(-1, 2, 2, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    runs += (high >> shifts & 3) * np.float32(16)
    runs -= 32
    sixteenths = out.reshape(-1, 16, 16)
    sixteenths *= (stored["d"].astype(np.float32)[:, None] * stored["s"])[:, :, None]


_D = ("d", "<f2")
_M = ("m", "<f2")
_H = ("h", "u1", 4)
_Q = ("q", "u1", 16)
_S = ("s", "u1", 12)
_Q128 = ("q", "u1", 128)

QUANTISATIONS: Mapping[int, Quantisation] = {
    0: Quantisation("F32", 1, np.dtype([("value", "<f4")]), _plain),
    1: Quantisation("F16", 1, np.dtype([("value", "<f2")]), _plain),
    2: Quantisation("Q4_0", 32, np.dtype([_D, _Q]), _q4_0),
    3: Quantisation("Q4_1", 32, np.dtype([_D, _M, _Q]), _q4_1),
    6: Quantisation("Q5_0", 32, np.dtype([_D, _H, _Q]), _q5_0),
    7: Quantisation("Q5_1", 32, np.dtype([_D, _M, _H, _Q]), _q5_1),
    8: Quantisation("Q8_0", 32, np.dtype([_D, ("q", "i1", 32)]), _q8_0),
    12: Quantisation("Q4_K", 256, np.dtype([_D, _M, _S, _Q128]), _q4_k),
    13: Quantisation("Q5_K", 256, np.dtype([_D, _M, _S, ("h", "u1", 32), _Q128]), _q5_k),
    14: Quantisation("Q6_K", 256, np.dtype([_Q128, ("h", "u1", 64), ("s", "i1", 16), _D]), _q6_k),
    30: Quantisation("BF16", 1, np.dtype([("value", "<u2")]), _bf16),
}
"""By the type number of the GGUF tensor directory."""

OTHER_NAMES: Mapping[int, str] = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Formats of the specification that are not decoded here, so that a refusal can name them."""


def supported_names() -> str:
    """The decodable formats, for messages."""
    return ", ".join(kind.name for kind in QUANTISATIONS.values())
