"""The tally against core/attainment.py over the same times, and its bounds."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.core.attainment import (
    RequestTimes,
    gaps,
    joint_mean_met,
    joint_p99_met,
    joint_stall_met,
    late_gaps,
    ttft,
    ttft_met,
)
from superinfer_trt.core.errors import RefusalCode
from superinfer_trt.core.outcome import Ending, Sampled, TokenEvent
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, RequestId
from superinfer_trt.serve.histogram import TBT_BOUNDS, TTFT_BOUNDS, Histogram
from superinfer_trt.serve.tally import CLASSES_MAX, OBJECTIVES, SERIES_MAX, TENANTS_MAX, Open, Tally

SLO = Slo(100 * MILLISECOND, 10 * MILLISECOND)
DONE = (FinishReason.STOP, FinishReason.LENGTH)


def request(id: int, tenant: str = "", slo: Slo = SLO, arrival: int = 0) -> Request:
    return Request(RequestId(id), (1, 2, 3), slo=slo, tenant=tenant, arrival=arrival)


def ending(reason: FinishReason, arrival: int, tokens: list[int]) -> Ending:
    first, last = (tokens[0], tokens[-1]) if tokens else (-1, -1)
    return Ending(reason, "", 3, len(tokens), 0, 0, arrival, arrival + 1, first, last)


def play(tally: Tally, one: Request, tokens: list[int], reason: FinishReason) -> None:
    """Accepts a request and tells it its tokens; the last one comes with the ending, or it comes alone."""
    tally.accepted(one, f"#{one.id}")
    end = ending(reason, one.arrival, tokens)
    together = reason in DONE and tokens
    for index, now in enumerate(tokens):
        last = together and index + 1 == len(tokens)
        tally.told([TokenEvent(one.id, now, index, Sampled(7), end if last else None)])
    if not together:
        tally.told([TokenEvent(one.id, (tokens or [one.arrival])[-1] + 1, ending=end)])


histories = st.lists(
    st.tuples(
        st.integers(0, 10**9),
        st.lists(st.integers(0, 1_500 * MILLISECOND) | st.integers(9, 11).map(lambda n: n * MILLISECOND)),
        st.sampled_from(list(FinishReason)),
    ),
    max_size=8,
)


@given(histories)
def test_it_counts_what_the_definitions_say(told: list[tuple[int, list[int], FinishReason]]) -> None:
    tally, population = Tally(SLO), []
    for id, (arrival, steps, reason) in enumerate(told):
        tokens = [arrival + sum(steps[: at + 1]) for at in range(len(steps))]
        play(tally, request(id, arrival=arrival), tokens, reason)
        times = RequestTimes(arrival, tokens, SLO, completed=reason in DONE)
        population.append((times, reason))
    counted = [times for times, reason in population if reason is not FinishReason.CANCELLED]
    for objective, met in zip(
        OBJECTIVES, (ttft_met, joint_mean_met, joint_p99_met, joint_stall_met), strict=True
    ):
        good = sum(map(met, counted))
        assert tally.met(objective) == (good, len(counted) - good), objective
    late = sum(map(late_gaps, counted))
    assert tally.met("tbt") == (sum(len(gaps(times)) for times in counted) - late, late)
    everybody = [times for times, _ in population]
    firsts = [value for value in map(ttft, everybody) if value is not None]
    assert sum(one.ttft.count for one in tally.series) == len(firsts)
    assert sum(one.ttft.total for one in tally.series) == sum(firsts)
    all_gaps = [gap for times in everybody for gap in gaps(times)]
    expected = Histogram(TBT_BOUNDS)
    for gap in all_gaps:
        expected.add(gap)
    assert [sum(column) for column in zip(*(s.tbt.counts for s in tally.series), strict=True)] in (
        [],
        expected.counts,
    )
    assert sum(one.tbt.total for one in tally.series) == sum(all_gaps)
    assert sum(one.output_tokens for one in tally.series) == sum(len(t.tokens) for t in everybody)
    assert sum(sum(one.ended.values()) for one in tally.series) == len(population)


def test_one_turn_brings_many_requests() -> None:
    tally = Tally(SLO)
    for id in range(3):
        tally.accepted(request(id), "")
    for now in (50, 58, 75):
        tally.told([TokenEvent(RequestId(id), now * MILLISECOND, 0, Sampled(1)) for id in (0, 1)])
    tally.told([TokenEvent(RequestId(99), 0, 0, Sampled(1))])  # nobody knows it: not counted
    (only,) = tally.series
    assert (only.accepted, only.output_tokens, only.prompt_tokens) == (3, 6, 9)
    assert (only.ttft.count, only.tbt.count) == (2, 4)
    assert dict(only.tbt.cumulative())["0.01"] == 2
    assert dict(only.tbt.cumulative())["0.02"] == 4


def test_tenants_and_classes_are_bounded() -> None:
    tally = Tally(SLO)
    tally.expect([], {"chat": Slo(1, 2), "batch": Slo(3, 4)})
    for id in range(TENANTS_MAX + 10):
        tally.accepted(request(id, tenant=f"t{id}"), "")
    assert len(tally.series) == TENANTS_MAX + 1
    assert [s.accepted for s in tally.series if s.tenant == "(other)"] == [10]
    for id in range(CLASSES_MAX + 5):
        tally.accepted(request(1000 + id, tenant="t0", slo=replace(SLO, ttft=(id + 1) * MILLISECOND)), "")
    tally.accepted(request(2000, tenant="t0", slo=Slo(3, 4)), "")
    classes = {s.slo: s.accepted for s in tally.series if s.tenant == "t0"}
    assert len(classes) == CLASSES_MAX + 3  # the default, one that was configured, and those that share one
    assert (classes["1ms/10ms"], classes["custom"], classes["batch"]) == (1, 5, 1)
    for id in range(CLASSES_MAX):
        for tenant in range(TENANTS_MAX):
            one = request(10_000 + id * 100 + tenant, f"t{tenant}", replace(SLO, ttft=(id + 1) * MILLISECOND))
            tally.accepted(one, "")
    assert len(tally.series) == SERIES_MAX + 1
    assert sum(s.accepted for s in tally.series) == TENANTS_MAX + 10 + CLASSES_MAX * (TENANTS_MAX + 1) + 6


def test_who_was_configured_has_a_label_however_late() -> None:
    tally = Tally(SLO)
    tally.expect(["late"], {})
    for id in range(TENANTS_MAX + 10):
        tally.accepted(request(id, tenant=f"t{id}"), "")
    tally.accepted(request(1_000, tenant="late"), "")
    tenants = {one.tenant: one.accepted for one in tally.series}
    assert (tenants["late"], tenants["(other)"], len(tenants)) == (1, 10, TENANTS_MAX + 2)


def test_refusals_and_listeners() -> None:
    heard: list[tuple[Open, Ending, int]] = []
    tally = Tally(SLO, lambda *told: heard.append(told))
    tally.refused(RefusalCode.QUEUE_FULL)
    tally.refused(RefusalCode.QUEUE_FULL)
    tally.aborted()
    assert (tally.refusals[RefusalCode.QUEUE_FULL], tally.refusals[RefusalCode.INVALID]) == (2, 0)
    assert tally.aborts == 1
    play(tally, request(4, "acme"), [5, 30 * MILLISECOND], FinishReason.LENGTH)
    ((one, end, now),) = heard
    assert (one.name, one.tenant, one.late) == ("#4", "acme", 1)
    assert one.stall == 20 * MILLISECOND - 5
    assert (end.output_tokens, now) == (2, 30 * MILLISECOND)


@given(st.lists(st.integers(0, 200 * 10**9)))
def test_a_histogram_counts_up_to_and_with_its_bounds(values: list[int]) -> None:
    histogram = Histogram(TTFT_BOUNDS)
    for value in values:
        histogram.add(value)
    cumulative = histogram.cumulative()
    assert cumulative[-1] == ("+Inf", len(values))
    for bound, (shown, below) in zip(TTFT_BOUNDS, cumulative, strict=False):
        assert float(shown) * 1e9 == bound
        assert below == sum(value <= bound for value in values)
    assert histogram.total == sum(values)
