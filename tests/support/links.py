"""A link without bytes whose copies land a fixed number of polls after they may start. Deterministic."""

from __future__ import annotations

from collections.abc import Sequence

from superinfer_trt.core.step import Copy, CopyDone, Direction
from superinfer_trt.core.units import Ticket


class PollLink:
    """A transfer engine for scripts: `polls` polls after its `after` turn was marked, a copy lands."""

    def __init__(self, polls: int = 1) -> None:
        self._polls = polls
        self._next = 0
        self._marked = -1
        self._lanes: dict[Direction, list[list[int]]] = {direction: [] for direction in Direction}

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket]:
        tickets = []
        for copy in copies:
            self._lanes[direction].append([self._next, copy.after, self._polls])
            tickets.append(Ticket(self._next))
            self._next += 1
        return tickets

    def mark(self, turn: int) -> None:
        self._marked = max(self._marked, turn)

    def poll(self) -> Sequence[CopyDone]:
        done = []
        for lane in self._lanes.values():
            for entry in lane:
                if entry[1] <= self._marked:
                    entry[2] -= 1
            while lane and lane[0][1] <= self._marked and lane[0][2] <= 0:
                done.append(CopyDone(Ticket(lane.pop(0)[0]), True))
        return done

    def link_bytes_per_s(self, direction: Direction) -> float:
        return 1e12

    def close(self) -> None:
        pass
