"""A fake PyExecutor: both event loops without pipeline parallelism, iteration by iteration.

Source: `py_executor.py` and `model_engine.py`, about 1.2: what runs before what, who is terminated when,
and where a generation request's input token comes from. In the overlap loop the next batch is scheduled
while the last one runs; a request with a `py_batch_idx` takes its token from the device and assumes that the
host does not know it yet, so one that was left out for a turn and still has it resumes one position off.
A request whose end the host learns of late is in one more batch, which writes into blocks that are freed
already. Nothing here knows rotation. One thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from support.trtllm.gpu import Stream, next_token, words
from support.trtllm.kv import KvImpl
from support.trtllm.request import LlmRequest, LlmRequestState
from support.trtllm.resources import KvCacheOwner, ResourceChain
from support.trtllm.scheduling import RequestScheduler, ScheduledRequests


@dataclass
class Dist:
    """The ranks of a worker."""

    rank: int = 0
    tp_size: int = 1
    pp_size: int = 1
    cp_size: int = 1
    tp_allgather: Callable[[object], list[object]] = field(default=lambda value: [value])


@dataclass
class AttentionRuntimeFeatures:
    chunked_prefill: bool = True


@dataclass
class SampleState:
    """A batch in the air: `tokens` are there once `event` is reached."""

    batch: ScheduledRequests
    event: int = 0
    tokens: dict[int, int] = field(default_factory=dict)


class ModelEngine:
    """Prepares inputs on the host, computes on the stream."""

    def __init__(self, impl: KvImpl, stream: Stream, max_num_sequences: int) -> None:
        self._impl = impl
        self._stream = stream
        self.attn_runtime_features = AttentionRuntimeFeatures()
        self._newest = np.zeros(max_num_sequences, np.int64)  # the sampler's device tensor, by slot
        self.batches: list[tuple[list[int], list[int]]] = []  # for tests: ids by kind

    def forward(self, batch: ScheduledRequests, *, overlap: bool) -> SampleState:
        """Launches; positions and block tables are fixed now, device tokens are read later."""
        state = SampleState(batch)
        self.batches.append(
            (
                [request.py_request_id for request in batch.context_requests],
                [request.py_request_id for request in batch.generation_requests],
            )
        )
        work = [self._context(request, state) for request in batch.context_requests]
        work += [self._generation(request, state, overlap=overlap) for request in batch.generation_requests]
        for request in batch.all_requests():
            request.py_batch_idx = request.py_seq_slot if overlap else None

        def run() -> None:
            for step in work:
                step()

        state.event = self._stream.launch(run)
        return state

    def _context(self, request: LlmRequest, state: SampleState) -> Callable[[], None]:
        start = request.context_current_position
        tokens = request.get_tokens(0)[start : start + request.context_chunk_size]
        last = request.is_last_context_chunk
        blocks, slot, id = self._table(request), request.py_seq_slot, request.py_request_id
        assert tokens, "an empty chunk was scheduled"

        def run() -> None:
            for offset, token in enumerate(tokens):
                self._write(blocks, start + offset, token)
            if last:
                state.tokens[id] = self._newest[slot] = self._next(blocks, start + len(tokens))

        return run

    def _generation(self, request: LlmRequest, state: SampleState, *, overlap: bool) -> Callable[[], None]:
        blocks, slot, id = self._table(request), request.py_seq_slot, request.py_request_id
        from_device = overlap and request.py_batch_idx is not None
        source = request.py_batch_idx
        past_seen = request.max_beam_num_tokens if from_device else request.max_beam_num_tokens - 1
        token = request.get_tokens(0)[-1]

        def run() -> None:
            self._write(blocks, past_seen, int(self._newest[source]) if from_device else token)
            state.tokens[id] = self._newest[slot] = self._next(blocks, past_seen + 1)

        return run

    def _table(self, request: LlmRequest) -> list[int]:
        return self._impl.get_cache_block_ids(request.py_request_id, 0)[0]

    def _write(self, blocks: list[int], position: int, token: int) -> None:
        size = self._impl.tokens_per_block
        if position // size < len(blocks):  # a kernel beyond its table would write anywhere; this one not
            self._impl.pool[blocks[position // size], :, :, position % size] = words(token, position)

    def _next(self, blocks: list[int], length: int) -> int:
        kv = self._impl.pool[blocks].transpose(0, 3, 1, 2)
        return next_token(kv.reshape(-1, *kv.shape[2:])[:length])


class PyExecutor:
    """One worker. `step` is one iteration of its loop."""

    def __init__(
        self,
        resource_manager: ResourceChain,
        scheduler: RequestScheduler,
        model_engine: ModelEngine,
        kv_cache_manager: KvCacheOwner,
        execution_stream: Stream,
        dist: Dist,
        *,
        max_num_sequences: int,
        disable_overlap_scheduler: bool,
    ) -> None:
        self.resource_manager = resource_manager
        self.scheduler = scheduler
        self.model_engine = model_engine
        self.kv_cache_manager = kv_cache_manager
        self.execution_stream = execution_stream
        self.dist = dist
        self.enable_attention_dp = False
        self.max_beam_width = 1
        self.kv_connector_manager = None
        self.worker_started = False
        self.disable_overlap_scheduler = disable_overlap_scheduler
        self.max_num_active_requests = max_num_sequences
        self.active_requests: list[LlmRequest] = []
        self.waiting_queue: deque[LlmRequest] = deque()
        self.canceled_req_ids: set[int] = set()
        self.previous_batch: SampleState | None = None
        self.done: dict[int, LlmRequest] = {}
        self.is_warmup = False
        self.kv_cache_transceiver = None
        self.drafter = None
        self.max_input_len = 1 << 30

    def start_worker(self) -> None:
        """From here on the loop runs."""
        self.worker_started = True

    def enqueue(self, request: LlmRequest) -> None:
        self.waiting_queue.append(request)

    def cancel(self, id: int) -> None:
        self.canceled_req_ids.add(id)

    @property
    def idle(self) -> bool:
        return not (self.active_requests or self.waiting_queue or self.previous_batch)

    def step(self) -> int:
        """One iteration; returns the batch size. While nothing is batched, the GPU gets on."""
        size = self._step() if self.disable_overlap_scheduler else self._step_overlap()
        if not size:
            self.execution_stream.advance()
        return size

    def _schedule(self) -> ScheduledRequests:
        while self.waiting_queue and len(self.active_requests) < self.max_num_active_requests:
            self.active_requests.append(self.waiting_queue.popleft())
        output = self.scheduler.schedule_request(self.active_requests, set())
        return ScheduledRequests(output.context_requests, output.generation_requests, output.paused_requests)

    def _step(self) -> int:
        batch = self._schedule()
        self._terminate(batch.paused_requests)
        self._pause(batch.paused_requests)
        if batch.batch_size:
            self.resource_manager.prepare_resources(batch)
            state = self.model_engine.forward(batch, overlap=False)
            self._update_request_states(batch)
            self._update_requests(state)
        self._handle_canceled_requests()
        self._handle_responses()
        if batch.batch_size:
            self.resource_manager.update_resources(batch)
        return batch.batch_size

    def _step_overlap(self) -> int:
        batch = self._schedule()
        self._terminate(batch.paused_requests)
        state = None
        if batch.batch_size:
            self.resource_manager.prepare_resources(batch)
            state = self.model_engine.forward(batch, overlap=True)
        if self.previous_batch is not None:
            self._update_requests(self.previous_batch)
        self._pause(batch.paused_requests)
        if batch.batch_size:
            self._update_request_states(batch)
        self._handle_canceled_requests()
        self._handle_responses()
        if self.previous_batch is not None:
            self.resource_manager.update_resources(self.previous_batch.batch)
        self.previous_batch = state
        return batch.batch_size

    def _update_request_states(self, batch: ScheduledRequests) -> None:
        overlap = not self.disable_overlap_scheduler
        for request in batch.context_requests:
            request.move_to_next_context_chunk()
            if request.context_remaining_length == 0 and not request.is_finished:
                ends = overlap and request.will_complete_next_iteration()
                request.state = (
                    LlmRequestState.GENERATION_TO_COMPLETE if ends else LlmRequestState.GENERATION_IN_PROGRESS
                )
        for request in batch.generation_requests:
            if overlap and not request.is_finished and request.will_complete_next_iteration():
                request.state = LlmRequestState.GENERATION_TO_COMPLETE

    def _update_requests(self, state: SampleState) -> None:
        self.execution_stream.synchronize(state.event)
        for request in state.batch.all_requests():
            token = state.tokens.get(request.py_request_id)
            if token is not None and not request.is_finished:
                request.add_new_token(token)

    def _pause(self, requests: list[LlmRequest]) -> None:
        for request in requests:
            if not request.is_finished:
                request.pause(self.max_input_len)

    def _terminate(self, requests: list[LlmRequest]) -> None:
        for request in requests:
            self.resource_manager.free_resources(request)

    def _handle_canceled_requests(self) -> None:
        for id in list(self.canceled_req_ids):
            waiting = [request for request in self.waiting_queue if request.py_request_id == id]
            for request in waiting:
                self.waiting_queue.remove(request)
                request.finish_by_cancel()
                self.done[id] = request
            for request in self.active_requests:
                if request.py_request_id == id and not request.is_finished:
                    request.finish_by_cancel()
        self.canceled_req_ids.clear()

    def _handle_responses(self) -> None:
        finished = [request for request in self.active_requests if request.is_finished]
        self.active_requests = [request for request in self.active_requests if not request.is_finished]
        self._terminate(finished)
        for request in finished:
            assert request.py_request_id not in self.done, "a request ended twice"
            self.done[request.py_request_id] = request
