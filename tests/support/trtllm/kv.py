"""A fake of TensorRT-LLM's KV cache manager (V1): `impl` with the block arithmetic and its pool.

Block-first primary pool {blocks, layers, 2, elements}; sequences by id; a sequence of n tokens holds
ceil(n / T) blocks; `add_token` takes a block when the next index is a multiple of T and fails when there is
none; `remove_sequence` gives blocks back at once. Freed blocks are filled with noise, so that bytes given
away too soon are missed: at once, or behind the work in the air where upstream itself frees (the order of
its stream protects it there, and there only). Source: `resource_manager.py` and the C++ manager, about 1.2,
with the formulas of the capacity schedulers. Nothing here knows rotation. One thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

from support.trtllm.gpu import LAYERS, SIDES, Stream, Tensor
from support.trtllm.request import LlmRequest, LlmRequestState


@dataclass(frozen=True)
class KvCacheStats:
    max_num_blocks: int
    free_num_blocks: int
    tokens_per_block: int


class KvImpl:
    """The C++ object behind the Python manager."""

    def __init__(self, blocks: int, block_tokens: int, stream: Stream, seed: int = 0) -> None:
        self._stream = stream
        self.tokens_per_block = block_tokens
        self.max_num_blocks = blocks
        self.pool = np.zeros((blocks, LAYERS, SIDES, block_tokens), np.uint64)
        self._random = Random(seed)
        self._free = list(range(blocks))
        self._random.shuffle(self._free)
        self._sequences: dict[int, tuple[int, list[int]]] = {}  # id -> (tokens, blocks)
        self.reusable_too_early = 0
        """For tests: sequences that were given to the tree of reusable blocks while their request lived."""

    def add_sequence(
        self, request_id: int, input_length: int, beam_width: int, llm_request: LlmRequest | None = None
    ) -> None:
        """Fails when the id exists, or when the blocks do not suffice."""
        assert beam_width == 1
        if request_id in self._sequences:
            raise RuntimeError(f"sequence {request_id} exists already")
        blocks = self._take(-(-input_length // self.tokens_per_block))
        self._sequences[request_id] = (input_length, blocks)

    def add_token(self, request_id: int) -> None:
        tokens, blocks = self._sequences[request_id]
        if tokens % self.tokens_per_block == 0:
            blocks.extend(self._take(1))
        self._sequences[request_id] = (tokens + 1, blocks)

    def remove_sequence(self, request_id: int, llm_request: LlmRequest | None = None) -> None:
        """An absent id is passed over."""
        _, blocks = self._sequences.pop(request_id, (0, []))
        freed, noise = list(blocks), np.uint64(self._random.getrandbits(64))
        if llm_request is None:
            self.pool[freed] = noise
        else:
            self.reusable_too_early += not llm_request.is_finished
            self._stream.behind_batches(lambda: self.pool.__setitem__(freed, noise))
        self._free.extend(reversed(blocks))

    def get_cache_block_ids(self, request_id: int, window_size: int) -> list[list[int]]:
        """One list a beam. Fails for an absent id."""
        return [list(self._sequences[request_id][1])]

    def get_kv_cache_stats(self) -> KvCacheStats:
        return KvCacheStats(self.max_num_blocks, len(self._free), self.tokens_per_block)

    def get_unique_primary_pool(self) -> Tensor:
        return Tensor(self.pool)

    def _take(self, count: int) -> list[int]:
        if count > len(self._free):
            raise RuntimeError(f"no free block left: {count} wanted, {len(self._free)} free")
        return [self._free.pop() for _ in range(count)]

    @property
    def sequences(self) -> set[int]:
        """For tests: the ids that hold blocks."""
        return set(self._sequences)

    # -- the formulas of the stock capacity schedulers ---------------------------------------------

    def get_remaining_blocks_to_completion(self, request: LlmRequest, window: int) -> int:
        """Blocks until its last token; of a sequence that is not there, all of them."""
        size = self.tokens_per_block
        context = min(request.prompt_len, window) // size
        total = -(-min(request.prompt_len + request.max_new_tokens, window) // size)
        allocated = len(self._sequences.get(request.py_request_id, (0, []))[1])
        return (context - allocated) + (total - context) if allocated < context else total - allocated

    def get_needed_blocks_one_step(self, request: LlmRequest, two_step: bool, window: int) -> int:
        """Blocks of the next step; fails for a generation request whose sequence is not there."""
        size = self.tokens_per_block
        if request.state is LlmRequestState.CONTEXT_INIT:
            if not request.is_first_context_chunk:
                return 0
            return -(-min(request.prompt_len, window) // size)
        tokens, _ = self._sequences[request.py_request_id]
        left = request.prompt_len + request.max_new_tokens - request.max_beam_num_tokens
        steps = min(2 if two_step else 1, left)
        return -(-(tokens + steps) // size) - -(-tokens // size)

    def held_blocks(self, request_id: int) -> int:
        """Blocks a simulated removal would give back."""
        return len(self._sequences.get(request_id, (0, []))[1])
