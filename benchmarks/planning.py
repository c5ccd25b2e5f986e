"""What a turn costs the CPU besides the model: plan, check and apply, with a long backlog, in one run.

The production executor, roster, ledger and policy run unchanged; the engine and the link do nothing (a
step takes STEP_MS and copies land in the next turn, on a clock that jumps). HBM holds about 512 running
requests while as many are rotary; requests end and new ones are admitted each turn, and the backlog is
kept at its length. Reported, as medians over the measured turns, in CPU milliseconds of one thread:

plan       the policy alone
check      view and check_plan
apply      ledger, roster, copy lists and their submission
sort       the plain way: every live request sorted by lag, on the same views

    python benchmarks/planning.py [--json] [--policies rotasched,rota-slack] [--turns 300]
        [--waiting 1000,100000] [--transfer-blocks 100]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from statistics import median

from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.outcome import Outcome, Sampled, TokenEvent
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.request import Request, Sampling
from superinfer_trt.core.step import Batch, Copy, CopyDone, Direction
from superinfer_trt.core.units import MILLISECOND, Nanos, Ticket
from superinfer_trt.core.view import Limits, View
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Executor, Parts
from superinfer_trt.sched.lag import VirtualLag
from superinfer_trt.sched.registry import AnyPolicy, make_policy

STEP_MS = {"rota-slack": 12}
"""Of a step, 70 for the others. rota-slack sends away only who is well ahead of the reader, so that as many
are rotary as run only on an engine that is faster than its readers."""
PROMPT_TOKENS = 160
OUTPUT_TOKENS = (32, 160)
BLOCK_TOKENS = 16
MEAN_BLOCKS = 14  # of a live request (long outputs are live for longer)
OUTPUT_TOKENS_MAX = 480  # what requests ask for; they stop earlier, as real ones do
MAX_BLOCKS = 40  # promised to a live request: DRAM is several times HBM, as on a superchip
STOP = 2
RUNNING = ROTARY = 512
WARM_TURNS = 300  # by then the backlog of a fast engine is late, as a long one is


class JumpingClock:
    """CPU time of this thread (the neighbours' load is not of interest) plus the steps that the engine
    pretends to take."""

    def __init__(self) -> None:
        self.skipped: Nanos = 0

    def now(self) -> Nanos:
        return time.thread_time_ns() + self.skipped

    def park(self, until: Nanos | None) -> None:
        if until is not None:
            self.skipped += max(0, until - self.now())

    def wake(self) -> None:
        pass


def output_tokens(id: int) -> int:
    """After how many tokens a request stops: spread evenly over OUTPUT_TOKENS, by its id."""
    low, high = OUTPUT_TOKENS
    return low + id * 2_654_435_761 % (high - low + 1)


class NoEngine:
    """Gives every row that samples a token, at once."""

    geometry = Geometry(64, 8, 128, 2, BLOCK_TOKENS)
    vocabulary = 32_000
    context_tokens_max = 1 << 20
    supports: frozenset[str] = frozenset()

    def __init__(self, clock: JumpingClock, step_ns: Nanos) -> None:
        self._clock = clock
        self._step_ns = step_ns
        self._air: Batch | None = None

    def launch(self, batch: Batch) -> None:
        self._air = batch

    def collect(self) -> Outcome:
        assert self._air is not None
        self._clock.skipped += self._step_ns
        goes_on, stops = Sampled(1), Sampled(STOP)
        return Outcome(
            {
                row.id: goes_on if row.index + 1 < output_tokens(row.id) else stops
                for row in self._air.rows
                if row.sample
            }
        )

    def close(self) -> None:
        pass


class NoLink:
    """Copies land when they are next asked for and the batch they follow has ended."""

    def __init__(self) -> None:
        self._tickets = itertools.count()
        self._air: list[tuple[int, Ticket]] = []
        self._marked = -1
        self.blocks = 0

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket]:  # noqa: ARG002
        tickets = [Ticket(next(self._tickets)) for _ in copies]
        self._air += zip((copy.after for copy in copies), tickets, strict=True)
        self.blocks += sum(len(copy.source) for copy in copies)
        return tickets

    def mark(self, turn: int) -> None:
        self._marked = turn

    def poll(self) -> Sequence[CopyDone]:
        done = [CopyDone(ticket, ok=True) for after, ticket in self._air if after <= self._marked]
        self._air = [entry for entry in self._air if entry[0] > self._marked]
        return done

    def link_bytes_per_s(self, direction: Direction) -> float:  # noqa: ARG002
        return 180e9  # C2C, as measured by the paper

    def close(self) -> None:
        pass


class NoReader:
    """An outbox that counts endings."""

    def __init__(self) -> None:
        self.ended = 0

    def emit(self, events: Sequence[TokenEvent]) -> None:
        self.ended += sum(1 for event in events if event.ending is not None)


class Timed:
    """The policy under a stopwatch; keeps the sizes of what it saw."""

    def __init__(self, policy: AnyPolicy) -> None:
        self._policy = policy
        self.name, self.order = policy.name, policy.order
        self.plan_ns: list[Nanos] = []
        self.sort_ns: list[Nanos] = []
        self.sizes: list[tuple[int, int, int, int]] = []
        self.sorting = False

    def __call__(self, view: View) -> Plan:
        begin = time.thread_time_ns()
        plan = self._policy(view)
        self.plan_ns.append(time.thread_time_ns() - begin)
        moved = len(plan.admit) + len(plan.rotate_in) + len(plan.rotate_out)
        self.sizes.append((len(view.running), len(view.rotary), len(view.waiting), moved))
        if self.sorting:
            begin = time.thread_time_ns()
            sort_all(view)
            self.sort_ns.append(time.thread_time_ns() - begin)
        return plan


def sort_all(view: View) -> list[tuple[int, int]]:
    """The plain way: a lag for everybody, sorted; nobody is chosen yet."""
    lag, now = VirtualLag(), view.now
    lags = [(-lag.waiting(c, now), c.id) for c in view.waiting]
    lags += [(-lag.rotary(c, now), c.id) for c in view.rotary]
    lags += [(-lag.running(c, now), c.id) for c in view.running]
    lags.sort()
    return lags


def requests(inbox: BoundedInbox, clock: JumpingClock) -> Iterator[Request]:
    """Endless; prompts are of one length, outputs of many."""
    prompt = tuple(range(PROMPT_TOKENS))
    sampling = Sampling(max_tokens=OUTPUT_TOKENS_MAX, stop_ids=frozenset({STOP}))
    while True:
        yield Request(inbox.next_id(), prompt, sampling, arrival=clock.now())


class Scene:
    """One policy before a backlog of one length."""

    def __init__(self, policy_name: str, waiting: int, transfer_blocks: int | None) -> None:
        parameters = {"transfer_blocks": transfer_blocks} if policy_name == "rotasched" else {}
        policy = make_policy(policy_name, **parameters)
        device, moving = RUNNING * MEAN_BLOCKS, 0
        if policy_name == "rotasched":  # those on the link hold HBM as well, and are in neither queue
            moving = (transfer_blocks or device * 15 // 100) * 5 // 2
            device += moving // 2
        live_blocks = (RUNNING + ROTARY + moving // MEAN_BLOCKS) * MAX_BLOCKS
        host = live_blocks - device + MAX_BLOCKS if policy.rotates else 0
        # Prompts are started as fast as the pools allow: were they scarce, nobody would have to leave.
        limits = Limits(RUNNING + 8192, 2 * RUNNING, BLOCK_TOKENS, device, host)
        clock, self._link, self._reader, self._timed = JumpingClock(), NoLink(), NoReader(), Timed(policy)
        self.clock = clock
        self._inbox = BoundedInbox(clock, 1 << 30)
        engine = NoEngine(clock, STEP_MS.get(policy_name, 70) * MILLISECOND)
        self._executor = Executor(
            Parts(
                clock,
                self._timed,
                KvLedger(limits),
                self._link,  # type: ignore[arg-type]
                engine,  # type: ignore[arg-type]
                self._inbox,
                self._reader,
                limits,
            )
        )
        self._source = requests(self._inbox, clock)
        self._total = waiting + RUNNING + (ROTARY if policy.rotates else 0) + moving // MEAN_BLOCKS
        self._sent = 0
        self._spent: list[tuple[Nanos, Nanos]] = []  # (plan and check, apply) of each turn

    @property
    def executor(self) -> Executor:
        """For those who listen to it."""
        return self._executor

    def turn(self) -> None:
        """One turn behind a backlog that is kept at its length."""
        while self._sent - self._reader.ended < self._total:
            self._inbox.submit(next(self._source))
            self._sent += 1
        totals = self._executor.totals
        plan_ns, apply_ns = totals.plan_ns, totals.apply_ns
        self._executor.turn()
        self._spent.append((totals.plan_ns - plan_ns, totals.apply_ns - apply_ns))

    def begin(self) -> None:
        """Measures from here on."""
        self._spent.clear()
        self._timed.plan_ns.clear()
        self._timed.sizes.clear()
        self._blocks, self._rotations = self._link.blocks, self._executor.totals.rotations_out

    def result(self) -> dict[str, object]:
        """One line of figures; sorts everybody in a few more turns."""
        timed, turns = self._timed, len(self._spent)
        sizes = [median(column) for column in zip(*timed.sizes, strict=True)]
        plan_ms = median(timed.plan_ns) / 1e6
        rest = [both - alone for (both, _), alone in zip(self._spent, timed.plan_ns, strict=True)]
        result: dict[str, object] = {
            "policy": timed.name,
            "running": sizes[0],
            "rotary": sizes[1],
            "waiting": sizes[2],
            "moved_a_turn": sizes[3],
            "blocks_copied_a_turn": round((self._link.blocks - self._blocks) / turns, 1),
            "rotations_out_a_turn": round((self._executor.totals.rotations_out - self._rotations) / turns, 1),
            "plan_ms": round(plan_ms, 3),
            "check_ms": round(median(rest) / 1e6, 3),
            "apply_ms": round(median(apply for _, apply in self._spent) / 1e6, 3),
            "plan_check_apply_ms": round(median(plan + apply for plan, apply in self._spent) / 1e6, 3),
        }
        timed.sorting = True
        for _ in range(max(5, turns // 20)):
            self.turn()
        result["sort_ms"] = round(median(timed.sort_ns) / 1e6, 3)
        result["sort_over_plan"] = round(median(timed.sort_ns) / 1e6 / plan_ms, 1)
        return result


def measure(
    policy_name: str, lengths: Sequence[int], turns: int, transfer_blocks: int | None
) -> list[dict[str, object]]:
    """A line of figures for each length of the backlog. They take turns, so that a change of the machine's
    speed meets all of them."""
    scenes = [Scene(policy_name, length, transfer_blocks) for length in lengths]
    for _ in range(WARM_TURNS):
        for scene in scenes:
            scene.turn()
    for scene in scenes:
        scene.begin()
    gc.collect()
    gc.freeze()  # the backlog would be walked by every full collection
    for _ in range(turns):
        for scene in scenes:
            scene.turn()
    results = [scene.result() for scene in scenes]
    gc.unfreeze()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--policies", default="rotasched,rota-slack", help="comma separated")
    parser.add_argument("--turns", type=int, default=300)
    parser.add_argument("--transfer-blocks", type=int, help="B_xfer of rotasched; without it: automatic")
    parser.add_argument("--waiting", default="1000,100000", help="lengths of the backlog, comma separated")
    arguments = parser.parse_args()
    lengths = [int(word) for word in arguments.waiting.split(",")]
    rows = []
    ratios = {}
    for policy in arguments.policies.split(","):
        mine = measure(policy, lengths, arguments.turns, arguments.transfer_blocks)
        ratios[policy] = round(float(str(mine[-1]["plan_ms"])) / float(str(mine[0]["plan_ms"])), 2)
        rows += mine
    if arguments.json:
        result = {"benchmark": "planning", "turns": arguments.turns, "rows": rows, "last_over_first": ratios}
        print(json.dumps(result))
        return 0
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    for policy, ratio in ratios.items():
        print(f"{policy}: plan at the longest backlog / at the shortest: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
