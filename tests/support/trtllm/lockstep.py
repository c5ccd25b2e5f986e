"""One scene under two loops, turn for turn: the embedded executor, and the adapter under the fake PyExecutor.

Both get the same policy, sizes, arrivals by turn, and a link that lands a fixed number of turns after it may
start; a turn is a tick of STEP. What remains are the policy's plans. What is made equal on purpose, because
upstream's loop cannot be otherwise or has a choice that the plan does not name:

- **turn numbers**: the embedded executor does not count turns in which nothing is planned; lines have none;
- **arrival**: a request arrives when its worker first sees it, so a scene names turns and not moments;
- **chunks**: upstream cuts prompts itself, in units of its own and to the end of the step's tokens, where a
  plan may leave some (of one who leaves after all, or under a cap): its scheduler is told the plan's cut;
- **room**: no block is set aside for upstream's own dummies (`spare_blocks` 0), and the list of active
  requests holds everybody, so that nobody waits where the plan cannot see it;
- **cancels** come into force at the end of an iteration, in the embedded executor at the beginning of a turn
  unless a batch in the air holds the request: given one turn earlier where no batch is in the air;
- **orphans**: upstream hands out the blocks of an ended request at once, and a lane that has to wait for a
  copy which still uses them shows no allowance; the embedded ledger keeps them: copies land in one turn;
- **forecast**: the overlap loop has learnt from one batch more when it plans; policies are shown a fixed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from types import SimpleNamespace

from superinfer_trt.build.trtllm import Link, RotationSettings, install
from superinfer_trt.core.forecast import StepForecast
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.outcome import Outcome, Sampled
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import Policy
from superinfer_trt.core.request import OPTIONAL_SAMPLING, FinishReason, Request, Sampling
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.step import Batch
from superinfer_trt.core.units import MILLISECOND, SECOND, RequestId, Ticket
from superinfer_trt.core.view import Limits, View
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.trtllm.resources import RESOURCE_KEY, DuplexKvResources
from superinfer_trt.trtllm.rotation import Rotation
from superinfer_trt.trtllm.scheduler import RotaCapacityScheduler
from support.links import PollLink
from support.trtllm.gpu import Stream
from support.trtllm.package import open_fake_package
from support.trtllm.request import LlmRequest, LlmRequestState
from support.trtllm.scheduling import ChunkingPolicy, StockMicroBatchScheduler
from support.trtllm.worker import WorkerShape, make_worker
from support.world import Box, BoxClock

STEP = 20 * MILLISECOND
STOP_ID = 7


@dataclass(frozen=True)
class Asked:
    """A request of a scene. `turn`: when it comes; `stops`: tokens after which it stops by itself, 0: never;
    `cancelled`: the turn in which a cancel is in force, -1: none."""

    turn: int
    prompt: int
    limit: int
    stops: int = 0
    cancelled: int = -1
    slo: Slo = field(default_factory=Slo)


@dataclass(frozen=True)
class Scene:
    """`depth` 1: one turn after the other, upstream's plain loop; 2: the overlap loop."""

    policy: str
    requests: Sequence[Asked]
    depth: int = 1
    parameters: dict[str, object] = field(default_factory=dict)
    device: int = 8
    host: int = 16
    block: int = 4
    seats: int = 4
    tokens: int = 32
    land: int = 1

    def chosen(self) -> Shown:
        return Shown(make_policy(self.policy, **self.parameters))


class Shown:
    """A policy that is shown the same forecast in both loops."""

    rotates = True

    def __init__(self, inner: Policy) -> None:
        self._inner = inner
        self.name, self.order = inner.name, inner.order

    def __call__(self, view: View) -> Plan:
        return self._inner(replace(view, forecast=StepForecast()))


class TurnClock(BoxClock):
    """Stands still but for whole steps."""

    def now(self) -> int:
        return self.time


class TickEngine:
    """Every batch takes one step; tokens are their number, or the stop id."""

    geometry = Geometry(layers=1, kv_heads=1, head_dim=8, element_bytes=2, block_tokens=4)
    vocabulary = 1_000_000
    context_tokens_max = 1_000_000
    supports = OPTIONAL_SAMPLING

    def __init__(self, clock: TurnClock, requests: Sequence[Asked]) -> None:
        self._clock = clock
        self._requests = requests
        self._air: Batch | None = None

    def launch(self, batch: Batch) -> None:
        self._air = batch

    def collect(self) -> Outcome:
        assert self._air is not None
        self._clock.time += STEP
        sampled = {}
        for row in self._air.rows:
            if row.sample:
                last = row.index + 1 == self._requests[row.id].stops
                sampled[row.id] = Sampled(STOP_ID if last else 100 + row.index)
        return Outcome(sampled)

    def close(self) -> None:
        pass


def lines(plans: Sequence[Plan]) -> list[str]:
    """As text, without the number of the turn."""
    return [plan.line().split(" ", 1)[1] for plan in plans]


def embedded(scene: Scene, turns_max: int = 2_000) -> list[str]:
    """The plans of the production executor."""
    clock = TurnClock()
    limits = Limits(scene.tokens, scene.seats, scene.block, scene.device, scene.host)
    box = Box(
        scene.chosen(),
        TickEngine(clock, scene.requests),
        PollLink(scene.land),
        limits,
        depth=scene.depth,
        clock=clock,
    )
    plans: list[Plan] = []
    for turn in range(turns_max):
        for number, asked in enumerate(scene.requests):
            if asked.turn == turn:
                sampling = Sampling(max_tokens=asked.limit, stop_ids=frozenset({STOP_ID}))
                id = RequestId(number)
                box.inbox.submit(Request(id, (1,) * asked.prompt, sampling, asked.slo, arrival=clock.time))
            if asked.cancelled == turn:
                box.inbox.cancel(RequestId(number), FinishReason.CANCELLED)
        began = clock.time
        box.executor.turn()
        clock.time = began + STEP
        box.ledger.audit()
        newest = box.executor.trace.newest
        if newest is not None and (not plans or newest is not plans[-1]):
            plans.append(newest)
        if box.executor.idle and len(box.streams.endings) == len(scene.requests):
            return lines(plans)
    raise AssertionError(f"not drained: {plans[-3:]}")


class StoppingRequest(LlmRequest):
    """Stops by itself after so many tokens, whatever they are."""

    stops = 0

    def add_new_token(self, token: int) -> None:
        super().add_new_token(token)
        if len(self.output) == self.stops:
            self.state = LlmRequestState.GENERATION_COMPLETE


class PlannedChunks(StockMicroBatchScheduler):
    """Cuts prompts as the newest plan does."""

    rotation: Rotation

    def _set_chunks(self, context: list[LlmRequest], budget: int) -> None:
        plan = self.rotation.trace.newest
        lengths = {chunk.id: chunk.length for chunk in plan.prefill} if plan is not None else {}
        for request in context:
            request.context_chunk_size = lengths[RequestId(request.py_request_id)]


class PromptOrder:
    """A mark takes effect as soon as the newest batch is over; no bytes move, so nobody has to wait."""

    def __init__(self, stream: Stream, link: PollLink) -> None:
        self._stream = stream
        self._link = link

    def mark(self, turn: int) -> bool:
        self._stream.behind_batches(lambda: self._link.mark(turn))
        return True

    def wait(self, ticket: Ticket) -> None:
        pass


def adapted(scene: Scene, turns_max: int = 2_000) -> list[str]:
    """The plans of the adapter under the fake PyExecutor."""
    shape = WorkerShape(
        blocks=scene.device,
        block_tokens=scene.block,
        max_batch_size=scene.seats,
        max_num_tokens=scene.tokens,
        max_num_sequences=len(scene.requests) + 1,
        max_seq_len=scene.device * scene.block,
        chunk_unit=1,
        overlap=scene.depth == 2,
    )
    executor = make_worker(shape)
    pool = executor.kv_cache_manager.impl.pool
    link, clock = PollLink(scene.land), TurnClock()
    order = PromptOrder(executor.execution_stream, link)
    settings = RotationSettings(dram_bytes=scene.host * pool[0].nbytes, spare_blocks=0)
    first = install(executor, open_fake_package(), settings, lambda *_: Link(link, order), clock)
    rotation = Rotation(replace(first.parts, policy=scene.chosen()))
    executor.scheduler.capacity_scheduler = RotaCapacityScheduler(rotation)
    chunking = (ChunkingPolicy.FIRST_COME_FIRST_SERVED, 1)
    executor.scheduler.micro_batch_scheduler = PlannedChunks(scene.seats, scene.tokens, chunking)
    executor.scheduler.micro_batch_scheduler.rotation = rotation
    executor.resource_manager.resource_managers[RESOURCE_KEY] = DuplexKvResources(rotation, link, scene.host)
    early = 1 if scene.depth == 1 else 0  # see the module on cancels
    plans: list[Plan] = []
    for turn in range(turns_max):
        for number, asked in enumerate(scene.requests):
            if asked.turn == turn:
                request = StoppingRequest(number, [1] * asked.prompt, asked.limit)
                request.stops = asked.stops
                request.py_scheduling_params = SimpleNamespace(
                    ttft_slo_s=asked.slo.ttft / SECOND, tbt_slo_s=asked.slo.tbt / SECOND, tenant=""
                )
                executor.enqueue(request)
            if asked.cancelled - early == turn:
                executor.cancel(number)
        began = clock.time
        executor.step()
        clock.time = began + STEP
        rotation.parts.ledger.audit()
        newest = rotation.trace.newest
        if newest is not None and (not plans or newest is not plans[-1]):
            plans.append(newest)
        if (
            executor.idle
            and len(executor.done) == len(scene.requests)
            and not rotation.parts.ledger.in_flight
        ):
            return lines(plans)
    raise AssertionError(f"not drained: {plans[-3:]}")


def random_scene(policy: str, depth: int, seed: int) -> Scene:
    """A crowded small pool: stops of their own, and cancels where both loops hear of them in one turn."""
    random = Random(seed * 2 + depth)
    device, block = random.randint(8, 24), random.choice([2, 4])
    longest = device * block // 2
    requests = []
    for _ in range(random.randint(6, 14)):
        prompt = random.randint(1, longest)
        limit = random.randint(1, longest)
        stops = random.randint(1, limit) if random.random() < 0.4 else 0
        slo = Slo(
            random.choice([2, 5, 50, 500]) * STEP,
            random.choice([1, 2, 5]) * STEP,
        )
        turn = random.randint(1, 20)
        cancelled = turn + random.randint(2, 40) if depth == 1 and random.random() < 0.2 else -1
        requests.append(Asked(turn, prompt, limit, stops, cancelled, slo))
    requests.sort(key=lambda asked: asked.turn)
    return Scene(
        policy,
        requests,
        depth,
        device=device,
        block=block,
        host=random.randint(device, 3 * device),
        seats=random.randint(2, 10),
        tokens=random.randint(8, 40),
    )
