"""The ranks above 0: a whole executor that plays what rank 0 tells.

Its clock, inbox and policy read from a script, which is filled once a turn; its ledger, link and engine are
its own. So whatever an executor does with a plan every rank does, and the check of plans runs against
each rank's own view: ranks that have drifted apart are found out, not obeyed. One thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from superinfer_trt.core.outcome import TokenEvent
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.units import Nanos, RequestId
from superinfer_trt.core.view import Candidate, Order, View
from superinfer_trt.ranks.codec import Stop, Turn, message_of
from superinfer_trt.ranks.comm import Comm
from superinfer_trt.ranks.engine import RankEngine
from superinfer_trt.ranks.link import AgreedLink
from superinfer_trt.runtime.executor import Executor, Parts


class Script:
    """Clock, policy, inbox and outbox of a follower: the present message of rank 0."""

    name = "rank 0's"

    def __init__(self) -> None:
        self._turn = Turn(Plan(0, 0))

    def play(self, turn: Turn) -> None:
        """The turn that is read from now on."""
        self._turn = turn

    @property
    def order(self) -> Order:
        """Nobody chooses here."""
        return Order(waiting=_by_id, rotary=_by_id, running=_by_id)

    def __call__(self, view: View) -> Plan:
        del view
        return self._turn.plan

    def now(self) -> Nanos:
        return self._turn.plan.now

    def park(self, until: Nanos | None) -> None:
        """A follower waits for rank 0 only."""

    def wake(self) -> None:
        """As `park`."""

    def submit(self, request: Request) -> None:
        """Requests come by rank 0."""
        raise NotImplementedError(f"request {request.id} at a follower's door")

    def cancel(self, id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """As `submit`."""
        raise NotImplementedError(f"cancel of {id} at a follower's door")

    def ended(self, ids: Sequence[RequestId]) -> None:
        """Rank 0 counts its places."""

    def drain(self) -> tuple[Sequence[Request], Sequence[tuple[RequestId, FinishReason]]]:
        return self._turn.requests, self._turn.cancels

    def emit(self, events: Sequence[TokenEvent]) -> None:
        """Rank 0 tells the clients."""


def _by_id(candidate: Candidate) -> int:
    return candidate.id


class Follower:
    """One rank above 0. `parts`: its own ledger, transfers, engine and limits; the rest is replaced."""

    def __init__(self, parts: Parts, comm: Comm, depth: int) -> None:
        self._comm = comm
        self._script = Script()
        engine = RankEngine(parts.engine, comm)
        self._link = AgreedLink(parts.transfers, comm, engine.geometry.block_bytes, engine.digest)
        script = self._script
        played = replace(
            parts,
            clock=script,
            policy=script,
            transfers=self._link,
            engine=engine,
            inbox=script,
            outbox=script,
        )
        self.executor = Executor(played, depth=depth)

    def run(self) -> None:
        """Turns until rank 0 says stop. Raises RankLost, and what an executor raises; the other ranks
        have been told then."""
        try:
            while self._once():
                pass
        except Exception as error:
            self._comm.alarm(f"rank {self._comm.rank}: {type(error).__name__}: {error}")
            raise

    def _once(self) -> bool:
        self._link.agree()
        message = message_of(self._comm.hear())
        if isinstance(message, Stop):
            return False
        self._script.play(message)
        self.executor.turn()
        return True
