"""A plan resolved to slots: what the engines are handed. The plan says who; the step says which bytes.

What is made for every token or every rotation has `Final` fields: type checkers refuse to write them, as
to a frozen class, but one is made in a fifth of the time, and making them was half of a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from superinfer_trt.core.request import Sampling
from superinfer_trt.core.units import RequestId, SlotId, Ticket


class Direction(Enum):
    """A direction of the host link."""

    D2H = "d2h"  # HBM -> DRAM
    H2D = "h2d"  # DRAM -> HBM

    # As of Phase: Enum's own hash is a call in Python, and every copy is looked up by its direction.
    __hash__ = object.__hash__


class CopyKind(Enum):
    """Why a group of blocks crosses the link."""

    OUT = "out"  # the dirty blocks of a request that leaves
    IN = "in"  # all blocks of a request that comes back
    SYNC = "sync"  # full blocks copied ahead of need


@dataclass(slots=True, eq=False)
class Copy:
    """One group of block copies of one request: the unit of a ticket.

    `source[i] -> target[i]`; device slots on one side, host slots on the other. `after` is the turn
    whose batch must have ended before the source may be read or the target written (-1: none): with
    L2 this is all the order that copies and compute need (C6).
    """

    id: Final[RequestId]
    kind: Final[CopyKind]
    source: Final[Sequence[SlotId]]
    target: Final[Sequence[SlotId]]
    after: Final[int] = -1

    @property
    def direction(self) -> Direction:
        return Direction.H2D if self.kind is CopyKind.IN else Direction.D2H


@dataclass(slots=True)
class CopyDone:
    """A finished group. `ok` False: nothing may be assumed about the target."""

    ticket: Final[Ticket]
    ok: Final[bool]


@dataclass(slots=True)
class Landing:
    """A rotation that ended: the request's phase follows from it."""

    id: Final[RequestId]
    kind: Final[CopyKind]
    ok: Final[bool]


@dataclass(slots=True, eq=False)
class Row:
    """One request's share of a batch: a prefill chunk or one decode token.

    `tokens` are the ids at positions start .. start + len(tokens) - 1, whose KV this step writes;
    `slots` are device slots that cover positions 0 .. start + len(tokens) - 1, in order.
    `sample`: whether the last position yields a token, which will be output number `index`.
    `history`: all start + len(tokens) ids so far, of which the last `index` are output; only of rows that
    sample with penalties (Sampling.penalised), and only to be read before `launch` returns.
    """

    id: Final[RequestId]
    start: Final[int]
    tokens: Final[Sequence[int]]
    slots: Final[Sequence[SlotId]]
    sample: Final[bool]
    index: Final[int]
    sampling: Final[Sampling]
    history: Final[Sequence[int]] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """All rows of one step, in plan order. Rows of one request are never in one batch twice."""

    turn: int
    rows: tuple[Row, ...]

    @property
    def tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)
