"""What a run needed at most, and that it is enough."""

from __future__ import annotations

from typing import Any

from superinfer_trt.cli.simulation import Job, run_job
from superinfer_trt.core.plan import Chunk, Plan
from superinfer_trt.core.units import RequestId
from superinfer_trt.core.view import Limits, View
from superinfer_trt.sim.peaks import Peaks

LIMITS = Limits(step_tokens=64, seats=8, block_tokens=16, device_blocks=100, host_blocks=50)


def view(*, host_free: int, host_backing: int, promised: int, largest: int) -> View:
    return View(
        turn=1,
        now=0,
        limits=LIMITS,
        waiting=(),
        rotary=(),
        running=(),
        live={},
        device_free=0,
        device_leaving=0,
        host_free=host_free,
        host_backing=host_backing,
        promised_blocks=promised,
        promised_blocks_max=largest,
        waiting_blocks=0,
        rotary_blocks=0,
        link_out_blocks=0,
        link_in_blocks=0,
    )


def test_the_largest_of_each_is_kept() -> None:
    peaks = Peaks()
    plan = Plan(1, 0, prefill=(Chunk(RequestId(1), 0, 30),), decode=(RequestId(2), RequestId(3)))
    peaks.note(view(host_free=20, host_backing=25, promised=100, largest=40), plan)
    assert peaks == Peaks(dram_blocks=5, dram_blocks_promised=0, seats=3, step_tokens=32)
    peaks.note(view(host_free=50, host_backing=0, promised=101, largest=40), Plan(2, 0))
    assert peaks == Peaks(dram_blocks=5, dram_blocks_promised=41, seats=3, step_tokens=32)


def small(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"rps": 12.0, "duration_s": 10.0, "hbm_blocks": 1500, "policy": "rota-slack"}
    return run_job(Job(**{**base, **changes})).figures


def test_the_door_stays_as_open_with_the_promised_blocks_and_closes_with_fewer() -> None:
    ample = small()
    need = max(ample["dram_blocks_peak"], ample["dram_blocks_promised"])
    assert ample["rotations"] > 0
    assert 0 < ample["dram_blocks_peak"] <= need < ample["dram_blocks"]
    enough = small(dram_blocks=need)
    assert enough["joint_mean"] == ample["joint_mean"]
    assert enough["dram_blocks_promised"] <= need
    short = small(dram_blocks=need // 4)
    assert short["dram_blocks_peak"] <= need // 4
    assert short["ttft_attainment"] < ample["ttft_attainment"]


def test_a_policy_without_rotation_needs_no_dram_and_limits_are_kept() -> None:
    found = small(policy="fcfs-async", seats=40, step_tokens=500)
    assert found["dram_blocks_peak"] == 0
    assert found["seats_peak"] == 40
    assert found["step_tokens_peak"] == 500
