"""One run: requests come at their time, the production executor turns, the clock jumps to what is next.

Executor, roster, ledger and policy are the ones that serve; this loop stands where the driver stands and
hands arrivals in, and the journal stands where clients read. Deterministic. One thread.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from superinfer_trt.core.outcome import Ending, TokenEvent
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.units import SECOND, Nanos
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Executor
from superinfer_trt.sim.clock import SimClock
from superinfer_trt.sim.link import SimLink
from superinfer_trt.sim.workload import Item

TICK: Nanos = SECOND // 1000
"""How far time jumps when nothing is on its way and a policy waits for time itself to pass."""


@dataclass(slots=True, eq=False)
class Record:
    """One request as its reader saw it."""

    item: Item
    arrival: Nanos
    tokens: array[int] = field(default_factory=lambda: array("q"))  # when each came
    ending: Ending | None = None

    @property
    def completed(self) -> bool:
        """It made all its tokens."""
        return self.ending is not None and self.ending.reason in {FinishReason.STOP, FinishReason.LENGTH}


class Journal:
    """core.ports.Outbox: notes when every token came. The id of a request is its place in `records`."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.ended: list[Record] = []  # since the world looked last

    def emit(self, events: Sequence[TokenEvent]) -> None:
        """Notes one turn's events."""
        records = self.records
        for event in events:
            record = records[event.id]
            if event.sampled is not None:
                record.tokens.append(event.now)
            if event.ending is not None:
                record.ending = event.ending
                self.ended.append(record)


class World:
    """Runs requests to their end; `each_turn` is called after every turn."""

    def __init__(
        self,
        executor: Executor,
        clock: SimClock,
        link: SimLink,
        inbox: BoundedInbox,
        journal: Journal,
        each_turn: Callable[[], None] | None = None,
    ) -> None:
        self.executor = executor
        self.journal = journal
        self._clock = clock
        self._link = link
        self._inbox = inbox
        self._each_turn = each_turn
        self._coming: list[tuple[Nanos, int, Item]] = []
        self._pushed = 0

    def run(self, items: Sequence[Item], horizon: Nanos | None = None) -> Sequence[Record]:
        """All requests and what became of them. Who still lives at `horizon` has failed."""
        for item in items:
            self._push(item.arrival, item)
        coming, clock, executor, ended = self._coming, self._clock, self.executor, self.journal.ended
        while coming or not executor.idle:
            now = clock.now()
            if horizon is not None and now > horizon:
                executor.abandon("the simulation reached its horizon")
                break
            while coming and coming[0][0] <= now:
                self._submit()
            moved = executor.turn()
            if self._each_turn is not None:
                self._each_turn()
            if ended:
                self._follow_up()
            if not moved:
                self._rest()
        return self.journal.records

    def _push(self, arrival: Nanos, item: Item) -> None:
        heapq.heappush(self._coming, (arrival, self._pushed, item))
        self._pushed += 1

    def _submit(self) -> None:
        arrival, _, item = heapq.heappop(self._coming)
        id = self._inbox.next_id()
        self.journal.records.append(Record(item, arrival))
        self._inbox.submit(
            Request(
                id=id,
                # Only its length and slices are ever asked for: a range has them without the memory.
                prompt=cast("tuple[int, ...]", range(item.prompt_tokens)),
                sampling=Sampling(max_tokens=item.output_tokens),
                slo=item.slo,
                arrival=arrival,
                tenant=item.tenant,
            )
        )

    def _follow_up(self) -> None:
        """The next turn of each session whose answer has just ended."""
        for record in self.journal.ended:
            if record.item.then and record.completed:
                turn, *rest = record.item.then
                item = record.item
                now = record.tokens[-1] + turn.think
                self._push(
                    now,
                    Item(now, turn.prompt_tokens, turn.output_tokens, item.slo, item.tenant, tuple(rest)),
                )
        self.journal.ended.clear()

    def _rest(self) -> None:
        """Jumps to the next arrival or landing."""
        landing = self._link.next_landing()
        moments = [moment for moment in (landing, self._coming[0][0] if self._coming else None) if moment]
        if not moments:
            if not self.executor.idle:
                self._clock.advance(TICK)
            return
        self._clock.park(max(min(moments), self._clock.now()))
