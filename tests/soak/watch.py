"""What is looked at from outside: a process's memory, its metrics, and what both say at the end."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from prometheus_client.parser import text_string_to_metric_families

from soak.load import LEAVERS, Clients, Counts

Metrics = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Samples by name and sorted labels."""

WARM_UP_SHARE = 0.25
"""Of a run: pools, caches and arenas of the allocator grow to their size in it."""

REASONS = {
    "stop": "FINISH_REASON_STOP",
    "length": "FINISH_REASON_LENGTH",
    "cancelled": "FINISH_REASON_CANCELLED",
    "rejected": "FINISH_REASON_REJECTED",
    "failed": "FINISH_REASON_FAILED",
}


@dataclass(frozen=True)
class Sample:
    """One look. Sizes are bytes; `since_s` counts from the first."""

    since_s: float
    anonymous_bytes: int
    resident_bytes: int
    threads: int
    files: int
    live: int
    ended: int


@dataclass
class Watch:
    """Samples of a process while it is loaded; each is a line of `log`."""

    pid: int
    clients: Clients
    log: TextIO
    samples: list[Sample] = field(default_factory=list)

    async def every(self, period_s: float) -> None:
        start = time.monotonic()
        while True:
            sizes = status_of(self.pid)
            counts = self.clients.counts
            sample = Sample(
                round(time.monotonic() - start, 1),
                sizes["RssAnon"] << 10,
                sizes["VmRSS"] << 10,
                sizes["Threads"],
                len(list(Path(f"/proc/{self.pid}/fd").iterdir())),
                self.clients.live,
                sum(counts.ended.values()) + counts.left,
            )
            self.samples.append(sample)
            print(json.dumps(asdict(sample)), file=self.log, flush=True)
            await asyncio.sleep(period_s)

    def warm(self) -> list[Sample]:
        """Those after the warm-up."""
        return self.samples[int(len(self.samples) * WARM_UP_SHARE) :]


def status_of(pid: int) -> dict[str, int]:
    """The numbers of /proc/PID/status; sizes in KiB."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0])
    return found


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil and Sen's: the median of the slopes of all pairs, which no single peak can move."""
    return statistics.median(
        (y2 - y1) / (x2 - x1) for at, (x1, y1) in enumerate(points) for x2, y2 in points[at + 1 :] if x2 > x1
    )


def read_metrics(url: str) -> Metrics:
    """Every sample of a Prometheus endpoint."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def by(metrics: Metrics, name: str, *labels: str) -> Counter[object]:
    """The samples of one name, added up by these labels; without any by the empty string."""
    found: Counter[object] = Counter()
    for (one, at), number in metrics.items():
        if one == name:
            values = tuple(dict(at).get(label, "") for label in labels)
            found[values[0] if len(values) == 1 else values or ""] += int(number)
    return found


def compare(counts: Counts, metrics: Metrics) -> list[str]:
    """Where the server's count and the clients' differ; of all tenants but the leavers to the last token."""
    wrong = []

    def same(what: str, server: object, clients: object) -> None:
        if server != clients:
            wrong.append(f"{what}: the server counts {server}, the clients {clients}")

    accepted = by(metrics, "superinfer_tenant_accepted_total", "tenant")
    same("accepted", dict(accepted), dict(counts.accepted))
    ended = by(metrics, "superinfer_tenant_ended_total", "tenant", "reason")
    theirs = {(at, REASONS[reason]): n for (at, reason), n in ended.items() if n and at != LEAVERS}  # type: ignore[misc]
    same("ended", theirs, {key: n for key, n in counts.ended.items() if key[0] != LEAVERS})
    gone = sum(n for (at, _), n in ended.items() if at == LEAVERS)  # type: ignore[misc]
    stayed = sum(n for (at, _), n in counts.ended.items() if at == LEAVERS)
    same("ended, of those who leave", gone, counts.left + stayed)
    refused = by(metrics, "superinfer_refusals_total", "code")
    same("refused", {code: n for code, n in refused.items() if n}, dict(counts.refused))
    tokens = by(metrics, "superinfer_tenant_output_tokens_total", "tenant")
    for tenant in set(tokens) | set(counts.tokens):
        if tenant == LEAVERS:
            if tokens[tenant] < counts.tokens[LEAVERS]:
                same("tokens, of those who leave", tokens[tenant], counts.tokens[LEAVERS])
        else:
            same(f"tokens of {tenant}", tokens[tenant], counts.tokens[str(tenant)])
    everybody = sum(accepted.values())
    same("accepted in all", by(metrics, "superinfer_requests_accepted_total")[""], everybody)
    same("ended in all", sum(by(metrics, "superinfer_requests_finished_total", "reason").values()), everybody)
    same("output tokens in all", by(metrics, "superinfer_output_tokens_total")[""], sum(tokens.values()))
    same("live", sum(by(metrics, "superinfer_requests", "phase").values()), 0)
    same("streams", by(metrics, "superinfer_streams")[""], 0)
    return wrong
