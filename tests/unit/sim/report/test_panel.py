"""Which panels the runs fill, the front, and the sweeps that fill the others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.sim.report import panel
from superinfer_trt.sim.report.study import Setting, Study, studies
from support.sweeps import DEFAULTS, everything, line, made


def one_study(*lines: str) -> Study:
    (study,) = studies(made(*lines), DEFAULTS)
    return study


def test_full_runs_leave_no_panel_out() -> None:
    study = one_study(*everything())
    assert panel.missing([study]) == []
    assert [setting.label for setting in panel.curves(study)] == ["rota-slack", "rotasched", "fcfs"]
    assert {(one.policy, one.parameter) for one in panel.parameter_studies(study)} == {
        *(("rotasched", name) for name in panel.PAPER_SWEEPS),
        ("rota-slack", "length_weight_ms"),
    }


def test_the_ablation_has_the_baseline_first_and_the_whole_last() -> None:
    found = panel.ablation(one_study(*everything()))
    assert found is not None
    assert found.rate == 20.0
    naive = "eager_sync=false link=naive-blocking transfer_blocks={} unlimited_allowance=true"
    assert [setting.label for setting in found.settings] == [
        "fcfs",
        *(f"rotasched {naive.format(blocks)}" for blocks in (300, 2400)),
        *("rotasched transfer_blocks=300", "rotasched transfer_blocks=2400", "rotasched"),
    ]


def test_budgets_alone_are_no_ablation_but_a_swept_parameter() -> None:
    values = (300, 600, 2400)
    study = one_study(*(line("rotasched", 5, policy_params={"transfer_blocks": value}) for value in values))
    assert panel.ablation(study) is None
    (one,) = panel.parameter_studies(study)
    assert [value for value, _ in one.values] == [300, 600, 2400]


def test_the_default_belongs_to_a_sweep_and_automatic_comes_first() -> None:
    lines = [line("rotasched", 5), line("rotasched", 10)]
    lines += [line("rotasched", 5, policy_params={"transfer_blocks": value}) for value in (2400, 300)]
    (one,) = panel.parameter_studies(one_study(*lines))
    assert [value for value, _ in one.values] == [None, 300, 2400]
    assert one.rates == [5.0]


def test_a_sweep_on_another_base_is_told_apart() -> None:
    def params(alpha: float, beta: float) -> str:
        return line("rotasched", 5, policy_params={"alpha": alpha, "beta_ttft": beta})

    study = one_study(
        *(params(alpha, 0) for alpha in (1, 2, 4, 8)), *(params(alpha, 0.5) for alpha in (1, 2))
    )
    (one,) = panel.parameter_studies(study)
    assert one.base == Setting("rotasched", (("beta_ttft", 0),))
    assert [value for value, _ in one.values] == [1, 2, 4, 8]


def test_at_most_three_rates_and_those_with_the_most_runs() -> None:
    lines = [
        line("rotasched", rps, policy_params={"alpha": alpha})
        for rps in (5, 10, 15, 20)
        for alpha in (1, 2, 4, *((8,) if rps in (5, 10) else ()))
    ]
    (one,) = panel.parameter_studies(one_study(*lines))
    assert one.rates == [5.0, 10.0, 20.0]


def test_the_frontier_marks_who_is_beaten_by_nobody() -> None:
    shares = {0: 0.2, 1: 0.4, 2: 0.4, 5: 0.9}
    lines = [
        line("rota-slack", 20, ttft=share, policy_params={"length_weight_ms": weight})
        for weight, share in shares.items()
    ]
    lines.append(line("fcfs", 20, ttft=0.3, ttft_attainment_longest_prompts=0.3))
    found = panel.frontier(one_study(*lines))
    assert found is not None
    (points,) = found.points
    numbers = {point.setting.label: point.number for point in points}
    assert numbers == {
        "rota-slack": 1,
        "rota-slack length_weight_ms=1": 2,
        "rota-slack length_weight_ms=2": 2,
        "rota-slack length_weight_ms=0": 3,
        "fcfs": 0,
    }


def test_two_settings_are_no_frontier() -> None:
    lines = [line("rota-slack", 20), line("rota-slack", 20, policy_params={"length_weight_ms": 1})]
    assert panel.frontier(one_study(*lines)) is None


NUMBERS = st.integers(0, 6).map(float)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12))
def test_the_front_is_exactly_who_nobody_beats(points: list[tuple[float, float]]) -> None:
    def beaten(at: int) -> bool:
        x, y = points[at]
        return any(other != (x, y) and other[0] >= x and other[1] >= y for other in points)

    front = panel.pareto_front(points)
    assert sorted(front) == [at for at in range(len(points)) if not beaten(at)]
    assert [points[at][0] for at in front] == sorted(points[at][0] for at in front)
    assert [points[at][1] for at in front] == sorted((points[at][1] for at in front), reverse=True)


def test_what_is_missing_is_asked_for() -> None:
    study = one_study(line("lightllm", 5), line("fcfs", 5))
    found = {one.panel: one for one in panel.missing([study])}
    assert list(found) == [
        *("Fig. 16", "Fig. 17", "Figs. 18-20: alpha", "Figs. 18-20: beta_ttft", "Figs. 18-20: beta_tbt"),
        *("Fig. 21: transfer_blocks", "Frontier"),
    ]
    (wish,) = found["Fig. 16"].wishes
    assert list(wish.policies) == ["fcfs", "lightllm", "rota-slack", "rotasched", "fcfs-async"]
    assert found["Fig. 17"].wishes[1].flags == ("--link", "naive-blocking", "--unlimited-allowance")
    assert found["Frontier"].wishes[0].rates == [5.0]


@pytest.mark.parametrize("gone", ["Fig. 16", "Fig. 17", "Frontier", "Figs. 18-20: alpha"])
def test_the_sweeps_that_are_asked_for_fill_their_panel(gone: str) -> None:
    lines = [line("fcfs", None)]
    (wanted,) = [one for one in panel.missing([one_study(*lines)]) if one.panel == gone]
    for wish in wanted.wishes:
        flags = {"link": wish.flags[1], "unlimited_allowance": True} if wish.flags else {}
        for text in wish.policies:
            name, *pairs = text.split(":")
            values = {key: float(value) for key, value in (p.split("=") for p in pairs) if value != "false"}
            values |= {pair.split("=")[0]: False for pair in pairs if pair.endswith("=false")}
            lines += [line(name, rate, policy_params=values, **flags) for rate in wish.rates]
    assert gone not in [one.panel for one in panel.missing([one_study(*lines)])]
