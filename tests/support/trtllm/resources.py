"""Fakes of TensorRT-LLM's resource managers: their base, their order, sequence slots and the KV manager.

`prepare_resources` and `update_resources` run in the order of the dictionary, KV manager last,
`free_resources` in reverse: the KV manager gives blocks back before anybody else hears of it. Sequence slots
are given at a request's first schedule and kept until it is freed. Source: `resource_manager.py`, about 1.2.
Nothing here knows rotation. One thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from enum import Enum
from typing import Any

from support.trtllm.kv import KvImpl
from support.trtllm.request import LlmRequest
from support.trtllm.scheduling import ScheduledRequests


class Types(Enum):
    """Upstream's ResourceManagerType."""

    KV_CACHE_MANAGER = "KV_CACHE_MANAGER"
    SEQ_SLOT_MANAGER = "SEQ_SLOT_MANAGER"


class ResourceBase(ABC):
    """Upstream's BaseResourceManager."""

    @abstractmethod
    def get_max_resource_count(self) -> int: ...

    @abstractmethod
    def get_needed_resource_to_completion(self, request: LlmRequest) -> int: ...

    # Optional hooks, which do nothing unless overridden.
    def add_dummy_requests(self, request_ids: list[int]) -> None:
        return None

    def prepare_resources(self, scheduled_batch: ScheduledRequests) -> None:
        return None

    def update_resources(self, scheduled_batch: ScheduledRequests) -> None:
        return None

    def free_resources(self, request: LlmRequest) -> None:
        return None

    def shutdown(self) -> None:
        return None


class KvCacheOwner(ResourceBase):
    """Upstream's KVCacheManager, the Python face of `impl`."""

    def __init__(self, impl: KvImpl, *, max_seq_len: int) -> None:
        self.impl = impl
        self.tokens_per_block = impl.tokens_per_block
        self.max_seq_len = max_seq_len
        self.max_attention_window_vec = [max_seq_len]
        self.enable_block_reuse = False
        self.max_beam_width = 1
        self.is_vswa = False
        self.kv_connector_manager = None
        self.num_extra_kv_tokens = 0
        self.max_draft_len = 0

    def get_max_resource_count(self) -> int:
        return self.impl.max_num_blocks

    def get_needed_resource_to_completion(self, request: LlmRequest) -> int:
        return self.impl.get_remaining_blocks_to_completion(request, self.max_seq_len)

    def get_num_free_blocks(self) -> int:
        return self.impl.get_kv_cache_stats().free_num_blocks

    def prepare_resources(self, scheduled_batch: ScheduledRequests) -> None:
        for request in scheduled_batch.context_requests:
            if request.is_first_context_chunk:
                self.impl.add_sequence(request.py_request_id, request.prompt_len, 1, request)
        for request in scheduled_batch.generation_requests:
            self.impl.add_token(request.py_request_id)

    def update_resources(
        self,
        scheduled_batch: ScheduledRequests,
        attn_metadata: Any = None,
        kv_cache_dtype_byte_size: Any = None,
    ) -> None:
        pass

    def free_resources(self, request: LlmRequest) -> None:
        self.impl.remove_sequence(request.py_request_id, request)


class SeqSlots(ResourceBase):
    """Upstream's SeqSlotManager."""

    def __init__(self, max_num_sequences: int) -> None:
        self._count = max_num_sequences
        self._free = list(range(max_num_sequences))[::-1]

    def get_max_resource_count(self) -> int:
        return self._count

    def get_needed_resource_to_completion(self, request: LlmRequest) -> int:
        return 1

    def prepare_resources(self, scheduled_batch: ScheduledRequests) -> None:
        for request in scheduled_batch.all_requests():
            if request.py_seq_slot is None:
                request.py_seq_slot = self._free.pop()

    def free_resources(self, request: LlmRequest) -> None:
        if request.py_seq_slot is not None:
            self._free.append(request.py_seq_slot)
            request.py_seq_slot = None


class ResourceChain:
    """Upstream's ResourceManager: all of them in an order."""

    def __init__(self, resource_managers: dict[Any, ResourceBase]) -> None:
        self.resource_managers = OrderedDict(resource_managers)

    def register_resource_manager(self, type: Any, manager: ResourceBase) -> None:
        self.resource_managers[type] = manager

    def get_resource_manager(self, type: Any) -> ResourceBase | None:
        return self.resource_managers.get(type)

    def reorder_pipeline(self, order: list[Any]) -> None:
        assert set(order) == set(self.resource_managers)
        for key in order:
            self.resource_managers.move_to_end(key)

    def prepare_resources(self, scheduled_batch: ScheduledRequests) -> None:
        for manager in self.resource_managers.values():
            manager.prepare_resources(scheduled_batch)

    def update_resources(self, scheduled_batch: ScheduledRequests) -> None:
        for manager in self.resource_managers.values():
            if isinstance(manager, KvCacheOwner):
                manager.update_resources(scheduled_batch, None, None)
            else:
                manager.update_resources(scheduled_batch)

    def free_resources(self, request: LlmRequest) -> None:
        for manager in reversed(self.resource_managers.values()):
            manager.free_resources(request)
