"""The native engine's door: what it refuses, that it stays usable, and how it ends."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from superinfer_trt.core.errors import ConfigError, EngineFailed, ModelError
from superinfer_trt.core.request import Sampling
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import RequestId
from superinfer_trt.engine.native import NativeEngine, element_bytes_for, kernel_sets
from superinfer_trt.engine.native_load import rotary_frequencies
from unit.engine.native_world import MODELS, TINY, RandomWeights, poisoned_pool


def row(start: int = 0, tokens: tuple[int, ...] = (1, 2, 3), slots: tuple[int, ...] = (0,)) -> Row:
    return Row(RequestId(1), start, tokens, slots, sample=True, index=0, sampling=Sampling())


def make(**how: object) -> NativeEngine:
    return NativeEngine(RandomWeights(TINY), poisoned_pool(TINY, "bf16", 4), **how)  # type: ignore[arg-type]


def test_describes_itself() -> None:
    engine = make(threads=1)
    assert engine.geometry == TINY.geometry(16, 2)
    assert (engine.vocabulary, engine.context_tokens_max, engine.threads) == (101, 640, 1)
    assert engine.kernels == kernel_sets("bf16")[0]
    assert kernel_sets("fp32")[-1] == "portable"
    assert (element_bytes_for("bf16"), element_bytes_for("fp32")) == (2, 4)
    engine.close()


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (row(tokens=()), "tokens"),
        (row(tokens=(1, 101)), "token 101"),
        (row(tokens=(-1,)), "token -1"),
        (row(start=-1), "positions -1"),
        (row(start=639, slots=(0,) * 50), "context of 640"),
        (row(start=14), "1 slots do not cover 17"),
        (row(slots=()), "0 slots"),
        (row(slots=(4,)), "slot 4"),
        (row(slots=(-1,)), "slot -1"),
        (row(start=2**40), "32 bits"),
        (row(tokens=(2**40,)), "turn 3"),
    ],
)
def test_refuses_a_batch_at_the_door_and_goes_on(bad: Row, word: str) -> None:
    pool = poisoned_pool(TINY, "bf16", 4)
    engine = NativeEngine(RandomWeights(TINY), pool)
    with pytest.raises(EngineFailed, match=word):
        engine.launch(Batch(3, (replace(row(), id=RequestId(2), slots=(1,)), bad)))
    assert (pool == 0xFF).all()
    engine.launch(Batch(4, (row(),)))
    assert set(engine.collect().sampled) == {1}
    engine.close()


def test_one_batch_in_the_air() -> None:
    engine = make()
    with pytest.raises(EngineFailed, match="no batch"):
        engine.collect()
    engine.launch(Batch(0, (row(),)))
    with pytest.raises(EngineFailed, match="already"):
        engine.launch(Batch(1, (row(slots=(1,)),)))
    assert len(engine.collect().sampled) == 1
    engine.launch(Batch(2, ()))
    assert engine.collect().sampled == {}
    engine.close()


def test_rows_without_sample_yield_nothing() -> None:
    engine = make()
    quiet = replace(row(), sample=False)
    engine.launch(Batch(0, (quiet, replace(row(slots=(2,)), id=RequestId(5)))))
    assert set(engine.collect().sampled) == {5}
    with pytest.raises(EngineFailed, match="not kept"):
        engine.logits(0)
    engine.close()


def test_closes_with_a_batch_in_the_air_and_twice() -> None:
    engine = make()
    engine.launch(Batch(0, (row(),)))
    engine.close()
    engine.close()
    with pytest.raises(EngineFailed, match="closed"):
        engine.launch(Batch(1, (row(),)))


def test_collect_lets_other_threads_run() -> None:
    config = replace(TINY, hidden=256, intermediate=1024, layers=4, heads=8, kv_heads=8, head_dim=32)
    pool = poisoned_pool(config, "bf16", 32)
    engine = NativeEngine(RandomWeights(config), pool, threads=1, kernels="portable")
    ran = threading.Event()
    entered = threading.Event()

    def other() -> None:
        entered.wait()
        ran.set()

    thread = threading.Thread(target=other)
    thread.start()
    tokens = tuple(range(101)) * 5
    engine.launch(Batch(0, (row(tokens=tokens, slots=tuple(range(32))),)))
    entered.set()
    engine.collect()
    assert ran.wait(timeout=10)
    thread.join()
    engine.close()


@pytest.mark.parametrize(
    ("pool", "word"),
    [
        (np.zeros((4, 10), np.uint8), "4096"),
        (np.zeros((0, 4096), np.uint8), "device_blocks"),
        (np.zeros((4, 4096), np.int8), "uint8"),
        (np.zeros((8, 4096), np.uint8)[::2], "contiguous"),
        (np.broadcast_to(np.zeros(4096, np.uint8), (4, 4096)), "contiguous"),
        (np.zeros(4096, np.uint8), "device_blocks"),
    ],
)
def test_refuses_a_pool_it_cannot_use(pool: np.ndarray, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        NativeEngine(RandomWeights(TINY), pool)


@pytest.mark.parametrize(
    ("how", "word"),
    [({"dtype": "fp16"}, "dtype"), ({"threads": 0}, "threads"), ({"kernels": "mmx"}, "kernels.*portable")],
)
def test_refuses_what_it_does_not_know(how: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        make(**how)


def test_refuses_weights_that_do_not_fit() -> None:
    weights = RandomWeights(TINY)
    weights.tensors["model.layers.1.self_attn.k_proj.weight"] = np.zeros((8, 64), np.float32)
    pool = poisoned_pool(TINY, "bf16", 2)
    with pytest.raises(ConfigError, match="k of layer 1: is 8 x 64, must be 32 x 64"):
        NativeEngine(weights, pool)
    odd = replace(TINY, head_dim=12)
    with pytest.raises(ConfigError, match="head_dim"):
        NativeEngine(RandomWeights(odd), poisoned_pool(odd, "bf16", 2))
    missing = RandomWeights(replace(TINY, tied_embedding=True))
    missing.config = TINY
    missing.tensors["lm_head.weight"] = np.zeros((3, 3, 3), np.float32)
    with pytest.raises(ModelError, match=r"lm_head.weight: float32 with 3"):
        NativeEngine(missing, pool)


def test_scaled_frequencies() -> None:
    """Short waves keep theirs, long ones are divided by the factor, those between are between."""
    plain = rotary_frequencies(replace(MODELS["llama3"], rope_scaling=None))
    scaled = rotary_frequencies(MODELS["llama3"])
    assert scaled[0] == plain[0] == 1.0
    assert scaled[-1] == pytest.approx(plain[-1] / 8)
    assert ((scaled <= plain) & (scaled >= plain / np.float32(8.001))).all()


ENDS_EARLY = """
import threading
from superinfer_trt.core.request import Sampling
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.engine.native import NativeEngine
from unit.engine.native_world import TINY, RandomWeights, poisoned_pool

engine = NativeEngine(RandomWeights(TINY), poisoned_pool(TINY, "bf16", 40), threads=1)
row = Row(1, 0, (1,) * 600, tuple(range(38)), sample=True, index=0, sampling=Sampling())
began = threading.Event()

def work():
    while True:
        engine.launch(Batch(1, (row,)))
        began.set()
        engine.collect()

threading.Thread(target=work, daemon=True).start()
began.wait()
"""


def test_the_interpreter_ends_cleanly_while_a_step_runs() -> None:
    """As a server's does whose driver was not stopped: without a care it ends with SIGABRT."""
    tests = Path(__file__).parents[2]
    script = f"import sys; sys.path.append({str(tests)!r})\n{ENDS_EARLY}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
