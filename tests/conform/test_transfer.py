"""What every TransferEngine owes its executor, on each implementation."""

from __future__ import annotations

import random
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from superinfer_trt.core.errors import TransferFailed
from superinfer_trt.core.ports import TransferEngine
from superinfer_trt.core.step import Copy, CopyDone, CopyKind, Direction
from superinfer_trt.core.units import RequestId, Ticket
from superinfer_trt.transfer.modelled import ModelledLink
from superinfer_trt.transfer.native import DuplexLink
from superinfer_trt.transfer.pools import allocate_pool
from superinfer_trt.transfer.wrap import CountingLink, DelayedLink, WrappedLink
from support.virtual_clock import VirtualClock

DEVICE_BLOCKS, HOST_BLOCKS, BLOCK_BYTES = 48, 96, 1000
QUEUE_GROUPS_MAX, QUEUE_BYTES_MAX = 16, 64 * BLOCK_BYTES
LONG_S = 60.0
D2H, H2D = Direction.D2H, Direction.H2D


class WatchedLink(WrappedLink):
    """Knows which groups must land without a further call, so that a test never guesses how long."""

    def __init__(self, inner: TransferEngine) -> None:
        super().__init__(inner)
        self._queues: dict[Direction, deque[tuple[Ticket, int]]] = {d: deque() for d in Direction}
        self._marked = -1
        self._closed = False

    @property
    def must_land(self) -> bool:
        return any(queue and (self._closed or queue[0][1] <= self._marked) for queue in self._queues.values())

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        tickets = self.inner.submit(direction, copies)
        after = (copy.after for copy in copies)
        self._queues[direction].extend(zip(tickets or (), after, strict=False))
        return tickets

    def mark(self, turn: int) -> None:
        self.inner.mark(turn)
        self._marked = max(self._marked, turn)

    def poll(self) -> Sequence[CopyDone]:
        told = self.inner.poll()
        for done in told:
            (queue,) = (q for q in self._queues.values() if q and q[0][0] == done.ticket)  # in order
            queue.popleft()
        return told

    def close(self) -> None:
        self.inner.close()
        self._closed = True


@dataclass
class World:
    """An engine, a way to let time pass until something lands, and its bytes where it has any."""

    link: WatchedLink
    advance: Callable[[float], object]  # for at most so many seconds
    device: NDArray[np.uint8] | None = None
    host: NDArray[np.uint8] | None = None

    def drain(self) -> list[CopyDone]:
        """Polls until all that must land has."""
        done = list(self.link.poll())
        while self.link.must_land:
            self.advance(LONG_S)
            done += self.link.poll()
        return done

    def nothing_lands(self) -> bool:
        """A chance for a copy to run that may not."""
        assert not self.link.must_land
        self.advance(0.02)
        return not self.link.poll()


def native_world(rate: float = 0.0) -> World:
    device, host = allocate_pool(DEVICE_BLOCKS, BLOCK_BYTES), allocate_pool(HOST_BLOCKS, BLOCK_BYTES)
    link = DuplexLink(
        device,
        host,
        h2d_bytes_per_s=rate,
        d2h_bytes_per_s=rate,
        queue_groups_max=QUEUE_GROUPS_MAX,
        queue_bytes_max=QUEUE_BYTES_MAX,
    )
    return World(WatchedLink(link), link.wait, device, host)


def modelled_world(rate: float = 1e9) -> World:
    clock = VirtualClock()
    link = ModelledLink(
        clock,
        BLOCK_BYTES,
        rate,
        rate,
        device_blocks=DEVICE_BLOCKS,
        host_blocks=HOST_BLOCKS,
        queue_groups_max=QUEUE_GROUPS_MAX,
        queue_bytes_max=QUEUE_BYTES_MAX,
    )

    def advance(seconds: float) -> None:
        landing = link.next_landing()
        limit = clock.now() + int(seconds * 1e9)
        clock.park(limit if landing is None else min(landing, limit))

    return World(WatchedLink(link), advance)


def wrapped_world() -> World:
    """A wrapper owes the same as what it wraps."""
    world = native_world()
    link = CountingLink(DelayedLink(world.link.inner, polls_max=3, seed=1))

    def advance(seconds: float) -> None:
        if link.next_landing() is None:
            world.advance(seconds)

    return World(WatchedLink(link), advance, world.device, world.host)


WORLDS = {
    "duplex": native_world,
    "duplex 1 GB/s": lambda: native_world(1e9),
    "modelled": modelled_world,
    "wrapped": wrapped_world,
}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = WORLDS[request.param]()
    yield made
    made.link.close()


def out(id: int, source: Sequence[int], target: Sequence[int], after: int = -1) -> Copy:
    return Copy(RequestId(id), CopyKind.OUT, array("i", source), array("i", target), after)


def back(id: int, source: Sequence[int], target: Sequence[int], after: int = -1) -> Copy:
    return Copy(RequestId(id), CopyKind.IN, array("i", source), array("i", target), after)


def submitted(link: TransferEngine, direction: Direction, copies: Sequence[Copy]) -> list[Ticket]:
    tickets = link.submit(direction, copies)
    assert tickets is not None
    assert len(tickets) == len(copies)
    return list(tickets)


def test_each_copy_has_its_own_ticket_and_lands_once(world: World) -> None:
    tickets = submitted(world.link, D2H, [out(1, [0, 1], [0, 1]), out(2, [2], [2])])
    tickets += submitted(world.link, H2D, [back(3, [50, 51], [10, 11])])
    assert len(set(tickets)) == 3
    done = world.drain()
    assert sorted(item.ticket for item in done) == sorted(tickets)
    assert all(item.ok for item in done)
    assert not world.link.poll()


def test_order_within_a_direction_is_that_of_submission(world: World) -> None:
    first = submitted(world.link, D2H, [out(n, [n], [n]) for n in range(6)])
    other = submitted(world.link, H2D, [back(n, [60 + n], [20 + n]) for n in range(6)])
    second = submitted(world.link, D2H, [out(9, range(30, 40), range(30, 40))])
    told = [item.ticket for item in world.drain()]
    assert [ticket for ticket in told if ticket not in other] == first + second
    assert [ticket for ticket in told if ticket in other] == other


def test_a_copy_waits_for_its_mark_and_holds_those_behind_it(world: World) -> None:
    early, late, behind = submitted(
        world.link, D2H, [out(1, [0], [0]), out(2, [1], [1], after=7), out(3, [2], [2], after=3)]
    )
    assert [item.ticket for item in world.drain()] == [early]
    assert world.nothing_lands()
    world.link.mark(6)
    assert world.nothing_lands()
    world.link.mark(7)
    assert [item.ticket for item in world.drain()] == [late, behind]


def test_a_lower_mark_takes_nothing_back(world: World) -> None:
    world.link.mark(5)
    world.link.mark(2)
    (ticket,) = submitted(world.link, H2D, [back(1, [3], [3], after=5)])
    assert world.drain() == [CopyDone(ticket, ok=True)]


def test_one_direction_goes_on_while_the_other_is_held(world: World) -> None:
    submitted(world.link, D2H, [out(1, [0], [0], after=0)])
    tickets = submitted(world.link, H2D, [back(2, [5], [5]), back(3, [6], [6])])
    assert [item.ticket for item in world.drain()] == tickets


def test_busy_is_all_or_nothing_and_ends_when_polled(world: World) -> None:
    held = [out(n, [n], [n], after=0) for n in range(QUEUE_GROUPS_MAX - 1)]
    tickets = submitted(world.link, D2H, held)
    pair = [out(30, [30], [30]), out(31, [31], [31])]
    assert world.link.submit(D2H, pair) is None
    assert world.link.submit(D2H, pair[:1]) is not None, "nothing of the refused pair was queued"
    assert world.link.submit(H2D, [back(40, [40], [40])]) is not None, "the other lane has room"
    world.link.mark(0)
    assert len(world.drain()) == len(tickets) + 2
    assert world.link.submit(D2H, pair) is not None
    assert all(item.ok for item in world.drain())


def test_a_submission_larger_than_the_queue_goes_alone(world: World) -> None:
    many = range(40)
    (first,) = submitted(world.link, D2H, [out(1, [45], [45], after=0)])
    big = [
        out(2, many, many, after=0),
        out(3, many, range(50, 90), after=0),
    ]
    assert world.link.submit(D2H, big) is None
    world.link.mark(0)
    assert [item.ticket for item in world.drain()] == [first]
    assert world.link.submit(D2H, big) is not None
    assert all(item.ok for item in world.drain())


@pytest.mark.parametrize(
    ("direction", "copy"),
    [
        (D2H, out(1, [], [])),
        (D2H, out(1, [0, 1], [0])),
        (D2H, out(1, [-1], [0])),
        (D2H, out(1, [DEVICE_BLOCKS], [0])),
        (D2H, out(1, [0], [HOST_BLOCKS])),
        (D2H, out(1, [0, 1], [7, 7])),
        (D2H, back(1, [0], [0])),
        (H2D, out(1, [0], [0])),
        (H2D, back(1, [0], [DEVICE_BLOCKS])),
        (H2D, back(1, [0], [-(2**31)])),
    ],
)
def test_a_wrong_copy_is_refused_with_all_of_its_submission(
    world: World, direction: Direction, copy: Copy
) -> None:
    good = out(9, [5], [5]) if direction is D2H else back(9, [5], [5])
    with pytest.raises(ValueError, match=r"copy|submit"):
        world.link.submit(direction, [good, copy])
    submitted(world.link, direction, [good])
    assert len(world.drain()) == 1


@pytest.mark.parametrize(
    ("direction", "copy"),
    [
        (D2H, out(2, [9], [20])),  # written twice
        (H2D, back(2, [20], [9])),  # read before it has arrived
        (H2D, back(2, [70], [10])),  # written while it is read
    ],
)
def test_a_copy_that_would_race_with_one_in_the_air_is_refused(
    world: World, direction: Direction, copy: Copy
) -> None:
    submitted(world.link, D2H, [out(1, [10], [20], after=0)])
    with pytest.raises(ValueError, match="in the air"):
        world.link.submit(direction, [copy])
    assert world.nothing_lands()
    world.link.mark(0)
    assert len(world.drain()) == 1
    submitted(world.link, direction, [copy])
    assert all(item.ok for item in world.drain())


def test_two_copies_may_read_one_slot(world: World) -> None:
    submitted(world.link, D2H, [out(1, [10], [20], after=0), out(2, [10, 10], [21, 22], after=0)])
    world.link.mark(0)
    assert len(world.drain()) == 2
    submitted(world.link, H2D, [back(3, [20], [10])])
    assert len(world.drain()) == 1


def test_no_copies_are_no_tickets(world: World) -> None:
    tickets = world.link.submit(D2H, [])
    assert tickets is not None
    assert not tickets


def test_close_while_busy_tells_of_every_ticket_once(world: World) -> None:
    started = submitted(world.link, D2H, [out(1, [0], [0])])
    landed = world.drain()
    dropped = submitted(world.link, D2H, [out(n, [n], [n], after=3) for n in range(1, 9)])
    dropped += submitted(world.link, H2D, [back(20, [40], [40], after=3)])
    world.link.close()
    world.link.close()
    assert [item.ticket for item in landed] == started
    after = world.drain()
    assert sorted(item.ticket for item in after) == sorted(dropped)
    assert not any(item.ok for item in after)


def test_a_closed_link_refuses(world: World) -> None:
    world.link.close()
    with pytest.raises(TransferFailed, match="closed"):
        world.link.submit(D2H, [out(1, [0], [0])])
    with pytest.raises(TransferFailed, match="closed"):
        world.link.mark(1)
    assert not world.link.poll()


def test_the_link_has_a_bandwidth(world: World) -> None:
    for direction in Direction:
        assert world.link.link_bytes_per_s(direction) > 0


def test_poll_does_not_wait_for_a_copy(world: World) -> None:
    submitted(world.link, D2H, [out(1, [0], [0], after=99)])
    begin = time.monotonic()
    assert not world.link.poll()
    assert time.monotonic() - begin < LONG_S / 2, "it would wait for ever, if it waited"


class Reference:
    """Random rotations, done at once on copies of the pools; slots change hands only when landed."""

    def __init__(self, world: World, seed: int) -> None:
        assert world.device is not None
        assert world.host is not None
        numbers = np.random.default_rng(seed)
        for pool in (world.device, world.host):
            pool[:] = numbers.integers(0, 256, pool.shape, dtype=np.uint8)
        self.world = world
        self.random = random.Random(seed)
        self.source = {D2H: world.device.copy(), H2D: world.host.copy()}
        self.target = {D2H: self.source[H2D], H2D: self.source[D2H]}
        self.real_target = {D2H: world.host, H2D: world.device}
        self.free = {D2H: set(range(DEVICE_BLOCKS)), H2D: set(range(HOST_BLOCKS))}  # by what is read
        self.air: dict[Ticket, Copy] = {}
        self.landed = 0

    def rotate(self, direction: Direction, turn: int) -> None:
        sources, targets = self.free[direction], self.free[H2D if direction is D2H else D2H]
        count = self.random.randint(0, min(6, len(sources), len(targets)))
        if not count:
            return
        source = self.random.sample(sorted(sources), count)
        target = self.random.sample(sorted(targets), count)
        make = out if direction is D2H else back
        copy = make(turn, source, target, after=turn - self.random.randint(0, 1))
        tickets = self.world.link.submit(direction, [copy])
        if tickets is None:
            return
        self.air[tickets[0]] = copy
        sources.difference_update(source)
        targets.difference_update(target)
        self.target[direction][target] = self.source[direction][source]

    def land(self, done: Sequence[CopyDone]) -> None:
        for item in done:
            copy = self.air.pop(item.ticket)
            target = list(copy.target)
            assert item.ok
            assert np.array_equal(
                self.real_target[copy.direction][target], self.target[copy.direction][target]
            )
            self.free[copy.direction].update(copy.source)
            self.free[H2D if copy.direction is D2H else D2H].update(copy.target)
            self.landed += 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [native_world, lambda: native_world(1e9), wrapped_world])
def test_bytes_equal_a_sequential_reference(make: Callable[[], World], seed: int) -> None:
    world = make()
    reference = Reference(world, seed)
    for turn in range(300):
        for direction in Direction:
            reference.rotate(direction, turn)
        world.link.mark(turn)
        reference.land(world.drain() if reference.random.random() < 0.3 else world.link.poll())
    reference.land(world.drain())
    assert not reference.air
    assert reference.landed > 100
    assert np.array_equal(world.device, reference.source[D2H])
    assert np.array_equal(world.host, reference.source[H2D])
    world.link.close()
