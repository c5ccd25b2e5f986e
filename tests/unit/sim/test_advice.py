"""The searches behind `superinfer-trt advise`, on functions instead of simulations."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.sim.advice import (
    GRIDS,
    LONGEST_LOSS_MAX,
    Curve,
    Parameters,
    PoolSearch,
    Score,
    capacity_rps,
    changes,
    nothing_lost,
    round_up,
    rounded,
    tolerance,
    tune,
    worth_it,
)
from superinfer_trt.sim.profiles import HARDWARE, MODELS, step_model


def falling(knee: float, slope: float = 0.02) -> Callable[[float], float]:
    """1 up to the knee, then falling."""
    return lambda rps: max(0.0, min(1.0, 1.0 - slope * (rps - knee)))


def search(function: Callable[[float], float], curve: Curve, *targets: float) -> list[float]:
    """Drives the curve to its end; the rates measured, in order."""
    measured: list[float] = []
    while wanted := {rps for rps in map(curve.wanted, targets) if rps is not None}:
        for rps in sorted(wanted):
            assert rps not in measured
            measured.append(rps)
            curve.add(rps, function(rps), rps * 120)
    return measured


@given(knee=st.floats(0.5, 400), slope=st.floats(0.001, 0.5), start=st.floats(0.1, 2000))
def test_the_end_of_a_falling_function_is_found_within_the_tolerance(
    knee: float, slope: float, start: float
) -> None:
    function = falling(knee, slope)
    curve = Curve(start, 0.25, 1000.0)
    measured = search(function, curve, 0.99, 0.95)
    assert len(measured) < 40
    for target in (0.99, 0.95):
        found = curve.found(target)
        assert found.exact
        if found.rps is None:
            assert function(0.25) < target
        elif found.fails_rps is None:
            assert function(1000.0) >= target
        else:
            assert function(found.rps) >= target > function(found.fails_rps)
            digits = found.fails_rps * 0.01  # three of them
            assert found.fails_rps - found.rps <= max(tolerance(found.rps), digits)


def test_doubling_then_bisection() -> None:
    curve = Curve(4.0, 0.25, 1000.0)
    measured = search(falling(14.5), curve, 0.99)
    assert measured == [4.0, 8.0, 16.0, 12.0, 14.0, 15.0, 15.5, 15.2]
    found = curve.found(0.99)
    assert (found.rps, found.fails_rps, found.exact) == (15.0, 15.2, True)


def test_a_curve_that_falls_already_is_not_doubled() -> None:
    """Overload is what costs time to simulate."""
    curve = Curve(8.0, 0.25, 1000.0)
    curve.add(8.0, 1.0, 900)
    assert curve.wanted(0.95) == 16.0
    curve.add(16.0, 0.96, 1900)
    assert curve.wanted(0.95) == 18.0
    assert curve.wanted(0.5) == 32.0
    assert curve.wanted(0.9599) == 16.6  # never less than two tolerances


def test_a_second_target_uses_what_is_known() -> None:
    high, low, both = (
        search(falling(14.5), Curve(4.0, 0.25, 1000.0), *targets)
        for targets in ((0.99,), (0.95,), (0.99, 0.95))
    )
    assert both[:3] == high[:3] == low[:3]
    assert set(both) == {*high, *low}


@pytest.mark.parametrize("seed", range(20))
def test_noise_ends_the_search_near_the_truth(seed: int) -> None:
    """As it is in simulations: the number of arrivals wobbles, so the load does."""
    source = random.Random(seed)
    truth = falling(14.5)
    curve = Curve(4.0, 0.25, 1000.0)
    measured = search(lambda rps: truth(rps * source.gauss(1, 0.02)), curve, 0.99, 0.95)
    assert len(measured) < 25
    shares = [share for _, share in curve.smoothed()]
    assert shares == sorted(shares, reverse=True)
    for target, end in ((0.99, 15.0), (0.95, 17.0)):
        found = curve.found(target)
        assert found.rps is not None
        assert found.rps == pytest.approx(end, rel=0.06)


def test_noise_is_smoothed_by_weight() -> None:
    curve = Curve(1.0, 0.25, 100.0)
    for rps, share, weight in ((1.0, 0.9, 100), (2.0, 1.0, 300), (3.0, 0.5, 100)):
        curve.add(rps, share, weight)
    assert curve.smoothed() == [(1.0, pytest.approx(0.975)), (2.0, pytest.approx(0.975)), (3.0, 0.5)]


def test_what_no_rate_keeps_and_what_every_rate_keeps() -> None:
    never, always = Curve(4.0, 0.25, 100.0), Curve(4.0, 0.25, 100.0)
    assert search(lambda _: 0.9, never, 0.99)[-1] == 0.25
    found = never.found(0.99)
    assert (found.rps, found.fails_rps, found.exact) == (None, 0.25, True)
    assert search(lambda _: 1.0, always, 0.99)[-1] == 100.0
    found = always.found(0.99)
    assert (found.rps, found.fails_rps, found.exact) == (100.0, None, True)


def test_a_search_that_stopped_says_so() -> None:
    curve = Curve(8.0, 0.25, 100.0)
    curve.add(8.0, 1.0, 900)
    curve.add(16.0, 0.9, 900)
    found = curve.found(0.95)
    assert (found.rps, found.fails_rps, found.exact) == (8.0, 16.0, False)


def test_a_start_that_is_near_the_knee_of_the_simulation() -> None:
    model = step_model(HARDWARE["gh200-144gb"], MODELS["qwen2.5-32b"])
    rate = capacity_rps(model, 198_000, 280.0, 420.0, 0.1, 16_384)
    assert 8 < rate < 25
    assert capacity_rps(model, 198_000 / 8, 280.0, 420.0, 0.1, 16_384) < rate / 2
    assert capacity_rps(model, 198_000, 280.0, 420.0, 0.03, 16_384) < rate
    assert capacity_rps(model, 198_000, 280.0, 420.0, 0.1, 10) < rate / 10


# --- parameters ----------------------------------------------------------------------------------

GRID = {"a": (1, 2), "b": (1, 2), "c": (1,)}
CANDIDATES = changes(GRID, ())


class Trials:
    """A setting's share is a sum over its parameters, plus noise that a seed gives to all alike."""

    def __init__(
        self,
        worth: dict[tuple[str, int], float],
        longest: dict[tuple[str, int], float] | None = None,
        rounds: int = 9,
    ) -> None:
        self.worth = worth
        self.longest = longest or {}
        self.rounds = rounds
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, tried: Sequence[Parameters], seeds: int) -> list[Score] | None:
        if len(self.sizes) == self.rounds:
            return None
        self.sizes.append((len(tried), seeds))
        assert tried[0] == {}
        return [self.score(change, seeds) for change in tried]

    def score(self, change: Parameters, seeds: int) -> Score:
        worth = sum(self.worth.get(item, 0.0) for item in change.items())  # type: ignore[call-overload]
        longest = sum(self.longest.get(item, 0.0) for item in change.items())  # type: ignore[call-overload]
        return Score(tuple(0.9 + worth - seed / 100 for seed in range(seeds)), 0.8 + longest)


def test_good_changes_are_put_together() -> None:
    trials = Trials({("a", 2): 0.02, ("b", 1): 0.01, ("b", 2): 0.005, ("c", 1): -0.03})
    tuned = tune(CANDIDATES, trials, 3)
    assert tuned.change == {"a": 2, "b": 1}
    assert tuned.complete
    assert trials.sizes == [(6, 1), (4, 3), (3, 3)]


def test_a_change_that_hurts_the_longest_prompts_is_none() -> None:
    gain = {("a", 2): 0.05, ("b", 1): 0.01}
    assert tune(CANDIDATES, Trials(gain, {("a", 2): -LONGEST_LOSS_MAX * 1.1}), 3).change == {"b": 1}
    assert tune(CANDIDATES, Trials(gain, {("a", 2): -LONGEST_LOSS_MAX / 2}), 3).change == {"a": 2, "b": 1}


def test_the_default_stays_where_nothing_is_better() -> None:
    tuned = tune(CANDIDATES, Trials({("a", 1): -0.01}), 3)
    assert (dict(tuned.change), tuned.tried, tuned.complete) == ({}, 5, True)


@pytest.mark.parametrize(("rounds", "change"), [(0, {}), (1, {}), (2, {"a": 2})])
def test_tuning_without_time_for_the_end(rounds: int, change: Parameters) -> None:
    tuned = tune(CANDIDATES, Trials({("a", 2): 0.02, ("b", 1): 0.01}, rounds=rounds), 3)
    assert tuned.change == change
    assert not tuned.complete


def test_parameters_that_were_given_are_left_alone() -> None:
    assert changes(GRID, {"a", "c"}) == [{"b": 1}, {"b": 2}]


def test_grids_are_parameters_of_their_policies_and_not_the_defaults() -> None:
    from superinfer_trt.sched.registry import POLICIES, make_policy

    for policy, grid in GRIDS.items():
        defaults = POLICIES[policy].parameters()
        for change in changes(grid, ()):
            made = make_policy(policy, **change)
            assert made.parameters != defaults


@pytest.mark.parametrize(
    ("changed", "default", "worth"),
    [
        ((0.95, 0.94, 0.96), (0.93, 0.92, 0.94), True),
        ((0.95, 0.94, 0.96), (0.93, 0.92, 0.97), False),  # worse on one seed
        ((0.931, 0.921, 0.941), (0.93, 0.92, 0.94), False),  # too little to leave the default for
        ((0.99, 0.921, 0.941), (0.93, 0.92, 0.94), False),  # all of it on one seed
        ((0.95,), (0.93,), True),
        ((), (), False),
    ],
)
def test_a_gain_must_exceed_the_noise(
    changed: tuple[float, ...], default: tuple[float, ...], worth: bool
) -> None:
    assert worth_it(changed, default) is worth


def test_noise_alone_seldom_wins() -> None:
    source = random.Random(7)
    wins = [
        worth_it([source.gauss(0.95, 0.01) for _ in range(3)], [source.gauss(0.95, 0.01) for _ in range(3)])
        for _ in range(2000)
    ]
    assert fmean(wins) < 0.06


# --- pools ---------------------------------------------------------------------------------------


@given(truth=st.integers(0, 20_000), need=st.integers(0, 20_000), more=st.integers(0, 20_000))
def test_the_smallest_pool_is_found_to_a_third(truth: int, need: int, more: int) -> None:
    ample = truth + more
    pools = PoolSearch(need, ample)
    tried: list[int] = []
    while sizes := pools.wanted():
        assert not set(sizes) & set(tried)
        tried += sizes
        for size in sizes:
            pools.add(size, enough=size >= truth)
    assert len(tried) < 40
    assert truth <= pools.smallest <= max(truth * PoolSearch.RATIO + 1, 1)


def test_pools_begin_where_the_runs_point() -> None:
    pools = PoolSearch(8000, 95_000)
    assert pools.wanted() == [0, 1000, 8000]
    for size in (0, 1000, 8000):
        pools.add(size, enough=size == 8000)
    assert pools.smallest == 8000
    assert pools.wanted() == [2828]


def test_a_pool_that_contradicts_a_smaller_one() -> None:
    pools = PoolSearch(8000, 95_000)
    pools.add(8000, enough=False)
    pools.add(1000, enough=True)
    assert pools.smallest == 1000
    for size in iter(lambda: (pools.wanted() or [None])[0], None):
        pools.add(size, enough=False)
    assert pools.smallest == 1000


def test_small_things() -> None:
    assert nothing_lost((0.990, None), (0.9905, 0.3))
    assert not nothing_lost((0.990, 0.9), (0.9905, 0.92))
    assert [round_up(count, 64) for count in (0, 1, 64, 65)] == [64, 64, 64, 128]
    assert rounded(14.7654) == 14.8
    assert [tolerance(rps) for rps in (0.4, 8.0, 50.0)] == [pytest.approx(0.02), 0.25, 1.0]
