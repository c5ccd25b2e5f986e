"""Every block format against values computed by hand from the GGUF specification."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from superinfer_trt.model import quantisation
from superinfer_trt.model.quantisation import OTHER_NAMES, QUANTISATIONS, dequantise

BY_NAME = {kind.name: kind for kind in QUANTISATIONS.values()}
HALF_1, HALF_QUARTER, HALF_MINUS_2 = b"\x00\x3c", b"\x00\x34", b"\x00\xc0"  # 1.0, 0.25, -2.0
NIBBLES = bytes((15 - j) << 4 | j for j in range(16))  # value j is j, value 16 + j is 15 - j
LOW_THEN_HIGH = [*range(16), *reversed(range(16))]


def values(name: str, data: bytes, elements: int = 32) -> list[float]:
    return dequantise(BY_NAME[name], data, 0, elements).tolist()


def test_q4_0_is_a_scale_times_a_nibble_less_eight() -> None:
    assert values("Q4_0", HALF_QUARTER + NIBBLES) == [0.25 * (q - 8) for q in LOW_THEN_HIGH]


def test_q4_1_is_a_scale_times_a_nibble_plus_a_minimum() -> None:
    assert values("Q4_1", HALF_QUARTER + HALF_MINUS_2 + NIBBLES) == [0.25 * q - 2 for q in LOW_THEN_HIGH]


def test_q5_takes_the_fifth_bit_of_value_j_from_bit_j() -> None:
    word = struct.pack("<I", 1 << 0 | 1 << 17)  # the fifth bits of values 0 and 17
    quants = LOW_THEN_HIGH.copy()
    quants[0] += 16
    quants[17] += 16
    assert values("Q5_0", HALF_QUARTER + word + NIBBLES) == [0.25 * (q - 16) for q in quants]
    assert values("Q5_1", HALF_QUARTER + HALF_1 + word + NIBBLES) == [0.25 * q + 1 for q in quants]


def test_q8_0_is_a_scale_times_a_signed_byte() -> None:
    quants = [-128, 127, *range(-15, 15)]
    data = HALF_MINUS_2 + struct.pack("<32b", *quants)
    assert values("Q8_0", data) == [-2.0 * q for q in quants]


def six_bits(scales: list[int], minima: list[int]) -> bytes:
    """The 12 bytes of eight 6-bit scales and minima, packed as the specification draws them."""
    first = bytes(scales[j] | (scales[4 + j] >> 4) << 6 for j in range(4))
    second = bytes(minima[j] | (minima[4 + j] >> 4) << 6 for j in range(4))
    return first + second + bytes(scales[4 + j] & 15 | (minima[4 + j] & 15) << 4 for j in range(4))


SCALES, MINIMA = [1, 63, 32, 17, 48, 5, 63, 0], [0, 7, 63, 16, 33, 62, 1, 47]
RUNS = [[(3 * run + 5 * at) % 16 for at in range(32)] for run in range(8)]
PAIRS = b"".join(bytes(a | b << 4 for a, b in zip(RUNS[r], RUNS[r + 1], strict=True)) for r in (0, 2, 4, 6))


def test_q4_k_is_eight_runs_each_with_a_scale_and_a_minimum() -> None:
    data = HALF_QUARTER + HALF_1 + six_bits(SCALES, MINIMA) + PAIRS
    expected = [0.25 * SCALES[r] * q - MINIMA[r] for r in range(8) for q in RUNS[r]]
    assert values("Q4_K", data, 256) == expected


def test_q5_k_adds_a_bit_plane() -> None:
    fifth = [[(run * at + run) % 3 == 0 for at in range(32)] for run in range(8)]
    plane = bytes(sum(fifth[run][at] << run for run in range(8)) for at in range(32))
    data = HALF_QUARTER + HALF_1 + six_bits(SCALES, MINIMA) + plane + PAIRS
    expected = [
        0.25 * SCALES[r] * (RUNS[r][at] + 16 * fifth[r][at]) - MINIMA[r] for r in range(8) for at in range(32)
    ]
    assert values("Q5_K", data, 256) == expected


def test_q6_k_has_a_signed_scale_for_every_sixteen_values() -> None:
    quants = [(11 * at + at // 7) % 64 for at in range(256)]
    scales = [-128, 127, *range(-7, 7)]
    low, high = bytearray(128), bytearray(64)
    for at, q in enumerate(quants):
        half, run, place = at // 128, at % 128 // 32, at % 32
        low[64 * half + 32 * (run % 2) + place] |= (q & 15) << (4 if run >= 2 else 0)
        high[32 * half + place] |= (q >> 4) << 2 * run
    data = bytes(low) + bytes(high) + struct.pack("<16b", *scales) + HALF_QUARTER
    assert values("Q6_K", data, 256) == [0.25 * scales[at // 16] * (q - 32) for at, q in enumerate(quants)]


def test_plain_formats_keep_their_values() -> None:
    assert values("F32", struct.pack("<3f", 1.5, -0.1, 3e38), 3) == [
        1.5,
        float(np.float32(-0.1)),
        float(np.float32(3e38)),
    ]
    assert values("F16", HALF_1 + HALF_MINUS_2, 2) == [1.0, -2.0]
    assert values("BF16", b"\x80\x3f\x20\xc0", 2) == [1.0, -2.5]


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_decoding_in_chunks_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = BY_NAME[name]
    random = np.random.default_rng(7)
    data = random.integers(0, 0x3C, 11 * kind.block_bytes, dtype=np.uint8).tobytes()  # small finite scales
    whole = dequantise(kind, data, 0, 11 * kind.block_elements)
    monkeypatch.setattr(quantisation, "CHUNK_ELEMENTS", 3 * kind.block_elements + 1)
    assert np.array_equal(whole, dequantise(kind, data, 0, 11 * kind.block_elements), equal_nan=True)
    behind = dequantise(kind, b"\0" * 5 + data, 5, 11 * kind.block_elements)
    assert np.array_equal(whole, behind, equal_nan=True)


def test_a_result_is_a_fresh_writable_array() -> None:
    data = struct.pack("<2f", 1.0, 2.0)
    first = dequantise(BY_NAME["F32"], data, 0, 2)
    first[0] = 5.0
    assert dequantise(BY_NAME["F32"], data, 0, 2).tolist() == [1.0, 2.0]
    assert first.flags.c_contiguous
    assert first.flags.writeable


def test_no_format_is_both_decoded_and_refused() -> None:
    assert not set(QUANTISATIONS) & set(OTHER_NAMES)
