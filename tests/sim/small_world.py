"""A world small enough to be looked at whole: two requests, a few blocks, and every choice there is.

Each turn chooses what comes (an arrival, a cancel), what has landed in each direction, well or badly, whether
the step fails, and any legal plan. The production executor, roster and ledger run unchanged. A script is the
list of choices of each turn; a state is what a script leads to, up to the names of slots and the time.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from superinfer_trt.core.check import check_plan
from superinfer_trt.core.errors import EngineFailed, InvariantViolation
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Chunk, Plan, SyncRun
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.step import Copy, CopyDone, Direction
from superinfer_trt.core.units import RequestId, Ticket
from superinfer_trt.core.view import Candidate, Limits, View
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Executor, Parts
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.sim.cells import CellEngine, CellLink, Cells, expected_tokens
from superinfer_trt.sim.chaos import VOCABULARY, geometry_of
from superinfer_trt.sim.chaos_check import Checker
from support.virtual_clock import VirtualClock

DRAIN_TURNS_MAX = 60

Script = tuple[tuple[int, ...], ...]
"""The choices of each turn, in the order they were asked for."""


@dataclass(frozen=True)
class Size:
    """What is enumerated. Budgets bound a path, not a turn."""

    limits: Limits
    prompts: tuple[int, ...]
    outputs: tuple[int, ...]
    depth: int
    cancels: int = 1
    copy_failures: int = 1
    step_failures: int = 1
    evictions: int = 1


EVERYTHING = Size(Limits(8, 4, 2, device_blocks=3, host_blocks=3), (2, 3), (3, 2), depth=2)
"""Neither request fits into HBM beside the other to its end."""

QUIET = replace(EVERYTHING, depth=1, cancels=0, copy_failures=0, step_failures=0, evictions=0)


class Choices:
    """Answers `choose` from a script, then with 0; remembers how many answers there were."""

    def __init__(self, given: Sequence[int]) -> None:
        self._given = given
        self.taken: list[int] = []
        self.counts: list[int] = []

    def choose(self, count: int) -> int:
        at = len(self.taken)
        answer = self._given[at] if at < len(self._given) else 0
        self.taken.append(answer)
        self.counts.append(count)
        return answer

    def next(self) -> list[int] | None:
        """The next script in order; None behind the last."""
        taken = list(self.taken)
        while taken:
            if taken[-1] + 1 < self.counts[len(taken) - 1]:
                taken[-1] += 1
                return taken
            taken.pop()
        return None


class HandLink:
    """Copies land when told to."""

    def __init__(self) -> None:
        self.lanes: dict[Direction, deque[tuple[Ticket, Copy]]] = {d: deque() for d in Direction}
        self.marked = -1
        self._done: list[CopyDone] = []
        self._next = 0

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket]:
        tickets = []
        for copy in copies:
            self.lanes[direction].append((Ticket(self._next), copy))
            tickets.append(Ticket(self._next))
            self._next += 1
        return tickets

    def mark(self, turn: int) -> None:
        self.marked = max(self.marked, turn)

    def may_land(self, direction: Direction) -> bool:
        lane = self.lanes[direction]
        return bool(lane) and lane[0][1].after <= self.marked

    def land(self, direction: Direction, *, ok: bool) -> None:
        self._done.append(CopyDone(self.lanes[direction].popleft()[0], ok))

    def poll(self) -> Sequence[CopyDone]:
        done, self._done = self._done, []
        return done

    def link_bytes_per_s(self, direction: Direction) -> float:
        return 1e12

    def close(self) -> None:
        pass


class FailableEngine(CellEngine):
    """Fails the batch in the air when told to."""

    fails = False

    def collect(self):
        if self.fails:
            self.fails = False
            self.drop("failed on purpose")
        return super().collect()


class ScriptedPolicy:
    """Any of the legal plans of a view, by number; `draining`: the production policy's."""

    name = "scripted"

    def __init__(self, evictions: int) -> None:
        self._serving = make_policy("rotasched", beta_ttft=0)
        self.order = self._serving.order
        self.draining = False
        self.choices = Choices(())
        self.evictions_left = evictions

    def __call__(self, view: View) -> Plan:
        if self.draining:
            return self._serving(view)
        plans = list(legal_plans(view, evicts=self.evictions_left > 0))
        plan = plans[self.choices.choose(len(plans))]
        self.evictions_left -= len(plan.evict)
        return plan


Action = dict[str, tuple[object, ...]]


def actions(candidate: Candidate, *, evicts: bool) -> Iterator[Action]:
    """What a plan may say of one request, nothing first."""
    id, phase = candidate.id, candidate.phase
    yield {}
    if phase is Phase.WAITING:
        for length in sorted({1, candidate.target_tokens}):
            yield {"admit": (id,), "prefill": (Chunk(id, 0, length),)}
    if phase is Phase.PREFILL:
        left = candidate.target_tokens - candidate.computed_tokens
        yield {"prefill": (Chunk(id, candidate.computed_tokens, left),)}
    if phase is Phase.DECODE:
        ready = candidate.full_blocks - candidate.synced_blocks
        sync: Action = {"sync": (SyncRun(id, candidate.synced_blocks, ready),)} if ready > 0 else {}
        if candidate.remaining_tokens > 0:
            yield {"decode": (id,)}
            if sync:
                yield {"decode": (id,), **sync}
        yield {"rotate_out": (id,)}
    if phase is Phase.ROTARY:
        yield {"rotate_in": (id,)}
    if phase in (Phase.PREFILL, Phase.DECODE) and evicts:
        yield {"evict": (id,)}


def legal_plans(view: View, *, evicts: bool) -> Iterator[Plan]:
    each = [list(actions(candidate, evicts=evicts)) for candidate in view.live.values()]
    for chosen in itertools.product(*each):
        fields: Action = {}
        for action in chosen:
            for name, value in action.items():
                fields[name] = (*fields.get(name, ()), *value)
        plan = Plan(view.turn, view.now, **fields)  # type: ignore[arg-type]
        try:
            yield check_plan(plan, view)
        except InvariantViolation:
            continue


class SmallWorld:
    """One path through it."""

    def __init__(self, size: Size) -> None:
        self.size = size
        limits = size.limits
        clock, cells, geometry = VirtualClock(), Cells(limits), geometry_of(limits)
        self.link = HandLink()
        self.engine = FailableEngine(cells, geometry, VOCABULARY)
        self.policy = ScriptedPolicy(size.evictions)
        self.ledger = KvLedger(limits)
        self.inbox = BoundedInbox(clock, 10)
        self.checker = Checker(
            limits,
            self,
            lambda request: expected_tokens(request, VOCABULARY),
            lambda line: None,
            rejected_tokens_max=-1,
        )
        link = CellLink(cells, self.link)
        self.executor = Executor(
            Parts(clock, self.policy, self.ledger, link, self.engine, self.inbox, self.checker, limits),
            size.depth,
        )
        self.executor.observe(self.checker)
        self.come = 0
        self.cancels_left = size.cancels
        self.copy_failures_left = size.copy_failures
        self.step_failures_left = size.step_failures

    def emit(self, events: object) -> None:
        """Nobody reads further than the checker."""

    def turn(self, choices: Choices) -> None:
        """One turn, by choices."""
        self._happen(choices)
        for direction in Direction:
            self._land(direction, choices)
        if self.executor._air is not None or self.size.depth == 1:
            self._maybe_fail(choices)
        self.policy.choices = choices
        self.executor.turn()
        self.engine.fails = False
        self.ledger.audit()

    def _happen(self, choices: Choices) -> None:
        events = ["nothing"]
        if self.come < len(self.size.prompts):
            events.append("arrival")
        if self.cancels_left:
            events += [str(sequence.id) for sequence in self.executor.live]
        event = events[choices.choose(len(events))]
        if event == "arrival":
            id = self.inbox.next_id()
            prompt = tuple((id * 5 + at) % VOCABULARY for at in range(self.size.prompts[self.come]))
            request = Request(id, prompt, Sampling(max_tokens=self.size.outputs[self.come]))
            self.inbox.submit(request)
            self.checker.accepted(request)
            self.come += 1
        elif event != "nothing":
            self.cancels_left -= 1
            id = RequestId(int(event))
            self.checker.cancelled[id] = {FinishReason.CANCELLED}
            self.inbox.cancel(id)

    def _land(self, direction: Direction, choices: Choices) -> None:
        if self.link.may_land(direction):
            outcome = choices.choose(3 if self.copy_failures_left else 2)
            if outcome:
                self.copy_failures_left -= outcome == 2
                self.link.land(direction, ok=outcome == 1)

    def _maybe_fail(self, choices: Choices) -> None:
        if self.step_failures_left and choices.choose(2):
            self.step_failures_left -= 1
            self.engine.fails = True

    def drain(self) -> None:
        """C9: from here the production policy gets everybody home, if nothing goes wrong any more."""
        self.policy.draining = True
        turns = 0
        while not self.executor.idle:
            for direction in Direction:
                while self.link.may_land(direction):
                    self.link.land(direction, ok=True)
            self.executor.turn()
            self.ledger.audit()
            turns += 1
            if turns > DRAIN_TURNS_MAX:
                raise InvariantViolation(f"C9: not drained: {[c.phase.value for c in self.executor.live]}")
        self.ledger.land(())
        self.ledger.audit()
        if not self.ledger.empty:
            raise InvariantViolation("C2: slots leaked")
        self.checker.finish()

    # -- where it is -----------------------------------------------------------------------------------

    def state(self) -> tuple[object, ...]:
        """All that decides what may come, with slots named by where they are first met."""
        names: tuple[dict[int, int], dict[int, int]] = ({}, {})

        def named(tier: int, slots: Sequence[int]) -> tuple[int, ...]:
            return tuple(-1 if s < 0 else names[tier].setdefault(s, len(names[tier])) for s in slots)

        marked, ledger = self.link.marked, self.ledger
        people = tuple(
            (
                *(s.id, s.phase, s.computed_tokens, s.produced_tokens, s.target_tokens, len(s.output)),
                *(s.in_air, s.ending, s.copies_failed, s.stint_tokens > 0),
            )
            for s in self.executor.live
        )
        chains = tuple(
            (
                *(c.id, named(0, c.device), named(1, c.host), tuple(c.synced), c.tokens, c.scheduled),
                *(c.sent, c.touched <= marked, tuple(sorted(c.flying)), c.flights, c.failed),
                *(c.leaving, c.arriving),
            )
            for c in (*ledger._chains.values(), *sorted(ledger._doomed, key=lambda c: (c.id, c.tokens)))
        )
        lanes = tuple(
            (
                *(copy.id, copy.kind, copy.after <= marked),
                named(copy.direction is Direction.H2D, copy.source),
                named(copy.direction is Direction.D2H, copy.target),
            )
            for lane in self.link.lanes.values()
            for _, copy in lane
        )
        air = self.executor._air
        rows = tuple((row.id, row.start, len(row.tokens)) for row in air.rows) if air is not None else None
        budgets = (self.come, self.cancels_left, self.copy_failures_left, self.step_failures_left)
        settled = tuple(chain.id for chain in ledger._settled)
        rest = (named(0, ledger._cooling), settled, self.policy.evictions_left)
        return (people, chains, lanes, rows, budgets, rest)


@dataclass
class Found:
    """What an enumeration came to."""

    states: int
    turns: int
    complete: bool
    phases: set[tuple[Phase, ...]]
    levels: list[int]


def replay(size: Size, script: Script) -> SmallWorld:
    """The world that a script leads to."""
    world = SmallWorld(size)
    for given in script:
        world.turn(Choices(given))
    return world


def enumerate_world(size: Size, depth_max: int) -> Found:
    """Every state within `depth_max` turns, breadth first; each is also drained. Raises what is broken,
    with the script that leads there."""
    seen = {SmallWorld(size).state()}
    frontier: list[Script] = [()]
    found = Found(1, 0, complete=False, phases=set(), levels=[1])
    for _ in range(depth_max):
        coming: list[Script] = []
        for script in frontier:
            given: list[int] | None = []
            while given is not None:
                world, choices = replay(size, script), Choices(given)
                try:
                    world.turn(choices)
                    found.turns += 1
                    state = world.state()
                    if state not in seen:
                        seen.add(state)
                        coming.append((*script, tuple(choices.taken)))
                        found.phases.add(tuple(s.phase for s in world.executor.live))
                        world.drain()
                except (InvariantViolation, EngineFailed, AssertionError, KeyError, ValueError) as error:
                    steps = (*script, tuple(choices.taken))
                    raise AssertionError(f"{error}; {size}, script {steps}") from error
                given = choices.next()
        frontier = coming
        found.levels.append(len(coming))
        if not coming:
            found.complete = True
            break
    found.states = len(seen)
    return found


def main() -> None:
    """All of it: every budget alone, then some together."""
    budgets: list[dict[str, int]] = [{}]
    budgets += [{name: 1} for name in ("cancels", "copy_failures", "step_failures", "evictions")]
    budgets += [{"cancels": 1, "copy_failures": 1}]
    for depth, budget in itertools.product((1, 2), budgets):
        found = enumerate_world(replace(QUIET, depth=depth, **budget), 40)
        whole = "all" if found.complete else "not all"
        named = ", ".join(budget) or "no fault"
        sys.stdout.write(
            f"depth {depth}, {named}: {found.states} states ({whole}), {found.turns} turns tried, "
            f"longest path {len(found.levels) - 2}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
