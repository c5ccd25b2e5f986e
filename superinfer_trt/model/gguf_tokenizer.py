"""A tokenizer out of the metadata of a GGUF file.

Knows the vocabularies `gpt2` (byte-level BPE with one of the known pre-tokenizers) and `llama`
(sentencepiece BPE with byte fallback); others are refused by name, since a wrong split gives a model that
seems to work. Stateless.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from superinfer_trt.core.errors import ModelError
from superinfer_trt.model.chat import ChatTemplate
from superinfer_trt.model.gguf import GgufFile
from superinfer_trt.model.gguf_model import Keys
from superinfer_trt.model.shown import shown
from superinfer_trt.model.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # token types of the specification

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _WORDS % "{1,3}"
_QWEN2 = _WORDS % ""
_SPLITS: Mapping[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
}
"""Regular expressions that cut a text before BPE, applied one after the other, by `tokenizer.ggml.pre`."""

_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3")
"""Here a word that is a token is taken as it is, without merging; and BOS is the default."""


def gguf_tokenizer(file: GgufFile, strftime_now: Callable[[str], str] | None = None) -> ModelTokenizer:
    """The tokenizer of `file`. Raises ModelError when it is incomplete or of an unsupported kind."""
    keys = Keys(file)
    kind = keys.text("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise ModelError(
            f"{keys.source}: tokenizer {shown(kind)} is not supported; supported: {', '.join(builders)}"
        )
    tokens = keys.texts("tokenizer.ggml.tokens")
    types = _types(keys, len(tokens))
    try:
        backend = builders[kind](keys, tokens, types)
        _add_special(backend, tokens, types)
    except ModelError:
        raise
    except Exception as error:  # the library raises plain Exception for a vocabulary it cannot use
        raise ModelError(f"{keys.source}: the tokenizer cannot be built: {error}") from error
    whole_words = kind == "gpt2" and keys.text("tokenizer.ggml.pre", "default") in _WHOLE_WORDS
    _add_bos(backend, keys, tokens, default=kind == "llama" or whole_words)
    return ModelTokenizer(backend, _template(keys, tokens, strftime_now), keys.source)


def _types(keys: Keys, count: int) -> list[int]:
    import numpy as np

    types = keys.get("tokenizer.ggml.token_type", np.ndarray, "a list of numbers", np.ones(count, np.int32))
    if types.size != count or types.dtype.kind not in "iu":
        raise ModelError(
            f"{keys.source}: tokenizer.ggml.token_type has {types.size} entries for {count} tokens"
        )
    return [int(value) for value in types]


def _vocabulary(keys: Keys, tokens: list[str]) -> dict[str, int]:
    vocabulary = {token: id for id, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ModelError(f"{keys.source}: tokenizer.ggml.tokens holds a token twice")
    return vocabulary


def _byte_level(keys: Keys, tokens: list[str], _: list[int]) -> Backend:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = keys.text("tokenizer.ggml.pre", "default")
    splits = _SPLITS.get(pre)
    if splits is None:
        raise ModelError(
            f"{keys.source}: pre-tokenizer {shown(pre)} is not supported; supported: {', '.join(_SPLITS)}"
        )
    merges = [_pair(keys, merge) for merge in keys.texts("tokenizer.ggml.merges")]
    model = models.BPE(_vocabulary(keys, tokens), merges, ignore_merges=pre in _WHOLE_WORDS)
    backend = Tokenizer(model)
    steps: list[Any] = [pre_tokenizers.Split(Regex(split), "isolated") for split in splits]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if splits == (_QWEN2,):
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _pair(keys: Keys, merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right):
        raise ModelError(
            f"{keys.source}: tokenizer.ggml.merges holds {shown(merge)}, which is not two tokens"
        )
    return left, right


def _sentencepiece(keys: Keys, tokens: list[str], types: list[int]) -> Backend:
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = _vocabulary(keys, tokens)
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    if keys.has("tokenizer.ggml.precompiled_charsmap") or keys.flag(
        "tokenizer.ggml.remove_extra_whitespaces", False
    ):
        raise ModelError(f"{keys.source}: tokenizer 'llama' that rewrites its text is not supported")
    if sum(kind == _BYTE for kind in types) != 256:
        raise ModelError(f"{keys.source}: tokenizer 'llama' without 256 byte tokens is not supported")
    merges = _merges_by_score(keys, tokens, types, vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = keys.flag("tokenizer.ggml.add_space_prefix", True)
    marks: list[Any] = [normalizers.Prepend("\u2581")] if prefix else []
    backend.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", "\u2581")])
    steps: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges_by_score(
    keys: Keys, tokens: list[str], types: list[int], vocabulary: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Sentencepiece's BPE joins the neighbours whose joined token scores best: a merge list by rank.

    Equal scores go by id of the joined token, then of its parts, as in Hugging Face's conversion.
    """
    import numpy as np

    scores = keys.get("tokenizer.ggml.scores", np.ndarray, "a list of numbers")
    if scores.size != len(tokens):
        raise ModelError(
            f"{keys.source}: tokenizer.ggml.scores has {scores.size} entries for {len(tokens)} tokens"
        )
    found: list[tuple[float, int, int, int, str, str]] = []
    for id, (token, kind, score) in enumerate(zip(tokens, types, scores.tolist(), strict=True)):
        if kind != _NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None:
                found.append((-score, id, left, right, token[:cut], token[cut:]))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _add_special(backend: Backend, tokens: list[str], types: list[int]) -> None:
    from tokenizers import AddedToken

    for kind, special in ((_CONTROL, True), (_UNKNOWN, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, of in zip(tokens, types, strict=True)
            if of == kind and token
        ]
        (backend.add_special_tokens if special else backend.add_tokens)(added)


def _token(keys: Keys, tokens: list[str], name: str) -> str | None:
    id = keys.whole(f"tokenizer.ggml.{name}_token_id", -1)
    return tokens[id] if 0 <= id < len(tokens) else None


def _add_bos(backend: Backend, keys: Keys, tokens: list[str], *, default: bool) -> None:
    from tokenizers.processors import TemplateProcessing

    if not keys.flag("tokenizer.ggml.add_bos_token", default):
        return
    bos = _token(keys, tokens, "bos")
    if bos is None:
        raise ModelError(f"{keys.source}: a BOS token is wanted, but tokenizer.ggml.bos_token_id names none")
    id = keys.whole("tokenizer.ggml.bos_token_id")
    backend.post_processor = TemplateProcessing(
        single=["BOS", "$A"], special_tokens=[{"id": "BOS", "ids": [id], "tokens": [bos]}]
    )


def _template(
    keys: Keys, tokens: list[str], strftime_now: Callable[[str], str] | None
) -> ChatTemplate | None:
    if not keys.has("tokenizer.chat_template"):
        return None
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {name: _token(keys, tokens, key) for name, key in names.items()}
    given = {name: token for name, token in special.items() if token is not None}
    return ChatTemplate(keys.text("tokenizer.chat_template"), given, strftime_now)
