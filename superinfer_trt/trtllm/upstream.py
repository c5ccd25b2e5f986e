"""What the adapter asks of TensorRT-LLM's objects, as Protocols: every attribute it reads, and no other.

Types only; which names they have in which release is `compat`'s business. Source: TensorRT-LLM 1.2,
PyTorch backend (`pyexecutor/llm_request.py`, `scheduler.py`, `resource_manager.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from superinfer_trt.core.units import Ticket


@dataclass(frozen=True, slots=True)
class StateValues:
    """The numbers of the request states that matter, as `LlmRequestState` has them."""

    context_init: int = 10
    generation_in_progress: int = 13
    generation_to_complete: int = 14
    generation_complete: int = 20


class UpstreamRequest(Protocol):
    """An LlmRequest. Of all its attributes the adapter writes one: `py_batch_idx`."""

    py_batch_idx: int | None

    @property
    def py_request_id(self) -> int: ...
    @property
    def state_value(self) -> int: ...
    @property
    def prompt_len(self) -> int: ...
    @property
    def py_max_new_tokens(self) -> int: ...
    @property
    def context_current_position(self) -> int: ...
    @property
    def context_chunk_size(self) -> int: ...
    @property
    def is_dummy(self) -> bool: ...
    def get_num_tokens(self, beam: int, /) -> int:
        """Tokens the host knows, prompt included."""
        ...


class UpstreamBatch(Protocol):
    """A ScheduledRequests."""

    @property
    def context_requests(self) -> Sequence[UpstreamRequest]: ...
    @property
    def generation_requests(self) -> Sequence[UpstreamRequest]: ...


class CacheStats(Protocol):
    """The part of KvCacheStats that is read."""

    @property
    def free_num_blocks(self) -> int: ...


class CacheImpl(Protocol):
    """`KVCacheManager.impl`: who owns the HBM blocks, and by which ids."""

    def add_sequence(self, request_id: int, input_length: int, beam_width: int, /) -> None: ...
    def remove_sequence(self, request_id: int, /) -> None:
        """Without the request, so that nothing enters the tree of reusable blocks."""
        ...

    def get_cache_block_ids(self, request_id: int, window_size: int, /) -> Sequence[Sequence[int]]:
        """One list of blocks a beam."""
        ...

    def get_kv_cache_stats(self) -> CacheStats: ...


class StreamOrder(Protocol):
    """Order between the execution stream and the link. Neither call waits for the device."""

    def mark(self, turn: int) -> bool:
        """What is on the stream by now is the batch of `turn` and all before: once the stream has come
        here, copies with `after <= turn` may start. False: not now, ask again."""
        ...

    def wait(self, ticket: Ticket) -> None:
        """What is put on the stream from now on starts behind this copy. A mark that was refused is made good
        first: the copy may wait for it."""
        ...
