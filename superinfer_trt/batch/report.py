"""How a run kept its objectives, in bounded memory: core.attainment over every request, or over each n-th.

Counts and shares of requests are exact. Token times are kept of all requests while they fit TIMES_MAX, then
of every second, every fourth...: percentiles are over those. Not thread-safe.
"""

from __future__ import annotations

from collections import Counter

from superinfer_trt.core.attainment import (
    RequestTimes,
    attainment,
    joint_mean_met,
    joint_p99_met,
    joint_stall_met,
    ttft_met,
)
from superinfer_trt.core.units import SECOND, Nanos

TIMES_MAX = 1 << 21
"""Token times kept, 8 bytes each."""


class Report:
    """Of one process; what an earlier one has answered is not in it."""

    def __init__(self, times_max: int = TIMES_MAX) -> None:
        self.retries = 0
        self.answered = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.failures: Counter[str] = Counter()
        self._met: Counter[str] = Counter()
        self._measured = 0
        self._stride = 1
        self._kept: list[RequestTimes] = []
        self._kept_times = 0
        self._times_max = times_max
        self._first: Nanos | None = None
        self._last: Nanos = 0

    def failed(self, code: str) -> None:
        """A line without an answer."""
        self.failures[code] += 1

    def answer(self, prompt_tokens: int, output_tokens: int) -> None:
        """A line with one."""
        self.answered += 1
        self.prompt_tokens += prompt_tokens
        self.output_tokens += output_tokens

    def measured(self, times: RequestTimes) -> None:
        """A request that was served, whether it ended well or not."""
        for name, met in (
            ("completed", times.completed),
            ("ttft_attainment", ttft_met(times)),
            ("joint_mean", joint_mean_met(times)),
            ("joint_p99", joint_p99_met(times)),
            ("joint_stall", joint_stall_met(times)),
        ):
            self._met[name] += met
        self._first = times.arrival if self._first is None else min(self._first, times.arrival)
        self._last = max(self._last, times.tokens[-1] if times.tokens else times.arrival)
        if self._measured % self._stride == 0:
            self._kept.append(times)
            self._kept_times += len(times.tokens)
            while self._kept_times > self._times_max and len(self._kept) > 1:
                self._kept = self._kept[::2]
                self._kept_times = sum(len(one.tokens) for one in self._kept)
                self._stride *= 2
        self._measured += 1

    def figures(self) -> dict[str, object]:
        """The figures as one JSON object. `sampled`: requests whose percentiles are told."""
        made = attainment(self._kept).as_dict()
        made["sampled"] = len(self._kept)
        made["requests"], made["completed"] = self._measured, self._met["completed"]
        made["failed"] = self._measured - self._met["completed"]
        for name in ("ttft_attainment", "joint_mean", "joint_p99", "joint_stall"):
            made[name] = self._met[name] / self._measured if self._measured else None
        wall = 0 if self._first is None else self._last - self._first
        made["wall_s"] = wall / SECOND
        made["prompt_tokens"], made["output_tokens"] = self.prompt_tokens, self.output_tokens
        made["tokens_per_s"] = self.output_tokens * SECOND / wall if wall else 0.0
        made["goodput_rps"] = self._met["joint_mean"] * SECOND / wall if wall else 0.0
        made["answered"], made["retries"] = self.answered, self.retries
        made["failures"] = dict(sorted(self.failures.items()))
        return made
