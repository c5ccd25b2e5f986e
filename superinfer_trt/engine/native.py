"""The embedded engine: a decoder in C++ on the CPU, over a block-first pool that it reads in place.

A row's logits are a function of its own tokens alone: neighbours, batch size, chunking of the prefill,
placement of blocks and number of threads change no bit (plugins/cpu_engine/src/kernels.h says how).

Knows no scheduler, no stop id and no file format. Threads: launch, collect and close belong to one
thread; the step runs on the engine's own threads and collect() waits without the interpreter lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from superinfer_trt.core.errors import ConfigError, EngineFailed
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.model import ModelConfig, Weights
from superinfer_trt.core.outcome import Outcome, Sampled
from superinfer_trt.core.request import OPTIONAL_SAMPLING
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import RequestId
from superinfer_trt.engine.native_load import load_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from superinfer_trt import _cpu_engine

_ELEMENT_BYTES = {"bf16": 2, "fp32": 4}


def element_bytes_for(dtype: str) -> int:
    """Bytes of one KV element of "bf16" or "fp32". Raises ConfigError for another name."""
    if dtype not in _ELEMENT_BYTES:
        raise ConfigError(f"dtype: {dtype!r} is not one of {', '.join(_ELEMENT_BYTES)}")
    return _ELEMENT_BYTES[dtype]


def kernel_sets(dtype: str = "bf16") -> list[str]:
    """Names of the kernel sets this CPU can run, best first."""
    from superinfer_trt import _cpu_engine

    element_bytes_for(dtype)
    return _cpu_engine.kernel_sets(dtype)


class NativeEngine:
    """core.ports.ModelEngine on the CPU.

    `pool`: uint8 [device_blocks, block_bytes], C-contiguous and writable; the engine keeps a reference
    and reads and writes it in place. `threads` defaults to the CPUs this process may use. `kernels` is
    "auto" or one of kernel_sets(dtype). `reduce`: `weights` are one rank's share, and it makes the float32
    partial sums of a half-layer those of all ranks, in place; it is called on a thread of the step, and
    what it raises comes out of `collect` as EngineFailed. Raises ConfigError, naming the field, for what
    cannot work; ModelError comes through from `weights`.
    """

    def __init__(
        self,
        weights: Weights,
        pool: NDArray[np.uint8],
        *,
        block_tokens: int = 16,
        dtype: str = "bf16",
        threads: int | None = None,
        kernels: str = "auto",
        reduce: Callable[[NDArray[np.float32]], None] | None = None,
    ) -> None:
        from superinfer_trt import _cpu_engine

        config = weights.config
        self._config = config
        self._geometry = config.geometry(block_tokens, element_bytes_for(dtype))
        self._batch: Batch | None = None
        _check_pool(pool, self._geometry)
        if threads is None:
            threads = len(os.sched_getaffinity(0))
        try:
            self._engine: _cpu_engine.Engine = _cpu_engine.Engine(
                _shape(config, block_tokens), pool, dtype, threads, kernels
            )
            load_weights(self._engine, weights)
            if reduce is not None:
                self._engine.set_reduce(reduce)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    @property
    def vocabulary(self) -> int:
        return self._config.vocabulary

    @property
    def context_tokens_max(self) -> int:
        return self._config.context_tokens_max

    @property
    def supports(self) -> frozenset[str]:
        return OPTIONAL_SAMPLING

    @property
    def kernels(self) -> str:
        """Name of the kernel set in use."""
        return self._engine.kernels

    @property
    def threads(self) -> int:
        return self._engine.threads

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step reads at least (dense models)."""
        return self._engine.weight_bytes

    def launch(self, batch: Batch) -> None:
        """Starts the batch on the engine's threads and returns.

        Raises EngineFailed, with nothing touched, for a batch that does not fit the model or the pool,
        or while another one is in the air.
        """
        if self._batch is not None:
            raise EngineFailed("a batch is already in the air")
        try:
            self._engine.launch(*_arrays(batch.rows))
        except (ValueError, TypeError, OverflowError, RuntimeError, MemoryError) as error:
            raise EngineFailed(f"batch of turn {batch.turn}: {error}") from error
        self._batch = batch

    def collect(self) -> Outcome:
        batch, self._batch = self._batch, None
        if batch is None:
            raise EngineFailed("no batch is in the air")
        try:
            drawn = self._engine.collect()
        except (RuntimeError, MemoryError) as error:
            raise EngineFailed(f"batch of turn {batch.turn}: {error}") from error
        sampled: dict[RequestId, Sampled] = {}
        rows = (row for row in batch.rows if row.sample)
        for row, (token, logprob, top) in zip(rows, drawn, strict=True):
            sampled[row.id] = Sampled(token) if row.sampling.logprobs < 0 else Sampled(token, logprob, top)
        return Outcome(sampled)

    def keep_logits(self, *, keep: bool) -> None:
        """Whether the next batches keep the logits of their sampled rows for `logits`."""
        self._engine.keep_logits(keep)

    def logits(self, index: int) -> NDArray[np.float32]:
        """Logits [vocabulary] of the index-th sampled row of the last collected batch; a copy.

        Raises EngineFailed when they were not kept.
        """
        logits = self._engine.logits(index)
        if logits is None:
            raise EngineFailed(f"logits of sampled row {index} were not kept")
        return logits

    def close(self) -> None:
        """Ends the threads and frees the weights. Idempotent."""
        self._batch = None
        self._engine.close()


def _check_pool(pool: Any, geometry: Geometry) -> None:
    if not isinstance(pool, np.ndarray) or pool.dtype != np.uint8 or pool.ndim != 2:
        raise ConfigError("pool: must be a numpy uint8 array [device_blocks, block_bytes]")
    if pool.shape[0] < 1 or pool.shape[1] != geometry.block_bytes:
        raise ConfigError(f"pool: shape {pool.shape} must be [device_blocks >= 1, {geometry.block_bytes}]")
    if not pool.flags.c_contiguous or not pool.flags.writeable:
        raise ConfigError("pool: must be C-contiguous and writable")


def _shape(config: ModelConfig, block_tokens: int) -> _cpu_engine.Shape:
    from superinfer_trt import _cpu_engine

    shape = _cpu_engine.Shape()
    shape.layers = config.layers
    shape.hidden = config.hidden
    shape.intermediate = config.intermediate
    shape.heads = config.heads
    shape.kv_heads = config.kv_heads
    shape.head_dim = config.head_dim
    shape.vocabulary = config.vocabulary
    shape.context_tokens_max = config.context_tokens_max
    shape.experts = config.experts
    shape.experts_per_token = config.experts_per_token
    shape.block_tokens = block_tokens
    shape.tied_embedding = config.tied_embedding
    shape.qkv_bias = config.qkv_bias
    shape.norm_eps = config.norm_eps
    return shape


def _flat(parts: Iterable[Iterable[int]], count: int) -> NDArray[np.int32]:
    return np.fromiter(chain.from_iterable(parts), dtype=np.int32, count=count)


def _joined(parts: list[Sequence[int]]) -> NDArray[np.int32]:
    """One after the other; parts with a buffer (the roster's histories) are copied as memory."""
    if not parts:
        return np.empty(0, dtype=np.int32)
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])


_Arrays: TypeAlias = tuple[
    "NDArray[np.int32]",
    "NDArray[np.int32]",
    "NDArray[np.int64]",
    "NDArray[np.float64]",
    "NDArray[np.uint64]",
    "NDArray[np.int32]",
    "NDArray[np.int32]",
]


def _arrays(rows: tuple[Row, ...]) -> _Arrays:
    """What the native launch() takes: tokens, slots, [start, count, slots, sample, top_k, index, logprobs,
    history, forbidden], [temperature, top_p, min_p, repetition, presence, frequency], seeds, history and
    forbidden ids."""
    tokens = _flat((row.tokens for row in rows), sum(len(row.tokens) for row in rows))
    slots = _flat((row.slots for row in rows), sum(len(row.slots) for row in rows))
    table = np.empty((len(rows), 9), dtype=np.int64)
    reals = np.empty((len(rows), 6), dtype=np.float64)
    seeds = np.empty(len(rows), dtype=np.uint64)
    histories: list[Sequence[int]] = []
    forbidden: list[Sequence[int]] = []
    for i, row in enumerate(rows):
        how = row.sampling
        seen = row.history if row.sample else ()
        if seen:
            histories.append(seen)
        stops = how.forbidden(row.index) if row.sample else ()
        if stops:
            forbidden.append(sorted(stops))
        table[i] = (
            row.start,
            len(row.tokens),
            len(row.slots),
            row.sample,
            how.top_k,
            row.index,
            how.logprobs,
            len(seen),
            len(stops),
        )
        reals[i] = (
            how.temperature,
            how.top_p,
            how.min_p,
            how.repetition_penalty,
            how.presence_penalty,
            how.frequency_penalty,
        )
        seeds[i] = how.seed
    return tokens, slots, table, reals, seeds, _joined(histories), _joined(forbidden)
