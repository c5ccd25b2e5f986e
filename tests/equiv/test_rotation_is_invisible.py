"""C12: rotation, eviction, chunking and overlap change nothing a client can see, and no byte of KV.

200 requests of random lengths and arrivals, HBM from 1.2x of the largest upward, every policy, depth 1
and 2, over the native lanes: same tokens and same block hashes as a run in which nobody ever leaves HBM,
which is made once a session and shared.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.request import Request
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.core.view import Limits
from superinfer_trt.engine.native import NativeEngine, element_bytes_for
from superinfer_trt.engine.pattern import PatternEngine
from superinfer_trt.sched.registry import POLICIES, make_policy
from superinfer_trt.transfer.native import DuplexLink
from superinfer_trt.transfer.pools import allocate_pool
from support.random_weights import RandomWeights
from support.requests import random_requests
from support.world import RESERVING, Box, BoxClock, HashingEngine, Result, all_done

BLOCK = 16
VOCABULARY = 200  # below that of the small random model
# HBM over the largest request, and depth: the tightest at both depths, each wider one at one of them.
PRESSURES = ((1.2, 1), (1.2, 2), (2.5, 2), (6.0, 1))
MOVING = ("fcfs", "rota-slack", "rotasched", "swapped-first", "waiting-first")
GEOMETRY = Geometry(layers=2, kv_heads=2, head_dim=16, element_bytes=2, block_tokens=BLOCK)


def run(
    requests: list[Request],
    policy: str,
    hbm_blocks: int,
    dram_blocks: int,
    depth: int,
    kind: str = "pattern",
) -> tuple[Result, dict[tuple[int, int], str]]:
    """One world over real bytes; returns what came of it and the hash of every full block.

    `kind`: the pattern engine, or the embedded one on a small random model, "bf16" or "fp32".
    """
    chosen = make_policy(policy)
    limits = Limits(
        step_tokens=64,
        seats=16,
        block_tokens=BLOCK,
        device_blocks=hbm_blocks,
        host_blocks=dram_blocks if chosen.rotates else 0,
    )
    model = RandomWeights()
    geometry = GEOMETRY if kind == "pattern" else model.config.geometry(BLOCK, element_bytes_for(kind))
    device = allocate_pool(hbm_blocks, geometry.block_bytes)
    host = allocate_pool(max(1, limits.host_blocks), geometry.block_bytes)
    device.fill(0xAA)
    link = DuplexLink(device, host, h2d_bytes_per_s=0, d2h_bytes_per_s=0)
    clock = BoxClock()
    inner: PatternEngine | NativeEngine
    if kind == "pattern":
        inner = PatternEngine(geometry, device, vocabulary=VOCABULARY, context_tokens_max=4_096)
    else:
        # One thread: on a model this small more of them only wait for each other, for most of the test's
        # time, and their number changes no bit (tests/unit/engine/test_native_exact.py).
        inner = NativeEngine(model, device, block_tokens=BLOCK, dtype=kind, threads=1)
    engine = HashingEngine(inner, device, clock, step_ns=8 * MILLISECOND)
    try:
        result = Box(chosen, engine, link, limits, depth=depth, clock=clock).run(requests)
    finally:
        link.close()
        engine.close()
    return result, engine.hashes


@cache
def world(seed: int) -> list[Request]:
    return random_requests(seed, 200, vocabulary=VOCABULARY)


def largest_blocks(requests: list[Request]) -> int:
    return max(-(-(len(r.prompt) + r.sampling.max_tokens) // BLOCK) for r in requests)


@cache
def penalised(seed: int) -> list[Request]:
    """The same with penalties and forbidden ids, which read every token so far, in every other request."""

    def changed(request: Request) -> Request:
        how = replace(
            request.sampling,
            min_p=0.05,
            repetition_penalty=1.3,
            presence_penalty=0.2,
            frequency_penalty=0.1,
            stop_ids=frozenset(range(0, VOCABULARY, 4)),
            min_tokens=request.sampling.max_tokens // 2,
        )
        return replace(request, sampling=how) if request.id % 2 else request

    return [changed(request) for request in world(seed)]


@cache
def unrotated(seed: int, kind: str = "pattern") -> tuple[Result, dict[tuple[int, int], str]]:
    requests = world(seed) if kind == "pattern" else penalised(seed)
    result, hashes = run(requests, "fcfs", 200 * largest_blocks(requests), 0, 1, kind)
    assert all_done(result)
    assert not result.rotations
    assert not result.evictions
    return result, hashes


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize(("factor", "depth"), PRESSURES)
def test_same_tokens_and_same_bytes(policy: str, depth: int, factor: float) -> None:
    """Every policy at every size and at either depth, at the hardest size at both: all 200 requests end by
    their own means with the tokens and bytes of the unrotated run, and no slot is lost on the way."""
    seed = 7
    requests = world(seed)
    hbm_blocks = int(np.ceil(factor * largest_blocks(requests)))
    expected, hashes = unrotated(seed)
    result, moved_hashes = run(requests, policy, hbm_blocks, 12 * hbm_blocks, depth)
    assert all_done(result)
    assert result.tokens == expected.tokens
    assert moved_hashes == hashes
    left = result.rotations + result.evictions
    if policy in RESERVING:
        assert left == 0, "it reserves to the last token, so nobody ever has to leave"
    elif factor < 6:
        assert left > 0, "the pressure was too low to show anything"


@pytest.mark.parametrize("depth", [1, 2])
def test_a_crowd_rotates_often(depth: int) -> None:
    """All at once, and an HBM for one and a bit: rotasched serves everybody and loses nothing."""
    requests = random_requests(3, 60, vocabulary=VOCABULARY, span_ms=1)
    hbm_blocks = int(np.ceil(1.2 * largest_blocks(requests)))
    expected, hashes = run(requests, "fcfs", 60 * largest_blocks(requests), 0, 1)
    result, moved_hashes = run(requests, "rotasched", hbm_blocks, 40 * hbm_blocks, depth)
    assert all_done(result)
    assert result.tokens == expected.tokens
    assert moved_hashes == hashes
    assert result.rotations >= 100


@pytest.mark.parametrize(("depth", "kind"), [(1, "fp32"), (2, "bf16")])
@pytest.mark.parametrize("policy", MOVING)
def test_a_real_decoder_says_the_same(policy: str, depth: int, kind: str) -> None:
    """The embedded engine: logits are a function of a row's own tokens alone, so greedy and sampled tokens
    and KV bytes are equal, not just close, however its rows were batched, chunked, moved or recomputed.

    Lengths and arrivals make the plans, not the dtype: so each dtype stands at one depth."""
    seed = 7
    requests = penalised(seed)
    hbm_blocks = int(np.ceil(1.5 * largest_blocks(requests)))
    expected, hashes = unrotated(seed, kind)
    result, moved_hashes = run(requests, policy, hbm_blocks, 12 * hbm_blocks, depth, kind)
    assert all_done(result)
    assert result.tokens == expected.tokens
    assert moved_hashes == hashes
    assert result.rotations + result.evictions > 0
