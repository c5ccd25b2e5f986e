"""Transfer engines that misbehave on purpose, and one that counts, around any other.

For tests of what stands above a link. Every whim is a function of the seed and of the order of the
calls, so that a run can be repeated. Threads: those of the wrapped engine, at most one at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from superinfer_trt.core.ports import TransferEngine
from superinfer_trt.core.step import Copy, CopyDone, CopyKind, Direction
from superinfer_trt.core.units import Nanos, Ticket

_MASK = (1 << 64) - 1


def chance(seed: int, number: int) -> float:
    """A fraction in [0, 1) that looks random: the splitmix64 finaliser of (seed, number)."""
    value = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = ((value ^ (value >> shift)) * factor) & _MASK
    return ((value ^ (value >> 31)) >> 11) / (1 << 53)


class WrappedLink:
    """Hands every call on. Base of the wrappers below."""

    def __init__(self, inner: TransferEngine) -> None:
        self.inner = inner

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        return self.inner.submit(direction, copies)

    def mark(self, turn: int) -> None:
        self.inner.mark(turn)

    def poll(self) -> Sequence[CopyDone]:
        return self.inner.poll()

    def link_bytes_per_s(self, direction: Direction) -> float:
        return self.inner.link_bytes_per_s(direction)

    def close(self) -> None:
        self.inner.close()

    def next_landing(self) -> Nanos | None:
        """The inner engine's, where it can tell (ModelledLink and wrappers of it)."""
        foresee: Callable[[], Nanos | None] | None = getattr(self.inner, "next_landing", None)
        return None if foresee is None else foresee()

    def heal(self) -> None:
        """No whims from now on, here and in wrappers inside; what is in the air keeps its fate."""
        if isinstance(self.inner, WrappedLink):
            self.inner.heal()


class FailingLink(WrappedLink):
    """Reports some groups as failed: each `every`-th one, and others with `probability`.

    `spoil(copy)` is called before a failure is told, so that a test can put garbage where nothing
    may be assumed.
    """

    def __init__(
        self,
        inner: TransferEngine,
        *,
        every: int = 0,
        probability: float = 0.0,
        seed: int = 0,
        spoil: Callable[[Copy], None] | None = None,
    ) -> None:
        super().__init__(inner)
        self._every = every
        self._probability = probability
        self._seed = seed
        self._spoil = spoil
        self._groups = 0
        self._doomed: dict[Ticket, Copy] = {}
        self.failures = 0

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        tickets = self.inner.submit(direction, copies)
        for ticket, copy in zip(tickets or (), copies, strict=False):
            self._groups += 1
            turn = self._every > 0 and self._groups % self._every == 0
            if turn or chance(self._seed, self._groups) < self._probability:
                self._doomed[ticket] = copy
        return tickets

    def poll(self) -> Sequence[CopyDone]:
        told = []
        for done in self.inner.poll():
            copy = self._doomed.pop(done.ticket, None)
            if copy is None:
                told.append(done)
                continue
            self.failures += 1
            if self._spoil is not None:
                self._spoil(copy)
            told.append(CopyDone(done.ticket, ok=False))
        return told

    def heal(self) -> None:
        self._every, self._probability = 0, 0.0
        super().heal()


class DelayedLink(WrappedLink):
    """Holds each landing back for 0..`polls_max` further polls; order within a direction stays.

    `sync_apart`: SYNC groups keep an order of their own, which the port allows: others may overtake them.
    """

    def __init__(
        self, inner: TransferEngine, *, polls_max: int, seed: int = 0, sync_apart: bool = False
    ) -> None:
        super().__init__(inner)
        self._polls_max = polls_max
        self._seed = seed
        self._sync_apart = sync_apart
        self._polls = 0
        self._lane: dict[Ticket, str] = {}
        self._held: dict[str, deque[tuple[int, CopyDone]]] = {}

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        tickets = self.inner.submit(direction, copies)
        for ticket, copy in zip(tickets or (), copies, strict=False):
            apart = self._sync_apart and copy.kind is CopyKind.SYNC
            self._lane[ticket] = copy.kind.value if apart else direction.value
        return tickets

    def poll(self) -> Sequence[CopyDone]:
        self._polls += 1
        for done in self.inner.poll():
            hold = int(chance(self._seed, done.ticket) * (self._polls_max + 1))
            held = self._held.setdefault(self._lane.pop(done.ticket), deque())
            held.append((self._polls + hold, done))
        told = []
        for held in self._held.values():
            while held and held[0][0] <= self._polls:
                told.append(held.popleft()[1])
        return told

    def next_landing(self) -> Nanos | None:
        """0 (poll at once) while anything is held back."""
        return 0 if any(self._held.values()) else super().next_landing()

    def heal(self) -> None:
        self._polls_max = 0
        super().heal()


class BusyLink(WrappedLink):
    """Refuses submits as busy with `probability`, nothing queued."""

    def __init__(self, inner: TransferEngine, *, probability: float, seed: int = 0) -> None:
        super().__init__(inner)
        self._probability = probability
        self._seed = seed
        self._submits = 0

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        self._submits += 1
        if chance(self._seed, self._submits) < self._probability:
            return None
        return self.inner.submit(direction, copies)

    def heal(self) -> None:
        self._probability = 0.0
        super().heal()


class CountingLink(WrappedLink):
    """Counts what passes: submits, busy answers, groups and blocks by direction, landings, failures."""

    def __init__(self, inner: TransferEngine) -> None:
        super().__init__(inner)
        self.submits = 0
        self.busy = 0
        self.groups = dict.fromkeys(Direction, 0)
        self.blocks = dict.fromkeys(Direction, 0)
        self.landed = 0
        self.failed = 0

    @property
    def in_air(self) -> int:
        """Groups submitted and not told by `poll`."""
        return sum(self.groups.values()) - self.landed - self.failed

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        self.submits += 1
        tickets = self.inner.submit(direction, copies)
        if tickets is None:
            self.busy += 1
            return None
        self.groups[direction] += len(copies)
        self.blocks[direction] += sum(len(copy.source) for copy in copies)
        return tickets

    def poll(self) -> Sequence[CopyDone]:
        told = self.inner.poll()
        failed = sum(not done.ok for done in told)
        self.failed += failed
        self.landed += len(told) - failed
        return told
