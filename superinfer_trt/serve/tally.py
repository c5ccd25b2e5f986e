"""What the clients of a service asked for and got, by tenant and by class of objectives.

Fed with requests as they are accepted and with the events that their readers get, before they get them: the
counts are never behind what a client knows. Definitions are those of core/attainment.py, kept token by token
instead of over a list of times. Knows no exporter, no clock and no call. Lives on the event loop; others may
read it.

Labels are bounded: the first tenants and classes have a series of their own, later ones share one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from superinfer_trt.core.attainment import LATE_GAPS_PER_HUNDRED_MAX, STALL_MAX
from superinfer_trt.core.errors import RefusalCode
from superinfer_trt.core.outcome import Ending, TokenEvent
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, Nanos, RequestId
from superinfer_trt.serve.histogram import TBT_BOUNDS, TOTAL_BOUNDS, TTFT_BOUNDS, Histogram

TENANTS_MAX = 64  # beside those that were configured
CLASSES_MAX = 8  # beside the default and those that were configured
SERIES_MAX = 256
"""Pairs of tenant and class."""

NO_TENANT, OTHER_TENANTS = "(none)", "(other)"  # parentheses: no tenant can be called so
DEFAULT_CLASS, OTHER_CLASSES = "default", "custom"
OBJECTIVES = ("ttft", "joint_mean", "joint_p99", "joint_stall")
"""Met or missed by a request; `tbt` is met or missed by each gap."""

_COMPLETED = frozenset({FinishReason.STOP, FinishReason.LENGTH})


@dataclass(slots=True)
class Series:
    """One pair of labels. Gaps and objectives leave out requests that their own callers cancelled."""

    tenant: str
    slo: str
    accepted: int = 0
    ended: dict[FinishReason, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    output_tokens: int = 0
    met: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OBJECTIVES, 0))
    missed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OBJECTIVES, 0))
    gaps_met: int = 0
    gaps_missed: int = 0
    queue: Histogram = field(default_factory=lambda: Histogram(TTFT_BOUNDS))
    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT_BOUNDS))
    tbt: Histogram = field(default_factory=lambda: Histogram(TBT_BOUNDS))
    total: Histogram = field(default_factory=lambda: Histogram(TOTAL_BOUNDS))


@dataclass(slots=True)
class Open:
    """A request between its acceptance and its ending. `wanted`: when its reader wanted the newest token."""

    name: str
    tenant: str
    slo: Slo
    series: Series
    arrival: Nanos
    last: Nanos = -1
    wanted: Nanos = 0
    late: int = 0
    stall: Nanos = 0


OnEnding = Callable[[Open, Ending, Nanos], None]


class Tally:
    """`on_ending` is told of every ending, with what is known of the request."""

    def __init__(self, default_slo: Slo, on_ending: OnEnding | None = None) -> None:
        self._default_slo = default_slo
        self._on_ending = on_ending
        self._open: dict[RequestId, Open] = {}
        self._series: dict[tuple[str, str], Series] = {}
        self._tenants: set[str] = set()
        self._tenants_max = TENANTS_MAX
        self._classes: dict[Slo, str] = {default_slo: DEFAULT_CLASS}
        self._classes_max = 1 + CLASSES_MAX
        self.refusals: dict[RefusalCode, int] = dict.fromkeys(RefusalCode, 0)
        self.aborts = 0

    def expect(self, tenants: Iterable[str], classes: Mapping[str, Slo]) -> None:
        """Tenants and classes that were configured have series of their own, whoever comes first. Before the
        first request."""
        self._tenants.update(tenants)
        self._tenants_max = len(self._tenants) + TENANTS_MAX
        self._classes |= {slo: name for name, slo in classes.items()}
        self._classes[self._default_slo] = DEFAULT_CLASS
        self._classes_max = len(self._classes) + CLASSES_MAX

    # ---- what happens ---------------------------------------------------------------------------

    def accepted(self, request: Request, name: str) -> None:
        """It is in the queue. Before its first event, or that is not counted."""
        series = self._series_of(request.tenant, request.slo)
        series.accepted += 1
        series.prompt_tokens += len(request.prompt)
        self._open[request.id] = Open(name, request.tenant, request.slo, series, request.arrival)

    def told(self, events: Sequence[TokenEvent]) -> None:
        """One turn's events. The long loop: a token costs a look-up and a dozen of small numbers."""
        everybody = self._open
        seen, bucket = -1, 0  # most gaps of a turn are the same
        for event in events:
            one = everybody.get(event.id)
            if one is None:
                continue
            if event.sampled is not None:
                series, now, last = one.series, event.now, one.last
                series.output_tokens += 1
                one.last = now
                if last < 0:
                    one.wanted = now
                    series.ttft.add(now - one.arrival)
                else:
                    gap, pace = now - last, one.slo.tbt
                    if gap != seen:
                        seen, bucket = gap, bisect_left(TBT_BOUNDS, gap)
                    series.tbt.counts[bucket] += 1
                    series.tbt.total += gap
                    if gap > pace:
                        one.late += 1
                    wanted = one.wanted + pace
                    if now > wanted:
                        one.stall += now - wanted
                        wanted = now
                    one.wanted = wanted
            if event.ending is not None:
                del everybody[event.id]
                self._ended(one, event.ending, event.now)

    def refused(self, code: RefusalCode) -> None:
        """Somebody was turned away at the door."""
        self.refusals[code] += 1

    def aborted(self) -> None:
        """A live request was ended by its name."""
        self.aborts += 1

    # ---- what can be asked ----------------------------------------------------------------------

    @property
    def series(self) -> list[Series]:
        """Every pair of labels seen so far."""
        return list(self._series.values())

    def met(self, objective: str) -> tuple[int, int]:
        """Requests that have (met, missed) it, over everybody; `tbt`: gaps."""
        if objective == "tbt":
            return sum(s.gaps_met for s in self.series), sum(s.gaps_missed for s in self.series)
        return sum(s.met[objective] for s in self.series), sum(s.missed[objective] for s in self.series)

    # ---- inside ---------------------------------------------------------------------------------

    def _ended(self, one: Open, ending: Ending, now: Nanos) -> None:
        series, reason = one.series, ending.reason
        series.ended[reason] = series.ended.get(reason, 0) + 1
        series.total.add(now - one.arrival)
        if ending.admitted >= 0:
            series.queue.add(ending.admitted - one.arrival)
        if reason is not FinishReason.CANCELLED:
            gaps = max(0, ending.output_tokens - 1)
            series.gaps_met += gaps - one.late
            series.gaps_missed += one.late
            for objective, met in zip(OBJECTIVES, _judged(one, ending, gaps), strict=True):
                count = series.met if met else series.missed
                count[objective] += 1
        if self._on_ending is not None:
            self._on_ending(one, ending, now)

    def _series_of(self, tenant: str, slo: Slo) -> Series:
        tenant = tenant or NO_TENANT
        if tenant not in self._tenants:
            if len(self._tenants) < self._tenants_max:
                self._tenants.add(tenant)
            else:
                tenant = OTHER_TENANTS
        name = self._classes.get(slo)
        if name is None:
            if len(self._classes) < self._classes_max:
                name = self._classes[slo] = f"{slo.ttft / MILLISECOND:g}ms/{slo.tbt / MILLISECOND:g}ms"
            else:
                name = OTHER_CLASSES
        found = self._series.get((tenant, name))
        if found is None:
            if len(self._series) >= SERIES_MAX:
                tenant, name = OTHER_TENANTS, OTHER_CLASSES
            found = self._series.setdefault((tenant, name), Series(tenant, name))
        return found


def _judged(one: Open, ending: Ending, gaps: int) -> tuple[bool, bool, bool, bool]:
    """Whether each of OBJECTIVES was met."""
    first, last, slo = ending.first_token, ending.last_token, one.slo
    ttft = first >= 0 and first - one.arrival <= slo.ttft
    good = ttft and ending.reason in _COMPLETED
    return (
        ttft,
        good and last - first <= gaps * slo.tbt,
        good and one.late * 100 <= gaps * LATE_GAPS_PER_HUNDRED_MAX,
        good and one.stall <= STALL_MAX,
    )
