"""Requests out of lengths and arrivals: wrapping, classes, sessions, refusals, synthetic quantiles."""

from __future__ import annotations

import pytest

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import SECOND
from superinfer_trt.sim.arrivals import Arrivals
from superinfer_trt.sim.lengths import Lengths
from superinfer_trt.sim.synthetic import SYNTHETIC, synthetic_lengths
from superinfer_trt.sim.workload import (
    Item,
    Sessions,
    SloClass,
    Turn,
    check_lengths,
    load_lengths,
    make_items,
)

ROWS = [Lengths(10, 1), Lengths(20, 2), Lengths(30, 3)]
# p50, p90, mean of the public traces, prompt then output.
QUANTILES = {
    "sharegpt": ((131, 647, 242.9), (376, 735, 418.5)),
    "arxiv": ((2730, 3702, 2588.1), (167, 372, 291.4)),
    "mooncake": ((6909, 27367, 12035.1), (350, 597, 342.6)),
    "azure-conversation": ((1020, 2734, 1154.7), (129, 424, 211.1)),
}


def test_lengths_come_in_their_order_and_wrap_around() -> None:
    items = make_items(ROWS, Arrivals(10, 1))
    assert len(items) > 3
    assert [item.prompt_tokens for item in items] == [10 * (at % 3 + 1) for at in range(len(items))]
    assert [item.arrival for item in items] == list(Arrivals(10, 1).times())


def test_a_trace_may_bring_its_own_times() -> None:
    rows = [Lengths(1, 1, 0), Lengths(2, 2, 5 * SECOND)]
    assert [item.arrival for item in make_items(rows, None)] == [0, 5 * SECOND]
    with pytest.raises(ConfigError, match="--rps"):
        make_items(ROWS, None)


def test_classes_are_drawn_by_share_and_leave_arrivals_alone() -> None:
    fast = SloClass("fast", 0.25, Slo(SECOND, SECOND // 50))
    items = make_items(ROWS, Arrivals(100, 100), classes=[fast], slo=Slo(7, 8))
    chosen = [item for item in items if item.tenant == "fast"]
    assert len(chosen) / len(items) == pytest.approx(0.25, abs=0.02)
    assert {item.slo for item in chosen} == {fast.slo}
    assert {item.slo for item in items if not item.tenant} == {Slo(7, 8)}
    assert [item.arrival for item in items] == list(Arrivals(100, 100).times())


def test_a_session_remembers_what_was_said() -> None:
    items = make_items(ROWS, Arrivals(100, 10), sessions=Sessions(4, 2.0))
    turns = [len(item.then) + 1 for item in items]
    assert {1, 2, 3, 4} == set(turns)
    for item in items:
        history = item.prompt_tokens + item.output_tokens
        for turn in item.then:
            assert turn.prompt_tokens - history in {10, 20, 30}
            history = turn.prompt_tokens + turn.output_tokens
    thoughts = [turn.think for item in items for turn in item.then]
    assert sum(thoughts) / len(thoughts) == pytest.approx(2 * SECOND, rel=0.1)


def test_what_can_never_be_held_is_refused_with_its_line() -> None:
    long = Item(0, 90, 11, line=7)
    check_lengths([Item(0, 90, 10)], 100, 99, "t.csv")  # KV of the last token is never written
    with pytest.raises(ConfigError, match=r"t.csv:7: 90 prompt \+ 11 output tokens; expected at most 100"):
        check_lengths([Item(0, 1, 1), long], 100, 1000, "t.csv")
    with pytest.raises(ConfigError, match=r"t.csv:7: .* the HBM pool holds"):
        check_lengths([long], 1000, 99, "t.csv")
    with pytest.raises(ConfigError, match="sharegpt: request 1: 120 prompt"):
        check_lengths([Item(0, 1, 1, then=(Turn(0, 120, 1),))], 100, 1000, "sharegpt")


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_lengths_have_the_quantiles_of_what_they_stand_for(name: str) -> None:
    rows = synthetic_lengths(name, 20_000, seed=5)
    for lengths, (p50, p90, mean) in zip(
        ([row.prompt_tokens for row in rows], [row.output_tokens for row in rows]),
        QUANTILES[name],
        strict=True,
    ):
        ordered = sorted(lengths)
        assert ordered[len(ordered) // 2] == pytest.approx(p50, rel=0.1)
        assert ordered[len(ordered) * 9 // 10] == pytest.approx(p90, rel=0.1)
        assert sum(ordered) / len(ordered) == pytest.approx(mean, rel=0.1)
    assert rows == synthetic_lengths(name, 20_000, seed=5)
    assert rows != synthetic_lengths(name, 20_000, seed=6)


def test_refusals_name_what_is_expected() -> None:
    with pytest.raises(ConfigError, match="neither a file nor a synthetic workload"):
        load_lengths("nothing.csv", 1)
    with pytest.raises(ConfigError, match="no request arrives"):
        make_items(ROWS, Arrivals(0.001, 0.001))
    with pytest.raises(ConfigError, match="add up to"):
        make_items(ROWS, Arrivals(1), classes=[SloClass("a", 0.6, Slo()), SloClass("b", 0.6, Slo())])
    with pytest.raises(ConfigError, match="sessions"):
        Sessions(0)
