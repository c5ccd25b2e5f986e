"""The forecast of a step, fitted to steps of known cost."""

from __future__ import annotations

from random import Random

import pytest

from superinfer_trt.core.forecast import StepForecast
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.runtime.step_fit import StepFit


def line_ns(rows: int, prefill: int, context: int) -> int:
    return int(8 * MILLISECOND + 20_000 * rows + 90_000 * prefill + 3 * context)


def test_forecast_and_its_inverse_agree() -> None:
    forecast = StepForecast(10e6, 50e3, 200e3, 10.0)
    assert forecast.step_ns(4, 100, 1_000) == 30_210_000
    assert forecast.prefill_tokens(30_210_000, 4, 1_000) == 100
    assert forecast.prefill_tokens(30_209_999, 4, 1_000) == 99
    assert forecast.prefill_tokens(1, 4, 1_000) == 0


def test_it_finds_the_line() -> None:
    random, fit = Random(1), StepFit()
    for _ in range(300):
        work = random.randint(1, 400), random.randint(0, 800), random.randint(0, 200_000)
        fit.add(*work, line_ns(*work))
    for work in ((300, 500, 150_000), (10, 0, 1_000), (200, 700, 50_000)):
        assert fit.forecast.step_ns(*work) == pytest.approx(line_ns(*work), rel=0.01)
    assert fit.forecast.steps == 300


def test_before_data_and_with_little_of_it_nothing_is_odd() -> None:
    fit = StepFit()
    assert fit.forecast == StepForecast()
    fit.add(1, 0, 50, 4 * MILLISECOND)
    assert fit.forecast.step_ns(1, 0, 50) == pytest.approx(4 * MILLISECOND, rel=0.05)
    assert fit.forecast.token_ns > 0


def test_it_follows_an_engine_that_changes() -> None:
    random, fit = Random(2), StepFit()
    for factor in (1, 2):
        for _ in range(300):
            work = random.randint(1, 400), random.randint(0, 800), random.randint(0, 200_000)
            fit.add(*work, factor * line_ns(*work))
    work = 200, 400, 100_000
    assert fit.forecast.step_ns(*work) == pytest.approx(2 * line_ns(*work), rel=0.02)


@pytest.mark.parametrize("seed", range(20))
def test_coefficients_are_never_negative(seed: int) -> None:
    """Whatever is measured, more work is never forecast to be faster."""
    random, fit = Random(seed), StepFit()
    for _ in range(100):
        rows = random.randint(1, 8)
        fit.add(rows, random.choice([0, 0, 64]), 100 * rows, random.randint(1, 50) * MILLISECOND)
        forecast = fit.forecast
        assert min(forecast.base_ns, forecast.row_ns, forecast.context_ns) >= 0
        assert forecast.token_ns > 0


def test_the_same_steps_give_the_same_forecast() -> None:
    def fitted() -> StepForecast:
        random, fit = Random(3), StepFit()
        for _ in range(50):
            fit.add(
                random.randint(1, 9), random.randint(0, 99), random.randint(0, 999), random.getrandbits(24)
            )
        return fit.forecast

    assert fitted() == fitted()
