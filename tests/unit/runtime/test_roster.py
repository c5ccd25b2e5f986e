"""The records of the live requests hold nothing of those that have ended."""

from __future__ import annotations

from superinfer_trt.core.outcome import Totals
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.units import RequestId
from superinfer_trt.core.view import Limits
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.runtime.heap import HEAP_SPARE
from superinfer_trt.runtime.roster import Roster
from superinfer_trt.sched.registry import make_policy

LIMITS = Limits(step_tokens=64, seats=8, block_tokens=4, device_blocks=100, host_blocks=100)


def test_a_large_request_that_lives_on_keeps_no_trace_of_smaller_ones() -> None:
    """Found by a soak of a million requests: 77 bytes stayed of each."""
    roster = Roster(LIMITS, make_policy("fcfs").order, Totals())
    ledger = KvLedger(LIMITS)

    def admitted(id: int, tokens: int) -> None:
        roster.arrive(Request(RequestId(id), (1,), Sampling(max_tokens=tokens)))
        roster.enter(Plan(turn=id, now=id, admit=(RequestId(id),)), now=id)

    def ended(id: int) -> None:
        (event,) = roster.end(roster.live[RequestId(id)], FinishReason.CANCELLED, id)
        assert event.ending is not None

    def promised() -> tuple[int, int]:
        view = roster.view(0, 0, ledger, 0, 0)
        return view.promised_blocks, view.promised_blocks_max

    admitted(0, tokens=199)
    for id in range(1, 5_000):
        admitted(id, tokens=3 + id % 7)
        ended(id)
    assert len(roster._promised_heap) <= 2 + HEAP_SPARE
    assert promised() == (50, 50)
    admitted(5_000, tokens=7)
    ended(0)
    assert promised() == (2, 2)
    ended(5_000)
    assert promised() == (0, 0)
