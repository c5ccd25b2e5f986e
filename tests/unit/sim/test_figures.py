"""The fast evaluation is core.attainment's, figure by figure."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.core.attainment import RequestTimes, attainment
from superinfer_trt.core.outcome import Ending
from superinfer_trt.core.request import FinishReason
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import SECOND
from superinfer_trt.sim.figures import by_tenant, evaluate, longest_prompts_ttft, tokens_per_s_until
from superinfer_trt.sim.workload import Item
from superinfer_trt.sim.world import Record


def record(
    arrival: int, offsets: list[int], slo: Slo, *, completed: bool = True, prompt: int = 1, tenant: str = ""
) -> Record:
    made = Record(Item(arrival, prompt, 1, slo, tenant), arrival)
    moment = arrival
    for offset in offsets:
        moment += offset
        made.tokens.append(moment)
    reason = FinishReason.LENGTH if completed else FinishReason.FAILED
    made.ending = Ending(reason, "", prompt, len(offsets), 0, 0, arrival, 0, 0, 0)
    return made


SLOS = st.builds(Slo, ttft=st.integers(1, 50), tbt=st.integers(1, 9))
LONG = st.integers(0, 3 * SECOND)
RECORDS = st.builds(
    record,
    st.integers(0, 10**12),
    st.lists(st.integers(0, 12) | LONG, max_size=150),
    SLOS,
    completed=st.booleans(),
)


@given(st.lists(RECORDS, max_size=12))
def test_the_arrays_say_what_the_definition_says(records: list[Record]) -> None:
    runs = [RequestTimes(r.arrival, list(r.tokens), r.item.slo, r.completed) for r in records]
    assert evaluate(records) == attainment(runs)


def test_the_longest_tenth_is_looked_at_apart() -> None:
    slo = Slo(10, 10)
    records = [record(0, [5], slo, prompt=at + 1) for at in range(29)]
    records += [record(0, [11], slo, prompt=1000)]
    assert longest_prompts_ttft(records) == 2 / 3
    assert longest_prompts_ttft([]) is None


def test_tokens_under_load_are_those_before_the_end() -> None:
    records = [record(0, [SECOND] * 5, Slo()), record(0, [], Slo())]
    assert tokens_per_s_until(records, 4 * SECOND) == 1.0
    assert tokens_per_s_until(records, 0) == 0.0


def test_tenants_are_told_apart() -> None:
    slo = Slo(10, 10)
    records = [record(0, [5], slo, tenant="a"), record(0, [50], slo, tenant="b")]
    assert [found["ttft_attainment"] for found in by_tenant(records).values()] == [1.0, 0.0]
    assert by_tenant(records[:1]) == {}
    assert isinstance(records[0].tokens, array)
