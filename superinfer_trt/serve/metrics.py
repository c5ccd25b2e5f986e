"""The numbers of a service as Prometheus families (docs/observability.md has the list).

Everything is read when somebody scrapes: a token costs nothing here. Executor and tally are read while they
run, so each number is right, not all of one moment. Knows no port. `collect` may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

import superinfer_trt
from superinfer_trt.core.outcome import Totals
from superinfer_trt.core.request import FinishReason
from superinfer_trt.core.units import SECOND
from superinfer_trt.serve.calls import Calls
from superinfer_trt.serve.histogram import Histogram
from superinfer_trt.serve.service import Snapshot
from superinfer_trt.serve.tally import OBJECTIVES, Series
from superinfer_trt.serve.turn_times import TurnTimes

PHASES = ("waiting", "prefill", "decode", "rotating_out", "rotary", "rotating_in")
LABELS = ("tenant", "slo")
Rows = Iterable[tuple[tuple[str, ...], float]]


class Metrics:
    """A collector for a registry of `prometheus_client`."""

    def __init__(self, calls: Calls, turn_times: TurnTimes) -> None:
        self._calls = calls
        self._turn_times = turn_times
        self._ready_at = calls.service.clock.now()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        executor = self._calls.service.executor
        now, totals = executor.snapshot(), executor.totals
        yield from self._service()
        yield from _moment(now)
        yield from _turns(totals)
        yield from _link(totals, now)
        for name, histogram, text in (
            ("plan", self._turn_times.plan, "Time to decide a turn that does something."),
            ("apply", self._turn_times.apply, "Time to apply a plan and hand its copies over."),
            ("step", self._turn_times.step, "Time from the launch of a batch until it was collected."),
        ):
            yield _histogram(f"superinfer_{name}_seconds", text, (), [((), histogram)])
        yield from _requests(self._calls.tally.series)
        yield from _objectives(self._calls.tally.series)
        yield from _familiar(now)

    def _service(self) -> Iterator[Metric]:
        calls, service = self._calls, self._calls.service
        info = (superinfer_trt.__version__, service.engine, service.policy)
        model = service.model.name if service.model is not None else ""
        labels = ("version", "engine", "policy", "model")
        yield _gauge("superinfer_build_info", "What runs here; always 1.", labels, [((*info, model), 1)])
        yield _gauge("superinfer_serving", "1 while new requests are taken.", (), [((), calls.serving)])
        uptime = (service.clock.now() - self._ready_at) / SECOND
        yield _gauge("superinfer_uptime_seconds", "Since the service was ready.", (), [((), uptime)])
        yield _gauge("superinfer_streams", "Open streams.", (), [((), calls.live)])
        yield _counter("superinfer_messages", "Messages sent on streams.", (), [((), calls.messages)])
        refusals = [((code.value,), count) for code, count in calls.tally.refusals.items()]
        yield _counter("superinfer_refusals", "Requests refused at the door.", ("code",), refusals)
        yield _counter("superinfer_aborts", "Requests ended by Abort.", (), [((), calls.tally.aborts)])


def _moment(now: Snapshot) -> Iterator[Metric]:
    phases = [((name,), getattr(now, name)) for name in PHASES]
    yield _gauge("superinfer_requests", "Live requests.", ("phase",), phases)
    free = (("hbm", now.device_free, now.device_total), ("dram", now.host_free, now.host_total))
    states = [((tier, "free"), left) for tier, left, _ in free]
    states += [((tier, "used"), whole - left) for tier, left, whole in free]
    yield _gauge("superinfer_kv_blocks", "KV blocks of the two tiers.", ("tier", "state"), states)
    ages = [(("waiting",), now.waiting_age / SECOND), (("rotary",), now.rotary_age / SECOND)]
    text = "The longest that anybody has waited: for its first token, or outside HBM for its next one."
    yield _gauge("superinfer_oldest_seconds", text, ("phase",), ages)
    shares = [(("waiting",), now.waiting_urgency), (("rotary",), now.rotary_urgency)]
    text = "The largest share of its own objective that anybody has used up; above 1 it is late."
    yield _gauge("superinfer_urgency_ratio", text, ("phase",), shares)


def _turns(totals: Totals) -> Iterator[Metric]:
    for name, value, text in (
        ("turns", totals.turns, "Turns that did something."),
        ("batches", totals.batches, "Batches run."),
        ("step_tokens", totals.step_tokens, "Tokens in batches, prefill and decode."),
        ("output_tokens", totals.output_tokens, "Output tokens made."),
        ("requests_accepted", totals.accepted, "Requests that the executor has taken up."),
        ("evictions", totals.evictions, "Requests whose KV was dropped, to be computed again."),
        ("copies_failed", totals.copies_failed, "Rotations that failed on the link."),
    ):
        yield _counter(f"superinfer_{name}", text, (), [((), value)])
    finished = dict(totals.finished)
    reasons = [((reason.value,), finished.get(reason, 0)) for reason in FinishReason]
    yield _counter("superinfer_requests_finished", "Requests that have ended.", ("reason",), reasons)


def _link(totals: Totals, now: Snapshot) -> Iterator[Metric]:
    rotations = [(("out",), totals.rotations_out), (("in",), totals.rotations_in)]
    yield _counter("superinfer_rotations", "Landed rotations of requests.", ("direction",), rotations)
    lanes = (
        ("d2h", totals.link_out_blocks, now.link_out_bytes_per_s),
        ("h2d", totals.link_in_blocks, now.link_in_bytes_per_s),
    )
    crossed = [((lane,), blocks * now.block_bytes) for lane, blocks, _ in lanes]
    yield _counter("superinfer_link_bytes", "Bytes handed to the host link.", ("direction",), crossed)
    rates = [((lane,), rate) for lane, _, rate in lanes]
    text = "What the link carries, measured or configured; +Inf: no limit."
    yield _gauge("superinfer_link_rate_bytes_per_second", text, ("direction",), rates)


def _requests(series: list[Series]) -> Iterator[Metric]:
    def rows(value: Callable[[Series], float]) -> Rows:
        return [((one.tenant, one.slo), value(one)) for one in series]

    yield _counter("superinfer_tenant_accepted", "Requests accepted.", LABELS, rows(lambda s: s.accepted))
    ended = [((s.tenant, s.slo, r.value), n) for s in series for r, n in dict(s.ended).items()]
    yield _counter("superinfer_tenant_ended", "Requests ended.", (*LABELS, "reason"), ended)
    text = "Prompt tokens of accepted requests."
    yield _counter("superinfer_tenant_prompt_tokens", text, LABELS, rows(lambda s: s.prompt_tokens))
    text = "Output tokens handed to streams."
    yield _counter("superinfer_tenant_output_tokens", text, LABELS, rows(lambda s: s.output_tokens))
    parts: tuple[tuple[str, str, Callable[[Series], Histogram]], ...] = (
        ("queue", "Arrival to admission into HBM.", lambda s: s.queue),
        ("ttft", "Arrival to first token.", lambda s: s.ttft),
        ("tbt", "Time between two tokens.", lambda s: s.tbt),
        ("request", "Arrival to the end.", lambda s: s.total),
    )
    for name, text, part in parts:
        found = [((one.tenant, one.slo), part(one)) for one in series]
        yield _histogram(f"superinfer_{name}_seconds", text, LABELS, found)


def _objectives(series: list[Series]) -> Iterator[Metric]:
    judged: list[tuple[tuple[str, ...], float]] = []
    gaps: list[tuple[tuple[str, ...], float]] = []
    for one in series:
        labels = (one.tenant, one.slo)
        gaps += [((*labels, "met"), one.gaps_met), ((*labels, "missed"), one.gaps_missed)]
        for objective in OBJECTIVES:
            judged.append(((*labels, objective, "met"), one.met[objective]))
            judged.append(((*labels, objective, "missed"), one.missed[objective]))
    text = "Ended requests that met an objective or missed it (docs/metrics.md), cancelled ones left out."
    yield _counter("superinfer_slo_requests", text, (*LABELS, "objective", "outcome"), judged)
    text = "Times between two tokens within the objective or above it, of the same requests."
    yield _counter("superinfer_slo_gaps", text, (*LABELS, "outcome"), gaps)


def _familiar(now: Snapshot) -> Iterator[Metric]:
    """What dashboards and gateways of TensorRT-LLM look for, under its own names."""
    text = "Requests that hold no block of HBM."
    yield _gauge("trtllm_num_requests_waiting", text, (), [((), now.waiting + now.rotary)])
    running = now.prefill + now.decode + now.rotating_out + now.rotating_in
    yield _gauge("trtllm_num_requests_running", "Requests that hold some.", (), [((), running)])
    used = 1 - now.device_free / now.device_total if now.device_total else 0.0
    yield _gauge("trtllm_kv_cache_utilization", "Share of HBM blocks in use.", (), [((), used)])


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _histogram(
    name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], Histogram]]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, histogram in rows:
        family.add_metric(values, histogram.cumulative(), histogram.total / SECOND)
    return family
