"""A rotating worker from a seed: arrivals, cancels, a rude link, and what must hold at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from superinfer_trt.core.phase import Phase
from superinfer_trt.core.units import RequestId
from support.trtllm.gpu import expected_output
from support.trtllm.request import LlmRequest
from support.trtllm.rotating import RotatingWorker, RotationShape
from support.trtllm.worker import END_ID, WorkerShape, make_requests

Change = Callable[[RotatingWorker], None]


@dataclass
class World:
    """What a run came to."""

    worker: RotatingWorker
    requests: list[LlmRequest]
    cancelled_in: Counter[Phase] = field(default_factory=Counter)

    def note_end(self, request: LlmRequest) -> None:
        """Counts the phase in which a cancelled request's end reaches the adapter."""
        record = self.worker.rotation.live.get(RequestId(request.py_request_id))
        if request.cancelled and record is not None:
            self.cancelled_in[record.phase] += 1

    @property
    def rotations(self) -> int:
        return self.worker.rotation.totals.rotations_in


def run_world(
    seed: int,
    *,
    overlap: bool = True,
    policy: str = "rotasched",
    blocks: int = 24,
    chunk_unit: int = 4,
    step_tokens: int = 64,
    count: int = 16,
    cancels: float = 0.0,
    busy: float = 0.0,
    failing: float = 0.0,
    change: Change | None = None,
) -> World:
    """Runs everything to its end and checks each request's tokens. `cancels`: chance a step."""
    shape = WorkerShape(
        blocks=blocks,
        max_num_tokens=step_tokens,
        overlap=overlap,
        chunk_unit=chunk_unit,
        seed=seed,
        eager=(seed % 4) / 4,
    )
    rotation = RotationShape(policy=policy, polls_max=1 + seed % 4, busy=busy, failing=failing)
    worker = RotatingWorker(shape, rotation)
    if change is not None:
        change(worker)
    random = Random(seed)
    world = World(worker, make_requests(count, seed))
    worker.duplex.on_freed = world.note_end
    todo = list(world.requests)
    for _ in range(5_000):
        for _ in range(random.randint(0, 3) if todo else 0):
            if todo:
                worker.enqueue(todo.pop(0))
        live = worker.rotation.live
        if live and random.random() < cancels:
            phase = random.choice(sorted({record.phase for record in live.values()}, key=lambda p: p.value))
            id = random.choice([id for id, record in live.items() if record.phase is phase])
            worker.executor.cancel(id)
        worker.step()
        if not todo and worker.executor.idle:
            break
    worker.drain()
    check_tokens(world.requests)
    return world


def check_tokens(requests: list[LlmRequest]) -> None:
    """Each finished request said what the model says, a cancelled one a beginning of it."""
    for request in requests:
        prompt = request.get_tokens(0)[: request.orig_prompt_len]
        expected = expected_output(prompt, request.py_max_new_tokens, END_ID)
        said = request.output
        assert request.is_finished
        assert request.pauses == 0, "paused is recomputed"
        assert said == (expected[: len(said)] if request.cancelled else expected), request.request_id
