"""The soak in simulated time: a million requests at 1.5 times the capacity, hours of service in minutes.

Executor, ledger, policy and inbox are the production ones, over a modelled engine whose tokens are hashes of
all tokens before them, a modelled link and a clock that jumps. Every turn is audited; every answer is
compared, token by token, with what its request gave alone; memory of this process is looked at. One thread,
no wire: what clients do is asked of the service by `python -m soak`.

    PYTHONPATH=.:tests python -m soak.virtual --requests 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from soak.audited_server import Auditor
from soak.watch import WARM_UP_SHARE, slope, status_of
from superinfer_trt.core.errors import Refused
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.outcome import TokenEvent
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, SECOND, Nanos, RequestId
from superinfer_trt.core.view import Limits
from superinfer_trt.engine.modelled import ModelledEngine, StepCost
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Executor, Parts
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.sim.clock import SimClock
from superinfer_trt.sim.link import LinkModel, SimLink

LIMITS = Limits(step_tokens=256, seats=32, block_tokens=16, device_blocks=96, host_blocks=1024)
SHAPE = Geometry(layers=32, kv_heads=8, head_dim=128, element_bytes=2, block_tokens=16)
STEP = StepCost(base_ns=8e6, row_ns=5e4, prefill_token_ns=2e4, context_token_ns=0.0)
LIVE_MAX = 256
CANCEL_SHARE = 0.05
LOOK_EVERY_REQUESTS = 5_000
JOBS = 64
SLOPE_BYTES_MAX = 8.0
"""Of a request, after the warm-up; an entry of a list that is never cleaned is that much."""
LOOKS_MIN = 20


@dataclass
class Crowd:
    """core.ports.Outbox: reads all answers. `awaited`: of each live request the tokens it gave alone."""

    awaited: dict[RequestId, Sequence[int]] = field(default_factory=dict)
    read: dict[RequestId, int] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    learning: list[int] | None = None
    wrong: list[str] = field(default_factory=list)

    def emit(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            if event.sampled is not None:
                self.tokens += 1
                token, at = event.sampled.token, self.read[event.id]
                self.read[event.id] = at + 1
                if self.learning is not None:
                    self.learning.append(token)
                elif at != event.index or self.awaited[event.id][at : at + 1] != [token]:
                    self.wrong.append(f"request {event.id}: token {event.index} is {token}")
            if event.ending is not None:
                reason = event.ending.reason
                self.ended[reason.value] += 1
                read, awaited = self.read.pop(event.id), self.awaited.pop(event.id)
                whole = reason in {FinishReason.LENGTH, FinishReason.STOP}
                if self.learning is None and whole and read != len(awaited):
                    self.wrong.append(f"request {event.id}: {read} tokens of {len(awaited)}")


class Soak:
    """One executor under load. Raises what the auditor finds."""

    def __init__(self, policy: str, seed: int) -> None:
        self.dice = random.Random(seed)
        self.clock = SimClock()
        self.crowd = Crowd()
        self.inbox = BoundedInbox(self.clock, LIVE_MAX)
        self.ledger = KvLedger(LIMITS)
        self.link = SimLink(self.clock, LinkModel(2e10, 2e10), SHAPE.block_bytes, SHAPE.layers)
        engine = ModelledEngine(self.clock, SHAPE, STEP, requests_max=4 * LIVE_MAX)
        parts = Parts(
            self.clock,
            make_policy(policy),
            self.ledger,
            self.link,
            engine,
            self.inbox,
            self.crowd,
            LIMITS,
        )
        self.executor = Executor(parts, depth=2)
        self.executor.observe(_Raising(self.executor.totals, self.ledger))
        self.jobs = [self._job(id) for id in range(JOBS)]
        self.alone: list[Sequence[int]] = []
        self.refused = 0

    def _job(self, number: int) -> Request:
        dice = self.dice
        tokens = dice.randint(40, 80) if number % 10 == 0 else dice.randint(1, 6)
        prompt = tuple(dice.randrange(32_000) for _ in range(dice.randint(1, 100)))
        sampling = Sampling(
            max_tokens=tokens, temperature=dice.choice([0.0, 0.8]), seed=dice.randrange(1 << 32)
        )
        return Request(RequestId(0), prompt, sampling, Slo(200 * MILLISECOND, 100 * MILLISECOND))

    def learn(self) -> None:
        """Each job alone."""
        for number in range(JOBS):
            self.crowd.learning = []
            self.alone.append(())
            self.submit(number)
            self.drain()
            self.alone[number] = self.crowd.learning
        self.crowd.learning = None

    def submit(self, number: int) -> None:
        """One more of that job, or a refusal."""
        id = self.inbox.next_id()
        self.crowd.awaited[id], self.crowd.read[id] = self.alone[number], 0
        try:
            self.inbox.submit(replace(self.jobs[number], id=id, arrival=self.clock.now()))
        except Refused:
            self.refused += 1
            del self.crowd.awaited[id], self.crowd.read[id]

    def turn(self, due: Nanos | None) -> None:
        """One turn; where there is nothing to do time goes on to `due` or the next landing."""
        if self.executor.turn():
            return
        moments = [moment for moment in (self.link.next_landing(), due) if moment is not None]
        now = self.clock.now()
        self.clock.park(max(now, min(moments)) if moments else now + MILLISECOND)

    def drain(self) -> None:
        """Until nobody is left."""
        while self.inbox.live or not self.executor.idle:
            self.turn(None)

    def capacity(self, requests: int) -> float:
        """Requests/s of simulated time with the house always full."""
        start, goal = self.clock.now(), self.crowd.ended.total() + requests
        while self.crowd.ended.total() < goal:
            while self.inbox.live < LIVE_MAX:
                self.submit(self.dice.randrange(JOBS))
            self.turn(None)
        rate = requests * SECOND / (self.clock.now() - start)
        self.drain()
        return rate

    def load(self, rate: float, requests: int) -> list[tuple[float, float]]:
        """Poisson arrivals; returns (requests so far, bytes of this process), now and then."""
        due, looks = self.clock.now(), []
        for sent in range(requests):
            due += round(self.dice.expovariate(rate) * SECOND)
            while self.clock.now() < due:
                self.turn(due)
            self.submit(self.dice.randrange(JOBS))
            if self.crowd.awaited and self.dice.random() < CANCEL_SHARE:
                self.inbox.cancel(self.dice.choice(list(self.crowd.awaited)))
            if sent % LOOK_EVERY_REQUESTS == 0:
                looks.append((float(sent), float(status_of(os.getpid())["RssAnon"] << 10)))
        self.drain()
        return looks


class _Raising(Auditor):
    """Nobody serves here: what is found may be raised."""

    def turned(self, live: object, now: Nanos) -> None:
        self._look(list(live), now)  # type: ignore[call-overload]


def soak(requests: int, times: float, policy: str, seed: int) -> dict[str, object]:
    """The figures of a run; `wrong` is empty when all is well."""
    world = Soak(policy, seed)
    world.learn()
    capacity = world.capacity(max(200, requests // 200))
    start, refused = world.clock.now(), world.refused
    looks = world.load(capacity * times, requests)
    totals, wrong = world.executor.totals, world.crowd.wrong[:100]
    ended = world.crowd.ended.total()
    world.ledger.audit()
    if not totals.accepted == ended == sum(totals.finished.values()):
        wrong.append(f"{totals.accepted} accepted, {ended} ended")
    if totals.output_tokens != world.crowd.tokens:
        wrong.append(f"{totals.output_tokens} tokens made, {world.crowd.tokens} read")
    if (world.ledger.device_free, world.ledger.host_free) != (LIMITS.device_blocks, LIMITS.host_blocks):
        wrong.append("blocks are not free at the end")
    if not totals.rotations_out:
        wrong.append("nobody was rotated: this load shows nothing")
    warm = looks[int(len(looks) * WARM_UP_SHARE) :]
    per_request = slope(warm) if len(warm) > 1 else 0.0
    if len(warm) >= LOOKS_MIN and per_request > SLOPE_BYTES_MAX:
        wrong.append(f"{per_request:.1f} bytes stay of each request, {SLOPE_BYTES_MAX} at most")
    return {
        "policy": policy,
        "capacity_rps": round(capacity, 1),
        "sent": requests,
        "refused": world.refused - refused,
        "accepted": totals.accepted,
        "ended": dict(world.crowd.ended),
        "simulated_s": round((world.clock.now() - start) / SECOND),
        "turns": totals.turns,
        "output_tokens": totals.output_tokens,
        "rotations": totals.rotations_out,
        "anonymous_mib": [round(size / (1 << 20), 1) for _, size in (warm[:1] + warm[-1:])],
        "slope_bytes_per_request": round(per_request, 2),
        "wrong": wrong,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak.virtual", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--times", type=float, default=1.5, help="the measured capacity")
    parser.add_argument("--policy", default="rotasched")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    figures = soak(options.requests, options.times, options.policy, options.seed)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 1 if figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
