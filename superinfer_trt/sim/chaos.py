"""Chaotic worlds: a seed draws pools, requests and faults, then the run; first safety, then healing.

While faults last nothing may be lost, repeated, leaked or read too early. Then everything heals, nobody comes
any more, and everybody must have ended within a bound (C9). Who runs is the production executor with the
ledger and the policy it was given; this loop stands where the driver stands. Deterministic (C11). One thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Protocol

from superinfer_trt.core.errors import InvariantViolation, RefusalCode, Refused
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import Ledger
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, Nanos, RequestId
from superinfer_trt.core.view import Limits
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Executor
from superinfer_trt.sim.any_plan import AnyPlan
from superinfer_trt.sim.chaos_check import Checker, Notes
from superinfer_trt.sim.faults import LEAP_NS, Faults, FlakyEngine, UnsteadyClock
from superinfer_trt.sim.readers import LateLoop, Reader, StreamOutbox

VOCABULARY = 31
TURNS_FLAT = 400
TURNS_PER_TOKEN = 12
"""C9: after healing, everybody ends within TURNS_FLAT + TURNS_PER_TOKEN * (tokens still to be computed, every
prompt counted once more) turns. docs/reliability.md has how close worlds came to it."""


def dice_of(options: ChaosOptions, purpose: str) -> Random:
    """Dice of their own for each part of a world, so that one part's throws do not move another's."""
    return Random(f"{options.seed} {purpose}")


class AuditedLedger(Ledger, Protocol):
    """A ledger that can tell whether all is given back (C2)."""

    @property
    def empty(self) -> bool: ...


class Healing(Protocol):
    """A link with whims."""

    def heal(self) -> None: ...
    def next_landing(self) -> Nanos | None: ...


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, the turn in which it comes, and what its client is like."""

    turn: int
    request: Request
    reads: bool
    vanishes: bool


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """Everything a seed decides before the first turn."""

    seed: int
    policy: str
    shed: bool
    depth: int
    limits: Limits
    faults: Faults
    arrivals: tuple[Arrival, ...]
    heal_turn: int
    requests_max: int
    tenant_requests_max: int | None
    look_ns: Nanos
    step_ns: Nanos
    link_bytes_per_s: float  # both ways; 0: no time but launching
    queue_bytes_max: int

    def line(self) -> str:
        """One line for a report."""
        limits = self.limits
        faults = ", ".join(
            f"{name} {getattr(self.faults, name)}" for name in Faults.__slots__ if getattr(self.faults, name)
        )
        return (
            f"{self.policy}{' with shedding' if self.shed else ''}, depth {self.depth}, "
            f"{limits.device_blocks} HBM and {limits.host_blocks} DRAM blocks of {limits.block_tokens}, "
            f"{limits.seats} seats, {limits.step_tokens} tokens a step, {len(self.arrivals)} requests, "
            f"step {self.step_ns / MILLISECOND:g} ms, link {self.link_bytes_per_s:g} B/s; "
            f"faults: {faults or 'none'}"
        )


def geometry_of(limits: Limits) -> Geometry:
    """Of blocks whose bytes only cost time on the link."""
    return Geometry(layers=1, kv_heads=1, head_dim=8, element_bytes=2, block_tokens=limits.block_tokens)


def draw_options(seed: int, policies: Mapping[str, bool]) -> ChaosOptions:
    """Options first, so that rare combinations are common. `policies`: name -> whether it rotates."""
    dice = Random(seed)
    rotating = sorted(name for name in policies if policies[name])
    policy = dice.choice(dice.choice((sorted(policies), rotating, [AnyPlan.name])))
    block_tokens = dice.choice((1, 2, 4, 16))
    device_blocks = dice.choice((3, 4, 6, 10, 20)) * (4 if block_tokens == 1 else 1)
    host = dice.choice((0, 1, device_blocks // 2, device_blocks, *(3 * [device_blocks * 4])))
    limits = Limits(
        step_tokens=dice.choice((4, 16, 64)),
        seats=dice.choice((1, 4, 32, 32)),
        block_tokens=block_tokens,
        device_blocks=device_blocks,
        host_blocks=host if policies[policy] else 0,
    )
    faults = Faults.draw(dice)
    arrivals = _draw_arrivals(dice, limits, faults)
    return ChaosOptions(
        seed=seed,
        policy=policy,
        shed=dice.random() < 0.1,
        depth=dice.choice((1, 2)),
        limits=limits,
        faults=faults,
        arrivals=arrivals,
        heal_turn=arrivals[-1].turn + 1 + dice.choice((0, 20, 150)),
        requests_max=dice.choice((4, 1_000, 1_000, 1_000)),
        tenant_requests_max=dice.choice((None, None, None, 3)),
        look_ns=dice.choice((0, 1, 1_000, 100_000)),
        step_ns=dice.choice((0, 1_000, 5 * MILLISECOND, 50 * MILLISECOND)),
        link_bytes_per_s=dice.choice((0.0, 1e4, 1e6)),
        queue_bytes_max=dice.choice((1 << 30, 4 * geometry_of(limits).block_bytes)),
    )


def _draw_arrivals(dice: Random, limits: Limits, faults: Faults) -> tuple[Arrival, ...]:
    """Bursts and trickles of requests that fit into HBM alone, some of them just so."""
    room = limits.device_blocks * limits.block_tokens
    span = dice.choice((0, 0, 40, 150))
    ttft, tbt = dice.choice((0, 20, 500)), dice.choice((0, 5, 100, 1_000))
    largest = max(4, min(120, int(room * dice.choice((0.2, 0.5, 0.8, 1.0)))))
    growth = dice.choice((0.1, 0.6, 0.95, 0.95))
    arrivals = []
    for at in range(dice.choice((2, 6, 12, 30))):
        total = dice.randint(1 + largest // 4, min(room, largest))
        output = max(1, int(total * growth * dice.uniform(0.5, 1.0)))
        prompt = total + 1 - output  # the KV of the last token made is never written
        stops = dice.random() < 0.15
        sampling = Sampling(
            max_tokens=output,
            seed=dice.getrandbits(32),
            stop_ids=frozenset(dice.sample(range(VOCABULARY), 3)) if stops else frozenset(),
            min_tokens=dice.choice((0, 0, 3)),
        )
        request = Request(
            RequestId(at),
            tuple(dice.randrange(VOCABULARY) for _ in range(prompt)),
            sampling,
            Slo(ttft * MILLISECOND, tbt * MILLISECOND),
            tenant=dice.choice("ab"),
        )
        never, vanishes = dice.random() < faults.reader_never, dice.random() < faults.reader_vanishes
        arrivals.append(Arrival(dice.randint(0, span), request, not never, vanishes))
    return tuple(sorted(arrivals, key=lambda a: (a.turn, a.request.id)))


@dataclass(slots=True)
class ChaosParts:
    """What a world is made of; `executor` turns over all of it."""

    executor: Executor
    clock: UnsteadyClock
    ledger: AuditedLedger
    link: Healing
    engine: FlakyEngine
    inbox: BoundedInbox
    outbox: StreamOutbox
    loop: LateLoop
    checker: Checker
    notes: Notes


@dataclass(frozen=True, slots=True)
class ChaosFigures:
    """What a world came to. `digest`: of every plan and every token (C11)."""

    turns: int
    healing_turns: int
    healing_bound: int
    accepted: int
    refused: int
    tokens: int
    rotations: int
    evictions: int
    copies_failed: int
    steps_failed: int
    digest: str


class ChaosWorld:
    """One run; `run` may be called once. Every violation is an InvariantViolation."""

    def __init__(self, options: ChaosOptions, parts: ChaosParts) -> None:
        self._options = options
        self._parts = parts
        self._dice = dice_of(options, "world")
        self._faults = options.faults
        self._coming = list(reversed(options.arrivals))
        self._readers: dict[RequestId, tuple[Reader, Arrival]] = {}
        self._refused = 0
        self._turns = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._newest: Plan | None = None

    def run(self) -> ChaosFigures:
        """Safety, healing, the end."""
        parts, options = self._parts, self._options
        while self._coming or self._turns < options.heal_turn:
            self._arrive()
            self._misbehave()
            self._turn()
        self._heal()
        healed, bound = (
            self._turns,
            TURNS_FLAT + TURNS_PER_TOKEN * parts.checker.work_left(parts.executor.live),
        )
        while not parts.executor.idle:
            self._turn()
            if self._turns - healed > bound:
                alive = ", ".join(f"{c.id} {c.phase.value}" for c in parts.executor.live)
                raise InvariantViolation(f"C9: {bound} turns after all has healed there are still: {alive}")
        self._check_end()
        totals = parts.executor.totals
        return ChaosFigures(
            turns=self._turns,
            healing_turns=self._turns - healed,
            healing_bound=bound,
            accepted=len(self._readers),
            refused=self._refused,
            tokens=totals.output_tokens,
            rotations=totals.rotations_out,
            evictions=totals.evictions,
            copies_failed=totals.copies_failed,
            steps_failed=parts.engine.failures,
            digest=self._digest.hexdigest(),
        )

    # -- one turn ------------------------------------------------------------------------------------

    def _turn(self) -> None:
        parts = self._parts
        moved = parts.executor.turn()
        self._turns += 1
        parts.clock.turned()
        parts.ledger.audit()  # C1, C5
        newest = parts.executor.trace.newest
        if newest is not None and newest is not self._newest:
            self._newest = newest
            self._digest.update(newest.line().encode())
        live = sum(1 for _ in parts.executor.live)
        if live + len(parts.checker.endings) != len(self._readers):
            raise InvariantViolation(
                f"C3: {len(self._readers)} accepted, {live} live, {len(parts.checker.endings)} ended"
            )
        if self._dice.random() >= self._faults.loop_late:
            parts.loop.run()
        for reader, arrival in self._readers.values():
            if arrival.reads and self._dice.random() < 0.5:
                reader.read()
        if not moved:
            self._rest()

    def _rest(self) -> None:
        """Jumps to the next landing, or a little."""
        clock = self._parts.clock
        landing = self._parts.link.next_landing()
        soon = clock.now() + MILLISECOND
        clock.park(soon if landing is None else max(landing, clock.now()))

    def _arrive(self) -> None:
        parts = self._parts
        while self._coming and self._coming[-1].turn <= self._turns:
            arrival = self._coming.pop()
            drawn = arrival.request
            request = Request(
                parts.inbox.next_id(),
                drawn.prompt,
                drawn.sampling,
                drawn.slo,
                parts.clock.now(),
                drawn.tenant,
            )
            reader = Reader(request.id, parts.outbox.open(request.id))
            try:
                parts.inbox.submit(request)
            except Refused as refused:
                if refused.code not in {RefusalCode.QUEUE_FULL, RefusalCode.QUOTA}:
                    raise
                parts.outbox.close(request.id)
                self._refused += 1
                continue
            parts.checker.accepted(request)
            self._readers[request.id] = (reader, arrival)

    def _misbehave(self) -> None:
        """Cancels, clients that vanish, and time."""
        dice, faults, parts = self._dice, self._faults, self._parts
        if dice.random() < faults.cancels:
            id = RequestId(dice.randrange(len(self._options.arrivals) + 2))  # also unknown and ended ones
            reason = dice.choice((FinishReason.CANCELLED, FinishReason.STOP))
            self._cancel(id, reason)
        for reader, arrival in self._readers.values():
            if arrival.vanishes and dice.random() < 0.05:
                reader.leave()
                parts.outbox.close(reader.id)
                if dice.random() < 0.5:  # the others are only noticed by the token they do not take
                    self._cancel(reader.id, FinishReason.CANCELLED)
        if dice.random() < faults.clock_stands:
            parts.clock.standing_turns = dice.randint(1, 60)
            parts.notes(f"the clock stands still for {parts.clock.standing_turns} turns")
        if dice.random() < faults.clock_leaps:
            parts.clock.park(parts.clock.now() + LEAP_NS)
            parts.notes("the clock leaps")

    def _cancel(self, id: RequestId, reason: FinishReason) -> None:
        self._parts.checker.cancelled.setdefault(id, set()).add(reason)
        self._parts.inbox.cancel(id, reason)
        self._parts.notes(f"cancel {id} ({reason.value})")

    # -- the end -------------------------------------------------------------------------------------

    def _heal(self) -> None:
        parts = self._parts
        self._faults = Faults()
        parts.clock.standing_turns = 0
        parts.engine.heal()
        parts.link.heal()
        parts.notes("everything heals")

    def _check_end(self) -> None:
        """C2, C3, C4: nothing is held, everybody has ended, and every client has read just that."""
        parts = self._parts
        parts.ledger.land(())  # what the last turn evicted comes free with the next
        parts.ledger.audit()
        if not parts.ledger.empty:
            raise InvariantViolation("C2: everybody has ended and slots are still held")
        if parts.inbox.live:
            raise InvariantViolation(f"C3: the inbox counts {parts.inbox.live} live requests at the end")
        parts.checker.finish()
        parts.loop.run()
        for reader, arrival in self._readers.values():
            if not arrival.vanishes:
                reader.read()
                told = parts.checker.tokens[reader.id]
                if not reader.ended or reader.tokens != told:
                    raise InvariantViolation(
                        f"C4: the reader of request {reader.id} did not get all it was sent"
                    )
        for id, told in sorted(parts.checker.tokens.items()):
            self._digest.update(f"{id}{told}{parts.checker.endings[id].reason}".encode())


Run = Callable[[int], ChaosFigures]
"""Runs one seed; raises what went wrong."""


def replay_twice(run: Run, seed: int) -> ChaosFigures:
    """C11: the same seed gives the same plans and tokens. Raises InvariantViolation where it does not."""
    first, second = run(seed), run(seed)
    if first != second:
        raise InvariantViolation(f"C11: seed {seed} gives {first} and then {second}")
    return first
