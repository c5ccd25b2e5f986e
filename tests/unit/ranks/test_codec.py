"""Plans and messages as words: exactly there and back, and nothing but ValueError for what is none."""

from __future__ import annotations

import dataclasses
from array import array
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.core.plan import Chunk, Plan, Rejection, SyncRun
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import RequestId
from superinfer_trt.ranks.codec import Stop, Turn, message_of, message_words, plan_of, plan_words

ids = st.integers(0, (1 << 63) - 1).map(RequestId)
counts = st.integers(-(1 << 63), (1 << 63) - 1)
plans = st.builds(
    Plan,
    turn=counts,
    now=counts,
    admit=st.lists(ids).map(tuple),
    prefill=st.lists(st.builds(Chunk, ids, counts, counts)).map(tuple),
    decode=st.lists(ids).map(tuple),
    rotate_out=st.lists(ids).map(tuple),
    rotate_in=st.lists(ids).map(tuple),
    sync=st.lists(st.builds(SyncRun, ids, counts, counts)).map(tuple),
    evict=st.lists(ids).map(tuple),
    reject=st.lists(st.builds(Rejection, ids, st.text())).map(tuple),
)
reals = st.floats(allow_nan=False)
samplings = st.builds(
    Sampling,
    max_tokens=counts,
    temperature=reals,
    top_k=counts,
    top_p=reals,
    seed=st.integers(0, (1 << 64) - 1),
    stop_ids=st.frozensets(st.integers(0, 1 << 20)),
    logprobs=counts,
    min_p=reals,
    repetition_penalty=reals,
    presence_penalty=reals,
    frequency_penalty=reals,
    min_tokens=counts,
)
requests = st.builds(
    Request,
    id=ids,
    prompt=st.lists(st.integers(0, 1 << 20), min_size=1).map(tuple),
    sampling=samplings,
    slo=st.builds(Slo, counts, counts),
    arrival=counts,
    tenant=st.text(),
)
turns = st.builds(
    Turn,
    plan=plans,
    requests=st.lists(requests, max_size=3).map(tuple),
    cancels=st.lists(st.tuples(ids, st.sampled_from(FinishReason))),
)


@given(plans)
def test_a_plan_comes_back_exactly(plan: Plan) -> None:
    words = plan_words(plan)
    assert words.typecode == "q"
    found = plan_of(words)
    assert found == plan
    assert all(type(id) is int for id in found.decode)


@given(turns)
def test_a_turn_comes_back_exactly(turn: Turn) -> None:
    assert message_of(message_words(turn)) == turn


def test_a_stop_comes_back() -> None:
    assert message_of(message_words(Stop())) == Stop()


@given(plans, st.data())
def test_a_damaged_plan_is_another_plan_or_a_value_error(plan: Plan, data: st.DataObject) -> None:
    words = plan_words(plan)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(words) - 1))
        words[at] = data.draw(st.one_of(st.integers(-3, 40), counts))
    words = words[: data.draw(st.integers(0, len(words)))]
    with suppress(ValueError):
        assert isinstance(plan_of(words), Plan)


@given(st.lists(st.one_of(st.integers(-2, 12), counts)))
def test_any_words_are_a_plan_or_a_value_error(values: list[int]) -> None:
    with suppress(ValueError):
        assert plan_of(plan_words(plan_of(array("q", values)))) is not None


@given(turns, st.data())
def test_a_shortened_or_lengthened_message_is_refused(turn: Turn, data: st.DataObject) -> None:
    words = message_words(turn)
    cut = data.draw(st.integers(1, len(words)))
    for wrong in (words[:-cut], words + array("q", (0,)), array("q", (9, *words[1:]))):
        with pytest.raises(ValueError):
            message_of(wrong)


@given(turns, st.data())
def test_a_damaged_message_is_another_message_or_a_value_error(turn: Turn, data: st.DataObject) -> None:
    words = message_words(turn)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(words) - 1))
        words[at] = data.draw(st.one_of(st.integers(-3, 40), counts))
    with suppress(ValueError):
        assert isinstance(message_of(words), Turn | Stop)


def test_every_field_is_told() -> None:
    """A new one needs its place in the words."""
    told = {
        Request: "id prompt sampling slo arrival tenant",
        Slo: "ttft tbt",
        Sampling: "max_tokens temperature top_k top_p seed stop_ids logprobs min_p repetition_penalty "
        "presence_penalty frequency_penalty min_tokens",
        Plan: "turn now admit prefill decode rotate_out rotate_in sync evict reject",
        Chunk: "id start length",
        SyncRun: "id first count",
        Rejection: "id reason",
    }
    for kind, names in told.items():
        assert [field.name for field in dataclasses.fields(kind)] == names.split()
