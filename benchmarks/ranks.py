"""What several ranks cost a turn, and what they gain: as a pickle and as words, summed and alone.

    python benchmarks/ranks.py                       # a plan as words and as a pickle, in one process
    mpiexec -n 2 python benchmarks/ranks.py          # also between ranks, and the embedded engine over them

Ratios in one run; microseconds are medians of rank 0. `tokens_per_s` is of the model's shape in
benchmarks/decode.py with random weights and --threads threads on each rank, against rank 0 alone with as
many threads while the others sleep. Every rank needs a core of its own for that.
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from superinfer_trt.core.plan import Chunk, Plan, SyncRun
from superinfer_trt.core.request import Sampling
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import RequestId
from superinfer_trt.engine.native import NativeEngine, element_bytes_for
from superinfer_trt.ranks.codec import Turn, message_of, message_words
from superinfer_trt.ranks.split import SplitWeights

ROUNDS = 500


def a_plan(running: int) -> Plan:
    """A busy turn: all decode, a tenth moves."""
    ids = [RequestId(1_000_000 + 3 * i) for i in range(running)]
    few = max(1, running // 20)
    return Plan(
        turn=123_456,
        now=98_765_432_123_456,
        admit=tuple(ids[:2]),
        prefill=tuple(Chunk(id, 0, 128) for id in ids[:2]),
        decode=tuple(ids),
        rotate_out=tuple(ids[:few]),
        rotate_in=tuple(ids[few : 2 * few]),
        sync=tuple(SyncRun(id, 3, 1) for id in ids[: 2 * few]),
    )


def median_us(run: Callable[[], Any], rounds: int = ROUNDS) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e6, 1)


def codec(running: int) -> dict[str, float]:
    plan = a_plan(running)
    words = message_words(Turn(plan))
    assert message_of(words) == Turn(plan, (), [])
    packed = pickle.dumps(plan, pickle.HIGHEST_PROTOCOL)
    there = median_us(lambda: message_words(Turn(plan)))
    back = median_us(lambda: message_of(words))
    pickled = median_us(lambda: pickle.dumps(plan, pickle.HIGHEST_PROTOCOL))
    unpickled = median_us(lambda: pickle.loads(packed))
    return {
        "running": running,
        "words_bytes": 8 * len(words),
        "pickle_bytes": len(packed),
        "words_there_us": there,
        "words_back_us": back,
        "pickle_there_us": pickled,
        "pickle_back_us": unpickled,
        "pickle_over_words": round((pickled + unpickled) / (there + back), 2),
    }


class Course:
    """An engine over its own pool, decoding `rows` rows a step."""

    def __init__(self, weights: Any, rows: int, threads: int, reduce: Any) -> None:
        geometry = weights.config.geometry(16, element_bytes_for("bf16"))
        self.rows = rows
        self.pool = np.zeros((rows * 16, geometry.block_bytes), np.uint8)
        self.engine = NativeEngine(weights, self.pool, threads=threads, reduce=reduce)

    def step(self, start: int) -> None:
        rows = tuple(
            Row(RequestId(i), start, [7 * i + start], range(16 * i, 16 * i + 16), True, 0, Sampling())
            for i in range(self.rows)
        )
        self.engine.launch(Batch(0, rows))
        self.engine.collect()

    def tokens_per_s(self, steps: int) -> float:
        times = []
        for start in range(100, 100 + steps):
            began = time.perf_counter()
            self.step(start)
            times.append(time.perf_counter() - began)
        return round(self.rows / statistics.median(times[2:]), 1)


def between_ranks(comm: Any, options: argparse.Namespace) -> dict[str, Any]:
    from decode import SMOLLM2, RandomWeights
    from mpi4py import MPI

    world, found = MPI.COMM_WORLD, {}
    plan = a_plan(512)
    words = message_words(Turn(plan))
    tell = (lambda: comm.tell(words)) if comm.rank == 0 else comm.hear
    found["tell_us"] = median_us(tell)
    found["pickled_bcast_us"] = median_us(lambda: world.bcast(plan if comm.rank == 0 else None))
    for rows in options.rows:
        partial = np.zeros(rows * SMOLLM2.hidden, np.float32)
        found[f"add_{rows}_rows_us"] = median_us(lambda partial=partial: comm.add(partial))
    for rows in options.rows:
        split = SplitWeights(RandomWeights(SMOLLM2), comm.rank, comm.ranks)
        course = Course(split, rows, options.threads, comm.add)
        together = course.tokens_per_s(options.steps)
        course.engine.close()
        alone = 0.0
        if comm.rank == 0:
            course = Course(RandomWeights(SMOLLM2), rows, options.threads, None)
            alone = course.tokens_per_s(options.steps)
            course.engine.close()
        comm.least(words[:1])
        if comm.rank == 0:
            ratio = round(together / alone, 2)
            found[f"decode_{rows}"] = {"tokens_per_s": together, "alone": alone, "ratio": ratio}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="compute threads of each rank")
    options = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "ranks", "ranks": 1, "codec": [codec(n) for n in (64, 512)]}
    try:
        from mpi4py import MPI
    except ImportError:
        ranks = 1
    else:
        ranks = MPI.COMM_WORLD.size
    if ranks == 1:
        print(json.dumps(result))
        return
    from superinfer_trt.ranks.mpi import mpi_ranks

    with mpi_ranks(ranks, 600) as comm:
        result |= {"ranks": ranks, "threads": options.threads, **between_ranks(comm, options)}
        if comm.rank == 0:
            print(json.dumps(result))


if __name__ == "__main__":
    main()
