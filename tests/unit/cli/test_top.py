"""The pictures of `top`, from statistics made by hand."""

from __future__ import annotations

import io
import json

from rich.console import Console

from superinfer_trt.cli.top_view import BAR_CELLS, as_json, bar, frame, line, rates
from superinfer_trt.serve.pb import executor_pb2 as pb

INFO = pb.GetModelInfoResponse(engine="native", policy="rota-slack", model="smollm2", version="0.1.0")
BEFORE = pb.Stats(
    serving=True, uptime_s=3_590, output_tokens=1_000, turns=100, batches=90, plan_s=1, step_s=9
)
NOW = pb.Stats(
    serving=True,
    uptime_s=3_600,
    waiting=6,
    prefill=1,
    decode=3,
    rotary=10,
    device_blocks=100,
    device_blocks_free=25,
    host_blocks=400,
    host_blocks_free=300,
    output_tokens=6_000,
    turns=300,
    batches=290,
    plan_s=1.4,
    step_s=13,
    rotations_out=50,
    finished_length=20,
    finished_stop=10,
    refused=7,
    streams=20,
    waiting_oldest_ms=2_500,
    waiting_urgency=0.5,
    rotary_oldest_ms=130,
    rotary_urgency=1.3,
    link_out_bytes=10**10,
    link_in_bytes=2 * 10**10,
    link_out_bytes_per_s=2e9,
    ttft_met=27,
    ttft_missed=3,
    tbt_met=990,
    tbt_missed=10,
    joint_met=15,
    joint_missed=15,
)


def shown(now: pb.Stats, before: pb.Stats = BEFORE, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    console.print(frame(INFO, now, before))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, name: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith(name)]
    return found.rstrip()


def test_rates_are_differences_over_the_time_between() -> None:
    found = rates(NOW, BEFORE)
    assert (found.seconds, found.output_tokens_per_s, found.requests_per_s) == (10, 500, 3)
    assert (round(found.step_ms or 0, 6), round(found.plan_ms or 0, 6)) == (20, 2)
    assert (found.link_out_utilisation, found.link_in_utilisation) == (0.5, None)
    assert (found.link_in_bytes_per_s, found.rotations_per_s) == (2e9, 5)
    assert (found.ttft_met, found.tbt_met, found.joint_met) == (0.9, 0.99, 0.5)


def test_nothing_measured_is_no_number() -> None:
    found = rates(BEFORE, BEFORE)
    assert (found.output_tokens_per_s, found.step_ms, found.joint_met) == (0, None, None)
    assert row(shown(BEFORE), "step ms").split() == ["step", "ms", "-", "100.00"]


def test_a_frame_has_phases_urgency_pools_lanes_speed_and_objectives() -> None:
    text = shown(NOW)
    assert text.startswith("serving  native smollm2 rota-slack  up 1:00:00  streams 20")
    assert row(text, "waiting").endswith("6  2.50 s, 50% of SLO")
    assert row(text, "rotary").endswith("10  0.13 s, 130% of SLO")
    assert row(text, "waiting").count("█") == round(BAR_CELLS * 6 / 20)
    assert "75/100" in row(text, "HBM blocks")
    assert "100/400" in row(text, "DRAM blocks")
    assert row(text, "HBM > DRAM").split()[-3:] == ["1.00", "GB/s", "50.0%"]
    assert row(text, "DRAM > HBM").split()[-3:] == ["2.00", "GB/s", "-"]
    assert row(text, "tokens/s").split() == ["tokens/s", "500", "2", "TTFT", "met", "90.0%", "90.0%"]
    assert row(text, "ended:") == "ended: stop 10  length 20  cancelled 0  rejected 0  failed 0  refused 7"


def test_it_fits_a_narrow_terminal_and_a_server_that_drains() -> None:
    idle = shown(pb.Stats(serving=False), pb.Stats(), width=80)
    assert idle.startswith("not taking requests")
    for text in (idle, shown(NOW, width=80)):
        assert max(map(len, text.splitlines())) <= 80
        assert len(text.splitlines()) <= 24


def test_bars() -> None:
    assert bar(None, "red").plain == bar(0, "red").plain == "·" * BAR_CELLS
    assert bar(7.5, "red").plain == "█" * BAR_CELLS
    assert bar(0.5, "red").plain.count("█") == BAR_CELLS // 2


def test_a_line_for_where_there_is_no_terminal() -> None:
    assert line(NOW, BEFORE) == (
        "waiting 6 running 4 rotary 10 link 0 urgency 1.30 hbm 75/100 dram 100/400 "
        "tokens/s 500 step_ms 20.00 plan_ms 2.00 joint 50.0%"
    )


def test_json_has_every_field_and_is_json() -> None:
    found = json.loads(json.dumps(as_json(INFO, NOW, BEFORE)))
    assert (found["policy"], found["stats"]["rotary"], found["rates"]["ttft_met"]) == ("rota-slack", 10, 0.9)
    assert set(found["stats"]) == set(pb.Stats.DESCRIPTOR.fields_by_name)
