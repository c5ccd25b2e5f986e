"""A whole fake worker: pools, KV manager, slots, stock scheduler and one of the loops, put together.

As `create_py_executor` does it: the KV manager is the last resource, the scheduler is a SimpleScheduler.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from support.trtllm.executor import Dist, ModelEngine, PyExecutor
from support.trtllm.gpu import VOCABULARY, Stream
from support.trtllm.kv import KvImpl
from support.trtllm.request import LlmRequest
from support.trtllm.resources import KvCacheOwner, ResourceChain, SeqSlots, Types
from support.trtllm.scheduling import (
    CapacityPolicy,
    ChunkingPolicy,
    SimpleScheduler,
    StockCapacityScheduler,
    StockMicroBatchScheduler,
)

END_ID = 7
"""About one token in sixty: some requests stop before their length."""


@dataclass(frozen=True)
class WorkerShape:
    """Sizes of a worker. `chunk_unit` 0: no chunked prefill."""

    blocks: int
    block_tokens: int = 4
    max_batch_size: int = 8
    max_num_tokens: int = 64
    max_num_sequences: int = 32
    max_seq_len: int = 40
    chunk_unit: int = 4
    overlap: bool = True
    seed: int = 0
    eager: float = 0.0  # chance that the GPU is ahead of its deadline


def make_worker(
    shape: WorkerShape,
    policy: CapacityPolicy = CapacityPolicy.GUARANTEED_NO_EVICT,
    dist: Dist | None = None,
) -> PyExecutor:
    """A worker with the stock scheduler."""
    stream = Stream(shape.seed, eager=shape.eager)
    impl = KvImpl(shape.blocks, shape.block_tokens, stream, shape.seed)
    kv = KvCacheOwner(impl, max_seq_len=shape.max_seq_len)
    resources = ResourceChain(
        {Types.SEQ_SLOT_MANAGER: SeqSlots(shape.max_num_sequences), Types.KV_CACHE_MANAGER: kv}
    )
    chunking = (ChunkingPolicy.FIRST_COME_FIRST_SERVED, shape.chunk_unit) if shape.chunk_unit else None
    scheduler = SimpleScheduler(
        StockCapacityScheduler(shape.max_batch_size, impl, policy),
        StockMicroBatchScheduler(shape.max_batch_size, shape.max_num_tokens, chunking),
    )
    engine = ModelEngine(impl, stream, shape.max_num_sequences)
    engine.attn_runtime_features.chunked_prefill = shape.chunk_unit > 0
    return PyExecutor(
        resources,
        scheduler,
        engine,
        kv,
        stream,
        dist if dist is not None else Dist(),
        max_num_sequences=shape.max_num_sequences,
        disable_overlap_scheduler=not shape.overlap,
    )


def make_requests(count: int, seed: int, *, max_seq_len: int = 40, end_id: int = END_ID) -> list[LlmRequest]:
    """Random prompts and lengths that fit `max_seq_len`."""
    random = Random(seed)
    requests = []
    for number in range(count):
        prompt = [random.randrange(VOCABULARY) for _ in range(random.randint(1, max_seq_len // 2))]
        output = random.randint(1, max_seq_len - len(prompt))
        requests.append(LlmRequest(1000 + number, prompt, output, end_id=end_id))
    return requests
