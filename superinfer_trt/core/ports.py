"""The ports: where the world meets the core. A new implementation passes tests/conform."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.outcome import Outcome, TokenEvent
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.step import Batch, Copy, CopyDone, Direction, Landing, Row
from superinfer_trt.core.units import Nanos, RequestId, SlotId, Ticket
from superinfer_trt.core.view import Candidate, Order, View


class Clock(Protocol):
    """Monotonic time. The simulator's clock pops its next event when parked."""

    def now(self) -> Nanos: ...

    def park(self, until: Nanos | None) -> None:
        """Returns at `until`, or earlier after `wake()`; None parks until woken."""
        ...

    def wake(self) -> None:
        """Ends a `park`, from any thread; a wake with nobody parked is remembered once."""
        ...


class Policy(Protocol):
    """A pure function View -> Plan, with the static order of its queues.

    Calling it twice on one view gives equal plans; it never writes to what it sees.
    """

    @property
    def name(self) -> str: ...
    @property
    def order(self) -> Order: ...
    def __call__(self, view: View) -> Plan: ...


class KvFacts(Protocol):
    """The live record of a request as a ledger sees it: `target_tokens` is read at admission, the
    counts are kept current for the policies to read."""

    target_tokens: int
    device_blocks: int
    host_blocks: int
    synced_blocks: int
    full_blocks: int


class Ledger(Protocol):
    """Who owns which slot in which tier. The only owner of block state."""

    @property
    def device_free(self) -> int: ...
    @property
    def device_leaving(self) -> int: ...
    @property
    def host_free(self) -> int: ...
    @property
    def host_backing(self) -> int: ...
    @property
    def in_flight(self) -> int:
        """Copies handed out by `apply` that have not landed."""
        ...

    def open(self, id: RequestId, facts: KvFacts) -> None:
        """A request came to live; it holds nothing yet."""
        ...

    def apply(self, plan: Plan) -> Sequence[Copy]:
        """Takes and gives slots as `plan` says; returns the copies to submit. Never fails for a
        plan that `check_plan` accepted."""
        ...

    def submitted(self, copy: Copy, ticket: Ticket) -> None:
        """Tells under which ticket `copy` will land."""
        ...

    def land(self, done: Iterable[CopyDone]) -> Sequence[Landing]:
        """Finished copies become facts; returns the rotations that ended with them."""
        ...

    def commit(self, id: RequestId, tokens: int) -> None:
        """The KV of the first `tokens` tokens is now written (the batch was collected)."""
        ...

    def commit_all(self, ids: Iterable[RequestId], tokens: Iterable[int]) -> None:
        """`commit` of each."""
        ...

    def release(self, id: RequestId) -> None:
        """Gives all its slots back; those a copy still uses follow when it has landed."""
        ...

    def slots(self, id: RequestId) -> Sequence[SlotId]:
        """Its device slots, in order."""
        ...

    def audit(self) -> None:
        """Raises InvariantViolation if any slot is lost or owned twice. O(slots)."""
        ...


class TransferEngine(Protocol):
    """Moves blocks between the tiers, both directions at once."""

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        """Queues the copies, all of one direction, all or none; None means busy, try next turn.
        Raises TransferFailed when the lane is poisoned, ValueError for copies that overlap."""
        ...

    def mark(self, turn: int) -> None:
        """The batch of `turn` (and all before) has ended: copies with `after <= turn` may start."""
        ...

    def poll(self) -> Sequence[CopyDone]:
        """Finished groups, in order within a direction (SYNC perhaps in an order of their own). Never
        blocks."""
        ...

    def link_bytes_per_s(self, direction: Direction) -> float:
        """What the direction carries, measured or configured."""
        ...

    def close(self) -> None:
        """Stops; copies not yet started are dropped. Idempotent."""
        ...


class ModelEngine(Protocol):
    """Runs a batch. One launch in the air at a time."""

    @property
    def geometry(self) -> Geometry: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def context_tokens_max(self) -> int: ...
    @property
    def supports(self) -> frozenset[str]:
        """What of core.request.OPTIONAL_SAMPLING it can do; the rest is refused at the door, by name."""
        ...

    def launch(self, batch: Batch) -> None:
        """Starts the batch; returns before it has ended where the engine can."""
        ...

    def collect(self) -> Outcome:
        """Waits for the launched batch. Raises EngineFailed; the engine stays usable."""
        ...

    def close(self) -> None: ...


class Inbox(Protocol):
    """The bounded door in. `submit` and `cancel` may be called from any thread."""

    def submit(self, request: Request) -> None:
        """Raises Refused when full or draining."""
        ...

    def cancel(self, id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ends a request early; an unknown or finished id is ignored."""
        ...

    def ended(self, ids: Sequence[RequestId]) -> None:
        """These accepted requests have ended: their places are free again. Each is told once."""
        ...

    def drain(self) -> tuple[Sequence[Request], Sequence[tuple[RequestId, FinishReason]]]:
        """All that arrived since the last call: (requests, cancels)."""
        ...


class Outbox(Protocol):
    """The door out."""

    def emit(self, events: Sequence[TokenEvent]) -> None:
        """Hands one turn's events over. Never blocks; a slow reader costs the others nothing."""
        ...


class Observer(Protocol):
    """Hears what each turn did, in the turn's own thread: what it takes is added to the turn.

    Never blocks, never raises, changes nothing. All times are the injected clock's.
    """

    def planned(self, plan: Plan, start: Nanos, planned: Nanos, applied: Nanos) -> None:
        """A plan that is not idle: decided from `start` to `planned`, its copies handed over by `applied`."""
        ...

    def stepped(self, turn: int, rows: Sequence[Row], launched: Nanos, ended: Nanos) -> None:
        """The batch of `turn` was launched and collected, or failed."""
        ...

    def submitted(self, copies: Sequence[Copy], tickets: Sequence[Ticket], now: Nanos) -> None:
        """Copies of one direction were taken by the link, a ticket each."""
        ...

    def landed(self, done: Sequence[CopyDone], now: Nanos) -> None:
        """Copies are known to have ended; some may have been submitted before anybody observed."""
        ...

    def turned(self, live: Iterable[Candidate], now: Nanos) -> None:
        """A turn that did something is over; `live` may be read until this returns."""
        ...
