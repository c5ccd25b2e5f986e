"""What it costs to be watched, in CPU time of one thread, in one run.

turn       a turn of the executor (512 running, as many rotary; engine and link do nothing), by who listens:
           nobody, the histograms of the metrics endpoint, a recording. They take turns of --block turns each
tally      what the counts by tenant and class cost an output token, on the event loop
scrape     one scrape of the endpoint, with everybody live

    python benchmarks/observing.py [--json] [--turns 900] [--block 30]
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from statistics import median
from types import SimpleNamespace

from planning import OUTPUT_TOKENS_MAX, PROMPT_TOKENS, RUNNING, WARM_TURNS, Scene
from prometheus_client import CollectorRegistry, generate_latest

from superinfer_trt.core.outcome import Sampled, TokenEvent
from superinfer_trt.core.ports import Observer
from superinfer_trt.core.request import Request, Sampling
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, RequestId
from superinfer_trt.runtime.recording import Recording
from superinfer_trt.serve.metrics import Metrics
from superinfer_trt.serve.tally import Tally
from superinfer_trt.serve.turn_times import TurnTimes


def turns(scene: Scene, count: int, block: int) -> dict[str, float]:
    """CPU microseconds of a turn by who listens: the median of the means of their blocks."""
    executor = scene.executor
    found: dict[str, list[float]] = {"nobody": [], "metrics": [], "recording": []}
    times = TurnTimes()
    for at in range(count // block):
        who = list(found)[at % len(found)]
        observer: Observer | None = {"nobody": None, "metrics": times, "recording": None}[who]
        if who == "recording":
            observer = Recording(scene.clock)
        if observer is not None:
            executor.observe(observer)
        scene.turn()  # a recording begins with the first one
        start = time.thread_time_ns()
        for _ in range(block):
            scene.turn()
        found[who].append((time.thread_time_ns() - start) / block / 1e3)
        if observer is not None:
            executor.unobserve(observer)
    return {who: round(median(values), 1) for who, values in found.items()}


def tally(streams: int, tokens: int) -> tuple[Tally, float]:
    """(a tally of that many live requests of 16 tenants, nanoseconds a token)."""
    made = Tally(Slo())
    prompt = tuple(range(PROMPT_TOKENS))
    for id in range(streams):
        sampling = Sampling(max_tokens=OUTPUT_TOKENS_MAX)
        made.accepted(Request(RequestId(id), prompt, sampling, tenant=f"t{id % 16}"), f"#{id}")
    sampled = Sampled(1)
    rounds = [
        [TokenEvent(RequestId(id), (at + 1) * 20 * MILLISECOND, at, sampled) for id in range(streams)]
        for at in range(tokens)
    ]
    spent = []
    for events in rounds:
        start = time.thread_time_ns()
        made.told(events)
        spent.append((time.thread_time_ns() - start) / streams)
    return made, median(spent)


def scrape_ms(scene: Scene, counts: Tally, times: int = 20) -> float:
    """CPU milliseconds of one scrape of a server that serves `scene`."""
    service = SimpleNamespace(
        executor=scene.executor, clock=scene.clock, engine="none", policy="rotasched", model=None
    )
    calls = SimpleNamespace(service=service, tally=counts, serving=True, live=RUNNING, messages=0)
    registry = CollectorRegistry()
    registry.register(Metrics(calls, TurnTimes()))  # type: ignore[arg-type]
    spent = []
    for _ in range(times):
        start = time.thread_time_ns()
        generate_latest(registry)
        spent.append((time.thread_time_ns() - start) / 1e6)
    return median(spent)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--turns", type=int, default=900)
    parser.add_argument("--block", type=int, default=30)
    arguments = parser.parse_args()
    scene = Scene("rotasched", 1000, None)
    for _ in range(WARM_TURNS):
        scene.turn()
    gc.collect()
    gc.freeze()
    turn_us = turns(scene, arguments.turns, arguments.block)
    counts, token_ns = tally(RUNNING, 200)
    found: dict[str, object] = {
        "benchmark": "observing",
        "turn_us": turn_us,
        "metrics_over_nobody": round(turn_us["metrics"] / turn_us["nobody"], 3),
        "recording_over_nobody": round(turn_us["recording"] / turn_us["nobody"], 3),
        "tally_ns_a_token": round(token_ns),
        "tally_share_of_a_turn": round(token_ns * RUNNING / 1e3 / turn_us["nobody"], 3),
        "scrape_ms": round(scrape_ms(scene, counts), 1),
        "live": sum(1 for _ in scene.executor.live),
    }
    if arguments.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
