"""DuplexKV on a GPU: the link's own peaks, the lanes against them, naive copies, what compute loses.

peaks     two plain 256 MiB copies: each direction alone, and both at once with equal bytes
lanes     DuplexLink, scattered blocks (none can be merged): each direction alone, and both at once
naive     one copy call a block from Python, each direction alone and both at once on two streams
compute   a bf16 GEMM loop and a loop that reads memory, alone and under full duplex

Payload GB/s from the first submit to the last landing, median of `--repeats`; duplex is the sum of
both directions over the same bytes each way. Every block is compared at the end, byte by byte.

    python benchmarks/link_cuda.py [--json] [--kib 4,16,64,512,2048] [--repeats 5] [--route auto]

Needs an NVIDIA GPU and torch with CUDA; 5 GiB of each memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.step import Copy, CopyKind, Direction
from superinfer_trt.core.units import RequestId
from superinfer_trt.transfer.cuda import CudaLink, PinnedMemory, cuda_facts
from superinfer_trt.transfer.native import DuplexLink

D2H, H2D = Direction.D2H, Direction.H2D
PEAK_BYTES = 256 << 20
EACH_WAY_BYTES_MAX = 1 << 30
EACH_WAY_BLOCKS_MAX = 16_384


def median_s(run: Callable[[], None], repeats: int) -> float:
    """Seconds of one run, after one to warm up."""
    run()
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def gb_per_s(byte_count: int, seconds: float) -> float:
    return round(byte_count / seconds / 1e9, 2)


class Peaks:
    """What the link gives to plain large copies."""

    def __init__(self, torch: Any, device: int) -> None:
        self.torch = torch
        options = {"dtype": torch.uint8, "device": f"cuda:{device}"}
        self.device = [torch.zeros(PEAK_BYTES, **options) for _ in range(2)]
        self.host = [torch.zeros(PEAK_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self.streams = [torch.cuda.Stream(device) for _ in range(2)]

    def run(self, *, out: bool, back: bool) -> None:
        for _ in range(4):  # one after the other in each stream
            if out:
                with self.torch.cuda.stream(self.streams[0]):
                    self.host[0].copy_(self.device[0], non_blocking=True)
            if back:
                with self.torch.cuda.stream(self.streams[1]):
                    self.device[1].copy_(self.host[1], non_blocking=True)
        self.torch.cuda.synchronize()

    def measure(self, repeats: int) -> dict[str, float]:
        moved = 4 * PEAK_BYTES
        return {
            "d2h": gb_per_s(moved, median_s(lambda: self.run(out=True, back=False), repeats)),
            "h2d": gb_per_s(moved, median_s(lambda: self.run(out=False, back=True), repeats)),
            "duplex": gb_per_s(2 * moved, median_s(lambda: self.run(out=True, back=True), repeats)),
        }


class Lanes:
    """Blocks of one size in both memories: the first half of each pool goes out or came in, scattered."""

    def __init__(self, torch: Any, memory: PinnedMemory, block_bytes: int, cuda: CudaLink) -> None:
        self.torch = torch
        self.block_bytes = block_bytes
        self.blocks = min(EACH_WAY_BYTES_MAX // block_bytes, EACH_WAY_BLOCKS_MAX)
        self.each_way_bytes = self.blocks * block_bytes
        shape = (2 * self.blocks, block_bytes)
        self.device = torch.randint(0, 256, shape, dtype=torch.uint8, device=f"cuda:{cuda.device}")
        self.host = memory.pool(*shape)
        self.host[:] = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
        self.link = DuplexLink(
            self.device,
            self.host,
            cuda=cuda,
            h2d_bytes_per_s=0,
            d2h_bytes_per_s=0,
            queue_bytes_max=1 << 40,
        )
        random = np.random.default_rng(1)
        self.device_ids, self.host_ids = (
            random.permutation(2 * self.blocks).astype(np.int32) for _ in range(2)
        )
        half = self.blocks
        self.out = _copy(CopyKind.OUT, self.device_ids[:half], self.host_ids[:half])
        self.back = _copy(CopyKind.IN, self.host_ids[half:], self.device_ids[half:])

    def run(self, *, out: bool, back: bool) -> None:
        groups = 0
        for wanted, direction, group in ((out, D2H, self.out), (back, H2D, self.back)):
            if wanted:
                if self.link.submit(direction, [group]) is None:
                    raise RuntimeError("the queue is full")
                groups += 1
        while groups:
            if not self.link.wait(60.0):
                raise RuntimeError("the link stands still")
            done = self.link.poll()
            if not all(item.ok for item in done):
                raise RuntimeError("a copy failed")
            groups -= len(done)

    def naive(self, *, out: bool, back: bool) -> None:
        torch = self.torch
        host = torch.from_numpy(self.host)
        half = self.blocks
        pairs = zip(self.device_ids.tolist(), self.host_ids.tolist(), strict=True)
        streams = (torch.cuda.Stream(), torch.cuda.Stream())
        for index, (at_device, at_host) in enumerate(pairs):
            goes_out = index < half
            if not (out if goes_out else back):
                continue
            with torch.cuda.stream(streams[0 if goes_out else 1]):
                if goes_out:
                    host[at_host].copy_(self.device[at_device], non_blocking=True)
                else:
                    self.device[at_device].copy_(host[at_host], non_blocking=True)
        torch.cuda.synchronize()

    def measure(self, repeats: int, peaks: dict[str, float], *, naive: bool) -> dict[str, object]:
        row: dict[str, object] = {"kib": self.block_bytes >> 10, "blocks_each_way": self.blocks}
        ways = {"d2h": (True, False), "h2d": (False, True), "duplex": (True, True)}
        for name, (out, back) in ways.items():
            moved = self.each_way_bytes * (out + back)
            reached = gb_per_s(
                moved, median_s(lambda out=out, back=back: self.run(out=out, back=back), repeats)
            )  # type: ignore[misc]
            row[name] = reached
            row[f"{name}_of_peak"] = round(reached / peaks[name], 3)
            if naive:
                taken = median_s(lambda out=out, back=back: self.naive(out=out, back=back), 1)  # type: ignore[misc]
                row[f"naive_{name}"] = gb_per_s(moved, taken)
        self.check()
        return row

    def check(self) -> None:
        """Both ways once more, from other bytes; then compared."""
        torch, half = self.torch, self.blocks
        self.device.random_(0, 256)
        self.host[:] ^= 0x5A
        torch.cuda.synchronize()
        want_host = self.device[torch.from_numpy(self.device_ids[:half]).long().to(self.device.device)].cpu()
        want_device = torch.from_numpy(self.host[self.host_ids[half:]])
        self.run(out=True, back=True)
        got_host = torch.from_numpy(self.host[self.host_ids[:half]])
        got_device = self.device[torch.from_numpy(self.device_ids[half:]).long().to(self.device.device)].cpu()
        if not torch.equal(got_host, want_host) or not torch.equal(got_device, want_device):
            raise RuntimeError(f"blocks of {self.block_bytes} bytes arrived with other bytes")


def _copy(kind: CopyKind, source: Any, target: Any) -> Copy:
    return Copy(RequestId(1), kind, array("i", source.tobytes()), array("i", target.tobytes()), -1)


@contextlib.contextmanager
def traffic(lanes: Lanes) -> Iterator[None]:
    """Full duplex in the background for as long as it is open."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not stop.is_set():
                lanes.run(out=True, back=True)
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if failures:
            raise failures[0]


def compute_slowdown(torch: Any, lanes: Lanes, repeats: int) -> dict[str, float]:
    """How much longer a GEMM loop and a memory-bound loop take under full duplex, as fractions."""
    device = lanes.device.device
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=device) for _ in range(2))
    wide = torch.randn(1 << 28, dtype=torch.bfloat16, device=device)

    def gemm() -> None:
        for _ in range(50):
            torch.mm(a, b)
        torch.cuda.current_stream().synchronize()

    def decode() -> None:
        for _ in range(200):
            wide.sum(dtype=torch.float32)
        torch.cuda.current_stream().synchronize()

    result = {}
    for name, loop in (("gemm", gemm), ("decode", decode)):
        alone = median_s(loop, repeats)
        with traffic(lanes):
            together = median_s(loop, repeats)
        result[name] = round(together / alone - 1, 4)
    return result


def measure(torch: Any, arguments: argparse.Namespace) -> dict[str, object]:
    torch.cuda.set_device(arguments.device)
    facts = cuda_facts(arguments.device)
    memory = PinnedMemory(2 * EACH_WAY_BYTES_MAX + PEAK_BYTES, device=arguments.device)
    memory.finish()
    peaks = Peaks(torch, arguments.device).measure(arguments.repeats)
    cuda = CudaLink(arguments.device, route=arguments.route, host_chunk_bytes=memory.chunk_bytes)
    rows: list[dict[str, object]] = []
    slowdown: dict[str, float] = {}
    for kib in (int(part) for part in arguments.kib.split(",")):
        lanes = Lanes(torch, memory, kib << 10, cuda)
        rows.append(lanes.measure(arguments.repeats, peaks, naive=True))
        if kib == max(int(part) for part in arguments.kib.split(",")):
            slowdown = compute_slowdown(torch, lanes, arguments.repeats)
        lanes.link.close()
    return {
        "benchmark": "link_cuda",
        "gpu": facts.name,
        "driver": facts.driver_version,
        "kernels": facts.kernels,
        "route": arguments.route,
        "host_memory": memory.kind,
        "peaks_gb_per_s": peaks,
        "lanes_gb_per_s": rows,
        "compute_slowdown_under_duplex": slowdown,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--device", type=int, default=0, help="ordinal of the GPU")
    parser.add_argument("--kib", default="4,16,64,512,2048", help="block sizes, comma separated")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--route", default="auto", choices=("auto", "copy-engine", "register", "tma"))
    arguments = parser.parse_args()
    try:
        cuda_facts(arguments.device)
        import torch
    except (ConfigError, ImportError) as reason:
        print(f"link_cuda: nothing measured: {reason}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("link_cuda: nothing measured: torch here is without CUDA", file=sys.stderr)
        return 2
    result = measure(torch, arguments)
    if arguments.json:
        print(json.dumps(result))
        return 0
    for name, value in result.items():
        rows = value if isinstance(value, list) else [value]
        print(name, *(f"\n  {row}" for row in rows) if len(rows) > 1 else rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
