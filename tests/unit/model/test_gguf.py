"""The GGUF container: what it reads, and that nothing but ModelError comes of a bad file."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superinfer_trt.core.errors import ModelError
from superinfer_trt.model.gguf import read_gguf
from superinfer_trt.model.open import open_model
from superinfer_trt.model.shapes import tensor_shapes
from support.gguf_writer import Raw, array, gguf_bytes, q8_0, scalar, text, tiny_model, value


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_of_value_is_read(tmp_path: Path, version: int) -> None:
    scalars = {"u8": 255, "i8": -128, "u16": 65535, "i16": -1, "u32": 1 << 31, "i32": -5, "f32": 0.5}
    scalars |= {"bool": True, "u64": 1 << 63, "i64": -(1 << 62), "f64": 0.1}
    metadata: dict[str, Any] = {kind: scalar(kind, number) for kind, number in scalars.items()}
    metadata |= {kind + "s": array(kind, [number] * 3) for kind, number in scalars.items()}
    metadata |= {"text": "grüße", "texts": ["a", "", "日本"], "empty": array("str", [])}
    file = read_gguf(written(tmp_path, gguf_bytes(metadata, {}, version)))
    assert file.version == version
    for kind, number in scalars.items():
        assert file.metadata[kind] == number
        assert file.metadata[kind + "s"].tolist() == [number] * 3
    assert file.metadata["text"] == "grüße"
    assert file.metadata["texts"] == ["a", "", "日本"]
    assert file.metadata["empty"] == []


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_tensors_and_their_slices(tmp_path: Path, alignment: int) -> None:
    random = np.random.default_rng(0)
    plain, cube = random.standard_normal((3, 5)).astype("f4"), random.standard_normal((4, 2, 32)).astype("f4")
    tensors = {"odd": plain[0], "plain": plain, "cube": q8_0(cube)}
    data = gguf_bytes({"general.alignment": alignment}, tensors, alignment=alignment)
    file = read_gguf(written(tmp_path, data))
    assert np.array_equal(file.floats("plain"), plain)
    assert np.abs(file.floats("cube") - cube).max() < 0.02
    for part in range(4):
        assert np.array_equal(file.floats("cube", part), file.floats("cube")[part])
    for name, part in (("cube", 4), ("cube", -1), ("odd", 0), ("nothing", None)):
        with pytest.raises(ModelError, match=name):
            file.floats(name, part)


def bad(head: bytes, *rest: bytes) -> bytes:
    return b"GGUF" + head + b"".join(rest)


def header(version: int = 3, tensors: int = 0, values: int = 0) -> bytes:
    return struct.pack("<IQQ", version, tensors, values)


def line(shape: tuple[int, ...], number: int = 0, offset: int = 0, name: str = "t") -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset)


HUGE = 1 << 62
BAD_FILES = {
    "empty": (b"", "cannot be read"),
    "other magic": (b"GGML" + bytes(64), "not a GGUF file"),
    "only the magic": (b"GGUF", "version needs 4 bytes"),
    "version 1": (bad(header(1)), "version 1; supported"),
    "big-endian": (bad(struct.pack(">IQQ", 3, 0, 0)), "big-endian"),
    "too many values": (bad(header(values=HUGE)), "claims .* metadata values"),
    "too many tensors": (bad(header(tensors=HUGE)), "claims .* tensors"),
    "a huge key": (bad(header(values=1), struct.pack("<Q", HUGE), bytes(64)), "metadata key is .* long"),
    "a key past the end": (bad(header(values=1), struct.pack("<Q", 999), bytes(64)), "needs 999 bytes"),
    "a huge string": (bad(header(values=1), text("k"), struct.pack("<IQ", 8, HUGE)), "value of 'k' needs"),
    "a huge string list": (
        bad(header(values=1), text("k"), struct.pack("<IIQ", 9, 8, HUGE)),
        "strings, more",
    ),
    "a huge number list": (
        bad(header(values=1), text("k"), struct.pack("<IIQ", 9, 4, HUGE)),
        "elements of 'k'",
    ),
    "a nested list": (
        bad(header(values=1), text("k"), struct.pack("<IIQ", 9, 9, 1)),
        "unknown element type 9",
    ),
    "an unknown type": (bad(header(values=1), text("k"), struct.pack("<I", 77), bytes(8)), "value type 77"),
    "not UTF-8": (bad(header(values=1), struct.pack("<Q", 2), b"\xff\xfe", value(1), bytes(9)), "not UTF-8"),
    "a key twice": (bad(header(values=2), text("k"), value(1), text("k"), value(1)), "'k' appears twice"),
    "alignment 0": (gguf_bytes({"general.alignment": 0}, {}), "general.alignment is 0"),
    "alignment 24": (gguf_bytes({"general.alignment": 24}, {}), "general.alignment is 24"),
    "no dimension": (bad(header(tensors=1), line(()), bytes(64)), "0 dimensions"),
    "five dimensions": (bad(header(tensors=1), line((1,) * 5), bytes(64)), "5 dimensions"),
    "a huge dimension count": (
        bad(header(tensors=1), text("t"), struct.pack("<I", 1 << 31), bytes(64)),
        "dimensions, 1 to 4",
    ),
    "an empty tensor": (bad(header(tensors=1), line((0, 4)), bytes(64)), "cannot be stored"),
    "a half block": (bad(header(tensors=1), line((16, 2), 8), bytes(64)), "cannot be stored as Q8_0"),
    "a huge tensor": (bad(header(tensors=1), line((HUGE, HUGE)), bytes(64)), "truncated"),
    "a tensor far away": (bad(header(tensors=1), line((4,), 0, HUGE), bytes(64)), "truncated"),
    "a crooked offset": (bad(header(tensors=1), line((4,), 0, 4), bytes(128)), "not aligned"),
    "a tensor twice": (bad(header(tensors=2), line((4,)), line((4,)), bytes(128)), "'t' appears twice"),
    "K-quants": (
        bad(header(tensors=1), line((256,), 10), bytes(512)),
        "Q2_K, which is not supported; .* Q4_1",
    ),
    "an unknown format": (bad(header(tensors=1), line((256,), 99), bytes(512)), "stored as type 99"),
}


@pytest.mark.parametrize("case", sorted(BAD_FILES))
def test_a_bad_file_is_refused_by_name_and_reason(tmp_path: Path, case: str) -> None:
    data, reason = BAD_FILES[case]
    path = written(tmp_path, data)
    with pytest.raises(ModelError, match=reason) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_gguf(tmp_path / "none.gguf")


def test_every_truncation_of_a_header_is_noticed(tmp_path: Path) -> None:
    data = gguf_bytes(
        {"a": "text", "b": [1, 2, 3]}, {"t": np.ones((2, 4), "f4"), "u": Raw((32,), 8, bytes(34))}
    )
    for length in range(len(data)):
        with pytest.raises(ModelError):
            read_gguf(written(tmp_path, data[:length]))


def small_model() -> bytes:
    tiny = tiny_model(tied=True)
    tiny.tensors["token_embd.weight"] = q8_0(tiny.expected["model.embed_tokens.weight"])
    return gguf_bytes(tiny.metadata, tiny.tensors)


SMALL = small_model()
HEADER_BYTES = SMALL.index(b"output_norm.weight") + 64


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The small model with some bytes changed (mostly in its header) and perhaps an end cut off."""
    data = bytearray(SMALL)
    places = st.one_of(st.integers(0, 64), st.integers(0, HEADER_BYTES - 1), st.integers(0, len(data) - 1))
    for at in draw(st.lists(places, min_size=1, max_size=6)):
        data[at] = draw(st.one_of(st.integers(0, 255), st.just(data[at] ^ 1), st.just(data[at] ^ 0x80)))
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


@settings(max_examples=400)
@given(data=damaged())
def test_damage_gives_a_model_error_or_a_whole_model(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), data)
        try:
            model = open_model(str(path))
        except ModelError:  # and no other exception, ever
            return
        for name, shape in tensor_shapes(model.config):
            assert model.weights.tensor(name).shape == shape
        stream = model.tokenizer.stream()
        ids = model.tokenizer.encode("hello 12")
        assert "".join([stream.push(id) for id in ids] + [stream.finish()]) == model.tokenizer.decode(ids)


def test_a_message_is_short_and_one_line_whatever_the_file_holds(tmp_path: Path) -> None:
    name = "a\nb" * 20_000
    data = bad(header(values=1), text(name), struct.pack("<I", 77), bytes(8))
    with pytest.raises(ModelError) as caught:
        read_gguf(written(tmp_path, data))
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)
