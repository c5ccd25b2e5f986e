"""The test of the tests: a link or ledger that loses bytes is caught by the pattern engine, by name (C5).

If one of these passes silently, the equivalence tests prove nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.ports import TransferEngine
from superinfer_trt.core.request import FinishReason
from superinfer_trt.core.step import Copy, CopyDone, CopyKind, Direction
from superinfer_trt.core.units import MILLISECOND, Ticket
from superinfer_trt.core.view import Limits
from superinfer_trt.engine.pattern import PatternEngine
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.transfer.native import DuplexLink
from superinfer_trt.transfer.pools import allocate_pool
from support.requests import random_requests
from support.world import Box, BoxClock, HashingEngine, Result

GEOMETRY = Geometry(layers=2, kv_heads=1, head_dim=16, element_bytes=2)
HBM, DRAM = 14, 200


class LyingLink:
    """Only says that it has carried the copies of one kind, from the `first` on (0: never lies)."""

    def __init__(self, link: TransferEngine, kind: CopyKind, first: int) -> None:
        self._link = link
        self._kind = kind
        self._first = first
        self._seen = 0
        self._lied: list[CopyDone] = []
        self.lies = 0

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        tickets: list[Ticket] = []
        for copy in copies:
            self._seen += copy.kind is self._kind
            if copy.kind is self._kind and 0 < self._first <= self._seen:
                self.lies += 1
                ticket = Ticket(-self.lies)
                self._lied.append(CopyDone(ticket, ok=True))
            else:
                carried = self._link.submit(direction, [copy])
                assert carried is not None, "the lanes are wide enough for this world"
                ticket = carried[0]
            tickets.append(ticket)
        return tickets

    def mark(self, turn: int) -> None:
        self._link.mark(turn)

    def poll(self) -> Sequence[CopyDone]:
        done, self._lied = [*self._link.poll(), *self._lied], []
        return done

    def link_bytes_per_s(self, direction: Direction) -> float:
        return self._link.link_bytes_per_s(direction)

    def close(self) -> None:
        self._link.close()


def world(kind: CopyKind, first: int, depth: int) -> tuple[Result, LyingLink]:
    """40 requests at once, in an HBM for two or three of them."""
    device: NDArray[np.uint8] = allocate_pool(HBM, GEOMETRY.block_bytes)
    host = allocate_pool(DRAM, GEOMETRY.block_bytes)
    device.fill(0xAA)
    host.fill(0xBB)
    link = LyingLink(DuplexLink(device, host, h2d_bytes_per_s=0, d2h_bytes_per_s=0), kind, first)
    clock = BoxClock()
    engine = HashingEngine(
        PatternEngine(GEOMETRY, device, vocabulary=1_000), device, clock, step_ns=8 * MILLISECOND
    )
    limits = Limits(64, 16, GEOMETRY.block_tokens, HBM, DRAM)
    requests = random_requests(5, 40, vocabulary=1_000, span_ms=50)
    try:
        box = Box(make_policy("rotasched"), engine, link, limits, depth=depth, clock=clock)
        return box.run(requests), link
    finally:
        link.close()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("kind", CopyKind)
def test_bytes_that_were_not_carried_are_missed(kind: CopyKind, first: int, depth: int) -> None:
    result, link = world(kind, first, depth)
    assert link.lies > 0
    failed = [ending for ending in result.endings.values() if ending.reason is FinishReason.FAILED]
    assert failed, f"a lost {kind.value} copy went unnoticed"
    assert all("is not what was written" in ending.message for ending in failed)


@pytest.mark.parametrize("depth", [1, 2])
def test_an_honest_link_fails_nobody(depth: int) -> None:
    result, link = world(CopyKind.IN, 0, depth)
    assert link.lies == 0
    assert result.rotations > 10
    assert not [e for e in result.endings.values() if e.reason is FinishReason.FAILED]
