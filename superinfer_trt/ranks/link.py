"""A link whose landings all ranks agree on: a copy has landed when it has on each of them.

Every rank submits the same copies in the same order, so a number counted here is the same ticket everywhere,
whatever the rank's own link says. Once a turn the ranks compare how far each kind of copy has landed, the
first that failed, and whose lane is full. Knows no request and no plan. One thread.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections import deque
from collections.abc import Callable, Sequence

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.ports import TransferEngine
from superinfer_trt.core.step import Copy, CopyDone, CopyKind, Direction
from superinfer_trt.core.units import Ticket
from superinfer_trt.ranks.comm import Comm

_NEVER = (1 << 63) - 1
_KINDS = tuple(CopyKind)
_DIRECTIONS = tuple(Direction)


class _Course:
    """The tickets of one kind of copy; a link lands them in order (or nearly, see `transfer`)."""

    __slots__ = ("agreed_to", "landed", "landed_to", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Ticket] = deque()  # not landed here
        self.agreed_to: deque[Ticket] = deque()  # not landed everywhere
        self.landed: set[Ticket] = set()  # here, out of order
        self.landed_to: int = -1  # all up to it have landed here

    def advance(self) -> None:
        while self.waiting and self.waiting[0] in self.landed:
            ticket = self.waiting.popleft()
            self.landed.remove(ticket)
            self.landed_to = ticket


class AgreedLink:
    """core.ports.TransferEngine over the rank's own one, whose blocks have `block_bytes`. Making one is
    collective, too. `digest()`: of what this rank has computed so far.
    """

    def __init__(self, link: TransferEngine, comm: Comm, block_bytes: int, digest: Callable[[], int]) -> None:
        self._link = link
        self._comm = comm
        self._digest = digest
        # A rate in bytes stands for blocks of the rank that plans; the largest blocks are the slowest.
        self._blocks_share = block_bytes / -comm.least(array("q", (-block_bytes,)))[0]
        self.agreements = 0  # how often the ranks have compared
        self._agreed = False
        self._tickets = itertools.count()
        self._courses = {kind: _Course() for kind in _KINDS}
        self._queued: dict[Direction, deque[tuple[list[Ticket], Sequence[Copy]]]] = {
            direction: deque() for direction in _DIRECTIONS
        }
        self._busy = dict.fromkeys(_DIRECTIONS, False)
        self._own: dict[Ticket, tuple[_Course, Ticket]] = {}  # by the link's ticket
        self._failed: set[Ticket] = set()
        self._done: list[CopyDone] = []

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        """As the port says; None when some rank's lane was full at the last `agree`."""
        if self._busy[direction]:
            return None
        tickets = [Ticket(next(self._tickets)) for _ in copies]
        for ticket, copy in zip(tickets, copies, strict=True):
            course = self._courses[copy.kind]
            course.waiting.append(ticket)
            course.agreed_to.append(ticket)
        self._queued[direction].append((tickets, copies))
        self._push(direction)
        return tickets

    def agree(self) -> None:
        """Compares with the other ranks, ahead of the next `poll`, which does it otherwise.

        Raises InvariantViolation when the ranks have not computed the same, RankLost.
        """
        for item in self._link.poll():
            course, ticket = self._own.pop(item.ticket)
            course.landed.add(ticket)
            course.advance()
            if not item.ok:
                self._failed.add(ticket)
        for direction in _DIRECTIONS:
            self._push(direction)
        mine = array("q", [self._courses[kind].landed_to for kind in _KINDS])
        mine.extend(-bool(self._queued[direction]) for direction in _DIRECTIONS)
        digest = self._digest()
        mine.extend((min(self._failed, default=_NEVER), digest, -digest))
        agreed = self._comm.least(mine)
        self.agreements += 1
        self._agreed = True
        landed, (failed, smallest, negated) = agreed[: len(_KINDS)], agreed[-3:]
        if smallest != -negated:  # the least of the negated is the largest
            raise InvariantViolation(f"ranks have computed different tokens (rank {self._comm.rank})")
        busy = agreed[len(_KINDS) : -3]
        self._busy = {d: full < 0 for d, full in zip(_DIRECTIONS, busy, strict=True)}
        self._land(landed, failed)

    def _land(self, landed: Sequence[int], failed: int) -> None:
        """Nothing behind a failed copy lands with it: the next one that failed is told by the next turn."""
        done: list[CopyDone] = []
        for kind, landed_to in zip(_KINDS, landed, strict=True):
            course = self._courses[kind].agreed_to
            while course and course[0] <= min(landed_to, failed):
                ticket = course.popleft()
                done.append(CopyDone(ticket, ticket != failed))
                self._failed.discard(ticket)
        done.sort(key=lambda item: item.ticket)
        self._done += done

    def _push(self, direction: Direction) -> None:
        """Hands over what the rank's own link takes, in order."""
        queued = self._queued[direction]
        while queued:
            tickets, copies = queued[0]
            own = self._link.submit(direction, copies)
            if own is None:
                return
            queued.popleft()
            for mine, ticket, copy in zip(own, tickets, copies, strict=True):
                self._own[mine] = (self._courses[copy.kind], ticket)

    def mark(self, turn: int) -> None:
        self._link.mark(turn)

    def poll(self) -> Sequence[CopyDone]:
        """What has landed on all ranks; waits for them."""
        if not self._agreed:
            self.agree()
        self._agreed = False
        done, self._done = self._done, []
        return done

    def link_bytes_per_s(self, direction: Direction) -> float:
        """Rank 0 plans with it; the others carry out, and are bound by nothing."""
        if self._comm.rank:
            return math.inf
        return self._link.link_bytes_per_s(direction) * self._blocks_share

    def close(self) -> None:
        self._link.close()
