"""One door to every model: a GGUF file, a Hugging Face folder, a known name, or a hub id.

The only module of this package that knows all of its formats. Opening checks the whole model (tensors,
shapes, tokenizer) and reads no weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from superinfer_trt.core.errors import ModelError
from superinfer_trt.core.model import ModelConfig, Tokenizer, Weights
from superinfer_trt.model.cache import KNOWN_MODELS, ModelCache
from superinfer_trt.model.folder import FolderWeights, folder_tokenizer
from superinfer_trt.model.gguf_model import GgufWeights, open_gguf
from superinfer_trt.model.gguf_tokenizer import gguf_tokenizer

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_HUB_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "model*.safetensors", "model.safetensors.index.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model that is ready to be loaded. `source` is the file or folder it was found in."""

    config: ModelConfig
    weights: Weights
    tokenizer: Tokenizer
    source: str
    storage: Mapping[str, int]  # values by storage format
    file_bytes: int


def open_model(
    name_or_path: str,
    cache: Path | None = None,
    strftime_now: Callable[[str], str] | None = None,
) -> OpenModel:
    """Opens a model; raises ModelError that says what is wrong and what to do.

    `cache` is the cache folder (default: ~/.cache/superinfer-trt). `strftime_now` tells chat templates
    that ask for it the date; without it they have none.
    """
    place = locate(name_or_path, ModelCache(cache))
    weights: GgufWeights | FolderWeights
    if place.is_dir():
        weights = FolderWeights(place)
        tokenizer = folder_tokenizer(place, strftime_now)
    else:
        weights = open_gguf(place)
        tokenizer = gguf_tokenizer(weights.file, strftime_now)
    if tokenizer.vocabulary > weights.config.vocabulary:
        raise ModelError(
            f"{place}: the tokenizer has {tokenizer.vocabulary} ids, the embedding only "
            f"{weights.config.vocabulary} rows"
        )
    return OpenModel(weights.config, weights, tokenizer, str(place), weights.storage, weights.file_bytes)


def locate(name_or_path: str, cache: ModelCache) -> Path:
    """The file or folder behind a name; fetches only hub ids. Raises ModelError."""
    path = Path(name_or_path).expanduser()
    known = KNOWN_MODELS.get(name_or_path)
    if known is not None:
        found = cache.find(known)
        if found is not None:
            return found
        raise ModelError(
            f"model {name_or_path!r} is not in the cache {cache.root}: "
            f"run `superinfer-trt model get {name_or_path}`"
        )
    if path.exists():
        return path
    if path.suffix == ".gguf" or path.is_absolute() or name_or_path.startswith((".", "~")):
        raise ModelError(f"{name_or_path}: no such file or folder")
    if _HUB_ID.fullmatch(name_or_path):
        return _from_hub(name_or_path, cache)
    raise ModelError(
        f"model {name_or_path!r}: no such file or folder, and not a known name ({', '.join(KNOWN_MODELS)}) "
        "or a Hugging Face hub id (owner/name)"
    )


def _from_hub(id: str, cache: ModelCache) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError(
            f"model {id!r}: no such folder; to fetch it from the Hugging Face hub, "
            "`pip install 'superinfer-trt[hub]'`, or give the path of a downloaded folder"
        ) from error
    try:
        folder = snapshot_download(id, cache_dir=cache.root / "hub", allow_patterns=list(_HUB_FILES))
    except Exception as error:  # the hub client's errors come from several libraries
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ModelError(
            f"model {id!r}: the Hugging Face hub did not give it ({type(error).__name__}: {reason}); "
            "give the path of a downloaded folder, or use a known model: "
            f"`superinfer-trt model get {next(iter(KNOWN_MODELS))}`"
        ) from error
    return Path(folder)
