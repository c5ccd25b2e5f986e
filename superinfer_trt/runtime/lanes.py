"""What is outside HBM by tenant and lateness, for policies that ask for it (`core.view.Order`).

A second index beside the roster's queues: each request is in one part of its tenant's lane, and moves to
the late part when its moment has come. O(log n) a move, nothing at all in a turn in which nobody moves.
Knows no phase changes but those it is told. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Mapping

from superinfer_trt.core.phase import Phase
from superinfer_trt.core.units import Nanos, RequestId
from superinfer_trt.core.view import Lane, Order, OrderKey
from superinfer_trt.runtime.heap import LazyHeap
from superinfer_trt.runtime.queue import OrderedQueue
from superinfer_trt.runtime.sequence import Sequence


class Lanes:
    """Kept by the roster: `add` and `remove` as requests enter and leave WAITING and ROTARY."""

    def __init__(self, order: Order, waiting_late: OrderKey, rotary_late: OrderKey) -> None:
        self._order = order
        self._late_from = {Phase.WAITING: waiting_late, Phase.ROTARY: rotary_late}
        self._lanes: dict[str, Lane] = {}
        self._members: dict[str, int] = {}
        self._inside: dict[RequestId, tuple[Sequence, OrderedQueue, int]] = {}  # who, where, which entry
        self._moments = LazyHeap[tuple[Nanos, int, RequestId]](self._is_inside)  # (late from, entry, who)
        self._entries = 0

    @classmethod
    def asked_for(cls, order: Order) -> Lanes | None:
        """Lanes for this order, or None if it names no moments."""
        if order.waiting_late is None or order.rotary_late is None:
            return None
        return cls(order, order.waiting_late, order.rotary_late)

    def add(self, sequence: Sequence) -> None:
        """It waits or is rotary from now on."""
        tenant = sequence.tenant
        if tenant not in self._lanes:
            waiting, rotary = self._order.waiting, self._order.rotary
            self._lanes[tenant] = Lane(
                OrderedQueue(waiting), OrderedQueue(waiting), OrderedQueue(rotary), OrderedQueue(rotary)
            )
            self._members[tenant] = 0
        self._members[tenant] += 1
        self._entries += 1
        self._put(sequence, late=False, entry=self._entries)
        moment = self._late_from[sequence.phase](sequence)
        self._moments.push((moment, self._entries, sequence.id), len(self._inside))

    def remove(self, sequence: Sequence) -> None:
        """It does not any more."""
        _, queue, _ = self._inside.pop(sequence.id)
        queue.remove(sequence)
        self._members[sequence.tenant] -= 1
        if not self._members[sequence.tenant]:  # tenants come and go
            del self._members[sequence.tenant], self._lanes[sequence.tenant]

    def at(self, now: Nanos) -> Mapping[str, Lane]:
        """The lanes as they are at `now`."""
        moments = self._moments
        while (due := moments.first()) is not None and due[0] <= now:
            moments.pop()
            sequence, queue, entry = self._inside[due[2]]
            queue.remove(sequence)
            self._put(sequence, late=True, entry=entry)
        return self._lanes

    def _is_inside(self, moment: tuple[Nanos, int, RequestId]) -> bool:
        _, entry, id = moment
        found = self._inside.get(id)
        return found is not None and found[2] == entry

    def _put(self, sequence: Sequence, *, late: bool, entry: int) -> None:
        lane = self._lanes[sequence.tenant]
        if sequence.phase is Phase.WAITING:
            queue = lane.waiting_late if late else lane.waiting
        else:
            queue = lane.rotary_late if late else lane.rotary
        assert isinstance(queue, OrderedQueue)
        queue.add(sequence)
        self._inside[sequence.id] = (sequence, queue, entry)
