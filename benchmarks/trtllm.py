"""What rotation adds to a turn of TensorRT-LLM's overlap loop on its host, in one run.

The adapter, roster, ledger and policy run unchanged under the order of calls of upstream's overlap loop:
stand-ins for its requests and block table, a link whose copies land in the next turn, an engine that takes
STEP_MS on a clock that jumps. CPU milliseconds of the process around our calls only, every turn:

schedule    landings, view, plan, check, moves, the fitting list
batched     the batch as it was made goes into ledger and roster
collected   the batch before is over: counted, its tokens count from the next turn on
freed       each request that ended
added       all of them; percentiles over the turns, and apart for turns in which somebody rotates
yardstick   a plain Python loop over 512 objects, `one.count += 1`, in the same turn: the machine's pace

Loads: `calm`, about 512 run and all fit; `overload`, three times as many as HBM holds. Two ranks: the value
of the exchange is pickled and two are read, as mpi4py does it; the wire and waiting for it are not counted.

    python benchmarks/trtllm.py [--json] [--policies rotasched,rota-slack] [--turns 400]
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from statistics import median, quantiles

from superinfer_trt.core.step import Copy, CopyDone, Direction
from superinfer_trt.core.units import MILLISECOND, Nanos, Ticket
from superinfer_trt.core.view import Limits
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.trtllm.agreement import Agreement, Alone, AmongRanks
from superinfer_trt.trtllm.rotation import Rotation, RotationParts
from superinfer_trt.trtllm.upstream import StateValues

STATES = StateValues()
STEP_MS = 20
BLOCK_TOKENS = 32
PROMPT_TOKENS = 160
OUTPUT_TOKENS = 160
RUNNING = 512  # about as many fit into HBM
SEATS = 768
BLOCKS = 9 * RUNNING
LOADS = {"calm": RUNNING + 8, "overload": 3 * RUNNING}  # requests that upstream has taken in
WARM_TURNS = 200
GROUP_TURNS_MIN = 40
CALLS = ("schedule", "batched", "collected", "freed")


class Request:
    """A request as upstream would show it: what its C++ class holds is behind properties."""

    is_dummy = False
    py_batch_idx: int | None = None

    def __init__(self, id: int, prompt_len: int, max_new_tokens: int) -> None:
        self.py_request_id = id
        self.py_max_new_tokens = max_new_tokens
        self.state = STATES.context_init
        self.length = self.tokens = prompt_len
        self.position = self.chunk = 0

    @property
    def state_value(self) -> int:
        return self.state

    @property
    def prompt_len(self) -> int:
        return self.length

    @property
    def context_current_position(self) -> int:
        return self.position

    @property
    def context_chunk_size(self) -> int:
        return self.chunk

    def get_num_tokens(self, beam: int) -> int:
        return self.tokens + beam


@dataclass
class Batch:
    context_requests: list[Request] = field(default_factory=list)
    generation_requests: list[Request] = field(default_factory=list)


@dataclass(frozen=True)
class Stats:
    free_num_blocks: int


class Cache:
    """Counts blocks by upstream's arithmetic; their ids do not matter here."""

    def __init__(self) -> None:
        self.tokens: dict[int, int] = {}
        self.free = BLOCKS

    def blocks(self, id: int) -> int:
        return -(-self.tokens.get(id, 0) // BLOCK_TOKENS)

    def add_sequence(self, id: int, tokens: int, beams: int) -> None:
        assert beams == 1
        self.tokens[id] = tokens
        self.free -= self.blocks(id)

    def add_token(self, id: int) -> None:
        self.free -= self.tokens[id] % BLOCK_TOKENS == 0
        self.tokens[id] += 1

    def remove_sequence(self, id: int) -> None:
        self.free += self.blocks(id)
        self.tokens.pop(id, None)

    def get_cache_block_ids(self, id: int, window: int) -> list[range]:
        assert window
        return [range(self.blocks(id))]

    def get_kv_cache_stats(self) -> Stats:
        return Stats(self.free)


class NextTurnLink:
    """Copies land by the next poll."""

    def __init__(self) -> None:
        self.told: list[CopyDone] = []
        self.tickets = 0

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> list[Ticket]:
        assert direction
        first = self.tickets + 1
        self.tickets += len(copies)
        tickets = [Ticket(number) for number in range(first, first + len(copies))]
        self.told += [CopyDone(ticket, ok=True) for ticket in tickets]
        return tickets

    def mark(self, turn: int) -> None:
        """All copies may start at any time."""

    def poll(self) -> list[CopyDone]:
        told, self.told = self.told, []
        return told

    def link_bytes_per_s(self, direction: Direction) -> float:
        return 1e10 if direction else 0.0  # 190 blocks of 1 MiB in a step

    def close(self) -> None:
        """Nothing is open."""


class NoOrder:
    """A stream that is always where it should be."""

    def mark(self, turn: int) -> bool:
        return turn >= 0

    def wait(self, ticket: Ticket) -> None:
        assert ticket


class JumpingClock:
    """CPU time of the process plus the steps that the engine pretends to take."""

    def __init__(self) -> None:
        self.skipped: Nanos = 0

    def now(self) -> Nanos:
        return time.process_time_ns() + self.skipped

    def park(self, until: Nanos | None) -> None:
        self.skipped += max(0, (until or 0) - self.now())

    def wake(self) -> None:
        """Nobody parks."""


def pickled_gather(value: object) -> list[object]:
    """What an allgather of objects costs a rank of two: one pickled, two read."""
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return [pickle.loads(data), pickle.loads(data)]


@dataclass
class Yard:
    count: int = 0


class Loop:
    """Upstream's part of a turn, without its costs."""

    def __init__(
        self, policy: str, active: int = LOADS["overload"], agreement: Agreement | None = None
    ) -> None:
        self.limits = Limits(8192, SEATS, BLOCK_TOKENS, BLOCKS, 8 * BLOCKS)
        self.clock, self.cache, link = JumpingClock(), Cache(), NextTurnLink()
        self.rotation = Rotation(
            RotationParts(
                policy=make_policy(policy),
                ledger=KvLedger(self.limits, places=False),
                transfers=link,
                order=NoOrder(),
                cache=self.cache,
                clock=self.clock,
                limits=self.limits,
                block_bytes=1 << 20,
                window_tokens=4096,
                sequence_tokens_max=4096,
                agreement=agreement if agreement is not None else Alone(),
            )
        )
        self.active: list[Request] = []
        self.active_max = active
        self.created = 0
        self.previous: Batch | None = None
        self.yard = [Yard() for _ in range(RUNNING)]
        self.turns: list[Turn] = []
        self.now = Turn()

    def turn(self) -> None:
        self.now = Turn()
        self.turns.append(self.now)
        while len(self.active) < self.active_max:
            self.created += 1
            output = OUTPUT_TOKENS // 2 + self.created * 37 % OUTPUT_TOKENS
            self.active.append(Request(self.created, PROMPT_TOKENS, output))
        self._timed("yardstick", self._walk_the_yard)
        fitting: list[Request] = []
        self._timed("schedule", lambda: fitting.extend(self.rotation.schedule(self.active)))  # type: ignore[arg-type]
        plan = self.rotation.trace.newest
        self.now.rotates = plan is not None and bool(plan.rotate_out or plan.rotate_in)
        batch = self._batch(fitting)
        self.now.running = len(batch.generation_requests)
        self._timed("batched", lambda: self.rotation.batched(batch))
        self._launch(batch)
        previous, self.previous = self.previous, batch
        if previous is not None:
            self._collect(previous)
            self._timed("collected", lambda: self.rotation.collected(previous))
        self.clock.skipped += STEP_MS * MILLISECOND

    def _walk_the_yard(self) -> None:
        for one in self.yard:
            one.count += 1

    def _batch(self, fitting: list[Request]) -> Batch:
        batch, left = Batch(), self.limits.step_tokens
        for request in fitting:
            if request.state >= STATES.generation_to_complete:
                continue
            context = request.state == STATES.context_init
            request.chunk = request.length if context else 1
            left -= request.chunk
            if left >= 0:
                (batch.context_requests if context else batch.generation_requests).append(request)
        return batch

    def _launch(self, batch: Batch) -> None:
        for request in batch.context_requests:
            self.cache.add_sequence(request.py_request_id, request.length, 1)
            request.position = request.length
            request.state = STATES.generation_in_progress
        for request in batch.generation_requests:
            self.cache.add_token(request.py_request_id)
            if request.tokens + 2 == request.length + request.py_max_new_tokens:
                request.state = STATES.generation_to_complete

    def _collect(self, batch: Batch) -> None:
        ended = set()
        for request in (*batch.context_requests, *batch.generation_requests):
            request.tokens += 1
            if request.tokens == request.length + request.py_max_new_tokens:
                ended.add(request)
        self.active = [request for request in self.active if request not in ended]
        for request in sorted(ended, key=lambda request: request.py_request_id):
            request.state = STATES.generation_complete
            self.cache.remove_sequence(request.py_request_id)
            self._timed("freed", partial(self.rotation.freed, request))

    def _timed(self, name: str, call: Callable[[], object]) -> None:
        began = time.process_time_ns()
        call()
        took = (time.process_time_ns() - began) / MILLISECOND
        self.now.took[name] = self.now.took.get(name, 0.0) + took


@dataclass
class Turn:
    """What one turn took, in CPU milliseconds by call."""

    took: dict[str, float] = field(default_factory=dict)
    running: int = 0
    rotates: bool = False

    @property
    def added(self) -> float:
        return sum(self.took.get(name, 0.0) for name in CALLS)


def measure(policy: str, load: str, ranks: int, turns: int) -> dict[str, object]:
    """One line of the table."""
    agreement = AmongRanks(pickled_gather) if ranks > 1 else Alone()
    loop = Loop(policy, LOADS[load], agreement)
    for _ in range(WARM_TURNS + turns):
        loop.turn()
    seen = loop.turns[WARM_TURNS:]
    yardstick = median(turn.took["yardstick"] for turn in seen)
    figures: dict[str, object] = {
        "policy": policy,
        "load": load,
        "ranks": ranks,
        "running": round(median(turn.running for turn in seen)),
        "rotations_a_turn": round(loop.rotation.totals.rotations_out / max(1, loop.rotation.totals.turns), 1),
        "yardstick": round(yardstick, 4),
    }
    for call in CALLS:
        figures[call] = round(median(turn.took.get(call, 0.0) for turn in seen), 3)
    for name, group in (
        ("added", seen),
        ("added_rotating", [turn for turn in seen if turn.rotates]),
        ("added_still", [turn for turn in seen if not turn.rotates]),
    ):
        if len(group) >= GROUP_TURNS_MIN:
            cuts = quantiles([turn.added for turn in group], n=100)
            figures[name] = {f"p{p}": round(cuts[p - 1], 3) for p in (10, 50, 90, 99)}
    figures["added_in_yardsticks"] = round(median(turn.added for turn in seen) / yardstick, 1)
    return figures


def main() -> int:
    """Prints one line a policy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--policies", default="rotasched,rota-slack")
    parser.add_argument("--turns", type=int, default=400)
    options = parser.parse_args()
    runs = (("calm", 1), ("overload", 1), ("overload", 2))
    cases = [(policy, *run, options.turns) for policy in options.policies.split(",") for run in runs]
    with get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:  # what ran before marks a heap
        for case in cases:
            figures = fresh.apply(measure, case)
            print(json.dumps(figures) if options.json else "  ".join(f"{k} {v}" for k, v in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
