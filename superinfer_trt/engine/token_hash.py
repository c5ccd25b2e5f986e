"""What the engines without a model share: hashes of token chains, tokens made from them, the door.

The state at a position is a hash of all tokens up to it, so it does not depend on request ids, chunks,
neighbours or slots; tokens made from it are the same whatever the scheduler does (C12). Knows no pool
and no clock. Functions are pure; `Recent` is not thread-safe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from superinfer_trt.core.errors import EngineFailed
from superinfer_trt.core.outcome import Sampled
from superinfer_trt.core.request import Sampling
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import RequestId

Words = NDArray[np.uint64]
Kept = TypeVar("Kept")

_STRIDE = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: its multiples do not repeat
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # the finaliser of splitmix64
_MASK = (1 << 64) - 1
CANDIDATES_MAX = 64
"""Tokens that can be sampled at one position; the next would have a probability below 2^-64."""

HASHED_SAMPLING = frozenset({"min_p", "min_tokens"})
"""What of core.request.OPTIONAL_SAMPLING `sample` knows."""


def mix(values: Words) -> Words:
    """A bijection of 64-bit words that spreads every bit (splitmix64's finaliser)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_FIRST)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_SECOND)
    spread_out: Words = values ^ (values >> np.uint64(31))
    return spread_out


def spread(count: int, first: int = 1) -> Words:
    """`count` words, one stride apart, from `first` strides on."""
    words: Words = np.arange(first, first + count, dtype=np.uint64) * np.uint64(_STRIDE)
    return words


def states(before: int, start: int, tokens: Sequence[int]) -> Words:
    """States at positions start .. start + len(tokens) - 1; `before` is the state at start - 1, or 0."""
    links = mix(np.asarray(tokens, dtype=np.uint64) + spread(len(tokens), start + 1))
    links[0] += np.array(before, dtype=np.uint64)
    return np.cumsum(links, dtype=np.uint64)


def sample(state: int, sampling: Sampling, index: int, vocabulary: int) -> Sampled:
    """Output token `index` after a chain that ends in `state`.

    The made-up model knows a first, second, ... likeliest token with probabilities 1/2, 1/4, ...;
    min_tokens, temperature, min_p, top-k and top-p cut and bend that as they do any distribution.
    """
    first = _mix_one(state ^ _STRIDE) % vocabulary
    count = min(CANDIDATES_MAX, vocabulary)
    forbidden = sampling.forbidden(index)
    # The places in the order of likelihood that may be chosen, lowest first.
    places: Sequence[int] = range(count)
    if forbidden:
        allowed = (p for p in range(vocabulary) if (first + p) % vocabulary not in forbidden)
        places = list(islice(allowed, count))
    rank = 0
    if sampling.temperature > 0:
        kept = min(len(places), sampling.top_k) if sampling.top_k else len(places)
        weights = [2.0 ** ((places[0] - place) / sampling.temperature) for place in places[:kept]]
        least = sampling.min_p * weights[0]
        weights = [weight for weight in weights if weight >= least]
        kept_mass, total, chosen = 0.0, sum(weights), 0
        while chosen < len(weights) and (not chosen or kept_mass < sampling.top_p * total):
            kept_mass += weights[chosen]
            chosen += 1
        left = _mix_one(_mix_one(sampling.seed) + index * _STRIDE) / 2.0**64 * kept_mass
        while rank + 1 < chosen and left >= weights[rank]:
            left -= weights[rank]
            rank += 1
    place = places[rank]
    token = (first + place) % vocabulary
    if sampling.logprobs < 0:
        return Sampled(token)
    top = tuple(
        ((first + at) % vocabulary, -(at + 1) * math.log(2.0)) for at in range(min(sampling.logprobs, count))
    )
    return Sampled(token, -(place + 1) * math.log(2.0), top)


def check_batch(batch: Batch, vocabulary: int, context_tokens_max: int, block_tokens: int) -> None:
    """Raises EngineFailed for a row no engine could run; names request and limit."""
    seen: set[RequestId] = set()
    for row in batch.rows:
        stop = row.start + len(row.tokens)
        if row.id in seen:
            raise EngineFailed(f"request {row.id} stands in the batch twice")
        seen.add(row.id)
        if row.start < 0 or not row.tokens:
            raise EngineFailed(f"request {row.id}: {len(row.tokens)} tokens from position {row.start}")
        if stop > context_tokens_max:
            raise EngineFailed(f"request {row.id}: position {stop - 1} is not below {context_tokens_max}")
        if len(row.slots) * block_tokens < stop:
            raise EngineFailed(f"request {row.id}: {len(row.slots)} slots do not cover {stop} positions")
        if min(row.tokens) < 0 or max(row.tokens) >= vocabulary:
            raise EngineFailed(f"request {row.id}: a token id is outside 0 .. {vocabulary - 1}")
        if len(row.sampling.forbidden(row.index)) >= vocabulary:
            raise EngineFailed(f"request {row.id}: no token is left that is not a stop id")


def starts_off(row: Row, known: int) -> EngineFailed:
    """For a row whose history is not the one that was computed."""
    return EngineFailed(
        f"request {row.id} goes on at position {row.start}, but {known} positions were computed"
    )


def is_last(row: Row, token: int) -> bool:
    """Whether the request ends with `token`, so that its record is not needed again."""
    return row.index + 1 >= row.sampling.max_tokens or token in row.sampling.stop_ids


class Recent(Generic[Kept]):
    """Records by request, the newest `limit`: nobody tells an engine that a request was cancelled."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._records: dict[RequestId, Kept] = {}

    def get(self, id: RequestId) -> Kept | None:
        """Its record, if kept."""
        return self._records.get(id)

    def put(self, id: RequestId, record: Kept) -> None:
        """Keeps `record` as the newest, and drops the oldest one too many."""
        self._records.pop(id, None)
        self._records[id] = record
        if len(self._records) > self._limit:
            del self._records[next(iter(self._records))]

    def drop(self, id: RequestId) -> None:
        """Keeps nothing of it; unknown ids are ignored."""
        self._records.pop(id, None)

    def items(self) -> list[tuple[RequestId, Kept]]:
        """All, oldest first."""
        return list(self._records.items())


def _mix_one(value: int) -> int:
    """`mix` of one word."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)
