"""The native engine's logits against transformers' on tiny random models, in fp32 and in bf16."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from superinfer_trt.core.model import ModelConfig
from superinfer_trt.engine.native import NativeEngine, kernel_sets
from unit.engine.native_world import MODELS, TINY, Course, RandomWeights, poisoned_pool, run_rows, tokens_for

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch", reason="needs torch (extra `equiv`)")
transformers = pytest.importorskip("transformers", reason="needs transformers (extra `equiv`)")

CASES = {
    **MODELS,
    "mixtral-tied": replace(MODELS["mixtral"], experts=8, experts_per_token=3, tied_embedding=True),
    "qwen2-mha": replace(MODELS["qwen2"], kv_heads=4, head_dim=16, rope_theta=1e6),
    "odd": replace(TINY, heads=3, kv_heads=1, head_dim=40, hidden=120, intermediate=200, vocabulary=333),
    "widest": replace(TINY, heads=2, kv_heads=2, head_dim=256, vocabulary=50),
}
PROMPT = 200


def reference_config(config: ModelConfig) -> Any:
    common = {
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_tokens_max,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embedding,
    }
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling := config.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    if int(transformers.__version__.split(".")[0]) >= 5:
        common["rope_parameters"] = rope
    else:
        common["rope_theta"] = config.rope_theta
        common["rope_scaling"] = rope if config.rope_scaling else None
    if config.architecture == "qwen2":
        return transformers.Qwen2Config(**common)
    if config.architecture == "mixtral":
        experts = {"num_local_experts": config.experts, "num_experts_per_tok": config.experts_per_token}
        return transformers.MixtralConfig(**common, **experts)
    return transformers.LlamaConfig(**common)


def reference_tensor(weights: RandomWeights, name: str) -> NDArray[np.float32]:
    """A parameter of the reference by its own name; newer releases hold a layer's experts in one."""
    prefix, _, last = name.rpartition(".mlp.experts.")
    if prefix:
        moe = f"{prefix}.block_sparse_moe.experts"
        parts = ("w1", "w3") if last == "gate_up_proj" else ("w2",)
        rows = range(weights.config.experts)
        stacked = [np.concatenate([weights.tensor(f"{moe}.{e}.{p}.weight") for p in parts]) for e in rows]
        return np.stack(stacked)
    return weights.tensor(name.replace(".mlp.gate.weight", ".block_sparse_moe.gate.weight"))


def reference_logits(weights: RandomWeights, tokens: list[int], dtype: Any) -> NDArray[np.float32]:
    """[positions, vocabulary]."""
    config = reference_config(weights.config)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "lm_head.weight" and weights.config.tied_embedding:
                continue
            made = torch.from_numpy(reference_tensor(weights, name).copy())
            assert made.shape == parameter.shape, name
            parameter.copy_(made)
        out = model.to(dtype).eval()(torch.tensor([tokens]))
    return np.asarray(out.logits[0].float().numpy())


def native_logits(weights: RandomWeights, tokens: list[int], dtype: str, kernels: str) -> NDArray[np.float32]:
    """Of the last position of the prompt and of every position fed after it."""
    pool = poisoned_pool(weights.config, dtype, -(-len(tokens) // 16))
    engine = NativeEngine(weights, pool, dtype=dtype, kernels=kernels)
    course = Course(1, tokens, list(range(len(pool)))[::-1])
    lines = [run_rows(engine, [course.row(length)])[0] for length in (PROMPT, *[1] * (len(tokens) - PROMPT))]
    engine.close()
    return np.stack(lines)


@pytest.mark.parametrize("case", CASES)
def test_fp32_logits_equal_the_reference(case: str) -> None:
    weights = RandomWeights(CASES[case], seed=11)
    tokens = tokens_for(weights.config, PROMPT + 12, 5)
    expected = reference_logits(weights, tokens, torch.float32)[PROMPT - 1 :]
    assert np.abs(expected).max() > 0.1
    for kernels in kernel_sets("fp32"):
        found = native_logits(weights, tokens, "fp32", kernels)
        assert np.abs(found - expected).max() <= 1e-4, kernels


@pytest.mark.parametrize("case", ["gqa", "mha", "qwen2", "wider"])
def test_bf16_is_no_further_from_fp32_than_the_reference(case: str) -> None:
    weights = RandomWeights(CASES[case], seed=12)
    tokens = tokens_for(weights.config, PROMPT + 40, 6)
    exact = reference_logits(weights, tokens, torch.float32)[PROMPT - 1 :]
    theirs = reference_logits(weights, tokens, torch.bfloat16)[PROMPT - 1 :]
    error_of_reference = np.sqrt(np.mean((theirs - exact) ** 2))
    for kernels in kernel_sets("bf16"):
        ours = native_logits(weights, tokens, "bf16", kernels)
        assert np.sqrt(np.mean((ours - exact) ** 2)) <= error_of_reference, kernels
