"""What rotation adds to a turn of TensorRT-LLM's loop on its host, in one run.

The adapter, roster, ledger and policy run unchanged under a loop in lockstep: stand-ins for upstream's
requests and block table, a link whose copies land in the next turn, an engine that takes STEP_MS on a clock
that jumps. HBM holds about 512 running requests while more wait and are away. Reported as medians over the
measured turns, in CPU milliseconds of one thread:

schedule    landings, view, plan, check, moves, the fitting list
batched     the batch as it was made goes into ledger and roster
collected   the tokens of the batch before
floor       the plain way over the same list: filter it by state, as a stock capacity scheduler does first

    python benchmarks/trtllm.py [--json] [--policies rotasched,rota-slack] [--turns 300]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from superinfer_trt.core.step import Copy, CopyDone, Direction
from superinfer_trt.core.units import MILLISECOND, Nanos, Ticket
from superinfer_trt.core.view import Limits
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.trtllm.rotation import Rotation, RotationParts
from superinfer_trt.trtllm.upstream import StateValues

STATES = StateValues()
STEP_MS = 20
BLOCK_TOKENS = 32
PROMPT_TOKENS = 160
OUTPUT_TOKENS = 160
RUNNING = 512  # about as many fit into HBM
SEATS = 768
BLOCKS = 8 * RUNNING + RUNNING // 2
ACTIVE = 3 * RUNNING
WARM_TURNS = 200


@dataclass(eq=False)
class Request:
    """A request as upstream would show it."""

    py_request_id: int
    prompt_len: int
    py_max_new_tokens: int
    state_value: int = STATES.context_init
    context_current_position: int = 0
    context_chunk_size: int = 0
    py_batch_idx: int | None = None
    is_dummy: bool = False
    tokens: int = 0

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

    def mark(self, turn: int) -> bool:
        return turn >= 0

    def wait(self, ticket: Ticket) -> None:
        assert ticket

    def poll(self) -> list[CopyDone]:
        told, self.told = self.told, []
        return told

    def link_bytes_per_s(self, direction: Direction) -> float:
        return 1e10 if direction else 0.0  # 190 blocks of 1 MiB in a step

    def close(self) -> None:
        """Nothing is open."""


class JumpingClock:
    """CPU time of this thread plus the steps that the engine pretends to take."""

    def __init__(self) -> None:
        self.skipped: Nanos = 0

    def now(self) -> Nanos:
        return time.thread_time_ns() + self.skipped

    def park(self, until: Nanos | None) -> None:
        self.skipped += max(0, (until or 0) - self.now())

    def wake(self) -> None:
        """Nobody parks."""


class Loop:
    """Upstream's part of a turn, without its costs."""

    def __init__(self, policy: str) -> None:
        self.limits = Limits(8192, SEATS, BLOCK_TOKENS, BLOCKS, 8 * BLOCKS)
        self.clock, self.cache, link = JumpingClock(), Cache(), NextTurnLink()
        self.rotation = Rotation(
            RotationParts(
                policy=make_policy(policy),
                ledger=KvLedger(self.limits, places=False),
                transfers=link,
                order=link,
                cache=self.cache,
                clock=self.clock,
                limits=self.limits,
                block_bytes=1 << 20,
                window_tokens=4096,
                sequence_tokens_max=4096,
            )
        )
        self.active: list[Request] = []
        self.created = 0
        self.times: dict[str, list[float]] = {}
        self.running: list[int] = []

    def turn(self) -> None:
        while len(self.active) < ACTIVE:
            self.created += 1
            output = OUTPUT_TOKENS // 2 + self.created * 37 % OUTPUT_TOKENS
            self.active.append(Request(self.created, PROMPT_TOKENS, output, tokens=PROMPT_TOKENS))
        low, high = STATES.context_init, STATES.generation_complete
        self._timed("floor", lambda: [r for r in self.active if low <= r.state_value < high])
        fitting: list[Request] = []
        self._timed("schedule", lambda: fitting.extend(self.rotation.schedule(self.active)))  # type: ignore[arg-type]
        batch = self._batch(fitting)
        self.running.append(len(batch.generation_requests))
        self._timed("batched", lambda: self.rotation.batched(batch))
        self._run(batch)
        self._timed("collected", lambda: self.rotation.collected(batch))
        self.clock.skipped += STEP_MS * MILLISECOND

    def _batch(self, fitting: list[Request]) -> Batch:
        batch, left = Batch(), self.limits.step_tokens
        for request in fitting:
            context = request.state_value == STATES.context_init
            request.context_chunk_size = request.prompt_len if context else 1
            left -= request.context_chunk_size
            if left >= 0:
                (batch.context_requests if context else batch.generation_requests).append(request)
        return batch

    def _run(self, batch: Batch) -> None:
        for request in batch.context_requests:
            self.cache.add_sequence(request.py_request_id, request.prompt_len, 1)
            request.context_current_position = request.prompt_len
            request.state_value = STATES.generation_in_progress
            request.tokens += 1
        for request in batch.generation_requests:
            self.cache.add_token(request.py_request_id)
            request.tokens += 1
            if request.tokens == request.prompt_len + request.py_max_new_tokens:
                request.state_value = STATES.generation_complete
        ended = [r for r in self.active if r.state_value == STATES.generation_complete]
        self.active = [r for r in self.active if r.state_value != STATES.generation_complete]
        for request in ended:
            self.cache.remove_sequence(request.py_request_id)
            self.rotation.freed(request)

    def _timed(self, name: str, call: object) -> None:
        began = time.thread_time_ns()
        call()  # type: ignore[operator]
        self.times.setdefault(name, []).append((time.thread_time_ns() - began) / MILLISECOND)


def measure(policy: str, turns: int) -> dict[str, object]:
    """Medians of one policy."""
    loop = Loop(policy)
    for _ in range(WARM_TURNS):
        loop.turn()
    loop.times.clear()
    loop.running.clear()
    for _ in range(turns):
        loop.turn()
    figures: dict[str, object] = {name: round(median(times), 3) for name, times in loop.times.items()}
    added = sum(median(times) for name, times in loop.times.items() if name != "floor")
    totals = loop.rotation.totals
    return {
        "policy": policy,
        "running": round(median(loop.running)),
        "rotations_a_turn": round(totals.rotations_out / max(1, totals.turns), 1),
        **figures,
        "added": round(added, 3),
        "added_of_step": round(added / STEP_MS, 4),
    }


def main() -> int:
    """Prints one line a policy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--policies", default="rotasched,rota-slack")
    parser.add_argument("--turns", type=int, default=300)
    options = parser.parse_args()
    for policy in options.policies.split(","):
        figures = measure(policy, options.turns)
        print(json.dumps(figures) if options.json else "  ".join(f"{k} {v}" for k, v in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
