"""The host link of a simulation: a fluid model that moves no bytes and charges what copies cost.

A group of blocks takes `descriptors * descriptor_ns + bytes / rate` of its lane, and `batch_ns` once a
submitted list. Both directions at once share the DRAM behind them: neither gets more than its own rate,
together not more than `dram_bytes_per_s`. So a volume takes max(in / h2d, out / d2h, (in + out) / dram).
Costs of launching are charged at the lane's full rate. Arithmetic is on integer nanoseconds of work.

Trusts its caller: slots are not checked (transfer.modelled does). One thread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from superinfer_trt.core.errors import ConfigError, TransferFailed
from superinfer_trt.core.step import Copy, CopyDone, Direction
from superinfer_trt.core.units import SECOND, Nanos, Ticket
from superinfer_trt.sim.clock import SimClock

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class LinkModel:
    """What copies cost. Rates in bytes/s."""

    d2h_bytes_per_s: float
    h2d_bytes_per_s: float
    dram_bytes_per_s: float = math.inf  # both directions together
    batch_ns: Nanos = 0  # each submitted list
    d2h_descriptor_ns: float = 0.0  # each descriptor
    h2d_descriptor_ns: float = 0.0
    layer_descriptors: bool = False  # one descriptor a layer of a block (layer-first pools), not a block
    serial: bool = False  # one direction at a time
    blocking: bool = False  # whoever submits waits for the landing
    told_bytes_per_s: float | None = None  # what it says of itself; None: the truth

    def __post_init__(self) -> None:
        """Raises ConfigError for rates that are none."""
        for name in ("d2h_bytes_per_s", "h2d_bytes_per_s", "dram_bytes_per_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"link: {name} is {getattr(self, name)}; expected a number > 0")
        for name in ("batch_ns", "d2h_descriptor_ns", "h2d_descriptor_ns"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"link: {name} is {getattr(self, name)}; expected a number >= 0")

    def block_ns(self, direction: Direction, block_bytes: int, layers: int) -> float:
        """Work of one block in its own direction, alone."""
        descriptors = layers if self.layer_descriptors else 1
        if direction is Direction.D2H:
            return descriptors * self.d2h_descriptor_ns + block_bytes * SECOND / self.d2h_bytes_per_s
        return descriptors * self.h2d_descriptor_ns + block_bytes * SECOND / self.h2d_bytes_per_s

    def shares(self) -> tuple[float, float]:
        """Parts of their own rates that (D2H, H2D) get while both are busy."""
        d2h, h2d, dram = self.d2h_bytes_per_s, self.h2d_bytes_per_s, self.dram_bytes_per_s
        if d2h + h2d <= dram:
            return 1.0, 1.0
        out = min(d2h, max(dram / 2, dram - h2d))
        return out / d2h, min(h2d, dram - out) / h2d


class LinkWatch(Protocol):
    """Hears what crosses a link."""

    def submitted(self, ticket: Ticket, direction: Direction, copy: Copy) -> None:
        """A copy was handed over."""
        ...

    def landed(self, tickets: Iterable[Ticket]) -> None:
        """These were found landed by a poll, now."""
        ...


class _Lane:
    """Work of one direction: groups that may not start yet, and groups by the work that ends them."""

    __slots__ = ("block_ns", "done", "flying", "pending", "queued", "share_ppm")

    def __init__(self, block_ns: float, share_ppm: int) -> None:
        self.block_ns = block_ns
        self.share_ppm = share_ppm  # progress while the other lane is busy, millionths
        self.pending: deque[tuple[int, Ticket, Nanos]] = deque()  # (after, ticket, work)
        self.flying: deque[tuple[Nanos, Ticket]] = deque()  # (work that must be done, ticket)
        self.queued: Nanos = 0  # work ever started
        self.done: Nanos = 0

    def start(self, marked: int) -> None:
        pending = self.pending
        while pending and pending[0][0] <= marked:
            _, ticket, work = pending.popleft()
            self.queued += work
            self.flying.append((self.queued, ticket))

    @property
    def busy(self) -> bool:
        return self.queued > self.done

    def until(self, work: Nanos, shared: bool) -> Nanos:
        """Nanoseconds until `work` is done, if nothing changes."""
        left = max(0, work - self.done)
        return -(-left * MILLION // self.share_ppm) if shared else left


class SimLink:
    """core.ports.TransferEngine."""

    def __init__(
        self,
        clock: SimClock,
        model: LinkModel,
        block_bytes: int,
        layers: int,
        watch: LinkWatch | None = None,
    ) -> None:
        self._clock = clock
        self._model = model
        self._watch = watch
        self._time: Nanos = 0  # up to which progress is counted
        self._marked = -1
        self._next_ticket = 1
        self._closed = False
        out_share, in_share = model.shares()
        out_lane = _Lane(model.block_ns(Direction.D2H, block_bytes, layers), round(out_share * MILLION))
        in_lane = _Lane(model.block_ns(Direction.H2D, block_bytes, layers), round(in_share * MILLION))
        self._lanes = {Direction.D2H: out_lane, Direction.H2D: in_lane}
        # A serial link is one queue: both directions put their work into the same lane.
        self._queues = {
            direction: out_lane if model.serial else lane for direction, lane in self._lanes.items()
        }
        self._lanes_used = [out_lane] if model.serial else [out_lane, in_lane]
        self._rates = {
            direction: self._told(direction, block_bytes, share)
            for direction, share in ((Direction.D2H, out_share), (Direction.H2D, in_share))
        }

    def _told(self, direction: Direction, block_bytes: int, share: float) -> float:
        """Bytes per second that the direction carries while the other one is busy too."""
        if self._model.told_bytes_per_s is not None:
            return self._model.told_bytes_per_s
        own = block_bytes * SECOND / self._lanes[direction].block_ns
        return own / 2 if self._model.serial else own * share

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        """Never busy. Raises TransferFailed when closed."""
        if self._closed:
            raise TransferFailed("link: closed")
        if not copies:
            return ()
        self._advance()
        lane, block_ns = self._queues[direction], self._lanes[direction].block_ns
        tickets = []
        extra = float(self._model.batch_ns)
        for copy in copies:
            ticket = Ticket(self._next_ticket)
            self._next_ticket += 1
            lane.pending.append((copy.after, ticket, max(1, round(len(copy.source) * block_ns + extra))))
            extra = 0.0
            tickets.append(ticket)
            if self._watch is not None:
                self._watch.submitted(ticket, direction, copy)
        lane.start(self._marked)
        if self._model.blocking:
            self._wait(lane)
        return tickets

    def mark(self, turn: int) -> None:
        """Copies with `after <= turn` start now or behind those before them."""
        self._advance()
        self._marked = max(self._marked, turn)
        for lane in self._lanes_used:
            lane.start(self._marked)

    def poll(self) -> Sequence[CopyDone]:
        """Groups that have landed by now, in order within a direction."""
        self._advance()
        done = []
        for lane in self._lanes_used:
            flying = lane.flying
            while flying and flying[0][0] <= lane.done:
                done.append(CopyDone(flying.popleft()[1], ok=True))
        if done and self._watch is not None:
            self._watch.landed(item.ticket for item in done)
        return done

    def next_landing(self) -> Nanos | None:
        """When the next group lands that `poll` has not told; None while nothing is on its way."""
        self._advance()
        flying = [lane for lane in self._lanes_used if lane.flying]
        if not flying:
            return None
        return self._time + min(lane.until(lane.flying[0][0], self._shared) for lane in flying)

    def link_bytes_per_s(self, direction: Direction) -> float:
        """What the direction carries while both are busy, or what the model is told to say."""
        return self._rates[direction]

    def close(self) -> None:
        """Takes no more. Idempotent."""
        self._closed = True

    def _wait(self, lane: _Lane) -> None:
        while lane.busy:
            ends = [one.until(one.queued, self._shared) for one in self._lanes_used if one.busy]
            self._clock.park(self._time + min(ends))
            self._advance()

    @property
    def _shared(self) -> bool:
        return len(self._lanes_used) > 1 and all(lane.busy for lane in self._lanes_used)

    def _advance(self) -> None:
        """Brings the work done up to the present. At most one change of sharing a lane, so O(1)."""
        now = self._clock.now()
        busy = [lane for lane in self._lanes_used if lane.busy]
        while busy and self._time < now:
            left = now - self._time
            if len(busy) == 1:
                lane = busy[0]
                lane.done = min(lane.queued, lane.done + left)
                break
            stretch = min(left, *(lane.until(lane.queued, True) for lane in busy))
            for lane in busy:
                lane.done = min(lane.queued, lane.done + stretch * lane.share_ppm // MILLION)
            self._time += stretch
            busy = [lane for lane in busy if lane.busy]
        self._time = now
