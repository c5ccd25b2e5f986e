"""Whole worlds on several ranks: every rank its own ledger, link and engine, one plan.

What is compared with one rank: in fp32 the greedy tokens of every request, all of them; the sums of a
half-layer are taken in another order on two ranks, so logits differ in their last bits. Within the same
number of ranks everything is equal bit for bit, rotated or not, whatever the dtype.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from superinfer_trt.core.errors import EngineFailed, InvariantViolation
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.model import ModelConfig
from superinfer_trt.core.outcome import Outcome
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.step import Batch
from superinfer_trt.core.units import MILLISECOND, RequestId
from superinfer_trt.core.view import Limits
from superinfer_trt.engine.native import NativeEngine, element_bytes_for
from superinfer_trt.engine.pattern import PatternEngine
from superinfer_trt.ranks.comm import Comm, RankLost
from superinfer_trt.ranks.split import SplitWeights
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.transfer.native import DuplexLink
from superinfer_trt.transfer.pools import allocate_pool
from support.links import PollLink
from support.rank_world import Own, RankWorld, run_ranks
from support.requests import random_requests
from support.world import Box, BoxClock, HashingEngine
from unit.engine.native_world import MODELS, TINY, RandomWeights

BLOCK = 16
HBM, DRAM = 12, 160
UNEVEN = replace(TINY, heads=9, kv_heads=3, head_dim=16, hidden=144, intermediate=168)
SHARED = {**{name: MODELS[name] for name in ("gqa", "qwen2", "mixtral", "mha", "llama3")}, "uneven": UNEVEN}
GEOMETRY = Geometry(layers=2, kv_heads=2, head_dim=16, element_bytes=2, block_tokens=BLOCK)


def limits_of(hbm_blocks: int, *, rotates: bool) -> Limits:
    return Limits(64, 8, BLOCK, hbm_blocks, DRAM if rotates else 0)


@cache
def crowd(seed: int, count: int = 24, *, sampled: bool = False) -> list[Request]:
    return random_requests(seed, count, vocabulary=60, span_ms=1, sampled=sampled, output_max=40)


def alone(config: ModelConfig, requests: list[Request]) -> dict[RequestId, list[int]]:
    """Tokens of one rank that nobody leaves, fp32."""
    limits = limits_of(400, rotates=False)
    pool = allocate_pool(400, config.geometry(BLOCK, 4).block_bytes)
    engine = NativeEngine(RandomWeights(config), pool, dtype="fp32", threads=1)
    try:
        return Box(make_policy("fcfs"), engine, PollLink(), limits, depth=2).run(requests).tokens
    finally:
        engine.close()


class Ranks:
    """Ranks of the embedded engine over native lanes; keeps the hash of every full block of each rank."""

    def __init__(self, config: ModelConfig, dtype: str, hbm_blocks: int) -> None:
        self.config = config
        self.dtype = dtype
        self.hbm_blocks = hbm_blocks
        self.hashes: dict[int, dict[tuple[RequestId, int], str]] = {}
        self.opened: list[HashingEngine | DuplexLink] = []

    def __call__(self, rank: int, comm: Comm) -> Own:
        weights = SplitWeights(RandomWeights(self.config), rank, comm.ranks)
        block_bytes = weights.config.geometry(BLOCK, element_bytes_for(self.dtype)).block_bytes
        device, host = allocate_pool(self.hbm_blocks, block_bytes), allocate_pool(DRAM, block_bytes)
        device.fill(0xFF)
        link = DuplexLink(device, host, h2d_bytes_per_s=0, d2h_bytes_per_s=0)
        inner = NativeEngine(weights, device, dtype=self.dtype, threads=1 + rank % 2, reduce=comm.add)
        engine = HashingEngine(inner, device, BoxClock(), step_ns=8 * MILLISECOND)
        self.hashes[rank] = engine.hashes
        self.opened += [engine, link]
        return Own(engine, link)

    def close(self) -> None:
        for opened in self.opened:
            opened.close()


def run_native(
    config: ModelConfig,
    ranks: int,
    requests: list[Request],
    *,
    policy: str = "rotasched",
    hbm_blocks: int = HBM,
    dtype: str = "fp32",
    depth: int = 2,
) -> tuple[RankWorld, dict[int, dict[tuple[RequestId, int], str]]]:
    chosen = make_policy(policy)
    made = Ranks(config, dtype, hbm_blocks)
    try:
        world = run_ranks(
            ranks, requests, chosen, limits_of(hbm_blocks, rotates=chosen.rotates), made, depth=depth
        )
    finally:
        made.close()
    assert world.errors == {}
    return world, made.hashes


def endings_are_fine(world: RankWorld) -> bool:
    return all(e.reason in {FinishReason.STOP, FinishReason.LENGTH} for e in world.streams.endings.values())


@pytest.mark.parametrize(("model", "ranks"), [*((name, 2) for name in SHARED), ("uneven", 3), ("mha", 4)])
def test_rotated_on_several_ranks_greedy_tokens_are_those_of_one(model: str, ranks: int) -> None:
    config, requests = SHARED[model], crowd(5)
    world, _ = run_native(config, ranks, requests)
    assert endings_are_fine(world)
    assert world.streams.tokens == alone(config, requests)
    assert {t.rotations_out for t in world.totals.values()} == {world.totals[0].rotations_out}
    assert world.totals[0].rotations_out >= 10, "nobody was forced out"


@pytest.mark.parametrize(("dtype", "depth"), [("bf16", 2), ("fp32", 1)])
def test_rotation_is_invisible_on_every_rank(dtype: str, depth: int) -> None:
    """Greedy and sampled: the same tokens and, on each rank, the same bytes of KV as when nobody leaves."""
    requests = crowd(11, sampled=True)
    left, hashes = run_native(UNEVEN, 2, requests, dtype=dtype, depth=depth)
    stayed, expected = run_native(UNEVEN, 2, requests, policy="fcfs", hbm_blocks=400, dtype=dtype)
    assert endings_are_fine(left)
    assert left.totals[0].rotations_out >= 10
    assert not stayed.totals[0].rotations_out
    assert left.streams.tokens == stayed.streams.tokens
    assert hashes == expected
    assert hashes[0].keys() == hashes[1].keys()
    assert hashes[0] != hashes[1], "each rank has heads of its own"


@pytest.mark.parametrize("policy", ["fcfs", "rota-slack", "swapped-first"])
@pytest.mark.parametrize("depth", [1, 2])
def test_patterns_on_three_ranks_with_cancels_and_evictions(policy: str, depth: int) -> None:
    """Each rank verifies every block of its own at each step; links land at different times."""
    chosen = make_policy(policy)
    requests = random_requests(3, 60, vocabulary=200, span_ms=1)
    limits = limits_of(14, rotates=chosen.rotates)

    def make(rank: int, comm: Comm) -> Own:
        device = allocate_pool(limits.device_blocks, GEOMETRY.block_bytes)
        host = allocate_pool(max(1, limits.host_blocks), GEOMETRY.block_bytes)
        link = DuplexLink(
            device, host, h2d_bytes_per_s=1e8 / (1 + rank), d2h_bytes_per_s=2e8 / (1 + comm.ranks - rank)
        )
        return Own(PatternEngine(GEOMETRY, device, vocabulary=200, context_tokens_max=4096), link)

    cancels = [(turn, RequestId(id)) for turn, id in ((3, 2), (20, 7), (21, 59), (40, 7), (60, 31))]
    world = run_ranks(3, requests, chosen, limits, make, depth=depth, cancels=cancels)
    assert world.errors == {}
    cancelled = {id for id, e in world.streams.endings.items() if e.reason is FinishReason.CANCELLED}
    assert cancelled <= {2, 7, 59, 31}
    finished = [totals.finished for totals in world.totals.values()]
    assert finished == [finished[0]] * 3
    assert world.totals[0].rotations_out + world.totals[0].evictions > 0


class Wrong:
    """An engine that does one batch otherwise than the other ranks'."""

    def __init__(self, engine: PatternEngine | NativeEngine, what: str) -> None:
        self._engine = engine
        self._what = what
        self._batches = 0
        self.geometry = engine.geometry
        self.vocabulary = engine.vocabulary
        self.context_tokens_max = engine.context_tokens_max
        self.supports = engine.supports

    def launch(self, batch: Batch) -> None:
        self._batches += 1
        if self._batches == 5 and self._what == "launch":
            raise EngineFailed("no memory") from MemoryError()
        self._engine.launch(batch)

    def collect(self) -> Outcome:
        outcome = self._engine.collect()
        if self._batches == 5 and self._what == "token":
            id, sampled = next(iter(outcome.sampled.items()))
            return Outcome({**outcome.sampled, id: replace(sampled, token=sampled.token ^ 1)})
        if self._batches == 5 and self._what == "collect":
            raise EngineFailed("a bit flipped")
        return outcome

    def close(self) -> None:
        self._engine.close()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("token", "computed different tokens"),
        ("collect", "computed different tokens"),
        ("launch", "no memory"),
    ],
)
def test_a_rank_that_does_otherwise_ends_all_with_the_reason(rank: int, what: str, words: str) -> None:
    requests = random_requests(3, 20, vocabulary=200, span_ms=1)
    limits = limits_of(40, rotates=True)

    def make(at: int, comm: Comm) -> Own:
        del comm
        device = allocate_pool(limits.device_blocks, GEOMETRY.block_bytes)
        engine = PatternEngine(GEOMETRY, device, vocabulary=200, context_tokens_max=4096)
        return Own(Wrong(engine, what) if at == rank else engine, PollLink())

    with pytest.raises((RankLost, InvariantViolation), match=words):
        run_ranks(2, requests, make_policy("rotasched"), limits, make, timeout_s=20)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_between_half_layers_leaves_nobody_waiting(rank: int) -> None:
    """The other one waits for its partial sums inside a step."""
    limits = limits_of(40, rotates=True)
    engines = []

    def make(at: int, comm: Comm) -> Own:
        weights = SplitWeights(RandomWeights(TINY), at, comm.ranks)
        pool = allocate_pool(limits.device_blocks, weights.config.geometry(BLOCK, 4).block_bytes)
        engine = NativeEngine(weights, pool, dtype="fp32", threads=2, reduce=comm.add)
        engines.append(engine)
        return Own(Wrong(engine, "launch") if at == rank else engine, PollLink())

    try:
        with pytest.raises(RankLost, match=f"rank {rank}.* no memory"):
            run_ranks(2, crowd(5), make_policy("rotasched"), limits, make, timeout_s=20)
    finally:
        for engine in engines:
            engine.close()


def test_logits_of_all_ranks_are_the_same_bits_and_near_those_of_one() -> None:
    """One step over prompts and decodes on 1, 2 and 3 ranks, of which two have unequal shares."""
    import threading

    from superinfer_trt.ranks.room import Room
    from unit.engine.native_world import Course, poisoned_pool, run_rows, tokens_for

    found: dict[tuple[int, int], list[np.ndarray]] = {}

    def run(room: Room, rank: int) -> None:
        comm = room.comm(rank)
        weights = SplitWeights(RandomWeights(UNEVEN), rank, room.ranks)
        pool = poisoned_pool(weights.config, "fp32", 24)
        reduce = comm.add if room.ranks > 1 else None
        engine = NativeEngine(weights, pool, dtype="fp32", threads=1 + rank, reduce=reduce)
        courses = [Course(i, tokens_for(UNEVEN, 60, i), list(range(6 * i, 6 * i + 6))) for i in range(4)]
        run_rows(engine, [course.row(20 + 7 * course.id) for course in courses])
        found[room.ranks, rank] = run_rows(engine, [course.row(1 + course.id) for course in courses])
        engine.close()

    for ranks in (1, 2, 3):
        room = Room(ranks, 30)
        threads = [threading.Thread(target=run, args=(room, rank)) for rank in range(ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    whole = found[1, 0]
    for (ranks, rank), lines in found.items():
        for line, first, exact in zip(lines, found[ranks, 0], whole, strict=True):
            assert line.tobytes() == first.tobytes(), (ranks, rank)
            assert np.abs(line - exact).max() <= 2e-5 * np.abs(exact).max()
