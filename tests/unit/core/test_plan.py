"""Plan: one frozen value, and one line of text that reads back."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.core.plan import Chunk, Plan, Rejection, SyncRun, parse_line
from superinfer_trt.core.units import RequestId

ids = st.integers(0, 10**12).map(RequestId)
counts = st.integers(0, 10**9)
reasons = st.text(min_size=1)
plans = st.builds(
    Plan,
    turn=counts,
    now=st.integers(0, 10**18),
    admit=st.lists(ids).map(tuple),
    prefill=st.lists(st.builds(Chunk, ids, counts, counts)).map(tuple),
    decode=st.lists(ids).map(tuple),
    rotate_out=st.lists(ids).map(tuple),
    rotate_in=st.lists(ids).map(tuple),
    sync=st.lists(st.builds(SyncRun, ids, counts, counts)).map(tuple),
    evict=st.lists(ids).map(tuple),
    reject=st.lists(st.builds(Rejection, ids, reasons)).map(tuple),
)


@given(plans)
def test_a_line_reads_back_to_its_plan(plan: Plan) -> None:
    line = plan.line()
    assert "\n" not in line
    assert parse_line(line) == plan


def test_the_line_of_every_field() -> None:
    a, b, c = RequestId(1), RequestId(2), RequestId(3)
    plan = Plan(
        turn=7,
        now=1_500,
        admit=(a,),
        prefill=(Chunk(a, 0, 32), Chunk(b, 64, 5)),
        decode=(b, c),
        rotate_out=(a, b),
        rotate_in=(c,),
        sync=(SyncRun(b, 2, 3),),
        evict=(a,),
        reject=(Rejection(c, "too large for the pools"),),
    )
    assert plan.line() == (
        "turn=7 now=1500 admit=1 prefill=1:0+32,2:64+5 decode=2,3 out=1,2 in=3 sync=2:2+3 evict=1 "
        "reject=3:too%20large%20for%20the%20pools"
    )


def test_an_idle_plan_says_so() -> None:
    plan = Plan(turn=1, now=2)
    assert plan.line() == "turn=1 now=2 idle"
    assert plan.idle
    assert not plan.runs
    assert parse_line(plan.line()) == plan


FIELDS = {
    "admit": (RequestId(1),),
    "prefill": (Chunk(RequestId(1), 0, 1),),
    "decode": (RequestId(1),),
    "rotate_out": (RequestId(1),),
    "rotate_in": (RequestId(1),),
    "sync": (SyncRun(RequestId(1), 0, 1),),
    "evict": (RequestId(1),),
    "reject": (Rejection(RequestId(1), "no"),),
}


@pytest.mark.parametrize("field", FIELDS)
def test_any_field_makes_a_plan_busy(field: str) -> None:
    plan = dataclasses.replace(Plan(0, 0), **{field: FIELDS[field]})
    assert not plan.idle
    assert plan.runs == (field in {"prefill", "decode"})
    assert parse_line(plan.line()) == plan


def test_every_field_is_in_the_line() -> None:
    assert {field.name for field in dataclasses.fields(Plan)} == {"turn", "now", *FIELDS}


@pytest.mark.parametrize(
    "line", ["", "idle", "turn=1", "now=1 admit=2", "turn=1 now=x", "turn=1 now=2 prefill=3", "hello world"]
)
def test_other_text_is_not_a_plan(line: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_line(line)


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Plan(0, 0).turn = 1  # type: ignore[misc]
