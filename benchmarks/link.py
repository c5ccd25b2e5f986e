"""The native link against plain copies, in one run: bandwidth both ways, rate limit, cost of a submit.

bandwidth   DuplexLink without a rate, `--blocks` scattered blocks each way, a copy in each direction, against
    memcpy_whole    two threads of a C++ program, one a direction, one memcpy of as many bytes side by side
    memcpy_blocks   the same threads, one memcpy a block, scattered as ours are
    loop            one Python thread, one numpy slice copy a block, directions in turns
naive       what a stack does whose pools are layer-first: one copy for each layer's keys and one for its
    values, of each block, directions in turns, in Python; beside it DuplexLink over block-first pools, and
    over the layer-first ones
rate        DuplexLink at 1 and 2 GB/s each way: what crossed against what was asked for
submit      what a submit of 1,000 blocks costs its caller, as one copy and as 100 copies of 10 blocks: the
    whole of DuplexLink.submit, and of it the call into the native core

Figures are payload, both directions together; each is the median of `--repeats` rounds, taken in turns.
The load average stands below the table: rerun on a quiet machine what is to be reported. The C++ program is
a target of the preset `release`:

    cmake --preset release && cmake --build --preset release --target memcpy_pair
    python benchmarks/link.py [--json] [--blocks 2400] [--kib 64,256,1024,4096] [--repeats 7] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from superinfer_trt.core.step import Copy, CopyKind, Direction
from superinfer_trt.core.units import RequestId
from superinfer_trt.transfer.native import DuplexLink
from superinfer_trt.transfer.pools import allocate_pool

D2H, H2D = Direction.D2H, Direction.H2D
POOL_BYTES_MAX = 512 << 20  # of one direction's share of one tier: four such shares fit a small machine


MEMCPY_PAIR = Path(__file__).resolve().parent.parent / "build" / "release" / "benchmarks/native/memcpy_pair"
# Blocks of 16 tokens: bytes of one layer's keys (or values), and twice the layers.
NAIVE = {"SmolLM2-135M": (6 << 10, 60), "Llama-3-8B": (32 << 10, 64), "Qwen2.5-32B": (32 << 10, 128)}


class MemcpyPair:
    """The C++ program: rounds of two memcpy threads over pools like ours."""

    def __init__(self, program: Path, blocks: int, block_bytes: int) -> None:
        self._process = subprocess.Popen(
            [program, str(blocks), str(block_bytes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, way: str, rounds: int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        taken = 0.0
        for _ in range(rounds):
            self._process.stdin.write(way + "\n")
            self._process.stdin.flush()
            taken += float(self._process.stdout.readline())
        return taken

    def close(self) -> None:
        self._process.communicate(timeout=60)  # the end of its input is its own


def copy_of(kind: CopyKind, source: NDArray[np.int32], target: NDArray[np.int32], after: int = -1) -> Copy:
    return Copy(RequestId(1), kind, array("i", source.tobytes()), array("i", target.tobytes()), after)


def drain(link: DuplexLink, groups: int) -> None:
    """Until as many groups have landed; all of them well."""
    while groups:
        if not link.wait(60.0):
            raise RuntimeError("the link stands still")
        done = link.poll()
        if not all(item.ok for item in done):
            raise RuntimeError("a copy failed")
        groups -= len(done)


def link_over(
    device: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    host: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    rate: float = 0.0,
    threads: int = 1,
) -> DuplexLink:
    return DuplexLink(
        device,
        host,
        h2d_bytes_per_s=rate,
        d2h_bytes_per_s=rate,
        queue_bytes_max=1 << 40,
        host_threads=threads,
    )


class Rig:
    """Two pools of twice `blocks` blocks: the first half of each goes out or came in, scattered."""

    def __init__(self, blocks: int, block_bytes: int, rate: float, threads: int = 1) -> None:
        self.device = allocate_pool(2 * blocks, block_bytes)
        self.host = allocate_pool(2 * blocks, block_bytes)
        for pool in (self.device, self.host):
            pool[:] = 1  # no page is touched for the first time inside a measurement
        self.link = link_over(self.device, self.host, rate, threads)
        random = np.random.default_rng(1)
        slots = [random.permutation(2 * blocks).astype(np.int32) for _ in range(2)]
        self.device_ids, self.host_ids = slots
        self.blocks, self.block_bytes = blocks, block_bytes
        device, host = self.device_ids, self.host_ids
        self.out = copy_of(CopyKind.OUT, device[:blocks], host[:blocks])
        self.back = copy_of(CopyKind.IN, host[blocks:], device[blocks:])

    def duplex(self) -> None:
        self.link.submit(D2H, [self.out])
        self.link.submit(H2D, [self.back])
        drain(self.link, 2)

    def loop(self) -> None:
        device, host = self.device, self.host
        ways = (self.out.source, self.out.target, self.back.source, self.back.target)
        for device_out, host_out, host_back, device_back in zip(*ways, strict=True):
            host[host_out] = device[device_out]
            device[device_back] = host[host_back]


def seconds(work: Callable[[], None], rounds: int) -> float:
    begin = time.perf_counter()
    for _ in range(rounds):
        work()
    return time.perf_counter() - begin


def medians(ways: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Seconds of each way, measured in turns; the first time does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            once = way()
            if repeat:
                taken[name].append(once)
    return {name: statistics.median(times) for name, times in taken.items()}


def measure_bandwidth(program: Path, blocks: int, kib: int, repeats: int, threads: int) -> dict[str, object]:
    block_bytes = kib << 10
    at_once = min(blocks, max(1, POOL_BYTES_MAX // block_bytes))
    rounds = -(-blocks // at_once)
    rig = Rig(at_once, block_bytes, 0.0, threads)
    pair = MemcpyPair(program, at_once, block_bytes)
    taken = medians(
        {
            "duplex": lambda: seconds(rig.duplex, rounds),
            "memcpy_whole": lambda: pair.seconds("whole", rounds),
            "memcpy_blocks": lambda: pair.seconds("blocks", rounds),
            "loop": lambda: seconds(rig.loop, rounds),
        },
        repeats,
    )
    payload = 2 * rounds * at_once * block_bytes
    speed = {name: payload / value / 1e9 for name, value in taken.items()}
    rig.link.close()
    pair.close()
    return {
        "kib": kib,
        "blocks": rounds * at_once,
        **{f"{name}_gb_per_s": round(value, 2) for name, value in speed.items()},
        "over_memcpy": round(speed["duplex"] / max(speed["memcpy_whole"], speed["memcpy_blocks"]), 2),
        "over_loop": round(speed["duplex"] / speed["loop"], 2),
    }


class LayerFirst:
    """Pools as [layer's keys or values][block]: a block is `parts` pieces of `piece_bytes`, far apart."""

    def __init__(self, blocks: int, piece_bytes: int, parts: int) -> None:
        self.rig = Rig(blocks, piece_bytes * parts, 0.0)
        shape = (parts, 2 * blocks, piece_bytes)
        # The memory of the block-first pools, cut the other way: their contents do not matter.
        self.device: list[NDArray[np.uint8]] = list(self.rig.device.reshape(shape))
        self.host: list[NDArray[np.uint8]] = list(self.rig.host.reshape(shape))
        self.link = link_over(self.device, self.host)

    def naive(self) -> None:
        rig = self.rig
        for device, host in zip(self.device, self.host, strict=True):
            for source, target in zip(rig.out.source, rig.out.target, strict=True):
                host[target] = device[source]
            for source, target in zip(rig.back.source, rig.back.target, strict=True):
                device[target] = host[source]

    def in_parts(self) -> None:
        self.link.submit(D2H, [self.rig.out])
        self.link.submit(H2D, [self.rig.back])
        drain(self.link, 2)


def measure_naive(model: str, repeats: int) -> dict[str, object]:
    piece_bytes, parts = NAIVE[model]
    block_bytes = piece_bytes * parts
    blocks = max(1, POOL_BYTES_MAX // 4 // block_bytes)
    pools = LayerFirst(blocks, piece_bytes, parts)
    taken = medians(
        {
            "duplex": lambda: seconds(pools.rig.duplex, 1),
            "duplex_in_parts": lambda: seconds(pools.in_parts, 1),
            "naive": lambda: seconds(pools.naive, 1),
        },
        repeats,
    )
    payload = 2 * blocks * block_bytes
    pools.link.close()
    pools.rig.link.close()
    return {
        "model": model,
        "block_kib": block_bytes >> 10,
        "pieces": parts,
        "piece_kib": piece_bytes >> 10,
        **{f"{name}_gb_per_s": round(payload / value / 1e9, 2) for name, value in taken.items()},
        "over_naive": round(taken["naive"] / taken["duplex"], 2),
    }


def measure_rate(rate: float, kib: int, seconds_each: float) -> dict[str, object]:
    """Both directions at `rate` for a while: the slower of the two against what was asked for."""
    block_bytes = kib << 10
    blocks = max(1, int(rate * seconds_each / block_bytes))
    rig = Rig(blocks, block_bytes, rate)
    rig.duplex()
    taken = [seconds(rig.duplex, 1) for _ in range(5)]
    reached = blocks * block_bytes / statistics.median(taken)
    rig.link.close()
    return {
        "asked_gb_per_s": rate / 1e9,
        "kib": kib,
        "reached_gb_per_s": round(reached / 1e9, 3),
        "ratio": round(reached / rate, 3),
    }


def measure_submit(copies: int, blocks: int, jobs: int) -> dict[str, object]:
    """The caller's time for a submit; the copies are held by a mark meanwhile, so that nobody helps."""
    rig = Rig(copies * blocks, 64, 0.0)
    ways = zip(
        np.split(rig.device_ids[: copies * blocks], copies),
        np.split(rig.host_ids[: copies * blocks], copies),
        strict=True,
    )
    ids = list(ways)
    submits, natives, polls = [], [], []

    class Timed:
        """The native engine with a watch on its submits."""

        def __getattr__(self, name: str) -> object:
            call = getattr(engine, name)
            return self.watched(call) if name.startswith("submit") else call

        def watched(self, call: Callable[..., object]) -> Callable[..., object]:
            def timed(*arguments: object) -> object:
                begin = time.perf_counter_ns()
                first = call(*arguments)
                natives.append(time.perf_counter_ns() - begin)
                return first

            return timed

    engine = rig.link._engine  # noqa: SLF001
    for turn in range(jobs):
        group = [copy_of(CopyKind.OUT, device, host, turn) for device, host in ids]
        watched = turn % 2 == 1
        rig.link._engine = Timed() if watched else engine  # type: ignore[assignment] # noqa: SLF001
        begin = time.perf_counter_ns()
        tickets = rig.link.submit(D2H, group)
        if not watched:
            submits.append(time.perf_counter_ns() - begin)
        if tickets is None:
            raise RuntimeError("busy")
        rig.link.mark(turn)
        while rig.link.stats(D2H).queued_groups:
            rig.link.wait(60.0)
        begin = time.perf_counter_ns()
        landed = len(rig.link.poll())
        polls.append(time.perf_counter_ns() - begin)
        if landed != copies:
            raise RuntimeError("a group is missing")
    rig.link.close()
    return {
        "copies": copies,
        "blocks": copies * blocks,
        "submit_us": round(statistics.median(submits) / 1e3, 1),
        "native_us": round(statistics.median(natives) / 1e3, 1),
        "native_p10_us": round(sorted(natives)[len(natives) // 10] / 1e3, 1),
        "submit_p99_us": round(sorted(submits)[int(len(submits) * 0.99)] / 1e3, 1),
        "poll_us": round(statistics.median(polls) / 1e3, 1),
    }


def print_table(title: str, rows: list[dict[str, object]]) -> None:
    """Markdown."""
    names = list(rows[0])
    print(f"### {title}\n")
    for line in (names, ["--:"] * len(names), *([row[name] for name in names] for row in rows)):
        print("| " + " | ".join(str(cell) for cell in line) + " |")
    print()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--blocks", type=int, default=2400, help="each way")
    parser.add_argument("--kib", default="64,256,1024,4096", help="block sizes, comma separated")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="that copy, of each lane")
    parser.add_argument("--memcpy-pair", type=Path, default=MEMCPY_PAIR, help="the C++ program")
    arguments = parser.parse_args()
    if not arguments.memcpy_pair.is_file():
        parser.error(f"no {arguments.memcpy_pair}; the text above says how to build it")
    result = {
        "benchmark": "link",
        "load": os.getloadavg()[0],
        "bandwidth": [
            measure_bandwidth(
                arguments.memcpy_pair, arguments.blocks, int(kib), arguments.repeats, arguments.threads
            )
            for kib in arguments.kib.split(",")
        ],
        "naive": [measure_naive(model, arguments.repeats) for model in NAIVE],
        "rate": [measure_rate(rate, 360, 0.2) for rate in (1e9, 2e9)],
        "submit": [measure_submit(1, 1000, 500), measure_submit(100, 10, 500)],
    }
    if arguments.json:
        print(json.dumps(result))
        return 0
    for part in ("bandwidth", "naive", "rate", "submit"):
        print_table(part, result[part])  # type: ignore[arg-type]
    print(f"load average {result['load']:.1f} on {len(os.sched_getaffinity(0))} cores")
    return 0


if __name__ == "__main__":
    sys.exit(main())
