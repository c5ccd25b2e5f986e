"""DuplexKvResources: what TensorRT-LLM's ResourceManager calls around each batch and for each ending.

Registered before the KV manager: a batch is told before blocks are taken for it. Upstream frees in reverse,
so a request's blocks are given away before we hear of its end; copies that still use them are orphans then
(`crossing`). Duck-typed after BaseResourceManager: no import of tensorrt_llm. One thread: the loop's.
"""

from __future__ import annotations

from superinfer_trt.core.ports import TransferEngine
from superinfer_trt.trtllm.rotation import Rotation
from superinfer_trt.trtllm.upstream import UpstreamBatch, UpstreamRequest

RESOURCE_KEY = "superinfer_duplex_kv"


class DuplexKvResources:
    """The host side of the KV cache, as one more resource of every request."""

    def __init__(self, rotation: Rotation, transfers: TransferEngine, host_blocks: int) -> None:
        self._rotation = rotation
        self._transfers = transfers
        self._host_blocks = host_blocks

    @property
    def rotation(self) -> Rotation:
        """What rotates here; its counters may be read from other threads."""
        return self._rotation

    def get_max_resource_count(self) -> int:
        """Blocks of the host pool."""
        return self._host_blocks

    def get_needed_resource_to_completion(self, request: UpstreamRequest) -> int:
        """Nothing is reserved for a request: it is away only as long as there is room for it."""
        del request
        return 0

    def add_dummy_requests(self, request_ids: list[int]) -> None:
        """Dummies are never rotated."""

    def prepare_resources(self, scheduled_batch: UpstreamBatch) -> None:
        """The batch is about to be launched."""
        self._rotation.batched(scheduled_batch)

    def update_resources(self, scheduled_batch: UpstreamBatch) -> None:
        """The batch's tokens are on the host."""
        self._rotation.collected(scheduled_batch)

    def free_resources(self, request: UpstreamRequest) -> None:
        """The request has ended."""
        self._rotation.freed(request)

    def shutdown(self) -> None:
        """Stops the link; idempotent."""
        self._transfers.close()
