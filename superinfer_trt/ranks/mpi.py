"""Ranks that are processes under mpiexec, over mpi4py. Implements ranks.comm.Comm; the one reader of mpi4py.

Waiting is a loop of tests and not MPI's own, which would burn a core while the service idles and could not be
left when a rank does not come. It tests without a pause for as long as a half-layer takes to be late, then
naps. MPI must allow calls from several threads at once: the two planes have a communicator each.
"""

from __future__ import annotations

import logging
import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from superinfer_trt.core.errors import ConfigError, SuperInferError
from superinfer_trt.core.ports import Clock
from superinfer_trt.core.units import SECOND, Nanos
from superinfer_trt.ranks.comm import RankLost
from superinfer_trt.runtime.clock import SystemClock

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

HEAD_WORDS = 512
"""Words of a message that go at once; a longer one follows in a second piece."""
ALARM_BYTES = 4096
"""Of every alarm, spaces at its end; what is longer is cut."""
TESTS_A_YIELD = 16
YIELDS_MAX = 200
"""Tests without a pause: 1 to 2 ms, in which whoever has no core of his own gets this one."""
NAP_SHARE = 16
"""A nap is this part of the wait so far: no wait gets much longer by it, and an idle rank sleeps well."""
NAP_MIN_NS: Nanos = 50_000
NAP_MAX_NS: Nanos = 4_000_000
PARTING_NS: Nanos = 15 * SECOND


@contextmanager
def mpi_ranks(ranks: int, timeout_s: float) -> Iterator[MpiComm]:
    """The way to the other ranks of this job, for as long as the block runs.

    Raises ConfigError without mpi4py, without `ranks` processes or without threads in MPI. MPI ends with the
    block: in order when the ranks are still together, else all processes of the job are ended.
    """
    comm = _open(ranks, timeout_s)
    try:
        yield comm
    except SuperInferError:
        raise
    except BaseException:
        log.exception("rank %d ends all ranks", comm.rank)
        comm.finish(together=False)
        raise
    finally:
        comm.finish(together=not comm.lost)


def _open(ranks: int, timeout_s: float) -> MpiComm:
    how = f"start with `mpiexec -n {ranks} superinfer-trt serve --tp {ranks} ...`"
    try:
        import mpi4py

        mpi4py.rc.finalize = False  # see MpiComm.finish
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: no MPI library is found
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"engine.tp: {ranks} ranks need mpi4py and an MPI ({reason[:160]}); "
            f"`pip install 'superinfer-trt[mpi]'`, then {how}"
        ) from error
    world = MPI.COMM_WORLD
    wrong = ""
    if world.size != ranks:
        wrong = f"{ranks} ranks are wanted, {world.size} came; {how}"
    elif MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        wrong = f"this MPI ({_library(MPI)}) has no MPI_THREAD_MULTIPLE, which ranks need"
    if wrong:
        rank = world.rank
        MPI.Finalize()
        if rank:
            sys.exit(2)  # rank 0 says it
        raise ConfigError(f"engine.tp: {wrong}")
    return MpiComm(world, timeout_s)


def _library(mpi: Any) -> str:
    return str(mpi.Get_library_version()).splitlines()[0].strip("\0 ")


class MpiComm:
    """ranks.comm.Comm of this process."""

    def __init__(self, world: Any, timeout_s: float) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._world = world
        self._control, self._data, self._alarms = world.Dup(), world.Dup(), world.Dup()
        self._naps: Clock = SystemClock()
        self._timeout_s = timeout_s
        self._gathered: NDArray[np.float32] | None = None
        self._finished = False
        self._pending: list[Any] = []  # requests that were given up: MPI may still use their memory
        self.rank: int = world.rank
        self.ranks: int = world.size
        self.neighbours: int = world.Split_type(MPI.COMM_TYPE_SHARED).size  # ranks on this machine
        self.lost = ""

    def texts(self, text: str) -> Sequence[str]:
        mine = text.encode("utf-8", "replace")
        lengths = array("q", bytes(8 * self.ranks))
        self._control.Allgather(array("q", (len(mine),)), lengths)
        everybody = bytearray(sum(lengths))
        self._control.Allgatherv([mine, self._mpi.BYTE], [everybody, lengths.tolist(), self._mpi.BYTE])
        ends = list(accumulate(lengths))
        return [everybody[end - length : end].decode() for end, length in zip(ends, lengths, strict=True)]

    def least(self, values: array[int]) -> array[int]:
        result = array("q", bytes(8 * len(values)))
        self._wait(self._control.Iallreduce(values, result, self._mpi.MIN))
        return result

    def tell(self, words: array[int]) -> None:
        head = array("q", (len(words),)) + words[: HEAD_WORDS - 1]
        head.extend([0] * (HEAD_WORDS - len(head)))
        self._wait(self._control.Ibcast(head, 0))
        rest = words[HEAD_WORDS - 1 :]
        if rest:
            self._wait(self._control.Ibcast(rest, 0))

    def hear(self) -> array[int]:
        head = array("q", bytes(8 * HEAD_WORDS))
        self._wait(self._control.Ibcast(head, 0))
        length = head[0]
        rest = array("q", bytes(8 * max(0, length - HEAD_WORDS + 1)))
        if rest:
            self._wait(self._control.Ibcast(rest, 0))
        return head[1 : 1 + length] + rest

    def add(self, partial: NDArray[np.float32]) -> None:
        import numpy as np

        count = partial.size
        if self._gathered is None or self._gathered.size < self.ranks * count:
            self._gathered = np.empty(self.ranks * count, np.float32)
        everybody = self._gathered[: self.ranks * count].reshape(self.ranks, count)
        self._wait(self._data.Iallgather(partial, everybody))
        np.add(everybody[0], everybody[1], out=partial)
        for other in everybody[2:]:
            partial += other

    def alarm(self, text: str) -> None:
        if self.lost:
            return
        self.lost = text
        said = text.encode("utf-8", "replace")[:ALARM_BYTES].ljust(ALARM_BYTES)
        for other in range(self.ranks):
            if other != self.rank:
                self._pending.append(self._alarms.Isend([said, self._mpi.BYTE], other))

    def finish(self, *, together: bool) -> None:
        """Ends MPI; apart, by ending every process of the job, this one too. Idempotent.

        Rank 0 does that when it has ended its clients' streams; the others give it time for it.
        """
        if self._finished:
            return
        self._finished = True
        if together:
            self._mpi.Finalize()
            return
        if self.rank:
            clock = SystemClock()
            clock.park(clock.now() + PARTING_NS)
        sys.stdout.flush()
        sys.stderr.flush()
        self._world.Abort(1)
        os._exit(1)  # where Abort returns

    def _wait(self, request: Any) -> None:
        """Until `request` is through. RankLost when a rank raises the alarm or time is over."""
        test = request.Test
        for _ in range(YIELDS_MAX):
            for _ in range(TESTS_A_YIELD):
                if test():
                    return
            os.sched_yield()
        self._pending.append(request)
        clock = self._naps
        began = clock.now()
        while not test():
            now = clock.now()
            self._listen()
            if now - began > self._timeout_s * SECOND:
                self.alarm(f"a rank did not answer rank {self.rank} within {self._timeout_s:g} s")
                raise RankLost(self.lost)
            clock.park(now + max(NAP_MIN_NS, min(NAP_MAX_NS, (now - began) // NAP_SHARE)))
        self._pending.remove(request)

    def _listen(self) -> None:
        if not self.lost and self._alarms.Iprobe():
            heard = bytearray(ALARM_BYTES)
            self._alarms.Recv([heard, self._mpi.BYTE])
            self.lost = heard.decode("utf-8", "replace").rstrip()
        if self.lost:
            raise RankLost(self.lost)
