"""Step times: the published checks of the cost model, and its terms one by one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.request import Sampling
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import RequestId
from superinfer_trt.sim.cost import StepModel, StepWork, work_of
from superinfer_trt.sim.profiles import MODELS, find_hardware, step_model

GH200 = find_hardware("gh200-144gb")


def batch(decodes: Sequence[int] = (), chunks: Sequence[tuple[int, int]] = ()) -> Batch:
    """Decodes by context, chunks by (tokens, cached)."""
    shapes = [(context, 1) for context in decodes] + [(cached, tokens) for tokens, cached in chunks]
    rows = (
        Row(RequestId(at), start, range(length), (), True, 0, Sampling())
        for at, (start, length) in enumerate(shapes)
    )
    return Batch(0, tuple(rows))


# Milliseconds worked out from the formula with bare arithmetic, apart from this code.
CHECKS = [
    ("qwen2.5-32b", [500], [], 19.8),
    ("qwen2.5-32b", [500] * 64, [], 22.2),
    ("qwen2.5-32b", [500] * 256, [], 37.0),
    ("qwen2.5-32b", [500] * 400, [], 53.9),
    ("qwen2.5-32b", [500] * 400, [(512, 0)], 98.1),
    ("qwen2.5-32b", [], [(2048, 0)], 187.0),
    ("llama-3-8b", [500], [], 7.9),
    ("llama-3-8b", [500] * 400, [], 20.9),
    ("mixtral-8x7b", [500], [], 10.3),
    ("mixtral-8x7b", [500] * 400, [], 38.3),
]


@pytest.mark.parametrize(("model", "decodes", "chunks", "milliseconds"), CHECKS)
def test_steps_take_what_the_formula_gives(
    model: str, decodes: list[int], chunks: list[tuple[int, int]], milliseconds: float
) -> None:
    cost = step_model(GH200, MODELS[model])
    assert cost(batch(decodes, chunks)) / 1e6 == pytest.approx(milliseconds, rel=0.02)


def test_work_is_counted_by_row() -> None:
    work = work_of(batch([9, 99], [(8, 0), (4, 16), (1, 0)]))
    assert work == StepWork(
        rows=5,
        tokens=2 + 8 + 4 + 1,
        decode_context_tokens=10 + 100,
        chunk_pair_tokens=8 * 4 + 4 * 18 + 0.5,
        chunk_context_tokens=16,
    )


def test_a_mixture_reads_the_experts_its_tokens_touch() -> None:
    cost = step_model(GH200, MODELS["mixtral-8x7b"])
    one, many = (cost.seconds(StepWork(0, tokens, 0, 0.0, 0)) - cost.base_s for tokens in (1, 64))
    share = 0.04 + 0.96 * 0.25
    assert one == pytest.approx(93.4e9 * share / 4.165e12, rel=1e-3)
    assert many > 3 * one


def test_more_work_never_takes_less() -> None:
    cost = step_model(GH200, MODELS["qwen2.5-32b"])
    times = [cost(batch([500] * rows, [(256, 64)])) for rows in range(0, 300, 7)]
    assert times == sorted(times)
    assert cost(batch()) == 0


def test_nonsense_is_refused() -> None:
    sizes = ("active_parameters", "weight_bytes", "kv_token_bytes", "attention_pair_flops")
    rates = ("flops_per_s", "attention_flops_per_s", "hbm_bytes_per_s", "base_s", "row_s")
    right = dict.fromkeys((*sizes, *rates), 1.0)
    StepModel(**right)
    for name, value in (("flops_per_s", 0.0), ("base_s", -1.0), ("weight_bytes", float("nan"))):
        with pytest.raises(ConfigError, match=name):
            StepModel(**{**right, name: value})
    with pytest.raises(ConfigError, match="dense_share"):
        StepModel(**right, dense_share=2.0)
