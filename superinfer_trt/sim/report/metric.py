"""The figures a report can show: title, unit, direction, and how a value is written.

Names are those of a run's figures, deeper ones with a dot (`ttft_ms.p99`); docs/metrics.md defines them.
Knows no run and no policy. Immutable, any thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from superinfer_trt.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure. `better`: 1 more is better, -1 less is, 0 neither. `digits` after the point.

    `scale` turns what is stored into `unit` (shares are stored as 0..1 and shown in %).
    """

    name: str
    title: str
    unit: str
    better: int = 0
    digits: int = 0
    scale: float = 1.0

    @property
    def share(self) -> bool:
        """Whether it is a part of a whole."""
        return self.unit == "%"

    def value(self, figures: Mapping[str, Any]) -> float | None:
        """In `unit`; None where it was not measured. Raises ValueError for what is no such figure."""
        found: Any = figures
        for word in self.name.split("."):
            found = found.get(word) if isinstance(found, Mapping) else None
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
            raise ValueError(f"{self.name} is {found!r}; expected a number")
        if found < 0 or (self.share and found > 1):
            raise ValueError(f"{self.name} is {found!r}; expected {'0..1' if self.share else '>= 0'}")
        return found * self.scale

    def written(self, value: float) -> str:
        """The number alone; equal texts are equal figures to a reader."""
        return f"{value:,.{self.digits}f}"

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


def _share(name: str, title: str) -> Metric:
    return Metric(name, title, "%", better=1, digits=1, scale=100)


def _seconds(name: str, title: str, scale: float = 1.0, digits: int = 2) -> Metric:
    return Metric(name, title, "s", better=-1, digits=digits, scale=scale)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        _share("ttft_attainment", "TTFT attainment"),
        _share("tbt_attainment", "TBT attainment per token"),
        _share("joint_mean", "Joint attainment (TTFT and mean TBT)"),
        _share("joint_p99", "Joint attainment (TTFT and at most 1 % late gaps)"),
        _share("joint_stall", "Joint attainment (TTFT and a stall of at most 1 s)"),
        _share("ttft_attainment_longest_prompts", "TTFT attainment of the longest 10 % of prompts"),
        Metric("tokens_per_s_arrivals", "Output while requests arrive", "tokens/s", 1),
        Metric("tokens_per_s", "Output over the whole run", "tokens/s", 1),
        Metric("goodput_rps", "Goodput", "requests/s", 1, 2),
        _seconds("ttft_ms.p50", "TTFT, median", 1e-3),
        _seconds("ttft_ms.p90", "TTFT, P90", 1e-3),
        _seconds("ttft_ms.p99", "TTFT, P99", 1e-3),
        _seconds("tbt_ms.p50", "Gap between tokens, median", 1e-3, 3),
        _seconds("tbt_ms.p90", "Gap between tokens, P90", 1e-3, 3),
        _seconds("tbt_ms.p99", "Gap between tokens, P99", 1e-3, 3),
        _seconds("longest_gap_s", "Longest gap"),
        Metric("rotations", "Rotations out of HBM", ""),
        Metric("evictions", "Evictions (recomputed)", ""),
        Metric("link_bytes", "Moved over the link", "GB", 0, 1, 1e-9),
        Metric("step_ms", "Mean step", "ms", 0, 1),
        Metric("planning_ms", "Mean planning", "ms", 0, 2),
        Metric("steps", "Steps", ""),
        Metric("requests", "Requests", ""),
        Metric("completed", "Completed requests", ""),
        Metric("failed", "Failed requests", "", -1),
        Metric("wall_s", "First arrival to last token", "s", 0, 1),
    )
}

TABLES = (
    *("ttft_attainment", "tbt_attainment", "joint_mean", "joint_p99", "joint_stall"),
    *("ttft_attainment_longest_prompts", "tokens_per_s_arrivals", "ttft_ms.p99", "tbt_ms.p99"),
    *("longest_gap_s", "rotations", "evictions"),
)
"""What a report has a table of, unless told otherwise."""

TTFT, TBT, JOINT = (METRICS[name] for name in ("ttft_attainment", "tbt_attainment", "joint_mean"))
FAIRNESS = METRICS["ttft_attainment_longest_prompts"]
TTFT_P99, TBT_P99 = METRICS["ttft_ms.p99"], METRICS["tbt_ms.p99"]
LONGEST_GAP = METRICS["longest_gap_s"]


def find_metrics(names: Sequence[str]) -> list[Metric]:
    """By name, each once. Raises ConfigError."""
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"metrics: {name!r} is unknown; known: {', '.join(METRICS)}")
    return [METRICS[name] for name in dict.fromkeys(names)]
