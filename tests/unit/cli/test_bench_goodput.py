"""The search for the highest rate, over a server that is a formula; and when a load is given up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.cli import bench
from superinfer_trt.cli.bench_options import Search
from superinfer_trt.cli.goodput import CLIENT, MET, NEVER, PROBES, TIME, Found, Probe, Verdict, search
from superinfer_trt.cli.load_api import Answer, Job
from superinfer_trt.cli.load_requests import Workload, make_jobs
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.sim.arrivals import Arrivals

INFO = pb.GetModelInfoResponse(
    vocabulary=1000, request_tokens_max=200, default_slo=pb.Slo(ttft_ms=100, tbt_ms=10)
)


def look(capacity: float, first: float = 1.0, *, limited_above: float = 1e9, **limits: object) -> Found:
    """A server that meets everything up to `capacity`."""

    def probe(rps: float) -> Probe:
        met = rps <= capacity
        return Probe(rps, 1.0 if met else 0.5, met, not met, rps > limited_above, 100, {})

    asked = {"precision": 0.05, "probes_max": 60, "time_left": lambda: True, **limits}
    return search(probe, first, **asked)  # type: ignore[arg-type]


@given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e2), st.sampled_from([0.01, 0.05, 0.3]))
def test_it_finds_the_capacity_from_wherever_it_begins(
    capacity: float, first: float, precision: float
) -> None:
    found = look(capacity, first, precision=precision)
    assert found.why == MET
    assert found.best is not None
    assert found.missed_rps is not None
    assert found.best.rps <= capacity < found.missed_rps <= found.best.rps * (1 + precision) * (1 + 1e-12)
    assert len(found.probes) <= 40
    assert len({one.rps for one in found.probes}) == len(found.probes), "no rate is tried twice"


def test_what_ends_it_early() -> None:
    assert look(10.0, probes_max=3).why == PROBES
    assert look(10.0, probes_max=3).best.rps == 4.0  # type: ignore[union-attr]
    nothing = look(0.001, probes_max=4)
    assert (nothing.best, nothing.why, nothing.missed_rps) == (None, NEVER, 0.125)
    spent = look(10.0, time_left=lambda: False)
    assert (len(spent.probes), spent.why) == (1, TIME)
    assert look(10.0, limited_above=10.0).why == CLIENT
    assert look(10.0, limited_above=1.0).why == CLIENT
    assert look(10.0, limited_above=100.0).why == MET


def answer(*tokens_ms: int, ended: bool = True, due_ms: int = 0, measured: bool = True) -> Answer:
    made = Answer(Job(0, 0, pb.GenerateRequest(), None, "", measured), due=due_ms * MILLISECOND)
    made.tokens = [one * MILLISECOND for one in tokens_ms]
    if ended:
        made.ending = pb.Ending(finish_reason=pb.FINISH_REASON_LENGTH)
    return made


@pytest.mark.parametrize(
    ("one", "lost"),
    [
        (answer(100, 110), 0),
        (answer(101, 105), 1),
        (answer(50, 61), 1),  # mean gap 11 ms
        (answer(50, 1000, ended=False), 0),  # it may still catch up
        (answer(101, ended=False), 1),
        (answer(ended=False), 1),  # nothing after 200 ms
        (answer(ended=False, due_ms=100), 0),
        (answer(ended=False, due_ms=500), 0),  # not even due
        (answer(101, measured=False), 0),
    ],
)
def test_who_has_missed_whatever_comes(one: Answer, lost: int) -> None:
    verdict = Verdict(INFO, "joint_mean", 1.0, 1)
    assert verdict.misses([one], 200 * MILLISECOND) == lost


def test_a_refused_request_is_a_miss() -> None:
    refused = answer(ended=False)
    refused.status = "RESOURCE_EXHAUSTED"
    assert Verdict(INFO, "ttft_attainment", 0.95, 1).misses([refused], 0) == 1


@pytest.mark.parametrize(
    ("share", "requests", "allowed"), [(0.95, 100, 5), (0.95, 19, 0), (1.0, 9, 0), (0.9, 10, 1)]
)
def test_how_many_may_miss(share: float, requests: int, allowed: int) -> None:
    verdict = Verdict(INFO, "joint_mean", share, requests)
    assert verdict.allowed == allowed
    late = [answer(101, 105)] * allowed + [answer(50, 55)] * (requests - allowed)
    assert not verdict(late, 0)
    assert verdict.share(late, 0) >= share - 1e-9
    late[-1] = answer(101, 105)
    assert verdict(late, 0)
    assert verdict.share(late, 0) < share


def asked(**fields: object) -> Search:
    values = {
        "first_rps": 1.0, "slo_share": 0.95, "slo_metric": "joint_mean", "precision": 0.05, "probes_max": 9,
        "search_time_s": 60.0, "probe_s": None, "probe_requests": None, "warmup_requests": None,
    }  # fmt: skip
    return Search(**{**values, **fields})  # type: ignore[arg-type]


def test_a_probe_lasts_its_time_and_has_its_number() -> None:
    workload = Workload(arrivals=Arrivals(1.0, seed=3), seed=3)
    few = bench.probe_workload(workload, asked(), 0.1)
    assert (few.requests, few.warmup_requests) == (bench.PROBE_REQUESTS, 10)
    many = bench.probe_workload(workload, asked(probe_s=10.0, probe_requests=20), 50.0)
    assert many.requests is not None
    assert 400 < many.requests < 600
    jobs = make_jobs(many, pb.GenerateRequest(), INFO)
    assert jobs[-1].offset <= 10e9
    assert sum(not job.measured for job in jobs) == many.requests // 10
    assert (
        bench.probe_workload(workload, asked(warmup_requests=99, probe_requests=5), 0.1).warmup_requests == 4
    )
