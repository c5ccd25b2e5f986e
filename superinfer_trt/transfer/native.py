"""DuplexLink: the transfer engine over two pools, backed by plugins/duplexkv: host memory, or a GPU's.

Each direction has its own thread, queue and rate. Knows no request and no policy. Any thread may call
it, `poll` one at a time. It does not survive a fork.
"""

from __future__ import annotations

import contextlib
import weakref
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from superinfer_trt import _duplexkv
from superinfer_trt.core.errors import ConfigError, TransferFailed
from superinfer_trt.core.step import Copy, CopyDone, CopyKind, Direction
from superinfer_trt.core.units import SlotId, Ticket
from superinfer_trt.transfer.cuda import CudaLink, DeviceArray

_LANE = {Direction.D2H: _duplexkv.D2H, Direction.H2D: _duplexkv.H2D}
_POLL_GROUPS = 256
_MEASURED_BYTES_MIN = 16 << 20  # of traffic, before its own speed is believed


@dataclass(frozen=True, slots=True)
class LaneStats:
    """Counters of one direction since the start; `queued_*` and `unpolled_*` are of now.

    `busy_ns` runs from the start of each slice to its end, the rate limit included. `descriptors`
    are contiguous copies after merging. Unpolled groups are what the queue's limits count.
    """

    poisoned: bool
    bytes: int
    slices: int
    descriptors: int
    groups_done: int
    groups_failed: int
    groups_cancelled: int
    busy_ns: int
    queued_groups: int
    unpolled_groups: int
    unpolled_bytes: int


class NodeBudget:
    """Bytes/s that the links made with it keep together: copies in first, then copies out, syncs last,
    but none waits for ever. For links of several GPUs over the memory of one host node. Raises ConfigError
    for a rate below 1e6.
    """

    def __init__(self, bytes_per_s: float) -> None:
        try:
            self.native = _duplexkv.Budget(bytes_per_s)
        except ValueError as error:
            raise ConfigError(f"link: {error}") from error
        self.bytes_per_s = bytes_per_s


class DuplexLink:
    """Copies blocks between `device_pool` and `host_pool`, both directions at once (a TransferEngine).

    Pools are C-contiguous writable uint8 [blocks, block_bytes] of one block size, kept alive; they
    may not share memory. A rate of 0 is no limit. `queue_groups_max` and `queue_bytes_max` bound
    what one direction holds until it is polled; a larger submission may go while nothing else is
    queued. After `close`, `poll` still tells of every ticket that was not told, cancelled ones with
    `ok` False. With `cuda` the device pool is an array of the same shape in that GPU's memory, the
    host pool page-locked (PinnedMemory), and rates are usually 0. A pool that is not block-first is a
    sequence of parts, each [blocks, bytes of it a block], whose rows may lie apart: two a layer, or values
    and their scales; a block is its parts in order, and both tiers have as many bytes of it. (The first
    part in a PinnedMemory starts where that does, if it has chunks.)
    `host_threads` copy for each direction. Raises ConfigError for pools or limits that cannot work, and
    with `cuda` where there is no driver.
    """

    def __init__(
        self,
        device_pool: NDArray[np.uint8] | DeviceArray | Sequence[NDArray[np.uint8] | DeviceArray],
        host_pool: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
        *,
        cuda: CudaLink | None = None,
        h2d_bytes_per_s: float = 2e9,
        d2h_bytes_per_s: float = 2e9,
        queue_groups_max: int = 4096,
        queue_bytes_max: int = 1 << 30,
        slice_bytes_max: int = 32 << 20,
        host_threads: int = 1,
        budget: NodeBudget | None = None,
    ) -> None:
        for field, limit in (
            ("queue_groups_max", queue_groups_max),
            ("queue_bytes_max", queue_bytes_max),
            ("slice_bytes_max", slice_bytes_max),
            ("host_threads", host_threads),
        ):
            if limit <= 0:
                raise ConfigError(f"link: {field} {limit} must be > 0")
        self._cuda = cuda
        limits: _Limits = {
            "d2h_bytes_per_s": d2h_bytes_per_s,
            "h2d_bytes_per_s": h2d_bytes_per_s,
            "queue_groups_max": queue_groups_max,
            "queue_bytes_max": queue_bytes_max,
            "slice_bytes_max": slice_bytes_max,
            "host_threads": host_threads,
            "budget": None if budget is None else budget.native,
        }
        try:
            self._engine = _make_engine(device_pool, host_pool, cuda, limits)
        except (ValueError, TypeError, MemoryError, _duplexkv.LinkError) as error:
            raise ConfigError(f"link: {error}") from error
        self._rates = {Direction.D2H: d2h_bytes_per_s, Direction.H2D: h2d_bytes_per_s}
        self._machine_bytes_per_s = 0.0
        self._tickets = np.empty(_POLL_GROUPS, np.int64)
        self._outcomes = np.empty(_POLL_GROUPS, np.uint8)
        # Also at the end of the interpreter, so that no lane outlives what it copies.
        self._closing = weakref.finalize(self, _close, self._engine)

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        """One ticket a copy, consecutive; None when the queue is full and nothing was queued.

        SYNC copies are eager: they cross when no other is ready, and alone may fill half of the queue.
        Raises ValueError for a copy of the other direction, without blocks, with a slot outside its
        pool, or with a slot that another copy in the air writes (or reads, for a target);
        TransferFailed when the lane is poisoned or the link closed.
        """
        if not copies:
            return ()
        try:
            first = self._queue(direction, copies)
        except _duplexkv.LinkError as error:
            raise TransferFailed(str(error)) from error
        if first is None:
            return None
        return [Ticket(ticket) for ticket in range(first, first + len(copies))]

    def _queue(self, direction: Direction, copies: Sequence[Copy]) -> int | None:
        lane = _LANE[direction]
        if len(copies) == 1:  # the usual rotation: its own arrays go down as they are
            copy = copies[0]
            _check_copy(copy, direction)
            source, target = _ids(copy.source, copy, "source"), _ids(copy.target, copy, "target")
            return self._engine.submit_group(lane, source, target, copy.after, _flags(copy))
        source, target = array("i"), array("i")
        offsets, after, flags = array("q", (0,)), array("q"), array("B")
        for copy in copies:
            _check_copy(copy, direction)
            _extend(source, copy.source, copy, "source")
            _extend(target, copy.target, copy, "target")
            offsets.append(len(source))
            after.append(copy.after)
            flags.append(_flags(copy))
        return self._engine.submit(lane, source, target, offsets, after, flags)

    def mark(self, turn: int) -> None:
        """Copies with `after <= turn` may start. Raises TransferFailed when closed."""
        try:
            self._engine.mark(turn)
        except _duplexkv.LinkError as error:
            raise TransferFailed(str(error)) from error

    @property
    def cuda(self) -> CudaLink | None:
        """The GPU behind the link; None for two pools in host memory."""
        return self._cuda

    def mark_stream(self, turn: int, stream: int) -> bool:
        """The work of `stream` (a CUstream) so far is the batch of `turn`: its copies may be put in line
        behind it now. False: too many turns on their way, the next mark covers this one. Raises
        TransferFailed without a GPU or when closed, ValueError for the legacy or a captured stream."""
        try:
            return self._engine.mark_stream(turn, stream)
        except _duplexkv.LinkError as error:
            raise TransferFailed(str(error)) from error

    def stream_wait(self, ticket: Ticket, stream: int, *, external: bool = False) -> bool:
        """Later work of `stream` starts behind the ticket's copies. False: they are not all in line yet
        and nothing waits. `external`: a node of the graph being captured, for whatever is in line at
        each launch. Raises as `mark_stream`, ValueError also for a ticket that failed."""
        try:
            return self._engine.stream_wait(ticket, stream, external)
        except _duplexkv.LinkError as error:
            raise TransferFailed(str(error)) from error

    def poll(self) -> Sequence[CopyDone]:
        """All groups that ended since the last call, in order within a direction, eager ones in an
        order of their own. Never waits."""
        done: list[CopyDone] = []
        while True:
            try:
                count = self._engine.poll(self._tickets, self._outcomes)
            except _duplexkv.LinkError as error:
                raise TransferFailed(str(error)) from error
            if count == 0:
                return done
            done += [
                CopyDone(Ticket(ticket), outcome == _duplexkv.DONE)
                for ticket, outcome in zip(
                    self._tickets[:count].tolist(), self._outcomes[:count].tolist(), strict=True
                )
            ]

    def wait(self, timeout_s: float) -> bool:
        """Waits until `poll` has something to tell; False when the queues are empty or the time is over.

        For a driver that has nothing else to do; releases the GIL. Seconds.
        """
        try:
            return self._engine.wait(timeout_s)
        except _duplexkv.LinkError as error:
            raise TransferFailed(str(error)) from error

    def link_bytes_per_s(self, direction: Direction) -> float:
        """The configured rate; without one, what the lane's own traffic or a trial copy reached."""
        rate = self._rates[direction]
        if rate > 0:
            return rate
        stats = self.stats(direction)
        if stats.bytes >= _MEASURED_BYTES_MIN and stats.busy_ns > 0:
            return stats.bytes / stats.busy_ns * 1e9
        if not self._machine_bytes_per_s:
            self._machine_bytes_per_s = _duplexkv.measure_copy()
        return self._machine_bytes_per_s

    def stats(self, direction: Direction) -> LaneStats:
        """Counters of one direction; exact each, not one moment together."""
        try:
            counters = self._engine.stats(_LANE[direction])
        except _duplexkv.LinkError as error:
            raise TransferFailed(str(error)) from error
        poisoned = bool(counters.pop("poisoned"))
        return LaneStats(poisoned=poisoned, **counters)

    def cancel(self, ticket: Ticket) -> None:
        """Nobody wants the copy any more: `poll` tells it with `ok` False.

        One that has not started leaves its slots at once, one in the air when it is told. No effect on
        a ticket that was told; ValueError for one that was never given out.
        """
        try:
            self._engine.cancel(ticket)
        except _duplexkv.LinkError as error:
            raise TransferFailed(str(error)) from error

    def poison(self, direction: Direction) -> None:
        """Declares a lane dead: what is queued fails, later submits raise TransferFailed."""
        self._engine.poison(_LANE[direction])

    def close(self) -> None:
        """Stops after the slices in hand; what has not landed is cancelled. Idempotent."""
        self._closing()


class _Limits(TypedDict):
    d2h_bytes_per_s: float
    h2d_bytes_per_s: float
    queue_groups_max: int
    queue_bytes_max: int
    slice_bytes_max: int
    host_threads: int
    budget: _duplexkv.Budget | None


def _make_engine(
    device_pool: NDArray[np.uint8] | DeviceArray | Sequence[NDArray[np.uint8] | DeviceArray],
    host_pool: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    cuda: CudaLink | None,
    limits: _Limits,
) -> _duplexkv.Engine:
    """An engine over two pools, or over their parts if either comes in parts."""
    choice = None if cuda is None else cuda.native()
    if isinstance(device_pool, Sequence) or isinstance(host_pool, Sequence):
        return _duplexkv.Engine(
            device_parts=_parts("device_pool", device_pool, on_gpu=cuda is not None),
            host_parts=_host_parts("host_pool", host_pool),
            cuda=choice,
            **limits,
        )
    _check_pool("host_pool", host_pool)
    if cuda is None:
        _check_pool("device_pool", device_pool)
    return _duplexkv.Engine(device_pool, host_pool, **limits, cuda=choice)


def _parts(
    field: str,
    pool: NDArray[np.uint8] | DeviceArray | Sequence[NDArray[np.uint8] | DeviceArray],
    *,
    on_gpu: bool,
) -> Sequence[object]:
    """The parts of a pool; a block-first one is its own. Those of a GPU the native module looks at."""
    if on_gpu:
        return pool if isinstance(pool, Sequence) else [pool]
    return _host_parts(field, pool)


def _host_parts(field: str, pool: object) -> list[NDArray[np.uint8]]:
    if not isinstance(pool, Sequence):
        return [_check_pool(field, pool)]
    for part in pool:
        if not isinstance(part, np.ndarray):
            raise ConfigError(f"link: parts of {field} must be numpy arrays, got {type(part).__name__}")
        if part.dtype != np.uint8 or part.ndim != 2 or part.strides[1] != 1 or not part.flags.writeable:
            raise ConfigError(
                f"link: parts of {field} must be writable uint8 [blocks, bytes] with the bytes of a block "
                f"side by side, got {part.dtype} of shape {part.shape}, strides {part.strides}"
            )
    return list(pool)


def _close(engine: _duplexkv.Engine) -> None:
    with contextlib.suppress(_duplexkv.LinkError):  # the child of a fork: the lanes are the parent's
        engine.close()


def _check_pool(field: str, pool: object) -> NDArray[np.uint8]:
    if not isinstance(pool, np.ndarray):
        raise ConfigError(f"link: {field} must be a numpy array, got {type(pool).__name__}")
    if pool.dtype != np.uint8 or pool.ndim != 2 or not pool.flags.c_contiguous or not pool.flags.writeable:
        raise ConfigError(
            f"link: {field} must be C-contiguous writable uint8 [blocks, block_bytes], "
            f"got {pool.dtype} of shape {pool.shape}"
        )
    return pool


def _flags(copy: Copy) -> int:
    return _duplexkv.EAGER if copy.kind is CopyKind.SYNC else 0


def _check_copy(copy: Copy, direction: Direction) -> None:
    if copy.direction is not direction:
        raise ValueError(f"copy of {copy.id}: {copy.kind.value} does not go {direction.value}")
    if len(copy.source) != len(copy.target):
        raise ValueError(f"copy of {copy.id}: {len(copy.source)} sources and {len(copy.target)} targets")


def _ids(slots: Sequence[SlotId], copy: Copy, field: str) -> array[int]:
    """`slots` itself if it is int32 already."""
    if isinstance(slots, array) and slots.typecode == "i":
        return slots
    ids = array("i")
    _extend(ids, slots, copy, field)
    return ids


def _extend(ids: array[int], slots: Sequence[SlotId], copy: Copy, field: str) -> None:
    """Appends; an array('i') is copied as a block, anything else one by one."""
    try:
        ids.extend(slots)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"copy of {copy.id}: {field} is not int32 slots: {error}") from error
