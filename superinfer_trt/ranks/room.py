"""Ranks that are threads of one process: Implements ranks.comm.Comm without MPI."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from superinfer_trt.ranks.comm import RankLost

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Room:
    """Where `ranks` threads meet. `comm(rank)` is the way in of one of them."""

    def __init__(self, ranks: int, timeout_s: float = 60.0) -> None:
        self.ranks = ranks
        self.timeout_s = timeout_s
        self.lost = ""
        self._planes = {plane: _Plane(self) for plane in ("control", "data")}

    def comm(self, rank: int) -> RoomComm:
        return RoomComm(self, rank)

    def exchange(self, plane: str, rank: int, value: Any) -> list[Any]:
        """The values of all ranks, in their order."""
        return self._planes[plane].exchange(rank, value)

    def part(self, why: str) -> None:
        """Ends every wait, now and later."""
        self.lost = self.lost or why
        for plane in self._planes.values():
            plane.wake()


class _Plane:
    """Meetings one after the other; nobody is early for the next one before all have left the last."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._condition = threading.Condition()
        self._values: dict[int, Any] = {}
        self._meetings = 0
        self._result: list[Any] = []

    def exchange(self, rank: int, value: Any) -> list[Any]:
        room = self._room
        with self._condition:
            if room.lost:
                raise RankLost(room.lost)
            meeting = self._meetings
            self._values[rank] = value
            if len(self._values) == room.ranks:
                self._result = [self._values[one] for one in range(room.ranks)]
                self._values = {}
                self._meetings += 1
                self._condition.notify_all()
                return self._result
            came = self._condition.wait_for(lambda: self._meetings != meeting or room.lost, room.timeout_s)
            if self._meetings != meeting:
                return self._result
            why = room.lost if came else f"a rank did not answer within {room.timeout_s} s"
        room.part(why)
        raise RankLost(why)

    def wake(self) -> None:
        with self._condition:
            self._condition.notify_all()


class RoomComm:
    """ranks.comm.Comm of one thread."""

    def __init__(self, room: Room, rank: int) -> None:
        self._room = room
        self._rank = rank

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def ranks(self) -> int:
        return self._room.ranks

    @property
    def neighbours(self) -> int:
        return self._room.ranks

    @property
    def lost(self) -> str:
        return self._room.lost

    def texts(self, text: str) -> Sequence[str]:
        return self._room.exchange("control", self._rank, text)

    def least(self, values: array[int]) -> array[int]:
        everybody = self._room.exchange("control", self._rank, values)
        return array("q", map(min, *everybody)) if len(everybody) > 1 else values

    def tell(self, words: array[int]) -> None:
        self._room.exchange("control", self._rank, words)

    def hear(self) -> array[int]:
        told: array[int] = self._room.exchange("control", self._rank, None)[0]
        return told

    def add(self, partial: NDArray[np.float32]) -> None:
        first, *others = self._room.exchange("data", self._rank, partial.copy())
        partial[:] = first
        for other in others:
            partial += other

    def alarm(self, text: str) -> None:
        self._room.part(text)
