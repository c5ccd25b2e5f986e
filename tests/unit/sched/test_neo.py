"""`neo` against hand-worked turns: who lies where, what hides, who may widen the batch, who is dropped."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.forecast import StepForecast
from superinfer_trt.core.view import CandidateValue, View
from superinfer_trt.sched.neo import Composition, Neo, NeoParameters, split
from superinfer_trt.sched.neo_times import CpuTimes, SubBatch, rate, spare_ms
from superinfer_trt.sched.registry import make_policy
from unit.sched.views import BLOCK, decode, line, plan_of, prefill, waiting

# 10 ms a step, 1 a row, 1 a prefill token, 0.1 a context token.
FORECAST = StepForecast(10e6, 1e6, 1e6, 1e5)
IN_DRAM = tuple(decode(id, 3, since=0, came=id) for id in (3, 4, 5, 6))
IN_HBM = (decode(1, 6, since=0, came=1), decode(2, 6, since=0, came=2))


class Seen:
    """`neo` as a policy that keeps the composition behind its plan."""

    name = Neo.name
    order = Neo.order

    def __init__(self, before: Collection[int] = (), **parameters: object) -> None:
        self.before = before
        chosen = {"host_tokens_per_ms": 1, "host_row_us": 0, "host_launch_ms": 1, **parameters}
        self.policy = Neo(NeoParameters(**chosen))
        self.composition: Composition | None = None

    def __call__(self, view: View):
        self.composition = self.policy.compose(view, self.before)
        return self.composition.plan


def composed(*candidates: CandidateValue, device: int = 20, **parameters: object) -> tuple[str, Composition]:
    """(the plan's line, the composition) of a turn."""
    policy = Seen(**parameters)
    plan = plan_of(policy, *candidates, now=10, device=device, host=0, forecast=FORECAST)
    assert policy.composition is not None
    return line(plan), policy.composition


def test_hbm_holds_the_longest_prefix_that_fits_with_its_next_token() -> None:
    one, two, three = decode(1, 6, since=0), decode(2, 8, since=0), decode(3, 3, since=0)
    parts = split((one, two, three), 5, BLOCK)
    assert parts == ([one, two], [three], 5, 1), "2 blocks, and 2 that grow to 3"
    assert split((one, two, three), 4, BLOCK) == ([one], [two, three], 2, 4), "a prefix, not a best fit"
    assert split((one, two, three), 1, BLOCK).in_hbm == [one], "the first has to lie somewhere"


def test_who_lay_in_dram_comes_back_first_come_first_served_while_a_twentieth_stays_free() -> None:
    four = [decode(id, 14, since=0) for id in (1, 2, 3, 4)]  # 4 blocks each
    ids = [[c.id for c in side] for side in split(four, 16, BLOCK, {2, 3})[:2]]
    assert ids == [[1, 2, 4], [3]], "12 of 15; 3 would make it 16"
    assert split(four, 17, BLOCK, {2, 3}).in_dram == []
    assert [c.id for c in split(four, 11, BLOCK, {2}).in_dram] == [2, 4], "who leaves makes no room for 2"
    assert [c.id for c in split(four, 3, BLOCK, {1, 2, 3, 4}).in_hbm] == [1], "HBM is never empty"


def test_a_new_one_may_overtake_who_waits_in_dram() -> None:
    """8 of 10 blocks are taken: 3 with 2 would be above 95 %, a new one of 2 may fill HBM."""
    inside = (*(decode(id, 14, since=0, came=id) for id in (1, 2)), decode(3, 6, since=0, came=3))
    kept = Seen({3}, hbm_blocks=10, host_launch_ms=1_000, narrow_tokens=1)
    plan = plan_of(kept, *inside, waiting(4, 6, since=4), now=10, device=40, host=0, forecast=FORECAST)
    assert line(plan) == "admit=4 prefill=4:0+6 decode=1,2"
    assert kept.composition is not None
    assert kept.composition.in_dram == {3: 6}


def test_without_a_part_in_dram_it_is_fcfs() -> None:
    inside = (*IN_HBM, prefill(3, 20, 4, since=3), waiting(4, 9, since=4), waiting(5, 1, since=5))
    for device in (9, 12, 15, 40):
        expected = plan_of(make_policy("fcfs"), *inside, now=10, device=device, host=0)
        for hbm_blocks in (None, device, 100):
            assert composed(*inside, device=device, hbm_blocks=hbm_blocks)[1] == Composition(expected)


def test_decodes_in_dram_are_dealt_to_the_sub_batch_with_more_room() -> None:
    """3 to the second: spare 11.4 and 7 ms. 4 to the first: 7.4 and 8. 5 to the second: 8.4 and 4. 6 to the
    first: 4.4 and 5. Six requests in 27.4 ms of the GPU are more than two in 13.4."""
    text, composition = composed(*IN_HBM, *IN_DRAM, hbm_blocks=4)
    assert text == "decode=1,2,3,4,5,6"
    assert composition.second == {3, 5}
    assert composition.in_dram == dict.fromkeys((3, 4, 5, 6), 3)


def test_the_slack_is_the_papers() -> None:
    first, second = (SubBatch(FORECAST, CpuTimes(1, 0, 1)) for _ in range(2))
    for _ in IN_HBM:
        first.gpu_decode(7)
    second.cpu_decode(4)
    assert spare_ms(first, second) == pytest.approx(11 + 1.4 - 1)
    assert spare_ms(second, first) == pytest.approx(12 - 4 - 1)
    assert rate(first, second) == pytest.approx(3 / (12 + 1.4 + 11))
    second.cpu_decode(4, -1)
    assert (second.rows, second.tokens, second.linear_ms, second.cpu_ms) == (0, 0, 0, 1)
    assert rate(second) == 0


def test_what_does_not_hide_stays_out() -> None:
    text, composition = composed(*IN_HBM, *IN_DRAM, hbm_blocks=4, host_launch_ms=1_000)
    assert text == "decode=1,2"
    assert not composition.second
    assert set(composition.in_dram) == {3, 4, 5, 6}, "their KV is there all the same"


def test_who_does_not_fit_is_passed_over_with_all_longer_ones() -> None:
    """31 ms do not hide behind 11, 41 are not tried, 4 hide: two in 22.7 ms, or one in 11.7."""
    longer = (decode(2, 30, since=0, came=2), decode(3, 40, since=0, came=3), decode(4, 3, since=0, came=4))
    text, composition = composed(IN_HBM[0], *longer, device=40, hbm_blocks=2)
    assert text == "decode=1,4"
    assert composition.second == {4}


def test_what_lies_in_hbm_runs_alone_when_that_brings_more() -> None:
    """One more request costs a second sub-batch: 3 in 24.4 ms are less than 2 in 13.4."""
    text, composition = composed(*IN_HBM, IN_DRAM[0], hbm_blocks=4)
    assert text == "decode=1,2"
    assert not composition.second


def test_prefills_go_to_hbm_until_one_did_not() -> None:
    news = (waiting(2, 8, since=2), waiting(3, 8, since=3), waiting(4, 2, since=4))
    text, composition = composed(IN_HBM[0], *news, hbm_blocks=5)
    assert text == "admit=2,3,4 prefill=2:0+8,3:0+8,4:0+2 decode=1"
    assert composition.in_dram == {3: 0, 4: 0}, "4 would have fitted, but 3 came before it"


def test_prefills_into_dram_only_widen_a_narrow_step() -> None:
    news = (waiting(2, 4, since=2), waiting(3, 3, since=3))
    assert composed(IN_HBM[0], *news, hbm_blocks=2, narrow_tokens=6)[0] == (
        "admit=2,3 prefill=2:0+4,3:0+3 decode=1"
    )
    assert composed(IN_HBM[0], *news, hbm_blocks=2, narrow_tokens=5)[0] == "admit=2 prefill=2:0+4 decode=1"
    assert composed(IN_HBM[0], *news, hbm_blocks=2, narrow_tokens=1)[0] == "decode=1"


def test_prefills_into_dram_cross_hbm_and_leave_room_for_it() -> None:
    news = (waiting(2, 4, since=2), waiting(3, 8, since=3, limit=1))
    # 1 block and 2 more are more than the 2 of HBM.
    assert composed(IN_HBM[0], *news, hbm_blocks=2)[0] == "admit=2 prefill=2:0+4 decode=1"
    # DRAM has 2 blocks, and all that lies in HBM could still have to go there.
    assert composed(IN_HBM[0], *news, device=4, hbm_blocks=2)[0] == "decode=1"


def test_a_prefill_into_dram_stays_where_attention_hides_behind_it() -> None:
    """18 + 1 ms on the CPU hide behind a first sub-batch of 10 + 2 + 8 ms, and not behind one of 11."""
    inside = (IN_HBM[0], decode(2, 17, since=0, came=2), waiting(3, 8, since=3))
    text, composition = composed(*inside, device=40, hbm_blocks=3, narrow_tokens=1)
    assert text == "admit=3 prefill=3:0+8 decode=1,2"
    assert composition.second == {2}
    assert composition.in_dram == {2: 17, 3: 0}


def test_the_newest_is_dropped_when_dram_is_short_although_the_pool_is_not() -> None:
    """1 in HBM of 4 blocks, behind it 3 and 1 blocks in a DRAM of 3."""
    inside = (IN_HBM[0], decode(2, 9, since=0, came=2), decode(3, 3, since=0, came=3))
    text, composition = composed(
        *inside, waiting(4, 1, since=4), device=7, hbm_blocks=4, host_launch_ms=1_000
    )
    assert text == "decode=1 evict=3"
    assert composition.in_dram == {2: 9}


def test_the_newest_is_dropped_when_the_pool_is_short() -> None:
    inside = (decode(1, 8, since=0, came=1), decode(2, 8, since=0, came=2))
    assert composed(*inside, device=4, hbm_blocks=3)[0] == "evict=2"


def test_what_hbm_could_not_hold_alone_is_refused() -> None:
    _, composition = composed(IN_HBM[0], waiting(2, 20, since=2), waiting(3, 4, since=3), hbm_blocks=5)
    (rejection,) = composition.plan.reject
    assert rejection.id == 2
    assert rejection.reason == "needs 6 KV blocks at its end, the HBM pool has 5"
    assert composition.plan.admit == (3,)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hbm_blocks", 0),
        ("hbm_blocks", 2.5),
        ("host_tokens_per_ms", 0),
        ("host_row_us", -1),
        ("host_launch_ms", float("nan")),
        ("narrow_tokens", 0),
    ],
)
def test_a_bad_value_names_its_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        make_policy("neo", **{field: value})
