"""Steps with decodes in DRAM: what hides, what shows, what crosses the link; and whole runs of `neo`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from superinfer_trt.build.sim import Setup, build_world
from superinfer_trt.core.errors import ConfigError, InvariantViolation
from superinfer_trt.core.request import Sampling
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import RequestId
from superinfer_trt.sim.arrivals import Arrivals
from superinfer_trt.sim.cost import StepModel
from superinfer_trt.sim.figures import evaluate
from superinfer_trt.sim.link import LinkModel
from superinfer_trt.sim.offload import CpuAttention, OffloadStep
from superinfer_trt.sim.profiles import MODELS, cpu_attention, find_hardware
from superinfer_trt.sim.synthetic import synthetic_lengths
from superinfer_trt.sim.workload import make_items

# Linear part: 10 ms of weights (a token's own compute is too small to see), base 1 ms and 1 ms a row.
# Attention: 1 us a context token on the GPU, 10 us on the CPU, 1 ms a row and 2 ms to go there.
MODEL = StepModel(
    active_parameters=1.0,
    weight_bytes=1e7,
    kv_token_bytes=1e3,
    attention_pair_flops=0.0,
    flops_per_s=1e12,
    attention_flops_per_s=1e12,
    hbm_bytes_per_s=1e9,
    base_s=1e-3,
    row_s=1e-3,
)
CPU = CpuAttention(bytes_per_s=1e8, row_s=1e-3, launch_s=2e-3)
FAST = LinkModel(1e15, 1e15)
GH200 = find_hardware("gh200-144gb")


def batch(turn: int, *rows: tuple[int, int, int]) -> Batch:
    """Rows by (id, start, length)."""
    made = (Row(RequestId(id), start, range(n), (), True, 0, Sampling()) for id, start, n in rows)
    return Batch(turn, tuple(made))


def milliseconds(
    rows: Sequence[tuple[int, int, int]], in_dram: dict[int, int], second: set[int], link: LinkModel = FAST
) -> float:
    step = OffloadStep(MODEL, CPU, link)
    known = {RequestId(id): tokens for id, tokens in in_dram.items()}
    step.tell(0, known, second)
    step(batch(0))  # they lie there before
    step.tell(1, known, second)
    return step(batch(1, *rows)) / 1e6


def test_without_a_decode_in_dram_it_is_the_model() -> None:
    rows = [(1, 999, 1), (2, 0, 64)]
    assert milliseconds(rows, {}, set()) == MODEL(batch(1, *rows)) / 1e6
    assert milliseconds(rows, {3: 500}, set()) == MODEL(batch(1, *rows)) / 1e6, "3 sits this one out"


def test_what_hides_costs_only_its_linear_part() -> None:
    """First: 12 linear and 1 of attention; second: 12 linear, 2 + 1 + 5 on the CPU behind the first's 12."""
    assert milliseconds([(1, 999, 1), (2, 499, 1)], {2: 499}, {2}) == pytest.approx(12 + 12 + 1)


def test_what_does_not_hide_shows() -> None:
    """2 + 1 + 30 on the CPU against 12 of the first's linear part."""
    assert milliseconds([(1, 999, 1), (2, 2999, 1)], {2: 2999}, {2}) == pytest.approx(33 + 12 + 1)


def test_attention_of_the_first_hides_behind_the_second_and_its_own() -> None:
    """First: two rows, 13 linear, 1 on the GPU and 2 + 1 + 20 on the CPU; second: 12 linear and 13 of CPU."""
    rows = [(1, 999, 1), (2, 1999, 1), (3, 999, 1)]
    assert milliseconds(rows, {2: 1999, 3: 999}, {3}) == pytest.approx(max(13, 13) + max(12 + 1, 23))


def test_who_changes_place_crosses_the_link_once() -> None:
    link = LinkModel(d2h_bytes_per_s=1e6, h2d_bytes_per_s=2e6)  # 1 ms a token out, 0.5 ms in
    step = OffloadStep(MODEL, CPU, link)
    one, two = RequestId(1), RequestId(2)

    def took(turn: int, in_dram: dict[RequestId, int], *rows: tuple[int, int, int]) -> float:
        step.tell(turn, in_dram, frozenset())
        return step(batch(turn, *rows)) / 1e6

    assert took(1, {}, (1, 100, 1)) == pytest.approx(12.1, rel=1e-3)
    assert took(2, {one: 101}, (2, 0, 3)) == pytest.approx(101), "1 leaves"
    assert took(3, {one: 101}, (2, 3, 1)) == pytest.approx(12, rel=1e-2)
    assert took(4, {}, (1, 101, 1), (2, 4, 1)) == pytest.approx(101 / 2), "1 comes back"
    assert took(5, {two: 0}, (2, 0, 40)) == pytest.approx(40), "2 was dropped; its prefill goes to DRAM"
    assert took(6, {two: 40}, (2, 40, 60)) == pytest.approx(60), "the next chunk, which reads 40 back"


def test_both_directions_share_the_memory_behind_them() -> None:
    link = LinkModel(d2h_bytes_per_s=1e6, h2d_bytes_per_s=1e6, dram_bytes_per_s=1e6)
    assert milliseconds([(2, 40, 60)], {2: 40}, set(), link) == pytest.approx(100)


def test_a_batch_it_was_not_told_of_is_a_bug() -> None:
    step = OffloadStep(MODEL, CPU, FAST)
    step.tell(3, {}, frozenset())
    with pytest.raises(InvariantViolation, match="turn 4: told of turn 3"):
        step(batch(4, (1, 0, 1)))


def test_nonsense_is_refused() -> None:
    for name, value in (("bytes_per_s", 0.0), ("row_s", -1.0), ("launch_s", float("nan"))):
        with pytest.raises(ConfigError, match=name):
            replace(CPU, **{name: value})


def test_grace_attends_at_what_a_kernel_reaches() -> None:
    cpu = cpu_attention(GH200, MODELS["qwen2.5-32b"])
    assert 200e9 <= cpu.bytes_per_s <= 250e9
    assert cpu.launch_s == pytest.approx(64 * 50e-6)


def test_a_mixture_of_experts_is_refused() -> None:
    items = make_items(synthetic_lengths("sharegpt", 3, 1), Arrivals(1, 2))
    with pytest.raises(
        ConfigError, match=r"neo: model mixtral-8x7b is a mixture of experts; expected a dense"
    ):
        build_world(Setup(GH200, MODELS["mixtral-8x7b"], "neo"), items, "test")


def test_a_small_hbm_is_where_it_wins() -> None:
    """HBM for some 30 requests: fcfs keeps the others waiting, neo decodes them in DRAM."""
    items = make_items(synthetic_lengths("sharegpt", 200, 1), Arrivals(8, 15))
    shares, evictions = {}, {}
    for policy in ("fcfs", "neo"):
        setup = Setup(GH200, MODELS["qwen2.5-32b"], policy, hbm_blocks=1_000, dram_blocks=20_000)
        built = build_world(setup, items, "test")
        assert (built.limits.device_blocks, built.limits.host_blocks) == (1_000, 20_000 * (policy == "neo"))
        records = built.world.run(items)
        assert all(record.completed for record in records)
        shares[policy] = evaluate(records).ttft_attainment
        evictions[policy] = built.world.executor.totals.evictions
    assert shares["neo"] > shares["fcfs"] + 0.3
    assert evictions["neo"] == 0 < evictions["fcfs"]
