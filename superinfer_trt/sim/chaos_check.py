"""What must hold in a chaotic world, looked at each turn: C1 to C10 and C12 of docs/invariants.md.

An observer of the executor, an outbox in front of the clients' one, and a wrapper of the policy. Every
violation is an InvariantViolation whose message begins with the property. C11 is for whoever runs a world
twice. Knows no ledger and no fault. One thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.outcome import Ending, TokenEvent
from superinfer_trt.core.phase import LEGAL, Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import Outbox, Policy
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.step import Copy, CopyDone, Row
from superinfer_trt.core.units import Nanos, RequestId, Ticket
from superinfer_trt.core.view import Candidate, CandidateValue, Limits, Order, View

SHIFT: Nanos = 7_777_777_777
"""By how much all times of a view are moved to see whether its plan stays (C10)."""

_FIELDS = [field.name for field in fields(CandidateValue)]
_TIMES = ("first_token", "run_start")  # -1: never; `arrival` and `last_token` are always times


def _reachable(moves_max: int) -> frozenset[tuple[Phase, Phase]]:
    """Pairs of phases that so many legal moves lead from and to, none included."""
    pairs = {(phase, phase) for phase in Phase}
    for _ in range(moves_max):
        pairs |= {(first, after) for first, middle in pairs for source, after in LEGAL if source is middle}
    return frozenset(pairs)


REACHABLE = _reachable(3)  # a landing, what the plan says, the last chunk


class Checker:
    """core.ports.Observer and core.ports.Outbox; hands events on to `outbox`. `rejected_tokens_max`: tokens
    that a request may have made that the policy refuses; -1: it refuses none."""

    def __init__(
        self,
        limits: Limits,
        outbox: Outbox,
        expected: Callable[[Request], list[int]],
        note: Callable[[str], None],
        *,
        rejected_tokens_max: int,
    ) -> None:
        self._limits = limits
        self._outbox = outbox
        self._expected = expected
        self._note = note
        self._rejected_tokens_max = rejected_tokens_max
        self._requests: dict[RequestId, Request] = {}
        self._wanted: dict[RequestId, list[int]] = {}
        self._phases: dict[RequestId, Phase] = {}
        self._newest: dict[RequestId, Nanos] = {}
        self.tokens: dict[RequestId, list[int]] = {}
        self.endings: dict[RequestId, Ending] = {}
        self.cancelled: dict[RequestId, set[FinishReason]] = {}

    # -- the doors -----------------------------------------------------------------------------------

    def accepted(self, request: Request) -> None:
        """The inbox took it."""
        self._requests[request.id] = request
        self._wanted[request.id] = self._expected(request)
        self.tokens[request.id] = []

    def emit(self, events: Sequence[TokenEvent]) -> None:
        """C3, C4, C12 at the door out."""
        for event in events:
            self._hear(event)
        self._outbox.emit(events)

    def _hear(self, event: TokenEvent) -> None:
        id = event.id
        if id not in self._requests:
            raise InvariantViolation(f"C3: something is told of request {id}, which was never accepted")
        if id in self.endings:
            raise InvariantViolation(f"C4: request {id} is told something after its ending")
        if event.now < self._newest.get(id, 0):
            raise InvariantViolation(f"C4: time goes back for request {id}")
        self._newest[id] = event.now
        if event.sampled is not None:
            told, wanted = self.tokens[id], self._wanted[id]
            if event.index != len(told):
                raise InvariantViolation(f"C4: request {id} is told token {event.index} after {len(told)}")
            if len(told) == len(wanted) or wanted[len(told)] != event.sampled.token:
                raise InvariantViolation(
                    f"C12: token {event.index} of request {id} is {event.sampled.token}, alone it would be "
                    f"{wanted[len(told) :][:1]}"
                )
            told.append(event.sampled.token)
        if event.ending is not None:
            self.endings[id] = event.ending
            self._check_ending(id, event.ending)

    def _check_ending(self, id: RequestId, ending: Ending) -> None:
        """C3: it ends for a reason that was there."""
        told, sampling = self.tokens[id], self._requests[id].sampling
        stops = bool(told) and told[-1] in sampling.stop_ids
        asked = self.cancelled.get(id, set())
        right = {
            FinishReason.LENGTH: len(told) == sampling.max_tokens and not stops,
            FinishReason.STOP: stops or FinishReason.STOP in asked,
            FinishReason.CANCELLED: FinishReason.CANCELLED in asked,
            FinishReason.REJECTED: len(told) <= self._rejected_tokens_max,
            FinishReason.FAILED: bool(ending.message),
        }[ending.reason]
        if not right or ending.output_tokens != len(told):
            raise InvariantViolation(
                f"C3: request {id} ends as {ending.reason.value} ({ending.message!r}, "
                f"{ending.output_tokens} tokens) after {len(told)} tokens"
            )

    # -- the turn ------------------------------------------------------------------------------------

    def planned(self, plan: Plan, start: Nanos, planned: Nanos, applied: Nanos) -> None:
        """Only notes it: a plan was checked before it was applied (C7)."""
        del start, planned, applied
        self._note(plan.line())

    def stepped(self, turn: int, rows: Sequence[Row], launched: Nanos, ended: Nanos) -> None:
        """C7, counted again from what was run."""
        del launched, ended
        tokens = sum(len(row.tokens) for row in rows)
        if tokens > self._limits.step_tokens or len(rows) > self._limits.seats:
            raise InvariantViolation(f"C7: turn {turn} ran {tokens} tokens in {len(rows)} rows")
        if len({row.id for row in rows}) != len(rows):
            raise InvariantViolation(f"C7: a request stands twice in the batch of turn {turn}")

    def submitted(self, copies: Sequence[Copy], tickets: Sequence[Ticket], now: Nanos) -> None:
        del copies, tickets, now

    def landed(self, done: Sequence[CopyDone], now: Nanos) -> None:
        del now
        failed = sum(not item.ok for item in done)
        self._note(f"{len(done)} copies landed" + (f", {failed} of them failed" if failed else ""))

    def turned(self, live: Iterable[Candidate], now: Nanos) -> None:
        """C1, C3, C7, C8 over everybody who lives."""
        del now
        phases, device, host = {}, 0, 0
        for candidate in live:
            phases[candidate.id] = candidate.phase
            device += candidate.device_blocks
            host += candidate.host_blocks
            if not 0 <= candidate.synced_blocks <= candidate.total_blocks:
                raise InvariantViolation(f"C5: request {candidate.id} has {candidate.synced_blocks} synced")
        if device > self._limits.device_blocks or host > self._limits.host_blocks:
            raise InvariantViolation(f"C1: {device} device and {host} host blocks are held")
        ended = self.endings
        for id, phase in phases.items():
            before = self._phases.get(id, Phase.WAITING)
            if (before, phase) not in REACHABLE:
                raise InvariantViolation(f"C8: request {id} went from {before.value} to {phase.value}")
            if id in ended or id not in self._requests:
                raise InvariantViolation(f"C3: request {id} lives, which has ended or never came")
        for id in self._phases:
            if id not in phases and id not in ended:
                raise InvariantViolation(f"C3: request {id} vanished without an ending")
        self._phases = phases

    def finish(self) -> None:
        """C3 at the end: whoever was accepted has ended."""
        lost = sorted(set(self._requests) - set(self.endings))
        if lost:
            raise InvariantViolation(f"C3: requests {lost} never ended")

    def work_left(self, live: Iterable[Candidate]) -> int:
        """Tokens that those who live may still have to compute, all of their prompts included."""
        return sum(len(self._requests[c.id].prompt) + c.produced_tokens + c.remaining_tokens for c in live)


class PurePolicy:
    """core.ports.Policy around `policy`: each `every`-th plan is asked for again (C10)."""

    def __init__(self, policy: Policy, every: int) -> None:
        self._policy = policy
        self._every = every
        self._calls = 0

    @property
    def name(self) -> str:
        return self._policy.name

    @property
    def order(self) -> Order:
        return self._policy.order

    def __call__(self, view: View) -> Plan:
        """The policy's plan; raises InvariantViolation where the same view gives another."""
        self._calls += 1
        if self._calls % self._every:
            return self._policy(view)
        seen = _values(view, 0)
        plan = self._policy(view)
        if _values(view, 0) != seen:
            raise InvariantViolation(f"C10: policy {self.name} wrote to what it was shown")
        if self._policy(view) != plan:
            raise InvariantViolation(f"C10: policy {self.name} planned one view twice, differently")
        moved = self._policy(_frozen(view, SHIFT))
        if replace(moved, now=view.now) != plan:
            raise InvariantViolation(
                f"C10: policy {self.name} plans otherwise {SHIFT} ns later | {plan.line()} | {moved.line()}"
            )
        return plan


def _values(view: View, shift: Nanos) -> list[CandidateValue]:
    return [_value(candidate, shift) for candidate in view.live.values()]


def _value(candidate: Candidate, shift: Nanos) -> CandidateValue:
    values = {name: getattr(candidate, name) for name in _FIELDS}
    for name in ("arrival", "last_token", *(name for name in _TIMES if values[name] >= 0)):
        values[name] += shift
    return CandidateValue(**values)


def _frozen(view: View, shift: Nanos) -> View:
    """The same moment as plain values, `shift` later."""
    live = {candidate.id: candidate for candidate in _values(view, shift)}

    def queue(candidates: Sequence[Candidate]) -> list[Candidate]:
        return [live[candidate.id] for candidate in candidates]

    return replace(
        view,
        now=view.now + shift,
        waiting=queue(view.waiting),
        rotary=queue(view.rotary),
        running=queue(view.running),
        live=live,
        lanes=None,
    )


class Notes:
    """The newest lines of what happened, for whoever has to find out why."""

    def __init__(self, lines_max: int) -> None:
        self._lines: deque[str] = deque(maxlen=lines_max)

    def __call__(self, line: str) -> None:
        self._lines.append(line)

    def tail(self) -> list[str]:
        """Oldest first."""
        return list(self._lines)
