"""Fakes of TensorRT-LLM's schedulers: capacity policies, micro batches, and the pair of them.

The stock policies are here as baselines and as the check of the fake itself: tests compare them with known
schedules. Source: `_torch/pyexecutor/scheduler.py` and the C++ capacity scheduler, about 1.2: order of
arrival; NO_EVICT reserves to completion and stops at the first that does not fit; MAX_UTILIZATION pauses
the last started one. Nothing here knows rotation. One thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from support.trtllm.kv import KvImpl
from support.trtllm.request import LlmRequest, LlmRequestState

Requests = list[LlmRequest]


class SchedulerOutput(NamedTuple):
    context_requests: Requests
    generation_requests: Requests
    paused_requests: Requests
    fitting_disagg_gen_init_requests: Requests
    num_fitting_requests: int


@dataclass
class ScheduledRequests:
    """What the executor makes of a scheduler's output."""

    context_requests: Requests = field(default_factory=list)
    generation_requests: Requests = field(default_factory=list)
    paused_requests: Requests = field(default_factory=list)

    @property
    def batch_size(self) -> int:
        return len(self.context_requests) + len(self.generation_requests)

    def all_requests(self) -> Requests:
        return self.context_requests + self.generation_requests


class RequestScheduler(ABC):
    @abstractmethod
    def schedule_request(
        self, active_requests: Requests, inflight_request_ids: set[int]
    ) -> SchedulerOutput: ...

    @abstractmethod
    def can_schedule(self, requests: Requests) -> bool: ...


class CapacityScheduler(ABC):
    @abstractmethod
    def schedule_request(self, active_requests: Requests) -> tuple[Requests, Requests, Requests]: ...


class MicroBatchScheduler(ABC):
    @abstractmethod
    def schedule(
        self, active_requests: Requests, inflight_request_ids: set[int]
    ) -> tuple[Requests, Requests]: ...


class CapacityPolicy(Enum):
    MAX_UTILIZATION = "max_utilization"
    GUARANTEED_NO_EVICT = "guaranteed_no_evict"
    STATIC_BATCH = "static_batch"


def _started(request: LlmRequest) -> bool:
    generating = request.state_value > LlmRequestState.CONTEXT_INIT.value
    return generating or not request.is_first_context_chunk


class StockCapacityScheduler(CapacityScheduler):
    """The three built-in policies."""

    def __init__(self, max_num_requests: int, kv: KvImpl, policy: CapacityPolicy, window: int = 4096) -> None:
        self._max = max_num_requests
        self._kv = kv
        self._policy = policy
        self._window = window

    def schedule_request(self, active_requests: Requests) -> tuple[Requests, Requests, Requests]:
        low, high = LlmRequestState.CONTEXT_INIT.value, LlmRequestState.GENERATION_COMPLETE.value
        requests = [request for request in active_requests if low <= request.state_value < high]
        if self._policy is CapacityPolicy.MAX_UTILIZATION:
            fitting, paused = self._max_utilization(requests)
            return fitting, [], paused
        return self._no_evict(requests), [], []

    def _no_evict(self, requests: Requests) -> Requests:
        available = self._kv.get_kv_cache_stats().free_num_blocks
        fitting = []
        for request in requests:
            if request.state is not LlmRequestState.CONTEXT_INIT and len(fitting) < self._max:
                available -= self._kv.get_remaining_blocks_to_completion(request, self._window)
                fitting.append(request)
        if self._policy is CapacityPolicy.STATIC_BATCH and fitting:
            return fitting
        for request in requests:
            if request.state is LlmRequestState.CONTEXT_INIT:
                needed = self._kv.get_remaining_blocks_to_completion(request, self._window)
                if needed > available or len(fitting) >= self._max:
                    break
                available -= needed
                fitting.append(request)
        return fitting

    def _max_utilization(self, requests: Requests) -> tuple[Requests, Requests]:
        free = self._kv.get_kv_cache_stats().free_num_blocks
        left = list(requests)
        fitting: Requests = []
        paused: Requests = []
        at = taken = 0
        while at < len(left):
            request = left[at]
            needed = self._kv.get_needed_blocks_one_step(request, False, self._window)
            if taken + needed <= free and len(fitting) < self._max:
                taken += needed
                fitting.append(request)
                at += 1
                continue
            victim = next((i for i in range(len(left) - 1, at - 1, -1) if _started(left[i])), None)
            if victim is None:
                break
            paused.append(left[victim])
            free += self._kv.held_blocks(left[victim].py_request_id)
            del left[victim:]
        return fitting, paused


class ChunkingPolicy(Enum):
    FIRST_COME_FIRST_SERVED = 0
    EQUAL_PROGRESS = 1


class StockMicroBatchScheduler(MicroBatchScheduler):
    """In list order; generation costs one token, context its chunk."""

    def __init__(
        self, max_batch_size: int, max_num_tokens: int, chunking: tuple[ChunkingPolicy, int] | None = None
    ) -> None:
        self.max_batch_size = max_batch_size
        self.max_num_tokens = max_num_tokens
        self.ctx_chunk_config = chunking

    def schedule(
        self, active_requests: Requests, inflight_request_ids: set[int]
    ) -> tuple[Requests, Requests]:
        low, high = LlmRequestState.CONTEXT_INIT.value, LlmRequestState.GENERATION_TO_COMPLETE.value
        context: Requests = []
        generation: Requests = []
        tokens = 0
        for request in active_requests:
            if not low <= request.state_value < high or request.py_request_id in inflight_request_ids:
                continue
            if len(context) + len(generation) >= self.max_batch_size:
                break
            if request.state is not LlmRequestState.CONTEXT_INIT:
                if tokens + 1 > self.max_num_tokens:
                    break
                tokens += 1
                generation.append(request)
            elif self.ctx_chunk_config is None:
                if tokens + request.context_remaining_length > self.max_num_tokens:
                    break
                request.context_chunk_size = request.context_remaining_length
                tokens += request.context_chunk_size
                context.append(request)
            else:
                context.append(request)
        if self.ctx_chunk_config is not None:
            self._set_chunks(context, self.max_num_tokens - tokens)
            context = [request for request in context if request.context_chunk_size > 0]
        context.sort(key=lambda request: request.is_last_context_chunk)
        return context, generation

    def _set_chunks(self, context: Requests, budget: int) -> None:
        assert self.ctx_chunk_config is not None
        policy, unit = self.ctx_chunk_config
        if policy is ChunkingPolicy.FIRST_COME_FIRST_SERVED:
            for request in context:
                size = min(request.context_remaining_length, budget)
                if size < request.context_remaining_length:
                    size -= size % unit
                request.context_chunk_size = size
                budget -= size
            return
        for request in context:
            request.context_chunk_size = 0
        grown = True
        while grown:
            grown = False
            for request in context:
                more = min(unit, request.context_remaining_length - request.context_chunk_size)
                if 0 < more <= budget:
                    request.context_chunk_size += more
                    budget -= more
                    grown = True


class SimpleScheduler(RequestScheduler):
    """Capacity first, then micro batch."""

    def __init__(
        self, capacity_scheduler: CapacityScheduler, micro_batch_scheduler: MicroBatchScheduler
    ) -> None:
        self.capacity_scheduler = capacity_scheduler
        self.micro_batch_scheduler = micro_batch_scheduler

    def schedule_request(self, active_requests: Requests, inflight_request_ids: set[int]) -> SchedulerOutput:
        fitting, disagg, paused = self.capacity_scheduler.schedule_request(active_requests)
        context, generation = self.micro_batch_scheduler.schedule(fitting, inflight_request_ids)
        return SchedulerOutput(
            context_requests=context,
            generation_requests=generation,
            paused_requests=paused,
            fitting_disagg_gen_init_requests=disagg,
            num_fitting_requests=len(fitting),
        )

    def can_schedule(self, requests: Requests) -> bool:
        return len(self.capacity_scheduler.schedule_request(requests)[0]) == len(requests)
