"""Fail at n: of each port, each call in turn raises or refuses once, until a run needs fewer calls.

A small crowd in a small HBM, over the production driver (stepped in this thread), executor and ledger. What
may go on goes on and everybody is served; what may not ends everybody with a status. Either way each accepted
request ends exactly once (C3), streams have no gap (C4), and what was told is right (C12).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from superinfer_trt.core.errors import EngineFailed, InvariantViolation, Refused, TransferFailed
from superinfer_trt.core.outcome import Ending
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.step import CopyDone
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.core.view import Limits
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.driver import Driver
from superinfer_trt.runtime.executor import Executor, Parts
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.sim.cells import CellEngine, CellLink, Cells, expected_tokens
from superinfer_trt.sim.chaos import VOCABULARY, geometry_of
from superinfer_trt.sim.chaos_check import Checker
from superinfer_trt.sim.faults import Faults, FlakyEngine, UnsteadyClock
from superinfer_trt.transfer.modelled import ModelledLink

LIMITS = Limits(step_tokens=12, seats=4, block_tokens=2, device_blocks=6, host_blocks=24)
REQUESTS = 5
CALLS_MAX = 3_000

NOTHING_WRONG = frozenset({FinishReason.LENGTH})
ENDS_SOME = NOTHING_WRONG | {FinishReason.FAILED}


@dataclass(frozen=True)
class Fault:
    """What the n-th call of `port.method` does. `fatal`: the driver ends, with everybody failed."""

    port: str
    method: str
    how: Callable[..., Any]
    fatal: bool = False
    reasons: frozenset[FinishReason] = NOTHING_WRONG

    def __str__(self) -> str:
        return f"{self.port}.{self.method}-{self.how.__name__}"


def raising(error: Exception) -> Callable[..., Any]:
    def fail(honest: Callable[..., Any], *arguments: Any) -> Any:
        raise type(error)(*error.args)

    fail.__name__ = type(error).__name__
    return fail


def after(error: Exception) -> Callable[..., Any]:
    """The call is made, and then fails."""

    def fail(honest: Callable[..., Any], *arguments: Any) -> Any:
        honest(*arguments)
        raise type(error)(*error.args)

    fail.__name__ = f"{type(error).__name__}-after"
    return fail


def busy(honest: Callable[..., Any], *arguments: Any) -> None:
    return None


def idle(honest: Callable[..., Plan], view: Any) -> Plan:
    return Plan(view.turn, view.now)


def nothing_yet(honest: Callable[..., Any]) -> tuple[()]:
    return ()


def all_failed(honest: Callable[..., Any]) -> list[CopyDone]:
    return [CopyDone(done.ticket, ok=False) for done in honest()]


BUG = InvariantViolation("a bug, on purpose")
TROUBLE = RuntimeError("trouble, on purpose")
FAULTS = [
    Fault("clock", "now", raising(TROUBLE), fatal=True),
    Fault("policy", "__call__", raising(BUG), fatal=True),
    Fault("policy", "__call__", idle),
    *(
        Fault("ledger", method, raising(BUG), fatal=True)
        for method in ("open", "apply", "submitted", "land", "commit_all", "release", "slots")
    ),
    *(Fault("ledger", method, after(BUG), fatal=True) for method in ("apply", "land", "release")),
    Fault("transfers", "submit", busy),
    Fault("transfers", "submit", raising(TransferFailed("poisoned, on purpose")), fatal=True),
    Fault("transfers", "submit", raising(ValueError("overlap, on purpose")), fatal=True),
    Fault("transfers", "mark", raising(TransferFailed("poisoned, on purpose")), fatal=True),
    Fault("transfers", "poll", raising(TransferFailed("poisoned, on purpose")), fatal=True),
    Fault("transfers", "poll", nothing_yet),
    Fault("transfers", "poll", all_failed),
    Fault("transfers", "link_bytes_per_s", raising(TROUBLE), fatal=True),
    Fault("engine", "launch", raising(EngineFailed("on purpose")), reasons=ENDS_SOME),
    Fault("engine", "launch", raising(TROUBLE), fatal=True),
    Fault("engine", "collect", after(EngineFailed("on purpose")), reasons=ENDS_SOME),
    Fault("engine", "collect", raising(TROUBLE), fatal=True),
    Fault("inbox", "drain", raising(TROUBLE), fatal=True),
    Fault("inbox", "ended", raising(TROUBLE), fatal=True),
    Fault("outbox", "emit", raising(TROUBLE), fatal=True),
]


class Port:
    """Hands every call on, but for the n-th of the fault's method."""

    def __init__(self, inner: Any, fault: Fault, n: int, reached: list[bool]) -> None:
        self._inner = inner
        self._fault = fault
        self._left = n
        self._reached = reached

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return self._counted(value) if name == self._fault.method else value

    def __call__(self, *arguments: Any) -> Any:
        honest = self._inner
        return (self._counted(honest) if self._fault.method == "__call__" else honest)(*arguments)

    def _counted(self, honest: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                self._reached.append(True)
                return self._fault.how(honest, *arguments)
            return honest(*arguments)

        return call


class Crowd:
    """Clients: some come at once, each of the others when somebody has ended."""

    def __init__(self) -> None:
        self.inbox: BoundedInbox | None = None
        self.checker: Checker | None = None
        self.left = REQUESTS
        self.refused = 0

    def come(self) -> None:
        self.left -= 1
        assert self.inbox is not None
        assert self.checker is not None
        id = self.inbox.next_id()
        prompt = tuple((id * 7 + at) % VOCABULARY for at in range(3 + id % 3))
        slo = Slo(ttft=MILLISECOND, tbt=MILLISECOND)
        request = Request(id, prompt, Sampling(max_tokens=4 + id % 3, seed=id), slo)
        try:
            self.inbox.submit(request)
        except Refused:
            self.refused += 1
        else:
            self.checker.accepted(request)

    def emit(self, events: Any) -> None:
        for event in events:
            if event.ending is not None and self.left:
                self.come()


class StoppingClock(UnsteadyClock):
    """Parked for ever means that all is done."""

    stop: Callable[[], None] = staticmethod(lambda: None)

    def park(self, until: int | None) -> None:
        super().park(until)
        if until is None:
            self.stop()


@dataclass
class Run:
    reached: bool
    failure: str
    endings: dict[Any, Ending]
    refused: int
    accepted: int
    empty: bool
    rotations: int


def run(fault: Fault, n: int, depth: int) -> Run:
    reached: list[bool] = []

    def port(name: str, inner: Any) -> Any:
        return Port(inner, fault, n, reached) if name == fault.port else inner

    clock = StoppingClock(look_ns=50_000)
    ports_clock = port("clock", clock)
    cells, geometry = Cells(LIMITS), geometry_of(LIMITS)
    engine = FlakyEngine(
        CellEngine(cells, geometry, VOCABULARY), clock, MILLISECOND, Faults(), Random(0), lambda line: None
    )
    link = CellLink(cells, ModelledLink(clock, geometry.block_bytes, 1e6, 1e6))
    crowd = Crowd()
    checker = Checker(
        LIMITS,
        crowd,
        lambda request: expected_tokens(request, VOCABULARY),
        lambda line: None,
        rejected_tokens_max=-1,
    )
    ledger, inbox = KvLedger(LIMITS), BoundedInbox(ports_clock, 100)
    crowd.inbox, crowd.checker = inbox, checker
    parts = Parts(
        ports_clock,
        port("policy", make_policy("rotasched", beta_ttft=0)),
        port("ledger", ledger),
        port("transfers", link),
        port("engine", engine),
        port("inbox", inbox),
        port("outbox", checker),
        LIMITS,
    )
    executor = Executor(parts, depth)
    driver = Driver(executor, inbox, clock)
    clock.stop = driver._stopping.set
    for _ in range(3):
        crowd.come()
    with contextlib.suppress(RuntimeError):  # the call that fails may be the driver's last of all
        driver._run()  # in this thread
    checker.finish()
    ledger.land(())
    return Run(
        bool(reached),
        driver.failure,
        checker.endings,
        crowd.refused,
        len(checker.tokens),
        ledger.empty,
        executor.totals.rotations_out,
    )


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_each_call_fails_once(fault: Fault, depth: int) -> None:
    for n in range(1, CALLS_MAX):
        done = run(fault, n, depth)
        assert done.accepted + done.refused <= REQUESTS
        if not done.reached:
            assert n > 2, "it is never called"
            assert not done.failure
            assert done.rotations > 0, "nobody was forced out"
            return
        reasons = {ending.reason for ending in done.endings.values()}
        if fault.fatal:
            if done.failure:
                assert "on purpose" in done.failure, f"call {n}"
                assert reasons <= ENDS_SOME
            else:  # the call was made when everybody had been served and the driver stopped
                assert (len(done.endings), reasons) == (REQUESTS, NOTHING_WRONG), f"call {n}"
        else:
            assert not done.failure, f"call {n}: {done.failure}"
            assert done.accepted == REQUESTS
            assert reasons <= fault.reasons, f"call {n}"
            assert done.empty, f"call {n}: slots leaked (C2)"
    pytest.fail(f"still called after {CALLS_MAX} calls")
