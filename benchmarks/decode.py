#!/usr/bin/env python3
"""Decode and prefill speed of the native engine by itself, beside the memory's bandwidth.

Prints a table, or with --json one line. With --reference transformers runs the same shapes in the same
process afterwards (extra `equiv`), and the ratios are of this one run. The model is SmolLM2-135M's shape
with random weights; with --quantised they are those of a file with 4 bits a weight in groups of 32 (Q4_1),
which steps of few rows read packed. Otherwise speed does not depend on their values.

decode   median step at a constant batch, contexts from --context on, greedy
prefill  one prompt of --prompt tokens, then eight of them in one step
stream   bytes a second that the same number of threads read from memory with plain loads (numpy)
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superinfer_trt.core.model import ModelConfig
from superinfer_trt.core.request import Sampling
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import RequestId
from superinfer_trt.engine.native import NativeEngine, element_bytes_for

SMOLLM2 = ModelConfig(
    name="smollm2-135m-shape",
    architecture="llama",
    layers=30,
    hidden=576,
    intermediate=1536,
    heads=9,
    kv_heads=3,
    head_dim=64,
    vocabulary=49_152,
    context_tokens_max=8_192,
    rope_theta=100_000.0,
    norm_eps=1e-5,
    tied_embedding=True,
)
BLOCK_TOKENS = 16
DENSE_PARAMETERS = 134_479_872  # of its matrices, all of which a step reads
GROUP = 32


class RandomWeights:
    """Small random tensors of a config's shapes, made when asked for."""

    def __init__(self, config: ModelConfig, *, quantised: bool) -> None:
        self.config = config
        self._rng = np.random.default_rng(0)
        self._quantised = quantised

    def tensor(self, name: str) -> NDArray[np.float32]:
        c = self.config
        if "norm" in name:
            return np.ones(c.hidden, np.float32)
        rows = {
            "embed_tokens": c.vocabulary,
            "q_proj": c.heads * c.head_dim,
            "k_proj": c.kv_heads * c.head_dim,
            "v_proj": c.kv_heads * c.head_dim,
            "gate_proj": c.intermediate,
            "up_proj": c.intermediate,
        }.get(name.split(".")[-2], c.hidden)
        columns = {"o_proj": c.heads * c.head_dim, "down_proj": c.intermediate}.get(
            name.split(".")[-2], c.hidden
        )
        if self._quantised:
            return self._in_steps(rows, columns)
        return self._rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)

    def _in_steps(self, rows: int, columns: int) -> NDArray[np.float32]:
        codes = self._rng.integers(0, 16, (rows, columns // GROUP, GROUP)).astype(np.float32)
        codes[..., 0], codes[..., 1] = 0, 15  # each group uses its ends, as a file's do
        steps = self._rng.uniform(0.002, 0.004, (rows, columns // GROUP, 1)).astype(np.float16)
        least = (steps * -8).astype(np.float16)
        made: NDArray[np.float32] = codes * steps.astype(np.float32) + least.astype(np.float32)
        return made.reshape(rows, columns)


def seconds(run: Callable[[int], None], repeats: int) -> list[float]:
    times = []
    for i in range(repeats):
        start = time.perf_counter()
        run(i)
        times.append(time.perf_counter() - start)
    return times


def stream_bytes_per_s(threads: int) -> float:
    """Best of five passes over 256 MiB a thread."""
    arrays = [np.ones(32 << 20, np.float64) for _ in range(threads)]

    def run(_: int) -> None:
        workers = [threading.Thread(target=np.max, args=(array,)) for array in arrays]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return sum(array.nbytes for array in arrays) / min(seconds(run, 5))


class Bench:
    """One engine over a pool of its own, with rows in blocks scattered over it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        tokens = options.context + options.steps + BLOCK_TOKENS
        self.blocks_a_row = -(-max(tokens, options.prompt) // BLOCK_TOKENS)
        rows = max(*options.batches, 8)
        geometry = SMOLLM2.geometry(BLOCK_TOKENS, element_bytes_for(options.dtype))
        # One huge-page aligned map, touched before anything is measured.
        self.pool = np.empty((rows * self.blocks_a_row, geometry.block_bytes), np.uint8)
        self.pool[:] = 0
        order = np.random.default_rng(1).permutation(len(self.pool)).reshape(rows, -1)
        self.slots: list[list[int]] = order.tolist()
        self.engine = NativeEngine(
            RandomWeights(SMOLLM2, quantised=options.quantised),
            self.pool,
            block_tokens=BLOCK_TOKENS,
            dtype=options.dtype,
            threads=options.threads,
            kernels=options.kernels,
        )

    def step(self, rows: int, start: int, length: int) -> None:
        batch = tuple(
            Row(
                RequestId(i),
                start,
                [(7 * i + t) % 49_152 for t in range(length)],
                self.slots[i],
                True,
                0,
                Sampling(),
            )
            for i in range(rows)
        )
        self.engine.launch(Batch(0, batch))
        self.engine.collect()

    def decode_step_s(self, batch: int) -> float:
        times = seconds(lambda i: self.step(batch, self.options.context + i, 1), self.options.steps)
        return statistics.median(times[2:])

    def prefill_s(self, rows: int) -> float:
        return statistics.median(seconds(lambda _: self.step(rows, 0, self.options.prompt), 5))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    bench = Bench(options)
    engine = bench.engine
    stream = stream_bytes_per_s(engine.threads)
    result: dict[str, Any] = {
        "benchmark": "decode",
        "model": SMOLLM2.name,
        "dtype": options.dtype,
        "kernels": engine.kernels,
        "threads": engine.threads,
        "context": options.context,
        "weight_bytes": engine.weight_bytes,
        "stream_bytes_per_s": round(stream),
        "decode_limit_tokens_per_s_at_1": round(stream / engine.weight_bytes, 1),
        "decode": {},
        "prefill": {},
    }
    kv_bytes = engine.geometry.block_bytes / BLOCK_TOKENS
    plain_bytes = DENSE_PARAMETERS * element_bytes_for(options.dtype)
    for batch in options.batches:
        step = bench.decode_step_s(batch)
        # Larger batches read the plain weights beside the packed ones.
        weights = engine.weight_bytes if batch == 1 else plain_bytes
        read = weights + batch * options.context * kv_bytes
        result["decode"][str(batch)] = {
            "step_ms": round(step * 1e3, 2),
            "tokens_per_s": round(batch / step, 1),
            "bytes_per_s": round(read / step),
            "share_of_stream": round(read / step / stream, 3),
        }
    for rows in (1, 8):
        tokens_per_s = rows * options.prompt / bench.prefill_s(rows)
        result["prefill"][f"{rows}x{options.prompt}"] = {"tokens_per_s": round(tokens_per_s, 1)}
    engine.close()
    if options.reference:
        add_reference(options, result)
    return result


def add_reference(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """The same shapes in transformers: its own cache, its own attention, the same number of threads."""
    import torch
    import transformers

    torch.set_num_threads(result["threads"])
    torch.manual_seed(0)
    c = SMOLLM2
    config = transformers.LlamaConfig(
        vocab_size=c.vocabulary,
        hidden_size=c.hidden,
        intermediate_size=c.intermediate,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim,
        max_position_embeddings=c.context_tokens_max,
        tie_word_embeddings=True,
    )
    kind = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=kind).eval()
    with torch.no_grad():
        for batch in options.batches:
            out = model(
                torch.randint(0, c.vocabulary, (batch, options.context)), use_cache=True, logits_to_keep=1
            )
            cache, token = out.past_key_values, torch.zeros((batch, 1), dtype=torch.long)

            def step(_: int, cache: Any = cache, token: Any = token) -> None:
                model(token, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1)

            median = statistics.median(seconds(step, max(5, options.steps // 4))[2:])
            entry = result["decode"][str(batch)]
            entry["reference_tokens_per_s"] = round(batch / median, 1)
            entry["ratio"] = round(entry["tokens_per_s"] * median / batch, 2)
        for rows in (1, 8):
            prompt = torch.randint(0, c.vocabulary, (rows, options.prompt))
            median = statistics.median(
                seconds(lambda _, prompt=prompt: model(prompt, use_cache=True, logits_to_keep=1), 4)[1:]
            )
            entry = result["prefill"][f"{rows}x{options.prompt}"]
            entry["reference_tokens_per_s"] = round(rows * options.prompt / median, 1)
            entry["ratio"] = round(entry["tokens_per_s"] * median / rows / options.prompt, 2)


def show(result: dict[str, Any]) -> None:
    stream = result["stream_bytes_per_s"]
    print(f"{result['model']} {result['dtype']}, kernels {result['kernels']}, {result['threads']} threads")
    print(
        f"memory reads {stream / 1e9:.1f} GB/s; {result['weight_bytes'] / 1e6:.0f} MB of weights a step "
        f"allow {result['decode_limit_tokens_per_s_at_1']:.0f} tokens/s at batch 1"
    )
    for batch, entry in result["decode"].items():
        ratio = f"  {entry['ratio']:.2f} x reference" if "ratio" in entry else ""
        print(
            f"decode {batch:>3}: {entry['tokens_per_s']:8.1f} tokens/s  {entry['step_ms']:7.2f} ms  "
            f"{entry['share_of_stream']:5.0%} of the bandwidth{ratio}"
        )
    for name, entry in result["prefill"].items():
        ratio = f"  {entry['ratio']:.2f} x reference" if "ratio" in entry else ""
        print(f"prefill {name:>6}: {entry['tokens_per_s']:8.1f} tokens/s{ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=128, help="tokens in the cache when decoding begins")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--quantised", action="store_true", help="weights of a Q4_1 file")
    parser.add_argument("--reference", action="store_true", help="also run transformers (extra `equiv`)")
    parser.add_argument("--json", action="store_true", help="one line for programs")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
