"""An engine without a model: writes a pattern into every KV cell, and verifies all of it at every step.

A lost, stale, torn or crossed block, or one that was read before it had landed, ends in EngineFailed
with request, position and what was found there (C5, L4). Implements core.ports.ModelEngine. Knows no
link, no ledger and no clock; keeps one record of hashes a request. Not thread-safe.

Cost: a step reads all KV of its rows twice (at launch and at collect), at memory speed in numpy, about
3 GB/s: meant for small geometries, not for speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from superinfer_trt.core.errors import ConfigError, EngineFailed, InvariantViolation
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.outcome import Outcome, Sampled
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import RequestId
from superinfer_trt.engine.token_hash import (
    HASHED_SAMPLING,
    Recent,
    Words,
    check_batch,
    is_last,
    mix,
    sample,
    spread,
    starts_off,
    states,
)

GROUP_BYTES = 4 << 20
"""KV compared or written in one numpy call; bounds the scratch memory and stays in cache."""

_PADDING = np.uint64(0)
"""Stands for no state; a real state is 0 once in 2^64."""


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    """One row of the batch in the air; `slots` is a copy, because the ledger's array lives on."""

    row: Row
    slots: NDArray[np.int64]
    chain: Words  # states of positions 0 .. start + len(tokens) - 1


class PatternEngine:
    """See the module. `pool` is uint8 [device_blocks, block_bytes], C-contiguous and writable.

    History is verified at launch *and* at collect, and written at collect: whoever reads, overwrites or
    moves a block while the batch is in the air is noticed. A record is dropped with the last token; the
    records of cancelled requests stay until `requests_max` newer ones came. A request whose record was
    dropped ends in EngineFailed, so `requests_max` must well exceed the requests that hold KV.
    """

    def __init__(
        self,
        geometry: Geometry,
        pool: NDArray[np.uint8],
        *,
        vocabulary: int = 32_000,
        context_tokens_max: int = 32_768,
        requests_max: int = 16_384,
    ) -> None:
        if pool.dtype != np.uint8 or pool.ndim != 2 or pool.shape[1] != geometry.block_bytes:
            raise ConfigError(
                f"pool: expected uint8 [blocks, {geometry.block_bytes}], got {pool.dtype} {list(pool.shape)}"
            )
        if not (pool.flags.c_contiguous and pool.flags.writeable):
            raise ConfigError("pool: expected a C-contiguous, writable array")
        cell_bytes = geometry.kv_heads * geometry.head_dim * geometry.element_bytes
        word_bytes = next(size for size in (8, 4, 2, 1) if cell_bytes % size == 0)
        self._geometry = geometry
        self._vocabulary = vocabulary
        self._context_tokens_max = context_tokens_max
        self._word = np.dtype(f"u{word_bytes}")
        # A cell is one layer's K or V of one position: axes are block, layer, K or V, position, word.
        shape = (geometry.layers, 2, geometry.block_tokens, cell_bytes // word_bytes)
        self._cells = pool.view(self._word).reshape(-1, *shape)
        self._planes = mix(spread(geometry.layers * 2)).reshape(geometry.layers, 2)
        self._steps = spread(cell_bytes // word_bytes)
        self._group_blocks = max(1, GROUP_BYTES // geometry.block_bytes)
        self._chains: Recent[Words] = Recent(requests_max)
        self._air: list[_Share] | EngineFailed | None = None
        self._closed = False

    @property
    def geometry(self) -> Geometry:
        """Of one block."""
        return self._geometry

    @property
    def vocabulary(self) -> int:
        """Token ids are below it."""
        return self._vocabulary

    @property
    def context_tokens_max(self) -> int:
        """Positions of one request are below it."""
        return self._context_tokens_max

    @property
    def supports(self) -> frozenset[str]:
        """Made-up tokens have no logits to take a penalty from."""
        return HASHED_SAMPLING

    def launch(self, batch: Batch) -> None:
        """Verifies the history of all rows; what is wrong is raised by `collect`."""
        if self._closed or self._air is not None:
            raise InvariantViolation("launch: closed" if self._closed else "launch: a batch is in the air")
        try:
            check_batch(batch, self._vocabulary, self._context_tokens_max, self._geometry.block_tokens)
            shares = [self._share(row) for row in batch.rows]
            self._apart(shares)
            self._verify(shares)
            self._air = shares
        except EngineFailed as failure:
            self._air = failure

    def collect(self) -> Outcome:
        """Verifies once more, writes the rows' own tokens and makes the sampled ones."""
        air, self._air = self._air, None
        if air is None:
            raise InvariantViolation("collect: no batch is in the air")
        if isinstance(air, EngineFailed):
            raise air
        self._verify(air)
        self._write(air)
        sampled: dict[RequestId, Sampled] = {}
        for share in air:
            row = share.row
            self._chains.put(row.id, share.chain)
            if row.sample:
                made = sample(int(share.chain[-1]), row.sampling, row.index, self._vocabulary)
                sampled[row.id] = made
                if is_last(row, made.token):
                    self._chains.drop(row.id)
        return Outcome(sampled)

    def close(self) -> None:
        """Forgets everything. Idempotent."""
        self._closed = True
        self._air = None
        self._chains = Recent(0)

    # -- before the batch ----------------------------------------------------------------------------

    def _share(self, row: Row) -> _Share:
        stop = row.start + len(row.tokens)
        slots = np.array(row.slots[: self._geometry.blocks_for(stop)], dtype=np.int64)
        if slots.min() < 0 or slots.max() >= len(self._cells):
            raise EngineFailed(f"request {row.id}: a slot is outside 0 .. {len(self._cells) - 1}")
        known = self._chains.get(row.id) if row.start else np.empty(0, dtype=np.uint64)
        if known is None or len(known) < row.start:
            raise starts_off(row, 0 if known is None else len(known))
        history = known[: row.start]
        before = int(history[-1]) if row.start else 0
        return _Share(row, slots, np.concatenate([history, states(before, row.start, row.tokens)]))

    @staticmethod
    def _apart(shares: Sequence[_Share]) -> None:
        """No slot belongs to two rows (L1)."""
        slots = np.concatenate([share.slots for share in shares]) if shares else np.empty(0, dtype=np.int64)
        values, counts = np.unique(slots, return_counts=True)
        if (counts > 1).any():
            slot = values[counts > 1][0]
            owners = [share.row.id for share in shares if slot in share.slots]
            raise EngineFailed(f"slot {slot} belongs to more than one block, of requests {owners}")

    # -- the pool --------------------------------------------------------------------------------------

    def _pattern(self, chains: Words) -> NDArray[np.unsignedinteger]:
        """Blocks whose positions have these states: [blocks, position] -> as in `_cells`."""
        seeds = mix(chains[:, None, None, :] ^ self._planes[None, :, :, None])
        words: NDArray[np.unsignedinteger] = seeds[..., None] + self._steps
        return words.astype(self._word, copy=False)

    def _verify(self, shares: Sequence[_Share]) -> None:
        size = self._geometry.block_tokens
        full = [(share, share.row.start // size) for share in shares]
        self._compare(
            [share for share, count in full for _ in range(count)],
            [share.slots[:count] for share, count in full],
            [share.chain[: count * size] for share, count in full],
        )
        tails = [(share, count) for share, count in full if share.row.start % size]
        self._compare(
            [share for share, _ in tails],
            [share.slots[count : count + 1] for share, count in tails],
            [_padded(share.chain[count * size : share.row.start], size) for share, count in tails],
        )

    def _compare(
        self, owners: Sequence[_Share], slots: Sequence[NDArray[np.int64]], chains: Sequence[Words]
    ) -> None:
        """Raises for the first cell that is wrong; cells of padding may hold anything."""
        if not owners:
            return
        all_slots = np.concatenate(slots)
        all_chains = np.concatenate(chains).reshape(len(all_slots), -1)
        for first in range(0, len(owners), self._group_blocks):
            piece = slice(first, first + self._group_blocks)
            found, expected = self._cells[all_slots[piece]], self._pattern(all_chains[piece])
            if np.array_equal(found, expected):
                continue
            differs = (found != expected).any(axis=(1, 2, 4)) & (all_chains[piece] != _PADDING)
            if differs.any():
                at, offset = (int(index) for index in np.argwhere(differs)[0])
                cell = found[at, :, :, offset]  # not read again: a copy may be landing there
                raise self._fault(owners[first + at], int(all_slots[first + at]), offset, cell)

    def _fault(
        self, share: _Share, slot: int, offset: int, found: NDArray[np.unsignedinteger]
    ) -> EngineFailed:
        block = int(np.flatnonzero(share.slots == slot)[0])
        position = block * self._geometry.block_tokens + offset
        expected = self._pattern(share.chain[None, position : position + 1])[0, :, :, 0]
        layer, plane, word = (int(index) for index in np.argwhere(found != expected)[0])
        return EngineFailed(
            f"KV of request {share.row.id} at position {position} (layer {layer}, {'KV'[plane]}, "
            f"slot {slot}) is not what was written: expected {int(expected[layer, plane, word]):#x}, "
            f"found {int(found[layer, plane, word]):#x}{self._whose(found)}"
        )

    def _whose(self, found: NDArray[np.unsignedinteger]) -> str:
        """Names the cell that the bytes belong to, where a record knows them."""
        if not found.any():
            return ", all zero"
        for id, chain in self._chains.items():
            seeds = mix(chain ^ self._planes[0, 0]) + self._steps[0]
            hits = np.flatnonzero(seeds.astype(self._word) == found[0, 0, 0])
            if len(hits):
                return f", which belongs to position {int(hits[0])} of request {id}"
        return ""

    def _write(self, shares: Sequence[_Share]) -> None:
        size = self._geometry.block_tokens
        for share in shares:
            positions = np.arange(share.row.start, len(share.chain))
            slots, offsets = share.slots[positions // size], positions % size
            for first in range(0, len(positions), self._group_blocks * size):
                piece = slice(first, first + self._group_blocks * size)
                new = self._pattern(share.chain[None, positions[piece]])[0]
                self._cells[slots[piece], :, :, offsets[piece]] = new.transpose(2, 0, 1, 3)


def _padded(chain: Words, size: int) -> Words:
    padded = np.full(size, _PADDING, dtype=np.uint64)
    padded[: len(chain)] = chain
    return padded
