"""Several ranks in one process, each an executor on a thread of its own, meeting in a room.

Rank 0 is driven as `support.world.Box` drives one; the others follow. Ledgers are audited each turn on all
ranks, and at the end every slot of every rank is free (C1, C2).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from superinfer_trt.core.outcome import Totals
from superinfer_trt.core.ports import ModelEngine, Policy, TransferEngine
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.step import CopyDone, Landing
from superinfer_trt.core.units import MILLISECOND, RequestId
from superinfer_trt.core.view import Limits
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.ranks.comm import Comm
from superinfer_trt.ranks.follower import Follower, Script
from superinfer_trt.ranks.leader import Leader
from superinfer_trt.ranks.room import Room
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Executor, Parts
from support.world import BoxClock, Streams

PATIENCE_S = 60.0


class AuditedLedger(KvLedger):
    """Audits itself each turn."""

    def land(self, done: Iterable[CopyDone]) -> list[Landing]:
        landings = super().land(done)
        self.audit()
        return landings


@dataclass(frozen=True)
class Own:
    """What is a rank's own."""

    engine: ModelEngine
    link: TransferEngine


@dataclass
class RankWorld:
    """What came of it; `totals` by rank, `errors` of the ranks above 0."""

    streams: Streams = field(default_factory=Streams)
    totals: dict[int, Totals] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)
    turns: int = 0
    lines: list[str] = field(default_factory=list)


def run_ranks(
    ranks: int,
    requests: Iterable[Request],
    policy: Policy,
    limits: Limits,
    make: Callable[[int, Comm], Own],
    *,
    depth: int = 2,
    cancels: Sequence[tuple[int, RequestId]] = (),
    turns_max: int = 20_000,
    timeout_s: float = PATIENCE_S,
) -> RankWorld:
    """Serves `requests` on `ranks` ranks; `cancels` are (turn, id). What rank 0 raises comes through, after
    the others have ended."""
    world, room = RankWorld(), Room(ranks, timeout_s)

    def follow(rank: int) -> None:
        comm = room.comm(rank)
        try:
            own = make(rank, comm)
            script = Script()
            ledger = AuditedLedger(limits)
            parts = Parts(script, script, ledger, own.link, own.engine, script, script, limits)
            follower = Follower(parts, comm, depth)
            follower.run()
            ledger.land(())
            assert ledger.empty, f"rank {rank} has leaked slots (C2)"
            world.totals[rank] = follower.executor.totals
        except Exception as error:
            world.errors[rank] = error
            room.part(f"rank {rank}: {error}")

    threads = [threading.Thread(target=follow, args=(rank,)) for rank in range(1, ranks)]
    for thread in threads:
        thread.start()
    try:
        _lead(world, room.comm(0), list(requests), policy, limits, make, depth, cancels, turns_max)
    except BaseException as error:
        room.part(f"rank 0: {error}")
        raise
    finally:
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a follower hangs"
    return world


def _lead(
    world: RankWorld,
    comm: Comm,
    requests: list[Request],
    policy: Policy,
    limits: Limits,
    make: Callable[[int, Comm], Own],
    depth: int,
    cancels: Sequence[tuple[int, RequestId]],
    turns_max: int,
) -> None:
    own = make(0, comm)
    clock = BoxClock()
    inbox = BoundedInbox(clock, 100_000)
    ledger = AuditedLedger(limits)
    leader = Leader(Parts(clock, policy, ledger, own.link, own.engine, inbox, world.streams, limits), comm)
    executor = Executor(leader.parts, depth=depth)
    todo = sorted(requests, key=lambda r: (r.arrival, r.id), reverse=True)
    while todo or not executor.idle:
        while todo and todo[-1].arrival <= clock.time:
            inbox.submit(todo.pop())
        for turn, id in cancels:
            if turn == world.turns:
                inbox.cancel(id, FinishReason.CANCELLED)
        if not executor.turn():
            until = clock.time + MILLISECOND // 5
            clock.park(max(until, todo[-1].arrival) if todo and executor.idle else until)
        world.turns += 1
        assert world.turns < turns_max, "not drained"
    ledger.land(())
    assert ledger.empty, "rank 0 has leaked slots (C2)"
    assert len(world.streams.endings) == len(requests), "a request was lost (C3)"
    world.totals[0] = executor.totals
    world.lines = executor.trace.tail()
    leader.close()
