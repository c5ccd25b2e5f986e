"""Tokenizers built from GGUF metadata and from tokenizer.json; streams against decode()."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from superinfer_trt.core.errors import ModelError, RefusalCode, Refused
from superinfer_trt.model.folder import folder_tokenizer
from superinfer_trt.model.gguf import read_gguf
from superinfer_trt.model.gguf_tokenizer import gguf_tokenizer
from superinfer_trt.model.tokenizer import ModelTokenizer
from support.gguf_writer import SPECIAL, byte_level_metadata, gguf_bytes, sentencepiece_metadata


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


def build(place: Path, metadata: dict[str, Any]) -> ModelTokenizer:
    path = place / "tokenizer.gguf"
    path.write_bytes(gguf_bytes(metadata, {}))
    return gguf_tokenizer(read_gguf(path))


@pytest.fixture(scope="module")
def byte_level(place: Path) -> ModelTokenizer:
    return build(place, byte_level_metadata())


@pytest.fixture(scope="module")
def marked(place: Path) -> ModelTokenizer:
    return build(place, sentencepiece_metadata())


def streamed(tokenizer: ModelTokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join([stream.push(id) for id in ids] + [stream.finish()])


def words(tokenizer: ModelTokenizer, text: str) -> list[str]:
    """The tokens of `text`, each decoded on its own."""
    return [tokenizer.decode([id]) for id in tokenizer.encode(text)]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(text=TEXTS | st.text("hello 12\n<|im_end>"))
def test_byte_level_text_comes_back(byte_level: ModelTokenizer, text: str) -> None:
    ids = byte_level.encode(text)
    without = text
    for special in SPECIAL:
        without = without.replace(special, "")
    assert byte_level.decode(ids) == without
    assert streamed(byte_level, ids) == without


@given(ids=st.lists(st.integers(0, 300), max_size=30))
def test_a_byte_level_stream_equals_decode(byte_level: ModelTokenizer, ids: list[int]) -> None:
    assert streamed(byte_level, ids) == byte_level.decode(ids)


@given(ids=st.lists(st.integers(0, 300) | st.integers(131, 260), max_size=30))
def test_a_marked_stream_equals_decode(marked: ModelTokenizer, ids: list[int]) -> None:
    assert streamed(marked, ids) == marked.decode(ids)


@given(text=TEXTS)
def test_marked_text_comes_back(marked: ModelTokenizer, text: str) -> None:
    if not any(special in text for special in ("<unk>", "<s>", "</s>")) and "\u2581" not in text:
        ids = marked.encode(text)
        assert ids[0] == 1
        assert marked.decode(ids) == text
        assert streamed(marked, ids) == text


def test_a_stream_never_splits_a_character(byte_level: ModelTokenizer, marked: ModelTokenizer) -> None:
    text = "é日😀👩‍👧"
    for tokenizer in (byte_level, marked):
        stream = tokenizer.stream()
        parts = [stream.push(id) for id in tokenizer.encode(text)]
        assert "\ufffd" not in "".join(parts)
        assert "".join(parts) + stream.finish() == text
    stream = byte_level.stream()
    alone = [stream.push(id) for id in byte_level.encode("é")]
    assert alone == ["", "é"]  # the character leaves with its last byte, not later


def test_broken_bytes_become_replacement_characters(
    byte_level: ModelTokenizer, marked: ModelTokenizer
) -> None:
    first = byte_level.encode("é")[0]
    stream = byte_level.stream()
    assert stream.push(first) == ""
    assert stream.push(byte_level.encode("a")[0]) == "\ufffda"
    assert stream.push(first) + stream.finish() == "\ufffd"
    half = 3 + 0xC3
    assert streamed(marked, [half, half]) == marked.decode([half, half]) == "\ufffd\ufffd"


def test_merges_and_splits(byte_level: ModelTokenizer) -> None:
    assert words(byte_level, "hello hello") == ["hello", " ", "hello"]
    assert words(byte_level, "  12") == ["  ", "1", "2"]  # smollm cuts every digit off first
    assert byte_level.encode("<|im_end|>") == [2]
    assert byte_level.decode([2]) == ""


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "12345", ["1", "2", "3", "4", "5"]),
        ("gpt-2", "12345 a", ["12345", "Ġa"]),
        ("default", "12345", ["123", "45"]),
        ("default", "a-b", ["a", "-", "b"]),
        ("llama-bpe", "12345\n\nit's", ["123", "45", "ĊĊ", "it", "'s"]),
        ("qwen2", "12 IT'S", ["1", "2", "ĠIT", "'S"]),
        ("qwen2", "a  \n b", ["a", "ĠĠĊ", "Ġb"]),
    ],
)
def test_pre_tokenizers_cut_as_their_models_do(place: Path, pre: str, text: str, pieces: list[str]) -> None:
    backend = build(place, byte_level_metadata(pre))._backend
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_qwen2_composes_characters_first(place: Path) -> None:
    qwen = build(place, byte_level_metadata("qwen2"))
    assert qwen.encode("e\u0301") == qwen.encode("é")


def test_llama_bpe_takes_whole_words_and_a_leading_bos(place: Path) -> None:
    metadata = byte_level_metadata("llama-bpe")
    del metadata["tokenizer.ggml.add_bos_token"]
    metadata["tokenizer.ggml.tokens"].append("xyz")  # no merge leads to it
    metadata["tokenizer.ggml.token_type"].append(1)
    llama = build(place, metadata)
    assert llama.encode("xyz") == [1, len(metadata["tokenizer.ggml.tokens"]) - 1]
    metadata["tokenizer.ggml.add_bos_token"] = False
    assert build(place, metadata).encode("xyz") == [len(metadata["tokenizer.ggml.tokens"]) - 1]


def test_marked_words_merge_by_score(marked: ModelTokenizer) -> None:
    tokens = sentencepiece_metadata()["tokenizer.ggml.tokens"]
    assert marked.encode("ab") == [1, tokens.index("\u2581ab")]
    assert marked.encode("abc abc") == [1, tokens.index("\u2581abc"), tokens.index("\u2581abc")]
    # "▁a" (score -4) is joined before "ab" (-5), so that "▁" + "ab" never comes up
    assert marked.encode("b") == [1, tokens.index("\u2581"), tokens.index("b")]
    assert marked.encode("ü") == [1, tokens.index("\u2581"), 3 + 0xC3, 3 + 0xBC]


def test_a_conversation(byte_level: ModelTokenizer) -> None:
    talk = [{"role": "user", "content": "hello"}]
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert byte_level.render(talk) == text
    assert byte_level.chat(talk) == byte_level.encode(text)
    assert byte_level.has_chat_template


def test_without_a_template_a_conversation_is_refused(marked: ModelTokenizer) -> None:
    assert not marked.has_chat_template
    with pytest.raises(Refused, match="no chat template") as caught:
        marked.chat([{"role": "user", "content": "x"}])
    assert caught.value.code is RefusalCode.UNSUPPORTED


def test_a_broken_template_leaves_the_rest_usable(place: Path) -> None:
    tokenizer = build(place, {**byte_level_metadata(), "tokenizer.chat_template": "{% if %}"})
    assert not tokenizer.has_chat_template
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    with pytest.raises(Refused, match="chat template cannot be used"):
        tokenizer.chat([{"role": "user", "content": "x"}])


def test_text_that_is_not_unicode_is_refused(byte_level: ModelTokenizer) -> None:
    with pytest.raises(Refused, match="not valid Unicode"):
        byte_level.encode("a\ud800")
    with pytest.raises(Refused, match="not valid Unicode"):
        byte_level.chat([{"role": "user", "content": "a\ud800"}])


def test_ids_without_a_text_are_left_out(byte_level: ModelTokenizer) -> None:
    ids = [10**6, *byte_level.encode("hello"), 10**6]
    assert byte_level.decode(ids) == streamed(byte_level, ids) == "hello"


BAD = {
    "a kind": ({"tokenizer.ggml.model": "t5"}, "'t5' is not supported; supported: gpt2, llama"),
    "a pre-tokenizer": ({"tokenizer.ggml.pre": "tekken"}, "'tekken' is not supported; supported: .*qwen2"),
    "a merge": ({"tokenizer.ggml.merges": ["h e", "x"]}, "'x', which is not two tokens"),
    "a merge of nothing": ({"tokenizer.ggml.merges": ["hq z"]}, "cannot be built"),
    "types": ({"tokenizer.ggml.token_type": [1, 2]}, "token_type has 2 entries"),
    "types as fractions": ({"tokenizer.ggml.token_type": [1.0] * 265}, "token_type"),
    "a token twice": (
        {"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]},
        "token twice",
    ),
    "no bos": ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 9999}, "names none"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_a_bad_tokenizer_is_refused_by_name(tmp_path: Path, case: str) -> None:
    changes, reason = BAD[case]
    with pytest.raises(ModelError, match=reason):
        build(tmp_path, {**byte_level_metadata(), **changes})


@pytest.mark.parametrize("key", ["tokens", "merges", "model"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    metadata = byte_level_metadata()
    del metadata[f"tokenizer.ggml.{key}"]
    with pytest.raises(ModelError, match=rf"tokenizer.ggml.{key}' is missing"):
        build(tmp_path, metadata)


def test_sentencepiece_needs_its_byte_tokens_and_scores(tmp_path: Path) -> None:
    metadata = sentencepiece_metadata()
    metadata["tokenizer.ggml.scores"] = [0.0, 1.0]
    with pytest.raises(ModelError, match="scores has 2 entries"):
        build(tmp_path, metadata)
    metadata = sentencepiece_metadata()
    metadata["tokenizer.ggml.token_type"][10] = 1
    with pytest.raises(ModelError, match="without 256 byte tokens"):
        build(tmp_path, metadata)


def json_tokenizer(folder: Path, decoder: Any = None, **settings: Any) -> Path:
    vocabulary = {token: id for id, token in enumerate(byte_level_metadata()["tokenizer.ggml.tokens"])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel() if decoder is None else decoder
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_tokenizer_json_neither_cuts_nor_pads(tmp_path: Path) -> None:
    tokenizer = folder_tokenizer(json_tokenizer(tmp_path))
    assert len(tokenizer.encode("abcdefgh")) == 8
    assert streamed(tokenizer, tokenizer.encode("naïve 😀")) == "naïve 😀"
    assert not tokenizer.has_chat_template


def test_where_a_folder_keeps_its_template(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "x"}]
    bos = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"}
    json_tokenizer(tmp_path, chat_template="{{ bos_token ~ eos_token }}1", **bos)
    assert folder_tokenizer(tmp_path).render(talk) == "<|im_start|><|im_end|>1"
    named = [{"name": "tool_use", "template": "2"}, {"name": "default", "template": "3"}]
    json_tokenizer(tmp_path, chat_template=named)
    assert folder_tokenizer(tmp_path).render(talk) == "3"
    (tmp_path / "chat_template.jinja").write_text("4")
    assert folder_tokenizer(tmp_path).render(talk) == "4"
    (tmp_path / "chat_template.jinja").unlink()
    json_tokenizer(tmp_path, chat_template=5)
    with pytest.raises(ModelError, match="chat_template is not a string"):
        folder_tokenizer(tmp_path)


def test_a_decoder_that_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"WordPiece.* is not supported; supported: ByteLevel"):
        folder_tokenizer(json_tokenizer(tmp_path, decoders.WordPiece()))


def test_sentencepiece_that_rewrites_its_text_is_refused(tmp_path: Path) -> None:
    metadata = {**sentencepiece_metadata(), "tokenizer.ggml.remove_extra_whitespaces": True}
    with pytest.raises(ModelError, match="rewrites its text"):
        build(tmp_path, metadata)


CHAT = [{"role": "user", "content": "hello <|im_end|> 12"}]


@pytest.mark.parametrize("kind", ["byte_level", "marked"])
def test_its_files_make_the_same_tokenizer(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tokenizer: ModelTokenizer = request.getfixturevalue(kind)
    for name, data in tokenizer.files().items():
        (tmp_path / name).write_bytes(data)
    again = folder_tokenizer(tmp_path)
    for text in ("hello 12\n", " a  abc", "\u00e9\U0001f600<|im_end|>", ""):
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids
        assert streamed(again, ids) == streamed(tokenizer, ids)
    assert again.has_chat_template == tokenizer.has_chat_template
    if tokenizer.has_chat_template:
        assert again.render(CHAT) == tokenizer.render(CHAT)
    assert again.files() == tokenizer.files()
