"""The driver: it ends every accepted request exactly once, whatever happens."""

from __future__ import annotations

import threading

import pytest

from superinfer_trt.core.errors import InvariantViolation, RefusalCode, Refused
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.outcome import Ending, TokenEvent
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.units import RequestId
from superinfer_trt.core.view import Limits, View
from superinfer_trt.engine.modelled import ModelledEngine, StepCost
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.runtime.clock import SystemClock
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.driver import Driver
from superinfer_trt.runtime.executor import Executor, Parts
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.transfer.modelled import ModelledLink

LIMITS = Limits(step_tokens=64, seats=8, block_tokens=4, device_blocks=16, host_blocks=32)
GEOMETRY = Geometry(layers=1, kv_heads=1, head_dim=8, element_bytes=2, block_tokens=4)


class Reader:
    """Collects endings; `wait(n)` until n requests have ended."""

    def __init__(self) -> None:
        self.endings: dict[RequestId, list[Ending]] = {}
        self._changed = threading.Condition()

    def emit(self, events: list[TokenEvent]) -> None:
        with self._changed:
            for event in events:
                if event.ending is not None:
                    self.endings.setdefault(event.id, []).append(event.ending)
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.endings) >= count, timeout=30)


def make(policy=None, step_ns: int = 200_000, requests_max: int = 100):
    clock = SystemClock()
    reader = Reader()
    inbox = BoundedInbox(clock, requests_max)
    engine = ModelledEngine(clock, GEOMETRY, StepCost(step_ns, 0, 0, 0))
    link = ModelledLink(clock, GEOMETRY.block_bytes, h2d_bytes_per_s=0, d2h_bytes_per_s=0)
    executor = Executor(
        Parts(
            clock,
            policy or make_policy("rotasched"),
            KvLedger(LIMITS),
            link,
            engine,
            inbox,
            reader,
            LIMITS,
        ),
        depth=2,
    )
    return Driver(executor, inbox, clock), inbox, reader, executor


def request(inbox: BoundedInbox, tokens: int = 4) -> Request:
    return Request(inbox.next_id(), (1, 2, 3), Sampling(max_tokens=tokens))


def test_requests_from_many_threads_end_once() -> None:
    driver, inbox, reader, executor = make()
    driver.start()

    def submit() -> None:
        for _ in range(10):
            inbox.submit(request(inbox))

    threads = [threading.Thread(target=submit) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader.wait(50)
    assert driver.drain(10)
    driver.stop()
    assert all([e.reason for e in endings] == [FinishReason.LENGTH] for endings in reader.endings.values())
    assert inbox.live == 0
    assert executor.totals.accepted == 50


def test_full_inbox_refuses_and_frees_places() -> None:
    driver, inbox, reader, _ = make(requests_max=3)
    for _ in range(3):
        inbox.submit(request(inbox))
    with pytest.raises(Refused, match="limit is 3") as refused:
        inbox.submit(request(inbox))
    assert refused.value.code is RefusalCode.QUEUE_FULL
    driver.start()
    reader.wait(3)
    inbox.submit(request(inbox))
    reader.wait(4)
    driver.stop()


def test_draining_refuses_and_waits() -> None:
    driver, inbox, reader, _ = make()
    driver.start()
    inbox.submit(request(inbox, tokens=20))
    assert driver.drain(30)
    with pytest.raises(Refused) as refused:
        inbox.submit(request(inbox))
    assert refused.value.code is RefusalCode.DRAINING
    assert [e.reason for e in reader.endings[RequestId(0)]] == [FinishReason.LENGTH]
    driver.stop()


def test_stopping_ends_the_live_and_the_unseen() -> None:
    driver, inbox, reader, _ = make(step_ns=50_000_000)
    inbox.submit(request(inbox, tokens=40))
    driver.start()
    driver.stop()
    reader.wait(1)
    assert [e.reason for e in reader.endings[RequestId(0)]] == [FinishReason.FAILED]
    assert not driver.alive
    driver.stop()


class BrokenPolicy:
    """Plans a decode of somebody who is not there."""

    name = "broken"
    rotates = True

    def __init__(self) -> None:
        self.order = make_policy("rotasched").order

    def __call__(self, view: View) -> Plan:
        return Plan(view.turn, view.now, decode=(RequestId(999),))


def test_a_bug_ends_everybody_with_its_reason() -> None:
    driver, inbox, reader, _ = make(BrokenPolicy())
    inbox.submit(request(inbox))
    inbox.submit(request(inbox))
    driver.start()
    reader.wait(2)
    for endings in reader.endings.values():
        assert [e.reason for e in endings] == [FinishReason.FAILED]
        assert InvariantViolation.__name__ in endings[0].message
    with pytest.raises(Refused, match="not live"):
        inbox.submit(request(inbox))
    driver.stop()
    assert "999" in driver.failure
