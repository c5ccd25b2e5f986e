"""The embedded model itself: rotated and recomputed, SmolLM2 says what it says when left alone."""

from __future__ import annotations

import pytest

from superinfer_trt.core.errors import ModelError
from superinfer_trt.core.request import Request, Sampling
from superinfer_trt.core.units import MILLISECOND, RequestId
from superinfer_trt.core.view import Limits
from superinfer_trt.engine.native import NativeEngine, element_bytes_for
from superinfer_trt.model.open import OpenModel, open_model
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.transfer.native import DuplexLink
from superinfer_trt.transfer.pools import allocate_pool
from support.world import Box, BoxClock, HashingEngine, Result, all_done

pytestmark = pytest.mark.model
BLOCK = 16
QUESTIONS = ("Why is the sky blue?", "Name three rivers.", "What is 17 times 3?", "Who wrote Hamlet?")


@pytest.fixture(scope="module")
def model() -> OpenModel:
    try:
        return open_model("smollm2")
    except ModelError as error:
        pytest.skip(str(error))


def requests(model: OpenModel) -> list[Request]:
    made = []
    for index in range(12):
        prompt = model.tokenizer.chat(
            [{"role": "user", "content": QUESTIONS[index % 4] + " " * (index // 4)}]
        )
        sampling = Sampling(max_tokens=24 + index, temperature=0.7 if index % 3 == 2 else 0.0, seed=index)
        made.append(Request(RequestId(index), tuple(prompt), sampling, arrival=index * MILLISECOND))
    return made


def run(
    model: OpenModel, policy: str, hbm_blocks: int, **parameters: object
) -> tuple[Result, dict[tuple[int, int], str]]:
    chosen = make_policy(policy, **parameters)
    limits = Limits(128, 16, BLOCK, hbm_blocks, 128 if chosen.rotates else 0)
    block_bytes = model.config.geometry(BLOCK, element_bytes_for("bf16")).block_bytes
    device = allocate_pool(hbm_blocks, block_bytes)
    host = allocate_pool(max(1, limits.host_blocks), block_bytes)
    link = DuplexLink(device, host, h2d_bytes_per_s=0, d2h_bytes_per_s=0)
    clock = BoxClock()
    native = NativeEngine(model.weights, device, block_tokens=BLOCK)
    engine = HashingEngine(native, device, clock, step_ns=8 * MILLISECOND)
    try:
        return Box(chosen, engine, link, limits, depth=2, clock=clock).run(requests(model)), engine.hashes
    finally:
        link.close()
        engine.close()


def test_rotation_changes_no_token_and_no_byte(model: OpenModel) -> None:
    expected, hashes = run(model, "fcfs", 96)
    assert all_done(expected)
    assert not expected.evictions
    rotated, rotated_hashes = run(model, "rotasched", 18, min_stint_tokens=4)
    evicted, evicted_hashes = run(model, "fcfs", 18)
    assert rotated.rotations >= 20
    assert evicted.evictions > 0
    assert rotated.tokens == evicted.tokens == expected.tokens
    assert rotated_hashes == evicted_hashes == hashes


def test_it_answers(model: OpenModel) -> None:
    """Not noise: the capital of France, greedily."""
    prompt = tuple(model.tokenizer.chat([{"role": "user", "content": "What is the capital of France?"}]))
    request = Request(RequestId(0), prompt, Sampling(max_tokens=16))
    limits = Limits(128, 4, BLOCK, 16, 0)
    block_bytes = model.config.geometry(BLOCK, element_bytes_for("bf16")).block_bytes
    device, host = allocate_pool(16, block_bytes), allocate_pool(1, block_bytes)
    link = DuplexLink(device, host)
    engine = NativeEngine(model.weights, device, block_tokens=BLOCK)
    try:
        result = Box(make_policy("fcfs"), engine, link, limits).run([request])
    finally:
        link.close()
        engine.close()
    assert "Paris" in model.tokenizer.decode(result.tokens[RequestId(0)])
