"""Rank 0: the executor that plans, with ports that tell the others. Knows no policy by name and no wire.

The turn is the usual one: when the link is polled the ranks agree on what has landed, and when the policy has
answered all are told what came in and what is done. One thread, but for `submit` and `cancel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import Clock, Inbox, Policy
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.units import Nanos, RequestId
from superinfer_trt.core.view import Order, View
from superinfer_trt.ranks.codec import Stop, Turn, message_words
from superinfer_trt.ranks.comm import Comm
from superinfer_trt.ranks.engine import RankEngine
from superinfer_trt.ranks.link import AgreedLink
from superinfer_trt.runtime.executor import Parts

BEAT_NS: Nanos = 1_000_000_000
"""Idle ranks meet so often: each knows that the others are there."""


class BeatingClock:
    """core.ports.Clock that parks for a beat at most."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now(self) -> Nanos:
        return self._clock.now()

    def park(self, until: Nanos | None) -> None:
        beat = self._clock.now() + BEAT_NS
        self._clock.park(beat if until is None else min(until, beat))

    def wake(self) -> None:
        self._clock.wake()


class Leader:
    """The inbox and the policy of rank 0 in one: what came in goes out with what was decided.

    `parts`: what its executor is made of, over the given ones. Making one is collective (see Follower).
    """

    def __init__(self, parts: Parts, comm: Comm) -> None:
        self._comm = comm
        self._policy: Policy = parts.policy
        self._inbox: Inbox = parts.inbox
        engine = RankEngine(parts.engine, comm)
        self._link = AgreedLink(parts.transfers, comm, engine.geometry.block_bytes, engine.digest)
        self._came: tuple[Sequence[Request], Sequence[tuple[RequestId, FinishReason]]] = ((), ())
        self._told = 0
        self._ended = False
        self.parts = replace(
            parts,
            clock=BeatingClock(parts.clock),
            policy=self,
            transfers=self._link,
            engine=engine,
            inbox=self,
        )

    # -- core.ports.Policy -------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._policy.name

    @property
    def order(self) -> Order:
        return self._policy.order

    def __call__(self, view: View) -> Plan:
        plan = self._policy(view)
        requests, cancels = self._came
        self._tell(Turn(plan, requests, cancels))
        return plan

    # -- core.ports.Inbox --------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        self._inbox.submit(request)

    def cancel(self, id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> None:
        self._inbox.cancel(id, reason)

    def ended(self, ids: Sequence[RequestId]) -> None:
        self._inbox.ended(ids)

    def drain(self) -> tuple[Sequence[Request], Sequence[tuple[RequestId, FinishReason]]]:
        self._came = self._inbox.drain()
        return self._came

    # -- the end -----------------------------------------------------------------------------------

    def close(self, failure: str = "") -> None:
        """The others stop; `failure`: why rank 0 has. Idempotent. The driver has ended."""
        if self._ended or self._comm.lost:
            return
        self._ended = True
        if failure:
            self._comm.alarm(f"rank 0: {failure}")
            return
        if self._told == self._link.agreements:
            self._link.agree()
        self._tell(Stop())

    def _tell(self, message: Turn | Stop) -> None:
        self._comm.tell(message_words(message))
        self._told += 1
