from __future__ import annotations

import math

import pytest

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.sched.lag import VirtualLag, thousandths, whole
from unit.sched.views import decode, rotary, waiting

MS = MILLISECOND


def test_the_papers_formulas_with_the_papers_factors() -> None:
    lag = VirtualLag()
    fresh = waiting(1, 4, since=1_000, ttft=5_000)  # lags from 1,000 + 0.5 x 5,000 = 3,500 ms on
    assert lag.waiting(fresh, 3_400 * MS) == 0
    assert lag.waiting(fresh, 3_700 * MS) == 200 * MS
    assert lag.rotary(rotary(2, 4, silent_since=3_000), 3_200 * MS) == 600 * MS  # 3 x 200
    assert lag.running(decode(3, 4, since=2_000), 3_200 * MS) == -1_200 * MS


def test_a_negative_beta_counts_before_the_objective() -> None:
    lag = VirtualLag(beta_tbt_thousandths=thousandths("beta_tbt", -10))
    # due 10 x 100 ms before the last token: 3 x (200 + 1,000)
    assert lag.rotary(rotary(2, 4, silent_since=3_000, tbt=100), 3_200 * MS) == 3_600 * MS


def test_a_lag_is_never_negative_outside() -> None:
    lag = VirtualLag(beta_tbt_thousandths=2_000)
    assert lag.rotary(rotary(2, 4, silent_since=3_000, tbt=100), 3_199 * MS) == 0


def test_products_are_floored_to_nanoseconds() -> None:
    lag = VirtualLag(alpha_thousandths=333)
    assert lag.rotary(rotary(2, 4, silent_since=0), 10) == 3


def test_order_keys_are_where_lag_begins() -> None:
    order = VirtualLag().order()
    assert order.waiting(waiting(1, 4, since=10, ttft=100)) == 60 * MS
    assert order.rotary(rotary(1, 4, silent_since=10)) == 10 * MS
    assert order.running(decode(1, 4, since=10)) == 10 * MS


@pytest.mark.parametrize("bad", [math.nan, math.inf, "3", None, True])
def test_a_factor_is_a_finite_number(bad: object) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        thousandths("alpha", bad)  # type: ignore[arg-type]


def test_least_values() -> None:
    with pytest.raises(ConfigError, match=r"alpha: 0 is less than 0\.001"):
        thousandths("alpha", 0, 0.001)
    with pytest.raises(ConfigError, match="stay: 0 is less than 1"):
        whole("stay", 0, 1)
    with pytest.raises(ConfigError, match=r"stay: 1\.5 is not a whole number"):
        whole("stay", 1.5, 1)
