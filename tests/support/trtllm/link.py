"""A link that moves bytes at the worst moment its promises allow. For tests of what stands above it.

A copy happens either as soon as it may start, before what it should have waited for, or when it lands,
after what should have waited for it: which of the two and when it lands is drawn from the seed, in order
within a direction. Slots of copies in the air are guarded as the real link guards them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from superinfer_trt.core.step import Copy, CopyDone, Direction
from superinfer_trt.core.units import Ticket


@dataclass(eq=False)
class _Group:
    ticket: Ticket
    copy: Copy
    polls: int
    started: bool = False
    early: bool = False
    over: bool = False  # the bytes are there
    awaited: bool = False  # by the stream: it did not fail


class LateLink:
    """A TransferEngine between `device` and `host`, arrays of blocks."""

    def __init__(
        self,
        device: NDArray[np.uint64],
        host: NDArray[np.uint64],
        seed: int,
        *,
        polls_max: int = 3,
        busy: float = 0.0,
        failing: float = 0.0,
    ) -> None:
        self._pools = {Direction.D2H: (device, host), Direction.H2D: (host, device)}
        self._random = Random(seed)
        self._polls_max = polls_max
        self._busy = busy
        self._failing = failing
        self._lanes: dict[Direction, deque[_Group]] = {direction: deque() for direction in Direction}
        self._marked = -1
        self._next = 1
        self.blocks = dict.fromkeys(Direction, 0)
        self.failures = 0

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        self._guard(direction, copies)
        if self._random.random() < self._busy:
            return None
        tickets = []
        for copy in copies:
            polls = self._random.randint(1, self._polls_max)
            early = self._random.random() < 0.5
            self._lanes[direction].append(_Group(Ticket(self._next), copy, polls, early=early))
            self.blocks[direction] += len(copy.source)
            tickets.append(Ticket(self._next))
            self._next += 1
        self._start()
        return tickets

    def mark(self, turn: int) -> None:
        self._marked = max(self._marked, turn)
        self._start()

    def poll(self) -> Sequence[CopyDone]:
        done = []
        self._start()
        for direction, lane in self._lanes.items():
            for group in lane:
                group.polls -= group.started
            while lane and lane[0].started and lane[0].polls <= 0:
                done.append(self._land(direction, lane.popleft()))
        return done

    def link_bytes_per_s(self, direction: Direction) -> float:
        return 1e12

    def close(self) -> None:
        pass

    @property
    def idle(self) -> bool:
        return not any(self._lanes.values())

    def land_now(self, ticket: Ticket) -> None:
        """What a wait of the stream means: by now this copy, and those before it, have to be over."""
        for lane in self._lanes.values():
            if any(group.ticket == ticket for group in lane):
                for group in lane:
                    assert group.started, "the stream waits for a copy that waits for the stream"
                    group.polls = 0
                    group.awaited = True
                    if group.ticket == ticket:
                        self._move(Direction.H2D, group)
                        break

    def _start(self) -> None:
        for direction, lane in self._lanes.items():
            for group in lane:
                if group.copy.after > self._marked:
                    break
                group.started = True
                if group.early:
                    self._move(direction, group)

    def _land(self, direction: Direction, group: _Group) -> CopyDone:
        if not group.awaited and self._random.random() < self._failing:
            self.failures += 1
            self._pools[direction][1][list(group.copy.target)] = self._random.getrandbits(64)
            return CopyDone(group.ticket, ok=False)
        self._move(direction, group)
        return CopyDone(group.ticket, ok=True)

    def _move(self, direction: Direction, group: _Group) -> None:
        if not group.over:
            group.over = True
            source, target = self._pools[direction]
            target[list(group.copy.target)] = source[list(group.copy.source)]

    def _guard(self, direction: Direction, copies: Sequence[Copy]) -> None:
        for copy in copies:
            assert copy.direction is direction
            device_source = direction is Direction.D2H
            for other_direction, lane in self._lanes.items():
                for other in lane:
                    same = other_direction is direction
                    reads, writes = other.copy.source, other.copy.target
                    if same:
                        clash = set(copy.target) & set(writes)
                    else:  # their target is on the side of our source, and the other way round
                        clash = set(copy.source) & set(writes) | set(copy.target) & set(reads)
                    if clash:
                        side = "device" if device_source else "host"
                        raise ValueError(f"copy of {copy.id} from the {side}: slots {clash} are in the air")
