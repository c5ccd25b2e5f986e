"""The figures of a run, as core.attainment defines them, over arrays: millions of gaps in a second.

core.attainment is the definition; tests/unit/sim holds this evaluation equal to it. Adds what only a
simulation knows. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from superinfer_trt.core.attainment import (
    LATE_GAPS_PER_HUNDRED_MAX,
    PERCENTILES,
    STALL_MAX,
    Attainment,
)
from superinfer_trt.core.units import MILLISECOND, SECOND, Nanos, div_ceil
from superinfer_trt.sim.world import Record

Times = NDArray[np.int64]
LONGEST_SHARE = 10
"""One in so many requests counts as one of the longest prompts."""


def evaluate(records: Sequence[Record]) -> Attainment:
    """The figures of all requests of a run."""
    count = len(records)
    gap_count = sum(max(0, len(record.tokens) - 1) for record in records)
    gaps: Times = np.empty(gap_count, np.int64)
    firsts = []
    late = at = ttft_good = mean_good = p99_good = stall_good = 0
    for record in records:
        slo = record.item.slo
        times: Times = np.frombuffer(record.tokens, np.int64)
        size = len(times) - 1
        if size < 0:
            continue
        first = int(times[0])
        firsts.append(first - record.arrival)
        mine = gaps[at : at + size]
        np.subtract(times[1:], times[:-1], out=mine)
        at += size
        late_mine = int(np.count_nonzero(mine > slo.tbt))
        late += late_mine
        if first - record.arrival > slo.ttft:
            continue
        ttft_good += 1
        if record.completed:
            mean_good += int(times[-1]) - first <= size * slo.tbt
            p99_good += late_mine * 100 <= size * LATE_GAPS_PER_HUNDRED_MAX
            stall_good += int((times - slo.tbt * np.arange(size + 1)).max()) - first <= STALL_MAX
    tokens = sum(len(record.tokens) for record in records)
    wall = _wall(records)
    completed = sum(record.completed for record in records)
    return Attainment(
        requests=count,
        completed=completed,
        failed=count - completed,
        ttft_attainment=ttft_good / count if count else None,
        tbt_attainment=(gap_count - late) / gap_count if gap_count else None,
        joint_mean=mean_good / count if count else None,
        joint_p99=p99_good / count if count else None,
        joint_stall=stall_good / count if count else None,
        output_tokens=tokens,
        tokens_per_s=tokens * SECOND / wall if wall else 0.0,
        goodput_rps=mean_good * SECOND / wall if wall else 0.0,
        longest_gap_ms=int(gaps.max(initial=0)) / MILLISECOND,
        ttft_ms=_percentiles_ms(np.array(firsts, np.int64)),
        tbt_ms=_percentiles_ms(gaps),
        wall_s=wall / SECOND,
    )


def longest_prompts_ttft(records: Sequence[Record]) -> float | None:
    """TTFT attainment of the longest tenth of the prompts: who pays when short ones go first."""
    if not records:
        return None
    longest = sorted(records, key=lambda record: -record.item.prompt_tokens)
    longest = longest[: max(1, len(records) // LONGEST_SHARE)]
    met = sum(
        bool(record.tokens) and record.tokens[0] - record.arrival <= record.item.slo.ttft
        for record in longest
    )
    return met / len(longest)


def tokens_per_s_until(records: Sequence[Record], end: Nanos) -> float:
    """Output tokens per second from 0 to `end`: throughput under load, without the drain behind it."""
    count = sum(int(np.searchsorted(np.frombuffer(r.tokens, np.int64), end, "right")) for r in records)
    return count * SECOND / end if end else 0.0


def by_tenant(records: Sequence[Record]) -> dict[str, dict[str, object]]:
    """The figures of each tenant; nothing where there is only one."""
    tenants = sorted({record.item.tenant for record in records})
    if len(tenants) < 2:
        return {}
    found: dict[str, dict[str, object]] = {}
    for tenant in tenants:
        mine = evaluate([record for record in records if record.item.tenant == tenant])
        found[tenant] = {
            key: value
            for key, value in mine.as_dict().items()
            if key in {"requests", "ttft_attainment", "tbt_attainment", "joint_mean", "joint_stall"}
        }
    return found


def _wall(records: Sequence[Record]) -> Nanos:
    """First arrival to last token."""
    if not records:
        return 0
    start = min(record.arrival for record in records)
    return max(record.tokens[-1] if record.tokens else record.arrival for record in records) - start


def _percentiles_ms(values: Times) -> dict[str, float]:
    """Nearest rank, as core.attainment. Reorders `values`."""
    if not len(values):
        return {}
    ranks = [div_ceil(percent * len(values), 100) - 1 for percent in PERCENTILES]
    values.partition(ranks)
    return {
        f"p{percent}": int(values[rank]) / MILLISECOND
        for percent, rank in zip(PERCENTILES, ranks, strict=True)
    }
