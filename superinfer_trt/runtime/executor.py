"""The turn: drain, land, view, plan, apply, submit copies || launch batch, collect, commit, emit.

The only place where policy, ledger, transfers and engine meet; it owns nothing but their order. It has
no thread, no sleep and no clock but the injected one: a driver (or a simulated world) calls `turn`.

Depth 1 runs one turn after the other. Depth 2 plans turn t + 1 and starts its copies while batch t
executes; batch t + 1 is launched as soon as t was collected, without the requests that ended with t.
What a copy may touch before batch t has ended is told to the transfer engine (`Copy.after`, `mark`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from superinfer_trt.core.check import check_plan
from superinfer_trt.core.errors import EngineFailed, InvariantViolation
from superinfer_trt.core.outcome import Outcome, TokenEvent, Totals
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import (
    Clock,
    Inbox,
    Ledger,
    ModelEngine,
    Observer,
    Outbox,
    Policy,
    TransferEngine,
)
from superinfer_trt.core.request import FinishReason
from superinfer_trt.core.step import Batch, Copy, Direction, Row
from superinfer_trt.core.units import MILLISECOND, Nanos
from superinfer_trt.core.view import Limits, View
from superinfer_trt.runtime.roster import Roster
from superinfer_trt.runtime.sequence import Sequence
from superinfer_trt.runtime.step_fit import StepFit
from superinfer_trt.runtime.trace import PlanTrace

STALLED_TURNS_MAX = 1_000
SUBMIT_COPIES_MAX = 1_024
"""Groups in one submission; a transfer engine's queue is bounded in groups."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What an executor is made of; tests, the service and the simulator fill it differently."""

    clock: Clock
    policy: Policy
    ledger: Ledger
    transfers: TransferEngine
    engine: ModelEngine
    inbox: Inbox
    outbox: Outbox
    limits: Limits


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counts of one moment, for statistics.

    Ages are nanoseconds of the one who has waited longest: since its arrival, or since its last token.
    Urgency is the largest share of its own objective that anybody has used up (above 1: late).
    """

    waiting: int
    prefill: int
    decode: int
    rotating_out: int
    rotary: int
    rotating_in: int
    device_free: int
    device_total: int
    host_free: int
    host_total: int
    waiting_age: Nanos = 0
    rotary_age: Nanos = 0
    waiting_urgency: float = 0.0
    rotary_urgency: float = 0.0
    block_bytes: int = 0
    link_out_bytes_per_s: float = 0.0  # infinite where nothing limits it
    link_in_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    """The batch in the air."""

    turn: int
    rows: list[Row]
    prefill_tokens: int
    launched: Nanos
    error: str = ""


class _Average:
    """An exponential average of durations, in nanoseconds; `first` until something was seen."""

    __slots__ = ("value",)

    def __init__(self, first: Nanos) -> None:
        self.value = first

    def add(self, sample: Nanos) -> None:
        self.value += (sample - self.value) // 8


class Executor:
    """Not thread-safe: one caller of `turn`. `snapshot`, `totals` may be read from other threads."""

    def __init__(self, parts: Parts, depth: int = 1, trace: PlanTrace | None = None) -> None:
        if depth not in (1, 2):
            raise ValueError(f"depth is {depth}; 1 and 2 are possible")
        self.totals = Totals()
        self._parts = parts
        self._depth = depth
        self._trace = trace if trace is not None else PlanTrace()
        self._roster = Roster(parts.limits, parts.policy.order, self.totals)
        self._turn = 0
        self._air: _Flight | None = None
        self._events: list[TokenEvent] = []
        self._untold: list[TokenEvent] = []  # the inbox knows of them, the outbox has not taken them
        self._unsent: dict[Direction, list[Copy]] = {direction: [] for direction in Direction}
        self._blocks_in_flight: dict[Direction, int] = dict.fromkeys(Direction, 0)
        self._ticket_blocks: dict[int, tuple[Direction, int]] = {}
        self._step = _Average(10 * MILLISECOND)
        self._planning = _Average(0)
        self._fit = StepFit()
        self._stalled = 0
        self._observers: tuple[Observer, ...] = ()

    # -- what others may ask ----------------------------------------------------------------------

    @property
    def trace(self) -> PlanTrace:
        """The newest plans."""
        return self._trace

    @property
    def idle(self) -> bool:
        """Nobody is live, nothing is in the air and no copy is under way."""
        return not self._roster.live and self._air is None and not self._parts.ledger.in_flight

    @property
    def copying(self) -> bool:
        """Whether a landing is to be expected."""
        return self._parts.ledger.in_flight > 0

    @property
    def live(self) -> Iterable[Sequence]:
        """The live records, for inspection."""
        return self._roster.live.values()

    def observe(self, observer: Observer) -> None:
        """`observer` hears every turn from the next on. One other thread may call this and `unobserve`."""
        self._observers = (*self._observers, observer)

    def unobserve(self, observer: Observer) -> None:
        """It may hear the rest of the present turn, and no more."""
        self._observers = tuple(one for one in self._observers if one is not observer)

    def snapshot(self) -> Snapshot:
        """Counts by phase and free slots; slightly torn when read from another thread."""
        live = list(self._roster.live.values())
        phases = [sequence.phase for sequence in live]
        waits = [
            (s.last_token, s.slo.ttft if s.first_token < 0 else s.slo.tbt)  # an evicted one waits as well
            for s in live
            if s.phase is Phase.WAITING
        ]
        away = [(s.last_token, s.slo.tbt) for s in live if s.phase is Phase.ROTARY]
        parts, now = self._parts, self._parts.clock.now()
        ledger, limits = parts.ledger, parts.limits
        return Snapshot(
            waiting=phases.count(Phase.WAITING),
            prefill=phases.count(Phase.PREFILL),
            decode=phases.count(Phase.DECODE),
            rotating_out=phases.count(Phase.ROTATING_OUT),
            rotary=phases.count(Phase.ROTARY),
            rotating_in=phases.count(Phase.ROTATING_IN),
            device_free=ledger.device_free,
            device_total=limits.device_blocks,
            host_free=ledger.host_free,
            host_total=limits.host_blocks,
            waiting_age=max((now - since for since, _ in waits), default=0),
            rotary_age=max((now - since for since, _ in away), default=0),
            waiting_urgency=max(((now - since) / limit for since, limit in waits), default=0.0),
            rotary_urgency=max(((now - since) / limit for since, limit in away), default=0.0),
            block_bytes=parts.engine.geometry.block_bytes,
            link_out_bytes_per_s=parts.transfers.link_bytes_per_s(Direction.D2H),
            link_in_bytes_per_s=parts.transfers.link_bytes_per_s(Direction.H2D),
        )

    # -- the turn ----------------------------------------------------------------------------------

    def turn(self) -> bool:
        """One turn; returns whether anything was planned or collected. Raises InvariantViolation
        (a bug) and TransferFailed (a poisoned link): then the executor is at its end, see `abandon`."""
        try:
            if self._depth == 1:
                plan = self._begin()
                self._launch(plan)
                collected = self._finish()
            else:
                plan = self._begin()
                collected = self._finish()
                self._launch(plan)
        finally:
            self._emit()
        acted = plan is not None or collected
        if acted:
            for observer in self._observers:
                observer.turned(self._roster.live.values(), self._parts.clock.now())
        return acted

    def abandon(self, message: str) -> None:
        """Ends every live request as failed; for a driver that cannot go on. Touches no engine."""
        now = self._parts.clock.now()
        try:
            for request in self._parts.inbox.drain()[0]:  # accepted, but not seen by any turn
                self._roster.arrive(request)
                self.totals.accepted += 1
        finally:
            for sequence in list(self._roster.live.values()):
                sequence.in_air = False
                self._events.extend(self._roster.end(sequence, FinishReason.FAILED, now, message))
            self._emit()

    def _begin(self) -> Plan | None:
        """Drain, land, view, plan, apply, submit."""
        parts = self._parts
        now = parts.clock.now()
        self._drain(now)
        self._land(now)
        view = self._view(now)
        plan = check_plan(parts.policy(view), view)
        planned = parts.clock.now()
        self._planning.add(planned - now)
        self.totals.plan_ns += planned - now
        if plan.idle:
            self._submit()
            self._notice_stall()
            return None
        self._stalled = 0
        self._turn += 1
        self.totals.turns += 1
        self._trace.plan(plan)
        copies = parts.ledger.apply(plan)
        self._roster.enter(plan, now)
        for rejection in plan.reject:
            sequence = self._roster.live[rejection.id]
            self._end(sequence, FinishReason.REJECTED, now, rejection.reason)
        self.totals.evictions += len(plan.evict)
        for copy in copies:
            self._unsent[copy.direction].append(copy)
        self._submit()
        applied = parts.clock.now()
        self.totals.apply_ns += applied - planned
        for observer in self._observers:
            observer.planned(plan, now, planned, applied)
        return plan

    def _launch(self, plan: Plan | None) -> None:
        """Starts the plan's batch, without the requests that ended meanwhile."""
        if plan is None or not plan.runs:
            return
        parts = self._parts
        rows = self._roster.rows(plan, parts.ledger)
        if not rows:
            parts.transfers.mark(plan.turn)
            return
        batch = Batch(plan.turn, tuple(rows))
        chunks = rows[: len(plan.prefill)]  # chunks come first; all others are single tokens
        lengths = [len(row.tokens) for row in chunks]
        self.totals.batches += 1
        self.totals.step_tokens += len(rows) - len(chunks) + sum(lengths)
        prefill_tokens = sum(n for n, row in zip(lengths, chunks, strict=True) if n > 1 or not row.start)
        error = ""
        launched = parts.clock.now()
        try:
            parts.engine.launch(batch)
        except EngineFailed as failure:
            error = str(failure)
        self._air = _Flight(plan.turn, rows, prefill_tokens, launched, error)

    def _finish(self) -> bool:
        """Collect and commit."""
        flight, self._air = self._air, None
        if flight is None:
            return False
        parts = self._parts
        outcome: Outcome | None = None
        error = flight.error
        if not error:
            try:
                outcome = parts.engine.collect()
            except EngineFailed as failure:
                error = str(failure)
        parts.transfers.mark(flight.turn)
        now = parts.clock.now()
        if outcome is not None:  # how long a failure takes says nothing of a step
            self._learn(flight, now - flight.launched)
        self.totals.step_ns += now - flight.launched
        for observer in self._observers:
            observer.stepped(flight.turn, flight.rows, flight.launched, now)
        live, waiting = self._roster.live, Phase.WAITING
        # An evicted request's blocks are gone already; only its token counts.
        rows = [row for row in flight.rows if live[row.id].phase is not waiting]
        parts.ledger.commit_all([row.id for row in rows], [row.start + len(row.tokens) for row in rows])
        if outcome is None:
            for row in flight.rows:
                sequence = self._roster.live[row.id]
                sequence.in_air = False
                self._end(sequence, FinishReason.FAILED, now, error)
            return True
        self._told(self._roster.commit(flight.rows, outcome, now))
        return True

    # -- its verbs ---------------------------------------------------------------------------------

    def _drain(self, now: Nanos) -> None:
        requests, cancels = self._parts.inbox.drain()
        # All of them live before anything else may fail: whoever left the inbox can be told (C3).
        arrived = [self._roster.arrive(request) for request in requests]
        self.totals.accepted += len(requests)
        for sequence in arrived:
            self._parts.ledger.open(sequence.id, sequence)
        for id, reason in cancels:
            sequence_or_none = self._roster.live.get(id)
            if sequence_or_none is not None:
                self._end(sequence_or_none, reason, now, "")

    def _land(self, now: Nanos) -> None:
        done = self._parts.transfers.poll()
        for item in done:
            direction, blocks = self._ticket_blocks.pop(item.ticket)
            self._blocks_in_flight[direction] -= blocks
        if done:
            for observer in self._observers:
                observer.landed(done, now)
        self._told(self._roster.land(self._parts.ledger.land(done), now))

    def _view(self, now: Nanos) -> View:
        out_blocks, in_blocks = self._allowance(Direction.D2H), self._allowance(Direction.H2D)
        forecast = self._fit.forecast
        return self._roster.view(self._turn, now, self._parts.ledger, out_blocks, in_blocks, forecast)

    def _learn(self, flight: _Flight, took: Nanos) -> None:
        """Feeds the forecasts. At depth 1 planning adds to the gap that a reader sees."""
        self._step.add(took)
        context_tokens = sum([row.start for row in flight.rows])
        planning = self._planning.value if self._depth == 1 else 0
        self._fit.add(len(flight.rows), flight.prefill_tokens, context_tokens, took + planning)

    def _allowance(self, direction: Direction) -> int:
        """Blocks that cross in one step behind compute, less those already on their way.

        B_xfer `auto`: link bandwidth x (predicted step time - planning time), at least one block.
        """
        parts = self._parts
        if self._unsent[direction]:
            return 0  # the lane said busy
        link_bytes_per_s = parts.transfers.link_bytes_per_s(direction)
        hidden_ns = max(self._step.value - self._planning.value, MILLISECOND)
        everything = parts.limits.device_blocks + parts.limits.host_blocks
        step_bytes = link_bytes_per_s * hidden_ns / 1e9
        blocks = int(min(step_bytes / parts.engine.geometry.block_bytes, everything))
        return max(0, max(1, blocks) - self._blocks_in_flight[direction])

    def _submit(self) -> None:
        """Hands the copies over, in order; what a busy lane refuses goes next turn."""
        parts, totals = self._parts, self.totals
        for direction, unsent in self._unsent.items():
            while unsent:
                copies = unsent[:SUBMIT_COPIES_MAX]
                tickets = parts.transfers.submit(direction, copies)
                if tickets is None:
                    break
                del unsent[: len(copies)]
                total = 0
                for copy, ticket in zip(copies, tickets, strict=True):
                    blocks = len(copy.source)
                    parts.ledger.submitted(copy, ticket)
                    self._ticket_blocks[ticket] = (direction, blocks)
                    total += blocks
                self._blocks_in_flight[direction] += total
                for observer in self._observers:
                    observer.submitted(copies, tickets, parts.clock.now())
                if direction is Direction.D2H:
                    totals.link_out_blocks += total
                else:
                    totals.link_in_blocks += total

    def _end(self, sequence: Sequence, reason: FinishReason, now: Nanos, message: str) -> None:
        self._told(self._roster.end(sequence, reason, now, message))

    def _told(self, events: Iterable[TokenEvent]) -> None:
        """Keeps events for `emit`; a request that has ended gives its slots back at once."""
        before = len(self._events)
        self._events.extend(events)
        for id in [event.id for event in self._events[before:] if event.ending is not None]:
            self._parts.ledger.release(id)

    def _emit(self) -> None:
        """A place is free before its client hears so, and an ending is told though a door raises: what the
        outbox did not take is kept for `abandon` (C3)."""
        if not self._events and not self._untold:
            return
        events, self._events = self._events, []
        self._untold = [*self._untold, *events] if self._untold else events
        try:
            self._parts.inbox.ended([event.id for event in events if event.ending is not None])
        finally:
            self._parts.outbox.emit(self._untold)
            self._untold = []

    def _notice_stall(self) -> None:
        """A policy that plans nothing while somebody lives and nothing is under way would hang (C9)."""
        if self._air is not None or self.copying or not self._roster.live:
            self._stalled = 0
            return
        self._stalled += 1
        if self._stalled > STALLED_TURNS_MAX:
            raise InvariantViolation(
                f"policy {self._parts.policy.name} planned nothing for {self._stalled} turns "
                f"with {len(self._roster.live)} live requests"
            )
