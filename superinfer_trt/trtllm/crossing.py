"""The way between a ledger's copies and the link: upstream's block ids, busy lanes, landings.

The ledger counts HBM slots by numbers of its own; which block of TensorRT-LLM's pool each of them is, is
looked up when bytes move (docs/adr/0009). Groups of copies are numbered here, alike on all ranks; tickets of
the link are local. A request that ends while copies use its blocks leaves orphans: upstream hands those
blocks out again at once, so nothing else may cross from or to them before they have landed. One thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from superinfer_trt.core.ports import Ledger, TransferEngine
from superinfer_trt.core.step import Copy, CopyDone, CopyKind, Direction
from superinfer_trt.core.units import RequestId, SlotId, Ticket
from superinfer_trt.trtllm.upstream import StreamOrder

SUBMIT_COPIES_MAX = 1_024


@dataclass(slots=True, eq=False)
class _Group:
    """One copy with upstream's block ids. `Final` and not frozen as in core.step: there are many a turn."""

    number: Final[Ticket]
    copy: Final[Copy]

    @property
    def device(self) -> Sequence[SlotId]:
        return self.copy.target if self.copy.kind is CopyKind.IN else self.copy.source


class Crossing:
    """Everything under way between the tiers."""

    def __init__(self, transfers: TransferEngine, ledger: Ledger, order: StreamOrder) -> None:
        self._transfers = transfers
        self._ledger = ledger
        self._order = order
        self._next = 1
        self._groups: dict[Ticket, _Group] = {}  # by number, until agreed
        self._tickets: dict[Ticket, Ticket] = {}  # the link's -> number, until landed here
        self._sent: dict[Ticket, Ticket] = {}  # number -> the link's
        self._unsent: dict[Direction, deque[_Group]] = {direction: deque() for direction in Direction}
        self._landed: dict[Ticket, bool] = {}  # by number: landed here, not agreed yet
        self._orphans: dict[Ticket, frozenset[SlotId]] = {}  # by number, until landed here
        self.blocks: dict[Direction, int] = dict.fromkeys(Direction, 0)
        """Blocks handed over and not agreed to have landed."""

    def busy(self, direction: Direction) -> bool:
        """Whether copies wait for their lane."""
        return bool(self._unsent[direction])

    @property
    def landed(self) -> tuple[tuple[int, bool], ...]:
        """What has landed here and was not agreed on yet, after a look at the link."""
        for done in self._transfers.poll():
            number = self._tickets.pop(done.ticket)
            del self._sent[number]
            self._orphans.pop(number, None)
            self._landed[number] = done.ok
        return tuple(sorted(self._landed.items()))

    def agreed(self, landed: Iterable[tuple[int, bool]]) -> list[CopyDone]:
        """These groups have landed on all ranks; what the ledger is told."""
        done = []
        for value, ok in landed:
            number = Ticket(value)
            group = self._groups.pop(number)
            del self._landed[number]
            self.blocks[group.copy.direction] -= len(group.copy.source)
            done.append(CopyDone(number, ok))
        return done

    def hand_over(
        self, copies: Iterable[Copy], blocks: Mapping[SlotId, int], launched: int
    ) -> tuple[int, int]:
        """Takes the ledger's copies; returns how many blocks go (out, in). `blocks`: upstream's block of each
        of the ledger's slots. `launched`: the newest turn whose batch is on the stream.

        A copy in waits for that batch even if its own blocks are free: a request that ended meanwhile
        may be in it still, writing into blocks that upstream has given away.
        """
        counts = dict.fromkeys(Direction, 0)
        for copy in copies:
            if copy.kind is CopyKind.IN:
                direction = Direction.H2D
                target = [blocks[slot] for slot in copy.target]
                own = Copy(copy.id, copy.kind, copy.source, target, launched)
            else:
                direction = Direction.D2H
                source = [blocks[slot] for slot in copy.source]
                own = Copy(copy.id, copy.kind, source, copy.target, copy.after)
            number = Ticket(self._next)
            self._next += 1
            group = self._groups[number] = _Group(number, own)
            self._unsent[direction].append(group)
            counts[direction] += len(own.source)
            self._ledger.submitted(copy, number)
        for direction, count in counts.items():
            self.blocks[direction] += count
        return counts[Direction.D2H], counts[Direction.H2D]

    def submit(self) -> None:
        """Sends what the lanes take and no orphan forbids, in order."""
        for direction, unsent in self._unsent.items():
            while unsent:
                batch = self._ready(unsent)
                if not batch:
                    break
                tickets = self._transfers.submit(direction, [group.copy for group in batch])
                if tickets is None:
                    break
                for group, ticket in zip(batch, tickets, strict=True):
                    unsent.popleft()
                    self._tickets[ticket] = group.number
                    self._sent[group.number] = ticket

    def _ready(self, unsent: Iterable[_Group]) -> list[_Group]:
        ready: list[_Group] = []
        orphans = self._orphans.values()
        for group in unsent:
            if len(ready) == SUBMIT_COPIES_MAX:
                break
            if orphans and any(not orphan.isdisjoint(group.device) for orphan in orphans):
                break
            ready.append(group)
        return ready

    def abandon(self, id: RequestId) -> None:
        """The request has ended and upstream takes its blocks back now. What has not started is dropped;
        behind a copy that still writes into them the execution stream has to wait."""
        for unsent in self._unsent.values():
            dropped = [group for group in unsent if group.copy.id == id]
            for group in dropped:
                unsent.remove(group)
                self._landed[group.number] = False
        for number, ticket in self._sent.items():
            group = self._groups[number]
            if group.copy.id == id and number not in self._orphans:
                self._orphans[number] = frozenset(group.device)
                if group.copy.kind is CopyKind.IN:
                    self._order.wait(ticket)
