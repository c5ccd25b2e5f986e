"""The executor's numbers as Triton metrics: TensorRT-LLM's families where they mean the same, else ours.

`read` is pure; `Metrics` writes through Triton's own metrics API and belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from superinfer_trt.serve.pb import executor_pb2 as pb

_REQUESTS = "nv_trt_llm_request_metrics"
_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"
_BATCHER = "nv_trt_llm_inflight_batcher_metrics"
_GENERAL = "nv_trt_llm_general_metrics"

FAMILIES: dict[str, tuple[str, str, str]] = {
    _REQUESTS: ("request_type", "gauge", "TRT LLM request metrics"),
    _BLOCKS: ("kv_cache_block_type", "gauge", "TRT LLM KV cache block metrics"),
    _BATCHER: ("inflight_batcher_specific_metric", "gauge", "TRT LLM inflight_batcher-specific metrics"),
    _GENERAL: ("general_type", "gauge", "General TRT LLM metrics"),
    "superinfer_requests": ("phase", "gauge", "Live requests of the executor by phase"),
    "superinfer_dram_blocks": ("state", "gauge", "KV blocks of the DRAM pool"),
    "superinfer_rotations_total": ("direction", "counter", "Requests that went out of HBM, or came back"),
    "superinfer_link_blocks_total": ("direction", "counter", "KV blocks that crossed the link"),
    "superinfer_evictions_total": ("", "counter", "Requests whose KV was dropped and computed again"),
    "superinfer_output_tokens_total": ("", "counter", "Tokens made"),
    "superinfer_executor_up": ("", "gauge", "Whether the executor answers and takes requests"),
}
"""name -> (label, kind, description)."""


@dataclass(frozen=True, slots=True)
class Value:
    """One sample; a counter's is its total."""

    family: str
    label: str
    value: float


def read(stats: pb.Stats, info: pb.GetModelInfoResponse) -> Iterator[Value]:
    """All samples but `superinfer_executor_up`. TensorRT-LLM's `active` are those that hold KV."""
    rotary = stats.rotating_out + stats.rotary + stats.rotating_in
    scheduled = stats.prefill + stats.decode
    used = stats.device_blocks - stats.device_blocks_free
    by_family: dict[str, dict[str, float]] = {
        _REQUESTS: {
            "active": scheduled + rotary,
            "max": info.requests_max,
            "scheduled": scheduled,
            "context": stats.prefill,
            "waiting": stats.waiting,
        },
        _BLOCKS: {
            "max": stats.device_blocks,
            "free": stats.device_blocks_free,
            "used": used,
            "tokens_per": info.block_tokens,
            "fraction": used / stats.device_blocks if stats.device_blocks else 0.0,
        },
        _BATCHER: {"generation_requests": stats.decode},
        _GENERAL: {"iteration_counter": stats.batches},
        "superinfer_requests": {
            "waiting": stats.waiting,
            "prefill": stats.prefill,
            "decode": stats.decode,
            "rotating_out": stats.rotating_out,
            "rotary": stats.rotary,
            "rotating_in": stats.rotating_in,
        },
        "superinfer_dram_blocks": {"max": stats.host_blocks, "free": stats.host_blocks_free},
        "superinfer_rotations_total": {"out": stats.rotations_out, "in": stats.rotations_in},
        "superinfer_link_blocks_total": {"out": stats.link_out_blocks, "in": stats.link_in_blocks},
        "superinfer_evictions_total": {"": stats.evictions},
        "superinfer_output_tokens_total": {"": stats.output_tokens},
    }
    for family, values in by_family.items():
        for label, value in values.items():
            yield Value(family, label, float(value))


class Metrics:
    """The families of one model. `pb_utils`: Triton's module."""

    def __init__(self, pb_utils: Any, model: str, version: str) -> None:
        self._families = {
            name: pb_utils.MetricFamily(
                name=name,
                description=text,
                kind=getattr(pb_utils.MetricFamily, kind.upper()),
            )
            for name, (_, kind, text) in FAMILIES.items()
        }
        self._labels = {"model": model, "version": version}
        self._metrics: dict[tuple[str, str], Any] = {}
        self._totals: dict[tuple[str, str], float] = {}

    def update(self, stats: pb.Stats, info: pb.GetModelInfoResponse) -> None:
        """The numbers of one moment."""
        for value in read(stats, info):
            self._put(value)
        self._put(Value("superinfer_executor_up", "", float(stats.serving)))

    def down(self) -> None:
        """The executor does not answer; its last numbers stay."""
        self._put(Value("superinfer_executor_up", "", 0.0))

    def _put(self, value: Value) -> None:
        key = value.family, value.label
        name, kind, _ = FAMILIES[value.family]
        metric = self._metrics.get(key)
        if metric is None:
            labels = {**self._labels, name: value.label} if name else self._labels
            metric = self._metrics[key] = self._families[value.family].Metric(labels=labels)
        if kind == "gauge":
            metric.set(value.value)
            return
        before = self._totals.get(key, 0.0)
        grown = value.value - before if value.value >= before else value.value  # it was started anew
        self._totals[key] = value.value
        if grown:
            metric.increment(grown)
