"""Settings, cells and tables: who is compared with whom, and what is marked."""

from __future__ import annotations

import pytest

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sim.report.facts import world_facts, world_titles
from superinfer_trt.sim.report.metric import JOINT, METRICS, TTFT, find_metrics
from superinfer_trt.sim.report.study import Setting, main_settings, setting_of, studies
from superinfer_trt.sim.report.style import LOOKS, look_of
from superinfer_trt.sim.report.table import markdown, metric_table, settings_table
from support.sweeps import DEFAULTS, line, made


def label(policy: str, **more: object) -> str:
    (run,) = made(line(policy, 5, **more))
    return setting_of(run.job, DEFAULTS.get(policy, {})).label


def test_a_setting_is_what_differs_from_the_defaults() -> None:
    assert label("rotasched") == "rotasched"
    assert label("rotasched", policy_params={"alpha": 3}, link="duplex", depth=2) == "rotasched"
    assert label("rotasched", policy_params={"alpha": 1}, link="naive") == "rotasched alpha=1 link=naive"
    assert label("rotasched", policy_params={"transfer_blocks": None}) == "rotasched"
    assert label("rotasched", policy_params={"eager_sync": 1}) == "rotasched eager_sync=1"  # no truth
    assert label("rotasched", unlimited_allowance=True) == "rotasched unlimited_allowance=true"
    assert label("fcfs", depth=2) == "fcfs depth=2"
    assert label("stranger", policy_params={"x": {"b": 1, "a": 2}}) == 'stranger x={"a": 2, "b": 1}'
    assert label("stranger") == "stranger"


def test_settings_are_listed_ours_first_then_by_value() -> None:
    lines = [line("stranger", 5), line("fcfs", 5), line("rotasched", 5), line("rota-slack", 5)]
    lines += [line("rotasched", 5, policy_params={"alpha": value}) for value in (10, 0.3, 1)]
    (study,) = studies(made(*lines), DEFAULTS)
    assert [setting.label for setting in study.settings] == [
        *("rota-slack", "rotasched", "rotasched alpha=0.3", "rotasched alpha=1", "rotasched alpha=10"),
        *("fcfs", "stranger"),
    ]


def test_worlds_are_not_mixed() -> None:
    lines = [
        line("fcfs", 5),
        line("fcfs", 5, hardware="h100-pcie5"),
        line("fcfs", 10),
        line("fcfs", 5, seats=9),
    ]
    found = studies(made(*lines), DEFAULTS)
    assert [len(study.runs) for study in found] == [2, 1, 1]
    titles = world_titles(found)
    assert sorted(titles) == [
        "qwen2.5-32b on gh200-144gb, chat.csv (seats 16384)",
        "qwen2.5-32b on gh200-144gb, chat.csv (seats 9)",
        "qwen2.5-32b on h100-pcie5, chat.csv",
    ]


def test_the_facts_name_no_folder_and_only_what_is_unusual() -> None:
    (study,) = studies(
        made(line("fcfs", 5, block_tokens=32), line("fcfs", 7.5, 2, block_tokens=32)), DEFAULTS
    )
    facts = dict(world_facts(study, {**study.world, "block_tokens": 16, "classes": ()}))
    assert facts["Trace"] == "chat.csv"
    assert facts["Objectives"] == "TTFT within 5 s, TBT within 100 ms"
    assert facts["Arrivals"] == "Poisson, 5, 7.5 requests/s for 120 s"
    assert facts["Seeds"] == "1, 2"
    assert facts["KV blocks in HBM"] == "700"
    assert facts["Further"] == "block_tokens 32"


def test_a_cell_is_mean_and_spread_over_seeds() -> None:
    runs = made(*(line("fcfs", 5, seed, share) for seed, share in ((1, 0.2), (2, 0.4), (3, 0.6))))
    (study,) = studies(runs, DEFAULTS)
    found = study.spread(Setting("fcfs"), 5.0, TTFT)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((40, 20, 60))
    assert found.deviation == pytest.approx(20)
    assert study.spread(Setting("fcfs"), 6.0, TTFT) is None


def test_a_default_that_is_spelled_out_is_no_second_run() -> None:
    spelled = {"policy_params": {"alpha": 3}, "link": "duplex"}
    (study,) = studies(made(line("rotasched", 5), line("rotasched", 5, **spelled)), DEFAULTS)
    assert [len(cell) for cell in study.cells.values()] == [1]
    with pytest.raises(ConfigError, match=r"runs\.jsonl:2: the job of runs\.jsonl:1 with other figures"):
        studies(made(line("rotasched", 5), line("rotasched", 5, ttft=0.6, **spelled)), DEFAULTS)


def test_the_table_marks_the_best_of_each_column_and_its_equals() -> None:
    lines = [line("rota-slack", 5, ttft=1.0), line("fcfs", 5, ttft=0.9999), line("rotasched", 5, ttft=0.9)]
    lines += [line("rota-slack", 10, 1, 0.8), line("rota-slack", 10, 2, 0.6), line("fcfs", 10, ttft=0.71)]
    (study,) = studies(made(*lines), DEFAULTS)
    table = metric_table(study, TTFT)
    assert table is not None
    assert markdown(table) == (
        "| policy | 5 RPS | 10 RPS |\n"
        "|---|---:|---:|\n"
        "| rota-slack | **100.0** (n=1) | 70.0 ± 14.1 |\n"
        "| rotasched | 90.0 (n=1) | - |\n"
        "| fcfs | **100.0** (n=1) | **71.0** (n=1) |\n"
    )


def test_where_all_are_alike_nobody_is_best() -> None:
    (study,) = studies(made(line("fcfs", 5, ttft=1.0), line("rotasched", 5, ttft=0.9999)), DEFAULTS)
    table = metric_table(study, TTFT)
    assert table is not None
    assert [(row.cells[0].text, row.cells[0].best) for row in table.rows] == [("100.0", False)] * 2


def test_less_is_better_for_times_and_amounts_have_no_best() -> None:
    lines = [line("fcfs", 5, longest_gap_s=2.0), line("rotasched", 5, longest_gap_s=1.0)]
    (study,) = studies(made(*lines), DEFAULTS)
    gaps, rotations = (metric_table(study, METRICS[name]) for name in ("longest_gap_s", "rotations"))
    assert gaps is not None
    assert rotations is not None
    assert [row.cells[0].best for row in gaps.rows] == [True, False]
    assert not any(row.cells[0].best for row in rotations.rows)
    assert metric_table(study, METRICS["goodput_rps"]) is None  # nobody measured it


def test_many_settings_of_a_policy_go_to_a_table_of_their_own() -> None:
    lines = [line("rotasched", rps) for rps in (5, 10)] + [line("fcfs", 5)]
    lines += [line("rotasched", 10, policy_params={"alpha": value}) for value in (1, 2, 4)]
    (study,) = studies(made(*lines), DEFAULTS)
    assert [setting.label for setting in main_settings(study)] == ["rotasched", "fcfs"]
    others = settings_table(study, [TTFT, JOINT])
    assert others is not None
    assert [row.label for row in others.rows] == [f"rotasched alpha={value}, 10 RPS" for value in (1, 2, 4)]
    assert others.headings == [TTFT.heading, JOINT.heading]


def test_a_policy_without_its_default_is_shown_as_it_was_run() -> None:
    lines = [line("rotasched", rps, policy_params={"alpha": 1}) for rps in (5, 10)]
    (study,) = studies(made(*lines), DEFAULTS)
    assert [setting.label for setting in main_settings(study)] == ["rotasched alpha=1"]


def test_metrics_are_found_by_name() -> None:
    assert [metric.name for metric in find_metrics(["joint_mean", "ttft_ms.p99", "joint_mean"])] == [
        "joint_mean",
        "ttft_ms.p99",
    ]
    with pytest.raises(ConfigError, match="'colour' is unknown; known: ttft_attainment"):
        find_metrics(["colour"])


def test_every_policy_looks_different_and_always_the_same() -> None:
    looks = [(look.light, look.marker, look.dash) for look in LOOKS.values()]
    assert len(set(looks)) == len(looks)
    assert look_of("stranger") == look_of("stranger")
    assert [name for name, look in LOOKS.items() if look.thick] == ["rota-slack", "rotasched"]
