"""`lightllm` by hand: the peak of what is to come. Blocks of 4 tokens."""

from __future__ import annotations

import pytest

from superinfer_trt.sched.chance import RANGE, normal, uniform
from superinfer_trt.sched.lightllm import peak_tokens
from superinfer_trt.sched.registry import make_policy
from unit.sched.views import decode, line, plan_of, waiting


def test_peak() -> None:
    # Alone each 10 + 6 and 20 + 2. At the end of the second: 12 + 22 = 34; of the first: 16.
    assert peak_tokens([(-6, 10), (-2, 20)]) == 34
    assert peak_tokens([(-6, 10)]) == 16
    assert peak_tokens([(-100, 1), (-1, 50)]) == 101
    assert peak_tokens([]) == 0


@pytest.mark.parametrize(("device", "admitted"), [(8, False), (9, True)])
def test_exact_admission_by_the_peak(device: int, admitted: bool) -> None:
    # Request 1 holds 10 tokens and makes 6 more, request 2 comes with 8 and makes 4: when 2 ends
    # 10 + 4 + 8 + 4 = 26 tokens are held. Two blocks of 4 are set aside for rounding: 9 blocks give 28.
    asked = (decode(1, 10, since=0, left=6), waiting(2, 8, since=1, limit=4))
    plan = plan_of(make_policy("lightllm"), *asked, now=10, device=device, host=0)
    assert line(plan) == ("admit=2 prefill=2:0+8 decode=1" if admitted else "decode=1")


def test_peak_of_the_sum_is_less_than_the_sum_of_peaks() -> None:
    # Reservation would ask for 5 + 8 blocks of 11; the short one is gone before the long one is long.
    asked = (decode(1, 18, since=0, left=1), waiting(2, 4, since=1, limit=28))
    assert line(plan_of(make_policy("trt-no-evict"), *asked, now=10, device=11, host=0)) == "decode=1"
    plan = plan_of(make_policy("lightllm"), *asked, now=10, device=11, host=0)
    assert line(plan) == "admit=2 prefill=2:0+4 decode=1"


def test_the_first_refusal_ends_it() -> None:
    asked = (decode(1, 10, since=0, left=6), waiting(2, 20, since=1), waiting(3, 1, since=2, limit=1))
    assert line(plan_of(make_policy("lightllm"), *asked, now=10, device=8, host=0)) == "decode=1"


def test_alone_everybody_fits_that_the_pool_holds() -> None:
    plan = plan_of(make_policy("lightllm"), waiting(1, 13, since=0, limit=4), now=1, device=4, host=0)
    assert line(plan) == "admit=1 prefill=1:0+13"


def test_history_expects_less_than_the_limit() -> None:
    # Both may make 40 tokens, but all that ended so far made 2.
    asked = (decode(1, 10, since=0, left=30), waiting(2, 8, since=1, limit=30))
    exact = make_policy("lightllm")
    assert line(plan_of(exact, *asked, now=10, device=12, host=0)) == "decode=1"
    hopeful = make_policy("lightllm", history=[2] * 400, reserve=0)
    many = [waiting(id, 8, since=1, limit=30) for id in (2, 3)]
    plan = plan_of(hopeful, *many, now=10, device=12, host=0)
    assert plan.admit == (2, 3)
    assert plan_of(exact, *many, now=10, device=12, host=0).admit == (2,)


def test_history_above_what_was_made() -> None:
    """One that outlived the history is expected to reach its limit."""
    policy = make_policy("lightllm", history=[2, 5], reserve=0)
    asked = (decode(1, 10, since=0, left=30), waiting(2, 8, since=1, limit=3))
    assert line(plan_of(policy, *asked, now=10, device=11, host=0)) == "decode=1"


def test_a_pause_takes_the_newest() -> None:
    inside = (decode(1, 8, since=0, came=0, left=4), decode(2, 8, since=1, came=1, left=4))
    plan = plan_of(make_policy("lightllm", history=[1]), *inside, now=10, device=5, host=0)
    assert line(plan) == "decode=1 evict=2"


def test_draws_are_of_seed_and_request() -> None:
    assert uniform(1, 2, 3) == uniform(1, 2, 3)
    assert len({uniform(s, i, d) for s in range(5) for i in range(5) for d in range(5)}) == 125
    draws = [uniform(7, id, 0) / RANGE for id in range(4_000)]
    assert 0.48 < sum(draws) / len(draws) < 0.52
    errors = [normal(7, id) for id in range(4_000)]
    assert abs(sum(errors) / len(errors)) < 0.06
    assert 0.95 < sum(e * e for e in errors) / len(errors) < 1.05
