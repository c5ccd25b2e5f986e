"""Text to ids and back, over a `tokenizers.Tokenizer`; and the incremental form of `decode`.

Knows no file format: it is handed a tokenizer from a GGUF file or from tokenizer.json. Encoding follows
the model's own convention (a leading BOS where it has one); special tokens written in a text are
recognised, as Hugging Face does; decoding leaves them out. A ModelTokenizer may be used from any thread;
a stream belongs to one request.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from superinfer_trt.core.errors import ModelError, RefusalCode, Refused
from superinfer_trt.core.model import TextStream
from superinfer_trt.model.chat import ChatTemplate

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_SPACE_MARK = "\u2581"  # sentencepiece writes a space as this


class _Pieces(Protocol):
    """How the tokens of one family become text."""

    def stream(self) -> TextStream: ...


class ModelTokenizer:
    """core.model.Tokenizer."""

    def __init__(self, backend: Backend, template: ChatTemplate | None, source: str) -> None:
        """Raises ModelError when the tokenizer's decoder is of a kind that cannot be streamed."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._template = template
        self._pieces = _pieces(backend, source)

    @property
    def vocabulary(self) -> int:
        """Ids that have a text, added tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def has_chat_template(self) -> bool:
        """Whether chat() can work."""
        return self._template is not None and not self._template.trouble

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, with BOS where the model wants it. Raises Refused for text that is not Unicode."""
        return self._ids(text, "text", special=True)

    def _ids(self, text: str, field: str, *, special: bool) -> list[int]:
        try:
            return list(self._backend.encode(text, add_special_tokens=special).ids)
        except (UnicodeError, TypeError) as error:  # lone surrogates
            raise Refused(RefusalCode.INVALID, field, "not valid Unicode") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens; ids without a text are left out."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation with the generation prompt. Raises Refused, field `messages`."""
        return self._ids(self.render(messages), "messages", special=False)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a conversation with the generation prompt. Raises Refused, field `messages`."""
        if self._template is None:
            raise Refused(RefusalCode.UNSUPPORTED, "messages", "the model has no chat template")
        return self._template.render(messages)

    def stream(self) -> TextStream:
        """A new stream: the pushed texts and finish() concatenate to decode() of all the ids."""
        return self._pieces.stream()

    def files(self) -> Mapping[str, bytes]:
        """tokenizer.json, and the template with its special tokens in tokenizer_config.json."""
        settings: dict[str, str] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if self._template is not None:
            settings |= {**self._template.special_tokens, "chat_template": self._template.source}
        return {
            "tokenizer.json": str(self._backend.to_str()).encode(),
            "tokenizer_config.json": json.dumps(settings, indent=2, sort_keys=True).encode(),
        }


class _BytePieces:
    """Byte-level BPE (GPT-2, Llama 3, Qwen2, SmolLM2): every token is a run of bytes."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._special = _special_ids(backend)
        self._bytes_of = _byte_alphabet()
        self._known: dict[int, bytes] = {}

    def bytes_for(self, id: int) -> bytes:
        found = self._known.get(id)
        if found is None:
            found = self._known[id] = self._spell(id)
        return found

    def _spell(self, id: int) -> bytes:
        if id in self._special:
            return b""
        token = self._backend.id_to_token(id)
        if token is None:
            return b""
        try:
            return bytes(self._bytes_of[character] for character in token)
        except KeyError:  # an added token is written as itself
            return str(token).encode()

    def stream(self) -> TextStream:
        return _ByteStream(self)


class _ByteStream:
    def __init__(self, pieces: _BytePieces) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._pieces.bytes_for(token))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _MarkedPieces:
    """Sentencepiece style (Llama 2, Mixtral): marked spaces, and single bytes for unknown characters."""

    def __init__(self, backend: Backend, strip: int) -> None:
        self._backend = backend
        self._special = _special_ids(backend)
        self.strip = strip
        self._bytes = {f"<0x{value:02X}>": value for value in range(256)}

    def spell(self, id: int) -> str | int:
        """A text, or one byte."""
        token = None if id in self._special else self._backend.id_to_token(id)
        if token is None:
            return ""
        return self._bytes.get(token, str(token).replace(_SPACE_MARK, " "))

    def stream(self) -> TextStream:
        return _MarkedStream(self)


class _MarkedStream:
    """A run of byte tokens is one decision (all valid UTF-8, or each byte a replacement character), so
    it becomes certain when the run ends."""

    def __init__(self, pieces: _MarkedPieces) -> None:
        self._pieces = pieces
        self._run = bytearray()
        self._strip = pieces.strip

    def push(self, token: int) -> str:
        piece = self._pieces.spell(token)
        if isinstance(piece, int):
            self._run.append(piece)
            return ""
        return self._stripped(self._end_run() + piece) if piece else ""

    def finish(self) -> str:
        return self._stripped(self._end_run())

    def _end_run(self) -> str:
        run, self._run = bytes(self._run), bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if text[0] != " ":
                self._strip = 0
                break
            text, self._strip = text[1:], self._strip - 1
        return text


def _pieces(backend: Backend, source: str) -> _Pieces:
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    steps: list[dict[str, Any]] = decoder.get("decoders", [decoder])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return _BytePieces(backend)
    marked = ["Replace", "ByteFallback", "Fuse", "Strip"]
    if kinds in (marked, marked[:3]) and steps[0].get("pattern") == {"String": _SPACE_MARK}:
        strip = steps[3] if len(steps) > 3 else {}
        plain = strip.get("content", " ") == " " and not strip.get("stop")
        if plain and steps[0].get("content") == " ":
            return _MarkedPieces(backend, int(strip.get("start", 0)))
    raise ModelError(
        f"{source}: the tokenizer's decoder {kinds} is not supported; supported: ByteLevel, {marked}"
    )


def _special_ids(backend: Backend) -> frozenset[int]:
    return frozenset(id for id, token in backend.get_added_tokens_decoder().items() if token.special)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte: itself where printable, else the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    alphabet = {chr(value): value for value in printable}
    others = (value for value in range(256) if value not in printable)
    alphabet.update({chr(0x100 + index): value for index, value in enumerate(others)})
    return alphabet
