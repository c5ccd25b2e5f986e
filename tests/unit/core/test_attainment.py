"""The metrics against cases worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.core import attainment as metrics
from superinfer_trt.core.attainment import RequestTimes, attainment, percentile
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND as MS
from superinfer_trt.core.units import SECOND

SLO = Slo(100 * MS, 10 * MS)


def times(*tokens_ms: int, arrival_ms: int = 0, completed: bool = True, slo: Slo = SLO) -> RequestTimes:
    return RequestTimes(arrival_ms * MS, [value * MS for value in tokens_ms], slo, completed)


def test_first_token_on_the_limit_is_in_time() -> None:
    assert metrics.ttft(times(150, arrival_ms=50)) == 100 * MS
    assert metrics.ttft_met(times(150, arrival_ms=50))
    assert not metrics.ttft_met(times(151, arrival_ms=50))
    assert metrics.ttft(times()) is None
    assert not metrics.ttft_met(times())


def test_mean_gap_on_the_limit_is_in_time() -> None:
    assert metrics.mean_tbt_met(times(0, 1, 20))  # 20 ms over two gaps
    assert not metrics.mean_tbt_met(times(0, 1, 21))
    assert metrics.mean_tbt_met(times(5))
    assert metrics.mean_tbt_met(times())


def test_late_gaps() -> None:
    assert metrics.gaps(times(0, 10, 21)) == [10 * MS, 11 * MS]
    assert metrics.late_gaps(times(0, 10, 21)) == 1


def test_a_reader_with_a_buffer_does_not_notice_a_pause() -> None:
    assert metrics.reader_stall(times(0, 1, 2, 3, 40)) == 0  # token 4 is wanted at 40
    assert metrics.reader_stall(times(0, 1, 2, 3, 43)) == 3 * MS
    # two pauses of which the second comes after the reader has been made late: waits add up to 15
    assert metrics.reader_stall(times(0, 15, 25, 45)) == 15 * MS
    assert metrics.reader_stall(times()) == 0


def test_one_percent_of_late_gaps_is_allowed() -> None:
    def with_gaps(count: int, late: int) -> RequestTimes:
        tokens = [0]
        for at in range(count):
            tokens.append(tokens[-1] + (11 if at < late else 1))
        return times(*tokens)

    assert metrics.joint_p99_met(with_gaps(100, 1))
    assert not metrics.joint_p99_met(with_gaps(99, 1))
    assert not metrics.joint_p99_met(with_gaps(100, 2))


def test_stall_up_to_a_second() -> None:
    assert metrics.joint_stall_met(times(0, 1010))
    assert not metrics.joint_stall_met(times(0, 1011))


def test_a_request_that_failed_meets_nothing_jointly() -> None:
    failed = times(1, 2, completed=False)
    assert not metrics.joint_mean_met(failed)
    assert not metrics.joint_p99_met(failed)
    assert not metrics.joint_stall_met(failed)


@pytest.mark.parametrize(("percent", "value"), [(1, 1), (50, 5), (51, 6), (90, 9), (99, 10), (100, 10)])
def test_nearest_rank(percent: int, value: int) -> None:
    assert percentile(range(1, 11), percent) == value


def test_a_run_by_hand() -> None:
    run = attainment(
        [
            times(50, 60, 70),  # all met
            times(250, 260, arrival_ms=100),  # late first token
            times(90, 95, 125),  # mean 17.5: late; one late gap
            times(completed=False, arrival_ms=500),  # refused
        ]
    )
    assert (run.requests, run.completed, run.failed) == (4, 3, 1)
    assert run.ttft_attainment == 0.5
    assert run.tbt_attainment == 4 / 5
    assert (run.joint_mean, run.joint_p99, run.joint_stall) == (0.25, 0.25, 0.5)
    assert run.output_tokens == 8
    assert run.wall_s == 0.5  # first arrival to the last thing that happened
    assert run.tokens_per_s == 16
    assert run.goodput_rps == 2
    assert run.longest_gap_ms == 30
    assert run.ttft_ms == {"p50": 90.0, "p90": 150.0, "p99": 150.0}
    assert run.tbt_ms == {"p50": 10.0, "p90": 30.0, "p99": 30.0}
    assert run.as_dict()["joint_mean"] == 0.25


def test_objectives_are_each_requests_own() -> None:
    strict, lax = Slo(1 * MS, 1 * MS), Slo(SECOND, SECOND)
    run = attainment([times(5, 15, slo=strict), times(5, 15, slo=lax)])
    assert (run.ttft_attainment, run.tbt_attainment, run.joint_mean) == (0.5, 0.5, 0.5)


def test_nothing_measured_is_nothing_and_not_perfect() -> None:
    run = attainment([])
    assert run.ttft_attainment is run.tbt_attainment is run.joint_mean is None
    assert (run.tokens_per_s, run.wall_s, run.ttft_ms) == (0, 0, {})
    refused = attainment([times(completed=False)])
    assert (refused.ttft_attainment, refused.tbt_attainment) == (0.0, None)


stamps = st.lists(st.integers(0, 1000), max_size=30).map(sorted)


@given(stamps, st.integers(1, 50))
def test_stall_equals_a_reader_played_token_by_token(tokens: list[int], pace: int) -> None:
    """The naive twin: the reader takes a token when it wants it or, if later, when it comes."""
    waited, wanted = 0, None
    for token in tokens:
        if wanted is None or token <= wanted:
            at = token if wanted is None else wanted
        else:
            waited += token - wanted
            at = token
        wanted = at + pace
    assert metrics.reader_stall(RequestTimes(0, tokens, Slo(1, pace))) == waited


@given(st.lists(stamps, max_size=10), st.integers(1, 100), st.integers(-500, 500))
def test_shifting_the_clock_changes_nothing(runs: list[list[int]], pace: int, shift: int) -> None:
    def shifted(by: int) -> list[RequestTimes]:
        return [RequestTimes(by, [token + by for token in run], Slo(500, pace)) for run in runs]

    assert attainment(shifted(0)) == attainment(shifted(shift))
