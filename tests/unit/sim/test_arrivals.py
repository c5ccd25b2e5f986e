"""Arrivals: the paper's counts, the rates of the others, and refusals."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.units import SECOND
from superinfer_trt.sim.arrivals import Arrivals

PAPER = {5: 581, 10: 1167, 13: 1536, 15: 1772, 18: 2108, 20: 2351, 25: 2946, 60: 7205, 100: 12021}


@pytest.mark.parametrize(("rps", "count"), PAPER.items())
def test_the_papers_arrivals_are_exact(rps: int, count: int) -> None:
    times = list(Arrivals(rps).times())
    assert len(times) == count
    assert times == sorted(times)
    assert times[-1] <= 120 * SECOND


def test_a_lower_shape_is_burstier_at_the_same_rate() -> None:
    def variation(shape: float) -> float:
        times = list(Arrivals(50, 400, seed=1, shape=shape).times())
        assert len(times) == pytest.approx(20_000, rel=0.05)
        gaps = [after - before for before, after in pairwise(times)]
        return statistics.pstdev(gaps) / statistics.mean(gaps)

    assert variation(1.0) == pytest.approx(1.0, rel=0.05)
    assert variation(0.25) == pytest.approx(2.0, rel=0.08)


def test_bursts_keep_the_mean_and_swing_as_told() -> None:
    arrivals = Arrivals(20, 6_000, seed=3, kind="bursts", period_s=60, burst_s=10, swing=4)
    times = list(arrivals.times())
    assert len(times) == pytest.approx(120_000, rel=0.02)
    inside = sum(time % (60 * SECOND) < 10 * SECOND for time in times)
    assert (inside / 10) / ((len(times) - inside) / 50) == pytest.approx(4, rel=0.03)


def test_a_day_has_a_noon_and_a_night() -> None:
    times = list(Arrivals(20, 6_000, seed=3, kind="diurnal", period_s=600, swing=0.8).times())
    assert len(times) == pytest.approx(120_000, rel=0.02)
    noon = sum(250 <= time / SECOND % 600 < 350 for time in times)
    night = sum(time / SECOND % 600 < 50 or time / SECOND % 600 >= 550 for time in times)
    assert noon / night > 5


def test_arrivals_follow_their_seed() -> None:
    assert list(Arrivals(5, seed=1).times()) == list(Arrivals(5, seed=1).times())
    assert list(Arrivals(5, seed=1).times()) != list(Arrivals(5, seed=2).times())


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"rps": 0}, "rps"),
        ({"rps": float("nan")}, "rps"),
        ({"rps": 1, "duration_s": float("inf")}, "duration_s"),
        ({"rps": 1, "shape": -1}, "shape"),
        ({"rps": 1, "kind": "tides"}, "tides"),
        ({"rps": 1, "kind": "bursts", "swing": 0.5}, "swing"),
        ({"rps": 1, "kind": "bursts", "burst_s": 60, "swing": 2}, "burst_s"),
        ({"rps": 1, "kind": "diurnal", "swing": 1.5}, "swing"),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, float], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Arrivals(**wrong)  # type: ignore[arg-type]
