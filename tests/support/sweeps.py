"""Lines of sweeps that nobody ran, for tests of what is made of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from superinfer_trt.cli.simulation import Job
from superinfer_trt.sim.report.runs import Run, parsed_run

DEFAULTS = {
    "rotasched": {
        "alpha": 3.0,
        "beta_ttft": 0.5,
        "beta_tbt": 0.0,
        "transfer_blocks": None,
        "eager_sync": True,
        "link": "duplex",
        "depth": 2,
        "unlimited_allowance": False,
    },
    "rota-slack": {"length_weight_ms": 5.0, "link": "duplex", "depth": 2, "unlimited_allowance": False},
    "fcfs": {"link": "duplex", "depth": 1, "unlimited_allowance": False},
}


def line(policy: str, rps: float | None, seed: int = 1, ttft: float = 0.5, **more: Any) -> str:
    """One run. `more`: fields of the job; of its figures where the job has no such field."""
    job = asdict(Job(policy=policy, rps=rps, seed=seed, trace="some/where/chat.csv"))
    figures = {
        "requests": 100,
        "completed": 100,
        "failed": 0,
        "ttft_attainment": ttft,
        "tbt_attainment": 0.9,
        "joint_mean": ttft / 2,
        "joint_p99": ttft / 4,
        "joint_stall": ttft / 2,
        "longest_gap_s": 3.0,
        "ttft_attainment_longest_prompts": 1 - ttft,
        "tokens_per_s": 900.0,
        "rotations": 12,
        "evictions": 0,
        "ttft_ms": {"p50": 200.0, "p99": 4000.0},
        "tbt_ms": {"p50": 40.0, "p99": 150.0},
        "hbm_blocks": 700,
        "dram_blocks": 9000,
        "tenants": {},
        "process_s": 0.1 * seed,
    }
    for name, value in more.items():
        (job if name in job else figures)[name] = value
    return json.dumps({"job": job, "figures": figures})


def made(*lines: str) -> list[Run]:
    """The runs of these lines."""
    return [parsed_run(f"runs.jsonl:{number}", text) for number, text in enumerate(lines, 1)]


def everything() -> list[str]:
    """Runs that fill every panel."""
    lines = [
        line(policy, rps, seed, ttft=min(1.0, share / rps + seed / 100))
        for policy, share in (("rota-slack", 12.0), ("rotasched", 10.0), ("fcfs", 4.0))
        for rps in (5.0, 10.0, 20.0)
        for seed in (1, 2)
    ]
    for name, values in {
        "alpha": (0.3, 10),
        "beta_ttft": (0, 1),
        "beta_tbt": (-10, 5),
        "transfer_blocks": (300, 2400),
    }.items():
        lines += [line("rotasched", 20.0, 1, 0.4, policy_params={name: value}) for value in values]
    for value in (0, 1, 2, 10, 20):
        params = {"length_weight_ms": value}
        lines.append(line("rota-slack", 20.0, 1, 0.5 + value / 50, policy_params=params))
    cut = {"link": "naive-blocking", "unlimited_allowance": True}
    for blocks in (300, 2400):
        params = {"transfer_blocks": blocks, "eager_sync": False}
        lines.append(line("rotasched", 20.0, 1, 0.2, policy_params=params, **cut))
    return lines
