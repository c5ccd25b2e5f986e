"""C11: a seed decides everything. The same plan lines in another process, under another hash seed."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.view import Limits
from superinfer_trt.engine.modelled import ModelledEngine, StepCost
from superinfer_trt.sched.registry import POLICIES, make_policy
from superinfer_trt.transfer.modelled import ModelledLink
from support.requests import random_requests
from support.world import Box, BoxClock, Result

GEOMETRY = Geometry(layers=30, kv_heads=3, head_dim=64, element_bytes=2)
PROGRAM = """
import sys; sys.path.insert(0, {tests!r})
from equiv.test_determinism import fingerprints; print(fingerprints())
"""


def world(policy: str, depth: int, seed: int) -> Result:
    """80 requests over a modelled engine and link, in an HBM for a few of them."""
    chosen = make_policy(policy)
    limits = Limits(64, 16, GEOMETRY.block_tokens, 40, 400 if chosen.rotates else 0)
    clock = BoxClock()
    link = ModelledLink(clock, GEOMETRY.block_bytes, 1e9, 1e9)
    engine = ModelledEngine(clock, GEOMETRY, StepCost())
    requests = random_requests(seed, 80, vocabulary=32_000)
    return Box(chosen, engine, link, limits, depth=depth, clock=clock).run(requests, audit=False)


@functools.cache
def fingerprints() -> str:
    """One hash a policy and depth, over every plan line and every token."""
    found = []
    for policy in sorted(POLICIES):
        for depth in (1, 2):
            result = world(policy, depth, seed=11)
            text = "\n".join([*result.lines, repr(sorted(result.tokens.items()))])
            found.append(f"{policy}/{depth}:{hashlib.sha256(text.encode()).hexdigest()[:16]}")
    return " ".join(found)


def in_another_process(hash_seed: str) -> str:
    program = PROGRAM.format(tests=str(Path(__file__).resolve().parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )
    return done.stdout.strip()


def test_the_same_seed_gives_the_same_plans() -> None:
    """Every policy and depth, in two processes whose strings hash differently."""
    here = os.environ.get("PYTHONHASHSEED")
    assert in_another_process("1" if here == "0" else "0") == fingerprints()


def test_another_seed_gives_other_plans() -> None:
    assert world("rotasched", 1, seed=11).lines != world("rotasched", 1, seed=12).lines


def test_the_worlds_are_worth_comparing() -> None:
    result = world("rotasched", 2, seed=11)
    assert result.rotations > 20
    assert len(result.lines) > 200
