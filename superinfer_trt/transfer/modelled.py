"""ModelledLink: a link of pure arithmetic. It moves no bytes; landings follow from the injected clock.

Same rules as DuplexLink (order, marks, queue limits, refusals), so that an executor cannot tell them
apart but by the bytes. Deterministic: the same calls at the same times give the same answers. One thread.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from superinfer_trt.core.errors import ConfigError, TransferFailed
from superinfer_trt.core.ports import Clock
from superinfer_trt.core.step import Copy, CopyDone, Direction
from superinfer_trt.core.units import SECOND, Nanos, SlotId, Ticket, div_ceil


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """One queued copy; `cost` is how long it occupies its direction."""

    ticket: Ticket
    copy: Copy
    cost: Nanos
    bytes: int


class _Slots:
    """Who reads and who writes each slot of one tier while copies are in the air."""

    def __init__(self, field: str, blocks: int) -> None:
        self._field = field
        self._blocks = blocks  # 0: not known
        self._readers: set[SlotId] = set()
        self._read_again: Counter[SlotId] = Counter()  # readers of a slot beyond the first
        self._writers: set[SlotId] = set()

    def check(self, ids: Sequence[SlotId]) -> None:
        low, high = min(ids), max(ids)
        if low < 0 or (self._blocks and high >= self._blocks):
            wrong = low if low < 0 else high
            limit = str(self._blocks - 1) if self._blocks else ""
            raise ValueError(f"copy: {self._field} slot {wrong} outside 0..{limit}")

    def check_read(self, ids: set[SlotId]) -> None:
        if not self._writers.isdisjoint(ids):
            slot = min(self._writers & ids)
            raise ValueError(f"copy: {self._field} slot {slot} is the target of a copy in the air")

    def check_write(self, ids: set[SlotId]) -> None:
        for users in (self._writers, self._readers):
            if not users.isdisjoint(ids):
                raise ValueError(f"copy: {self._field} slot {min(users & ids)} is used by a copy in the air")

    def take(self, reads: Sequence[SlotId], writes: Iterable[SlotId]) -> None:
        fresh = set(reads)
        if len(fresh) == len(reads) and self._readers.isdisjoint(fresh):
            self._readers |= fresh
        else:
            for slot in reads:
                if slot in self._readers:
                    self._read_again[slot] += 1
                self._readers.add(slot)
        self._writers.update(writes)

    def drop(self, reads: Iterable[SlotId], writes: Iterable[SlotId]) -> None:
        self._writers.difference_update(writes)
        if not self._read_again:
            self._readers.difference_update(reads)
            return
        for slot in reads:
            if self._read_again[slot] > 0:
                self._read_again[slot] -= 1
            else:
                del self._read_again[slot]
                self._readers.discard(slot)


class _Lane:
    """One direction: groups whose mark is outstanding, groups whose landing is known."""

    def __init__(self, bytes_per_s: float, source: _Slots, target: _Slots) -> None:
        self.bytes_per_s = bytes_per_s
        self.source = source
        self.target = target
        self.pending: deque[_Group] = deque()
        self.flying: deque[tuple[Nanos, _Group]] = deque()
        self.free_at: Nanos = 0
        self.bytes = 0  # of both queues

    @property
    def groups(self) -> int:
        return len(self.pending) + len(self.flying)

    def start(self, marked: int, now: Nanos) -> None:
        """Fixes the landing of every group at the head that may start."""
        while self.pending and self.pending[0].copy.after <= marked:
            group = self.pending.popleft()
            self.free_at = max(self.free_at, now) + group.cost
            self.flying.append((self.free_at, group))

    def pop(self) -> tuple[Nanos, _Group]:
        landing, group = self.flying.popleft()
        self.bytes -= group.bytes
        self.source.drop(group.copy.source, ())
        self.target.drop((), group.copy.target)
        return landing, group


class ModelledLink:
    """A TransferEngine whose copies take `launch_ns + bytes / rate` each, first come, first served.

    Both directions run at once, each at its own rate (bytes/s; 0: copies take `launch_ns` only).
    `device_blocks` and `host_blocks` bound the slots; 0 leaves that side unbounded. Queue limits are
    DuplexLink's. Raises ConfigError for sizes or rates that are none.
    """

    def __init__(
        self,
        clock: Clock,
        block_bytes: int,
        h2d_bytes_per_s: float,
        d2h_bytes_per_s: float,
        launch_ns: Nanos = 10_000,
        *,
        device_blocks: int = 0,
        host_blocks: int = 0,
        queue_groups_max: int = 4096,
        queue_bytes_max: int = 1 << 30,
    ) -> None:
        for field, value, least in (
            ("block_bytes", block_bytes, 1),
            ("h2d_bytes_per_s", h2d_bytes_per_s, 0),
            ("d2h_bytes_per_s", d2h_bytes_per_s, 0),
            ("launch_ns", launch_ns, 0),
            ("device_blocks", device_blocks, 0),
            ("host_blocks", host_blocks, 0),
            ("queue_groups_max", queue_groups_max, 1),
            ("queue_bytes_max", queue_bytes_max, 1),
        ):
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"link: {field} {value} must be finite and >= {least}")
        self._clock = clock
        self._block_bytes = block_bytes
        self._launch_ns = launch_ns
        self._queue_groups_max = queue_groups_max
        self._queue_bytes_max = queue_bytes_max
        device, host = _Slots("device", device_blocks), _Slots("host", host_blocks)
        self._lanes = {
            Direction.D2H: _Lane(d2h_bytes_per_s, device, host),
            Direction.H2D: _Lane(h2d_bytes_per_s, host, device),
        }
        self._cancelled: list[CopyDone] = []
        self._marked = -1
        self._next_ticket = 1
        self._closed = False

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        """As DuplexLink.submit; raises the same errors."""
        if not copies:
            return ()
        self._require_open()
        lane = self._lanes[direction]
        reads, writes = self._check(direction, lane, copies)
        blocks = sum(len(copy.source) for copy in copies)
        if lane.groups + len(copies) > self._queue_groups_max:
            return None
        if lane.groups and lane.bytes + blocks * self._block_bytes > self._queue_bytes_max:
            return None
        lane.source.check_read(reads)
        lane.target.check_write(writes)
        tickets = []
        for copy in copies:
            lane.source.take(copy.source, ())
            lane.target.take((), copy.target)
            group = self._group(lane, copy)
            lane.pending.append(group)
            lane.bytes += group.bytes
            tickets.append(group.ticket)
        lane.start(self._marked, self._clock.now())
        return tickets

    def mark(self, turn: int) -> None:
        """Copies with `after <= turn` start now or behind those before them. TransferFailed when closed."""
        self._require_open()
        if turn <= self._marked:
            return
        self._marked = turn
        now = self._clock.now()
        for lane in self._lanes.values():
            lane.start(turn, now)

    def poll(self) -> Sequence[CopyDone]:
        """Groups that have landed by now, by time of landing."""
        now = self._clock.now()
        landed = []
        for lane in self._lanes.values():
            while lane.flying and lane.flying[0][0] <= now:
                landing, group = lane.pop()
                landed.append((landing, group.ticket))
        landed.sort()
        cancelled, self._cancelled = self._cancelled, []
        return [CopyDone(ticket, ok=True) for _, ticket in landed] + cancelled

    def next_landing(self) -> Nanos | None:
        """When the next group lands that `poll` has not told; None while nothing is on its way."""
        if self._cancelled:
            return self._clock.now()
        return min((lane.flying[0][0] for lane in self._lanes.values() if lane.flying), default=None)

    def link_bytes_per_s(self, direction: Direction) -> float:
        """The configured rate; infinite without one."""
        return self._lanes[direction].bytes_per_s or math.inf

    def close(self) -> None:
        """What has not landed by now is cancelled; `poll` tells of it with `ok` False. Idempotent."""
        if self._closed:
            return
        self._closed = True
        now = self._clock.now()
        for lane in self._lanes.values():
            landed = [item for item in lane.flying if item[0] <= now]
            lost = [group for landing, group in lane.flying if landing > now]
            self._cancelled += [CopyDone(group.ticket, ok=False) for group in (*lost, *lane.pending)]
            lane.flying = deque(landed)
            lane.pending.clear()

    def _require_open(self) -> None:
        if self._closed:
            raise TransferFailed("link: closed")

    def _group(self, lane: _Lane, copy: Copy) -> _Group:
        bytes_moved = len(copy.source) * self._block_bytes
        # In whole numbers where the rate is one: no rounding that differs between machines.
        rate = lane.bytes_per_s
        wire = 0 if not rate else div_ceil(bytes_moved * SECOND, max(1, round(rate)))
        ticket = Ticket(self._next_ticket)
        self._next_ticket += 1
        return _Group(ticket, copy, self._launch_ns + wire, bytes_moved)

    def _check(
        self, direction: Direction, lane: _Lane, copies: Sequence[Copy]
    ) -> tuple[set[SlotId], set[SlotId]]:
        """All slots read and all written, or ValueError."""
        if len(copies) > self._queue_groups_max:
            raise ValueError(f"submit: {len(copies)} groups > queue_groups_max {self._queue_groups_max}")
        reads: set[SlotId] = set()
        writes: set[SlotId] = set()
        for copy in copies:
            if copy.direction is not direction:
                raise ValueError(f"copy of {copy.id}: {copy.kind.value} does not go {direction.value}")
            if len(copy.source) == 0 or len(copy.source) != len(copy.target):
                raise ValueError(
                    f"copy of {copy.id}: {len(copy.source)} sources and {len(copy.target)} targets"
                )
            lane.source.check(copy.source)
            lane.target.check(copy.target)
            reads.update(copy.source)
            before = len(writes)
            writes.update(copy.target)
            if len(writes) != before + len(copy.target):
                raise ValueError(f"copy of {copy.id}: a target slot is named twice")
        return reads, writes
