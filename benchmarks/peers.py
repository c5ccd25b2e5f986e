"""Another engine behind two pipes, for engines.py; run by the interpreter of its own environment.

    PYTHON benchmarks/peers.py transformers|openvino|vllm MODEL --threads 2

A line of JSON in: {"prompts": [[ids]], "tokens": N}. A line out: {"first_s", "whole_s"}: when the last of the
prompts had its first token, and when all had N. Greedy, ends of sequence ignored, prompts given at once.
Needs nothing of this project.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

Generate = Callable[[list[list[int]], int], tuple[float, float]]


def transformers_engine(model: str, threads: int) -> Generate:
    """generate() at constant batch, bf16, from the GGUF file."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    path = Path(model)
    made = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
    ).eval()

    class Clock(transformers.StoppingCriteria):  # type: ignore[misc, name-defined]
        first = 0.0

        def __call__(self, ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            del scores
            self.first = self.first or time.perf_counter()
            return torch.zeros(ids.shape[0], dtype=torch.bool)

    def generate(prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        ids, clock, began = torch.tensor(prompts), Clock(), time.perf_counter()
        out = made.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
        )
        assert out.shape[1] == len(prompts[0]) + tokens
        return clock.first - began, time.perf_counter() - began

    return generate


def openvino_engine(model: str, threads: int) -> Generate:
    """The continuous batching pipeline, from the GGUF file, its weights as they are there."""
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 4
    scheduler.max_num_batched_tokens = 512
    scheduler.enable_prefix_caching = False
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})

    def generate(prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        setting = genai.GenerationConfig()
        setting.max_new_tokens = setting.min_new_tokens = tokens
        setting.ignore_eos, setting.do_sample = True, False
        began = time.perf_counter()
        handles = [
            pipeline.add_request(index, ov.Tensor(np_ids(prompt)), setting)
            for index, prompt in enumerate(prompts)
        ]
        counts, first = [0] * len(handles), 0.0
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for index, handle in enumerate(handles):
                while handle.can_read():
                    counts[index] += sum(len(one.generated_ids) for one in handle.read().values())
            if not first and all(counts):
                first = time.perf_counter()
        whole = time.perf_counter()
        assert counts == [tokens] * len(handles), counts
        return first - began, whole - began

    return generate


def np_ids(prompt: list[int]) -> object:
    import numpy as np

    return np.array([prompt], dtype=np.int64)


def vllm_engine(model: str, threads: int) -> Generate:
    """The engine's own loop in this process, bf16, from a Hugging Face folder, compiled (its default).

    Its warm-up compiles, some 90 CPU seconds, and keeps what it compiled in ~/.cache/vllm.
    """
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "OMP_NUM_THREADS": str(threads),  # it would keep one of two for itself
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import EngineArgs, LLMEngine, SamplingParams

    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=model, dtype="bfloat16", max_model_len=2048, max_num_seqs=64, enable_prefix_caching=False
        )
    )
    counter = iter(range(1 << 30))

    def generate(prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        setting = SamplingParams(
            temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, detokenize=False
        )
        began, first = time.perf_counter(), 0.0
        seen: dict[str, int] = {}
        for prompt in prompts:
            name = str(next(counter))
            seen[name] = 0
            engine.add_request(name, {"prompt_token_ids": prompt}, setting)
        while engine.has_unfinished_requests():
            for output in engine.step():
                seen[output.request_id] = len(output.outputs[0].token_ids)
            if not first and all(seen.values()):
                first = time.perf_counter()
        whole = time.perf_counter()
        assert set(seen.values()) == {tokens}, seen
        return first - began, whole - began

    return generate


ENGINES = {"transformers": transformers_engine, "openvino": openvino_engine, "vllm": vllm_engine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model", help="a GGUF file; vllm: a Hugging Face folder")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the engines print goes to stderr
    generate = ENGINES[options.engine](options.model, options.threads)
    generate([[300 + index for index in range(16)]], 4)
    out.write('{"ready": true}\n')
    for line in sys.stdin:
        asked = json.loads(line)
        first_s, whole_s = generate(asked["prompts"], asked["tokens"])
        out.write(json.dumps({"first_s": first_s, "whole_s": whole_s}) + "\n")


if __name__ == "__main__":
    main()
