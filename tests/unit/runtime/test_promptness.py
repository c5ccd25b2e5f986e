"""From acceptance to plan in at most one turn: whoever is let in while a turn runs is planned in the next.

Counted in turns, not in time: a request is submitted inside every call that a turn makes to one of its
ports, as another thread might, and the first plan that is made after that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.request import Request, Sampling
from superinfer_trt.core.units import MILLISECOND, RequestId
from superinfer_trt.core.view import Limits, View
from superinfer_trt.engine.modelled import ModelledEngine, StepCost
from superinfer_trt.sched.registry import make_policy
from support.links import PollLink
from support.world import Box, BoxClock

GEOMETRY = Geometry(layers=1, kv_heads=1, head_dim=8, element_bytes=2, block_tokens=4)
LIMITS = Limits(step_tokens=64, seats=16, block_tokens=4, device_blocks=64, host_blocks=64)
LATE = RequestId(100)
PORTS = ("policy", "launch", "collect", "poll", "emit", "now")


class Moments:
    """Counts the calls of one port; at the chosen one somebody is let in, before or after it."""

    def __init__(self, at: int, *, before: bool) -> None:
        self._at, self._before = at, before
        self._calls = 0
        self.submit: Callable[[], None] = lambda: None

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            self._calls += 1
            mine = self._calls == self._at
            if mine and self._before:
                self.submit()
            result = call(*arguments)
            if mine and not self._before:
                self.submit()
            return result

        return wrapped


class Counted:
    """A policy that knows in which turn it first named the late request; a turn begins with its drain."""

    name = "counted"

    def __init__(self, name: str) -> None:
        self._inner = make_policy(name)
        self.order = self._inner.order
        self.turn = 0
        self.named_in = 0
        self.decide: Callable[[View], Plan] = self._inner

    def __call__(self, view: View) -> Plan:
        plan = self.decide(view)
        if not self.named_in and LATE in plan.admit:
            assert any(chunk.id == LATE for chunk in plan.prefill), "admitted, but nothing is computed"
            self.named_in = self.turn
        return plan


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", ["rota-slack", "rotasched", "fcfs"])
def test_the_next_plan_names_who_was_let_in(name: str, depth: int, port: str) -> None:
    seen = 0
    for at in range(1, 14):
        for before in (True, False):
            moments = Moments(at, before=before)
            waited = turns_until_planned(name, depth, port, moments)
            assert waited is not None, "the port was called less often than the test needs"
            assert 0 <= waited <= 1, (at, before, waited)
            seen += 1
    assert seen == 26


def turns_until_planned(name: str, depth: int, port: str, moments: Moments) -> int | None:
    """Turns from the one under way, or last ended, at the submission to the one whose plan names it."""
    clock, policy, link = BoxClock(), Counted(name), PollLink()
    engine = ModelledEngine(clock, GEOMETRY, StepCost(MILLISECOND, 0, 0, 0))
    box = Box(policy, engine, link, LIMITS, depth=depth, clock=clock)
    count_turns(box, policy)
    owner: object = {"policy": policy, "poll": link, "emit": box.streams, "now": clock}.get(port, engine)
    attribute = "decide" if port == "policy" else port
    submitted_in: list[int] = []

    def submit() -> None:
        submitted_in.append(policy.turn)
        box.inbox.submit(Request(LATE, (1, 2, 3, 4, 5), Sampling(max_tokens=3), arrival=clock.time))

    moments.submit = submit
    setattr(owner, attribute, moments.around(getattr(owner, attribute)))
    for id in range(3):
        box.inbox.submit(Request(RequestId(id), (1, 2, 3), Sampling(max_tokens=20)))
    for _ in range(200):
        box.executor.turn()
        if policy.named_in:
            return policy.named_in - submitted_in[0]
    return None


def count_turns(box: Box, policy: Counted) -> None:
    drain = box.inbox.drain

    def counted() -> Any:
        policy.turn += 1
        return drain()

    box.inbox.drain = counted  # type: ignore[method-assign]


def test_a_turn_that_drained_later_would_be_seen() -> None:
    """The measure itself: an inbox that holds everybody back for one drain more is caught."""
    clock, policy = BoxClock(), Counted("fcfs")
    box = Box(policy, ModelledEngine(clock, GEOMETRY, StepCost(MILLISECOND, 0, 0, 0)), PollLink(), LIMITS)
    held: list[tuple[Sequence[Request], Sequence[Any]]] = [((), ())]
    drain = box.inbox.drain

    def late() -> tuple[Sequence[Request], Sequence[Any]]:
        held.append(drain())
        return held.pop(0)

    box.inbox.drain = late  # type: ignore[method-assign]
    count_turns(box, policy)
    box.inbox.submit(Request(LATE, (1, 2, 3), Sampling(max_tokens=2)))
    while not policy.named_in:
        box.executor.turn()
    assert policy.named_in == 2  # submitted before the first
