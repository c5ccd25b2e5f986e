"""How well copies merge: blocks a contiguous copy, over simulated runs of the production parts.

A crowd of ShareGPT-like requests on a GH200 with Qwen2.5-32B and a small HBM pool, so that everybody
rotates; the ledger hands out slots as it does in service, and each copy list is cut where either side
leaves off. The best possible is what its longest runs allow: one descriptor a copy. Also the CPU time
of the run, since slots are handed out in every turn. Deterministic but for the time.

    python benchmarks/extents.py [--json] [--policies rotasched,rota-slack] [--requests 600]
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from superinfer_trt.build.sim import Setup, build_world
from superinfer_trt.core.step import Copy, Direction
from superinfer_trt.core.units import Ticket
from superinfer_trt.sim.arrivals import Arrivals
from superinfer_trt.sim.link import SimLink
from superinfer_trt.sim.profiles import MODELS, find_hardware
from superinfer_trt.sim.synthetic import synthetic_lengths
from superinfer_trt.sim.workload import make_items


def descriptors(copy: Copy) -> int:
    """Contiguous copies after the planner's sort by source."""
    pairs = sorted(zip(copy.source, copy.target, strict=True))
    return 1 + sum(after != (source + 1, target + 1) for (source, target), after in itertools.pairwise(pairs))


class Counted:
    """What has gone through the simulator's links, by kind of copy."""

    def __init__(self) -> None:
        self.blocks: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.cuts: Counter[str] = Counter()

    def add(self, copies: Sequence[Copy]) -> None:
        for copy in copies:
            kind = copy.kind.value
            self.blocks[kind] += len(copy.source)
            self.copies[kind] += 1
            self.cuts[kind] += descriptors(copy)

    @contextmanager
    def watching(self) -> Iterator[None]:
        submit = SimLink.submit

        def counting(link: SimLink, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
            tickets = submit(link, direction, copies)
            if tickets is not None:
                self.add(copies)
            return tickets

        SimLink.submit = counting  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            SimLink.submit = submit  # type: ignore[method-assign]


def measure(policy: str, requests: int, hbm_blocks: int) -> dict[str, object]:
    items = make_items(synthetic_lengths("sharegpt", requests, 1), Arrivals(20, 4))
    setup = Setup(
        find_hardware("gh200-144gb"), MODELS["qwen2.5-32b"], policy, hbm_blocks=hbm_blocks, dram_blocks=40_000
    )
    built = build_world(setup, items, "extents")
    counted = Counted()
    begin = time.process_time()
    with counted.watching():
        built.world.run(items)
    taken = time.process_time() - begin
    row: dict[str, object] = {"policy": policy, "hbm_blocks": hbm_blocks}
    for kind in counted.blocks:
        row[f"{kind}_blocks"] = counted.blocks[kind]
        row[f"{kind}_blocks_per_copy"] = round(counted.blocks[kind] / counted.copies[kind], 2)
        row[f"{kind}_blocks_per_descriptor"] = round(counted.blocks[kind] / counted.cuts[kind], 2)
    row["blocks_per_descriptor"] = round(counted.blocks.total() / max(1, counted.cuts.total()), 2)
    row["cpu_s"] = round(taken, 2)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--policies", default="rotasched,rota-slack")
    parser.add_argument("--requests", type=int, default=600)
    arguments = parser.parse_args()
    rows = [
        measure(policy, arguments.requests, hbm_blocks)
        for policy in arguments.policies.split(",")
        for hbm_blocks in (700, 4000)
    ]
    if arguments.json:
        print(json.dumps({"benchmark": "extents", "runs": rows}))
        return 0
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
