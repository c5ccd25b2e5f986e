"""A soak: a real server with more load than it can take, for long, and everything counted twice.

The server runs in a process of its own with an auditor (`audited_server`), its metrics endpoint open and HBM
for a part of the requests, so that they rotate. First each request of a pool runs alone; then a closed loop
measures the capacity; then requests of all kinds arrive at --times of it (`load`). Exit code 1 if anything is
not as it must be: an invariant, a request without an end, a token that is not what the request gave alone, a
count in which server and clients differ, blocks that are not free at the end, memory that grows.

    PYTHONPATH=.:tests python -m soak --engine sim --minutes 60 --log soak-sim.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import yaml

from soak.load import Clients, pool
from soak.watch import Watch, compare, read_metrics, slope
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub

CHANNELS = 4


@dataclass(frozen=True)
class World:
    """What is served, and the largest request."""

    config: dict[str, Any]
    prompt_tokens_max: int
    tokens_max: int


SERVICE = {"port": 0, "metrics_port": 0, "requests_max": 256, "drain_timeout_s": 60.0, "log_level": "error"}
SCHEDULING = {"policy": "rota-slack", "seats": 32, "step_tokens": 256}
WORLDS = {
    # steps of 8 ms; HBM for some 20 of 32
    "sim": World(
        {
            "engine": {
                "name": "sim",
                "step_cost": {
                    "base_ns": 8e6,
                    "row_ns": 5e4,
                    "prefill_token_ns": 2e4,
                    "context_token_ns": 0.0,
                },
            },
            "pools": {
                "hbm_blocks": 96,
                "dram_blocks": 1024,
                "d2h_bytes_per_s": 2e10,
                "h2d_bytes_per_s": 2e10,
            },
            "scheduling": {
                **SCHEDULING,
                "policy": "rotasched",
                "parameters": {"min_stint_tokens": 8},
                "ttft_slo_ms": 200.0,
                "tbt_slo_ms": 100.0,
            },
            "service": SERVICE,
        },
        prompt_tokens_max=100,
        tokens_max=80,
    ),
    # SmolLM2-135M; HBM for about eight
    "native": World(
        {
            "engine": {"name": "native", "threads": 1},
            "model": {"name": "smollm2"},
            "pools": {"hbm_blocks": 64, "dram_blocks": 256, "d2h_bytes_per_s": 2e9, "h2d_bytes_per_s": 2e9},
            "scheduling": {**SCHEDULING, "seats": 16, "ttft_slo_ms": 2000.0, "tbt_slo_ms": 500.0},
            "service": {**SERVICE, "requests_max": 64},
        },
        prompt_tokens_max=100,
        tokens_max=60,
    ),
}


@contextmanager
def serving(config: dict[str, Any]) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The server's process and its ready line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "soak.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "soak.audited_server", str(path)]
        inherited = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=inherited)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the server did not start")
            yield process, json.loads(line)
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


async def load(
    ready: dict[str, Any], process: subprocess.Popen[str], world: World, options: argparse.Namespace
) -> dict[str, Any]:
    """Everything that clients do, and what is looked at meanwhile and afterwards."""
    alone = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(ready["target"], options=alone) for _ in range(CHANNELS)]
    stubs: list[Any] = [ExecutorServiceStub(channel) for channel in channels]
    info = await stubs[0].GetModelInfo(pb.GetModelInfoRequest(), wait_for_ready=True)
    jobs = pool(options.seed, options.jobs, world.prompt_tokens_max, world.tokens_max, info.vocabulary)
    clients = Clients(stubs, jobs, options.seed)
    await clients.learn()
    seconds = options.minutes * 60
    capacity = await clients.closed(min(6 * info.seats, info.requests_max), max(4.0, seconds / 60))
    with Path(options.log or os.devnull).open("w") as log:
        watch = Watch(process.pid, clients, log)
        watching = asyncio.create_task(watch.every(max(0.25, seconds / 360)))
        start = time.monotonic()
        await clients.open(capacity * options.times, seconds)
        wall_s = time.monotonic() - start
        watching.cancel()
    stats = await settled(stubs[0])
    metrics = await asyncio.to_thread(read_metrics, ready["metrics"])
    for channel in channels:
        await channel.close()
    return verdict(clients, watch, stats, compare(clients.counts, metrics), capacity, wall_s, options)


async def settled(stub: Any) -> pb.Stats:
    """The statistics once the last copies have landed."""
    for _ in range(100):
        stats: pb.Stats = (await stub.GetStats(pb.GetStatsRequest())).stats
        if stats.device_blocks_free == stats.device_blocks and stats.host_blocks_free == stats.host_blocks:
            break
        await asyncio.sleep(0.1)
    return stats


def verdict(
    clients: Clients,
    watch: Watch,
    stats: pb.Stats,
    differences: list[str],
    capacity: float,
    wall_s: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The figures of a run; `wrong` is empty when all is well."""
    counts, warm = clients.counts, watch.warm()
    wrong = counts.wrong + differences
    if (stats.device_blocks_free, stats.host_blocks_free) != (stats.device_blocks, stats.host_blocks):
        wrong.append(f"{stats.device_blocks_free} of {stats.device_blocks} HBM blocks are free at the end")
    if not stats.rotations_out:
        wrong.append("nobody was rotated: this load shows nothing")
    per_s = slope([(one.since_s, one.anonymous_bytes) for one in warm])
    grown_mib = per_s * (warm[-1].since_s - warm[0].since_s) / (1 << 20)
    if grown_mib > options.growth_mib_max:
        wrong.append(f"memory grew by {grown_mib:.1f} MiB, {options.growth_mib_max} at most")
    for what in ("threads", "files"):
        low, high = (min(getattr(one, what) for one in half) for half in (warm[: len(warm) // 2], warm[-3:]))
        if high > low + 2:
            wrong.append(f"{what}: {low}, later {high}")
    return {
        "engine": options.engine,
        "capacity_rps": round(capacity, 1),
        "offered_rps": round(capacity * options.times, 1),
        "wall_s": round(wall_s),
        "sent": counts.sent,
        "unsent": counts.unsent,
        "accepted": sum(counts.accepted.values()),
        "ended": dict(sum_by_reason(counts.ended)),
        "left": counts.left,
        "refused": dict(counts.refused),
        "stuck": counts.stuck,
        "output_tokens": stats.output_tokens,
        "turns": stats.turns,
        "rotations": stats.rotations_out,
        "evictions": stats.evictions,
        "anonymous_mib": [round(one.anonymous_bytes / (1 << 20), 1) for one in (warm[0], warm[-1])],
        "grown_mib": round(grown_mib, 2),
        "slope_mib_per_h": round(per_s * 3600 / (1 << 20), 2),
        "slope_bytes_per_request": round(per_s * wall_s / max(1, sum(counts.accepted.values())), 1),
        "threads": [warm[0].threads, warm[-1].threads],
        "files": [warm[0].files, warm[-1].files],
        "took_s_max": round(clients.counts.took_s_max, 1),
        "sent_late_s_max": round(clients.lag_s_max, 2),
        "wrong": wrong,
    }


def sum_by_reason(ended: Any) -> dict[str, int]:
    """Endings by reason, over all tenants."""
    found: dict[str, int] = {}
    for (_, reason), count in ended.items():
        name = reason.removeprefix("FINISH_REASON_").lower()
        found[name] = found.get(name, 0) + count
    return found


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """One run from start to SIGTERM."""
    world = WORLDS[options.engine]
    with serving(world.config) as (process, ready):
        figures = asyncio.run(load(ready, process, world, options))
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=120)
        if code:
            figures["wrong"].append(f"the server ended with {code}")
        return figures


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=list(WORLDS), default="sim")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the load beyond capacity")
    parser.add_argument("--times", type=float, default=1.5, help="the measured capacity")
    parser.add_argument("--jobs", type=int, default=64, help="different requests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--growth-mib-max", type=float, default=8.0, help="of memory after the warm-up")
    parser.add_argument("--log", default="", help="file for the samples, a line of JSON each")
    return parser.parse_args(arguments)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends too
    figures = soak(parse())
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 1 if figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
