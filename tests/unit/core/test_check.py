"""check_plan: every rule has a plan that breaks it and nothing else, and one that just keeps it (C7).

The moment: 8 device blocks of 4 tokens, 2 of them free, 6 host blocks, 2 of them free and 1 reclaimable.
"""

from __future__ import annotations

import dataclasses

import pytest

from superinfer_trt.core.check import check_plan
from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Chunk, Plan, Rejection, SyncRun
from superinfer_trt.core.units import RequestId
from superinfer_trt.core.view import CandidateValue, Limits, View

NEW, BIG, FILL, OLD, EDGE, LONG, PARKED, PARKED_BIG, LEAVING, SPENT = map(RequestId, range(10))
NOBODY = RequestId(99)
PEOPLE = {
    one.id: one
    for one in (
        CandidateValue(NEW, Phase.WAITING, target_tokens=7, total_blocks=2, max_blocks=3),
        CandidateValue(BIG, Phase.WAITING, target_tokens=12, total_blocks=3, max_blocks=4),
        CandidateValue(
            FILL,
            Phase.PREFILL,
            target_tokens=8,
            computed_tokens=4,
            device_blocks=2,
            total_blocks=1,
            full_blocks=1,
        ),
        CandidateValue(OLD, Phase.DECODE, computed_tokens=6, device_blocks=2, total_blocks=2, full_blocks=1),
        # Its blocks are full: a token needs another. One of them is in DRAM already.
        CandidateValue(
            EDGE,
            Phase.DECODE,
            computed_tokens=8,
            device_blocks=2,
            total_blocks=2,
            full_blocks=2,
            host_blocks=1,
            synced_blocks=1,
        ),
        CandidateValue(
            LONG, Phase.DECODE, computed_tokens=15, device_blocks=4, total_blocks=4, full_blocks=3
        ),
        CandidateValue(PARKED, Phase.ROTARY, computed_tokens=7, host_blocks=2, total_blocks=2),
        CandidateValue(PARKED_BIG, Phase.ROTARY, computed_tokens=12, host_blocks=3, total_blocks=3),
        CandidateValue(LEAVING, Phase.ROTATING_OUT, computed_tokens=4, device_blocks=1, total_blocks=1),
        CandidateValue(SPENT, Phase.DECODE, computed_tokens=3, remaining_tokens=0, device_blocks=1),
    )
}
VIEW = View(
    turn=5,
    now=1000,
    limits=Limits(step_tokens=6, seats=3, block_tokens=4, device_blocks=8, host_blocks=6),
    waiting=[],
    rotary=[],
    running=[],
    live=PEOPLE,
    device_free=2,
    device_leaving=1,
    host_free=2,
    host_backing=1,
    promised_blocks=6,
    promised_blocks_max=4,
    waiting_blocks=5,
    rotary_blocks=5,
    link_out_blocks=2,
    link_in_blocks=2,
)


def plan(**fields: object) -> Plan:
    return Plan(**{"turn": 5, "now": 1000, **fields})  # type: ignore[arg-type]


LEGAL: dict[str, tuple[Plan, dict[str, object]]] = {
    "nothing": (plan(), {}),
    "an admission and its first chunk": (plan(admit=(NEW,), prefill=(Chunk(NEW, 0, 6),)), {}),
    "an admission that waits for its chunk": (plan(admit=(NEW,)), {}),
    "just the tokens of a step": (plan(prefill=(Chunk(FILL, 4, 4),), decode=(OLD, LONG)), {}),
    "a token that needs a block": (plan(decode=(EDGE,)), {"device_free": 1}),
    "a rotation in as large as the room": (plan(rotate_in=(PARKED,)), {}),
    "a lone rotation in over the allowance": (plan(rotate_in=(PARKED,)), {"link_in_blocks": 1}),
    "only dirty blocks cross": (plan(rotate_out=(EDGE,)), {"link_out_blocks": 1}),
    "a lone rotation out over the allowance": (
        plan(rotate_out=(LONG,)),
        {"host_free": 4, "link_out_blocks": 1},
    ),
    "dirty blocks may take host slots that only back others": (plan(rotate_out=(OLD,)), {"host_free": 1}),
    "the next full block is synced": (plan(sync=(SyncRun(EDGE, 1, 1),)), {}),
    "synced while it decodes": (plan(decode=(OLD,), sync=(SyncRun(OLD, 0, 1),)), {}),
    "an eviction": (plan(evict=(FILL,), decode=(OLD,)), {}),
    "a refusal": (plan(reject=(Rejection(BIG, "too large"),), admit=(NEW,)), {}),
    "overcommit where nobody rotates": (
        plan(admit=(NEW,)),
        {"promised_blocks": 100, "limits": dataclasses.replace(VIEW.limits, host_blocks=0)},
    ),
}

# name: (plan, what is different in the view, the message)
ILLEGAL: dict[str, tuple[Plan, dict[str, object], str]] = {
    "another turn": (plan(turn=4), {}, "turn and now"),
    "another time": (plan(now=999), {}, "turn and now"),
    "nobody": (plan(decode=(NOBODY,)), {}, "99, which is not live"),
    "admit of a running one": (plan(admit=(OLD,)), {}, "admit of 3, which is decode"),
    "admit of a rotary one": (plan(admit=(PARKED,)), {}, "admit of 6, which is rotary"),
    "reject of a running one": (plan(reject=(Rejection(OLD, ""),)), {}, "reject of 3, which is decode"),
    "decode in prefill": (plan(decode=(FILL,)), {}, "decode of 2, which is prefill"),
    "decode on its way out": (plan(decode=(LEAVING,)), {}, "decode of 8, which is rotating_out"),
    "decode in DRAM": (plan(decode=(PARKED,)), {}, "decode of 6, which is rotary"),
    "rotation out in prefill": (plan(rotate_out=(FILL,)), {}, "rotate_out of 2, which is prefill"),
    "rotation out twice": (plan(rotate_out=(LEAVING,)), {}, "rotate_out of 8, which is rotating_out"),
    "rotation in of a running one": (plan(rotate_in=(OLD,)), {}, "rotate_in of 3, which is decode"),
    "rotation in before it is out": (plan(rotate_in=(LEAVING,)), {}, "rotate_in of 8, which is rotating_out"),
    "sync of a rotary one": (plan(sync=(SyncRun(PARKED, 0, 1),)), {}, "sync of 6, which is rotary"),
    "evict of a rotary one": (plan(evict=(PARKED,)), {}, "evict of 6, which is rotary"),
    "evict of a waiting one": (plan(evict=(NEW,)), {}, "evict of 0, which is waiting"),
    "chunk of one not admitted": (plan(prefill=(Chunk(NEW, 0, 3),)), {}, "prefill of 0, which is waiting"),
    "chunk of a decoding one": (plan(prefill=(Chunk(OLD, 6, 1),)), {}, "prefill of 3, which is decode"),
    "decoded twice": (plan(decode=(OLD, OLD)), {}, "named twice"),
    "run and moved": (plan(decode=(OLD,), rotate_out=(OLD,)), {}, "3 is named twice"),
    "run and evicted": (plan(decode=(OLD,), evict=(OLD,)), {}, "3 is named twice"),
    "two chunks of one": (plan(prefill=(Chunk(FILL, 4, 1), Chunk(FILL, 4, 1))), {}, "2 is named twice"),
    "rejected twice": (plan(reject=(Rejection(NEW, ""), Rejection(NEW, ""))), {}, "0 is named twice"),
    "admitted twice": (plan(admit=(NEW, NEW)), {"device_free": 8}, "one admission a request"),
    "admitted and rejected": (plan(admit=(NEW,), reject=(Rejection(NEW, ""),)), {}, "admitted and rejected"),
    "synced and moved": (
        plan(rotate_out=(EDGE,), sync=(SyncRun(EDGE, 1, 1),)),
        {},
        "nobody is synced and moved",
    ),
    "synced and evicted": (plan(evict=(OLD,), sync=(SyncRun(OLD, 0, 1),)), {}, "nobody is synced and moved"),
    "two sync runs of one": (
        plan(sync=(SyncRun(LONG, 0, 1), SyncRun(LONG, 0, 1))),
        {},
        "one sync run a request",
    ),
    "a token too many": (
        plan(prefill=(Chunk(FILL, 4, 4),), decode=(OLD, LONG)),
        {"limits": dataclasses.replace(VIEW.limits, step_tokens=5)},
        "6 tokens > step_tokens 5",
    ),
    "a row too many": (
        plan(prefill=(Chunk(FILL, 4, 1),), decode=(OLD, LONG)),
        {"limits": dataclasses.replace(VIEW.limits, seats=2)},
        "3 rows > seats 2",
    ),
    "a chunk with a hole before it": (plan(prefill=(Chunk(FILL, 5, 1),)), {}, "chunk of 2 starts off"),
    "a chunk computed again": (plan(prefill=(Chunk(FILL, 3, 1),)), {}, "chunk of 2 starts off"),
    "a chunk past the prompt": (plan(prefill=(Chunk(FILL, 4, 5),)), {}, "chunk of 2 has length 5"),
    "an empty chunk": (plan(prefill=(Chunk(FILL, 4, 0),)), {}, "chunk of 2 has length 0"),
    "a token nobody asked for": (plan(decode=(SPENT,)), {}, "decode of 9, which has no token left"),
    "an admission without room": (plan(admit=(NEW,)), {"device_free": 1}, "2 device blocks > 1 free"),
    "a rotation in without room": (plan(rotate_in=(PARKED,)), {"device_free": 1}, "2 device blocks > 1 free"),
    "growth without room": (plan(decode=(EDGE,)), {"device_free": 0}, "1 device blocks > 0 free"),
    "room given twice": (plan(admit=(NEW,), decode=(EDGE,)), {}, "3 device blocks > 2 free"),
    "room that is only about to come": (plan(rotate_in=(PARKED_BIG,)), {}, "3 device blocks > 2 free"),
    "room of one who leaves in this turn": (
        plan(rotate_in=(PARKED_BIG,), rotate_out=(OLD,)),
        {},
        "3 device blocks > 2 free",
    ),
    "a promise too many": (
        plan(admit=(NEW,)),
        {"promised_blocks": 8},
        "admission of 0 .3 blocks. breaks the admission inequality",
    ),
    "two promises that fit one by one": (
        plan(admit=(NEW, BIG)),
        {"device_free": 8, "promised_blocks": 5},
        "admission of 1 .4 blocks. breaks the admission inequality",
    ),
    "too much out": (
        plan(rotate_out=(OLD, EDGE)),
        {"host_free": 6},
        "3 blocks out > 2",
    ),
    "a rotation out and a sync over the allowance": (
        plan(rotate_out=(OLD,), sync=(SyncRun(LONG, 0, 1),)),
        {"host_free": 6},
        "3 blocks out > 2",
    ),
    "a lone rotation out over no link": (plan(rotate_out=(OLD,)), {"link_out_blocks": 0}, "2 blocks out > 0"),
    "no host slots": (plan(rotate_out=(OLD,)), {"host_free": 0}, "2 dirty blocks > 1 host slots"),
    "its own host slots as room": (
        plan(rotate_out=(EDGE,)),
        {"host_free": 0},
        "1 dirty blocks > 0 host slots",
    ),
    "sync into slots that back others": (
        plan(sync=(SyncRun(LONG, 0, 2),)),
        {"host_free": 1},
        "2 blocks of sync > free host slots",
    ),
    "sync with a hole": (
        plan(sync=(SyncRun(LONG, 1, 1),)),
        {},
        r"sync of 5 1\+1 is not its next full blocks",
    ),
    "sync again": (plan(sync=(SyncRun(EDGE, 0, 1),)), {}, r"sync of 4 0\+1 is not its next full blocks"),
    "sync of a block that still fills": (
        plan(sync=(SyncRun(OLD, 0, 2),)),
        {},
        r"sync of 3 0\+2 is not its next full blocks",
    ),
    "sync of nothing": (plan(sync=(SyncRun(OLD, 0, 0),)), {}, r"sync of 3 0\+0 is not its next full blocks"),
    "too much in": (
        plan(rotate_in=(PARKED, PARKED_BIG)),
        {"device_free": 5, "link_in_blocks": 4},
        "5 blocks in > 4",
    ),
    "a lone rotation in over no link": (plan(rotate_in=(PARKED,)), {"link_in_blocks": 0}, "2 blocks in > 0"),
}


@pytest.mark.parametrize("name", LEGAL)
def test_plans_that_just_keep_the_rules(name: str) -> None:
    legal, change = LEGAL[name]
    assert check_plan(legal, dataclasses.replace(VIEW, **change)) is legal


@pytest.mark.parametrize("name", ILLEGAL)
def test_plans_that_break_one_rule(name: str) -> None:
    illegal, change, message = ILLEGAL[name]
    with pytest.raises(InvariantViolation, match=message) as caught:
        check_plan(illegal, dataclasses.replace(VIEW, **change))
    assert illegal.line() in str(caught.value)  # the plan can be replayed from the message
