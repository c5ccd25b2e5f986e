"""Latency objectives of one request. Knows no clock: all values are durations."""

from __future__ import annotations

from dataclasses import dataclass

from superinfer_trt.core.units import MILLISECOND, Nanos


@dataclass(frozen=True, slots=True)
class Slo:
    """Per-request latency objectives (paper, section 3).

    `ttft`: arrival to first token, nanoseconds. `tbt`: gap between two tokens, nanoseconds.
    """

    ttft: Nanos = 5_000 * MILLISECOND
    tbt: Nanos = 100 * MILLISECOND
