"""What a load consists of: lengths, arrivals and classes of the simulator, as requests of the wire.

With the same trace, rate, seed and duration the same lengths arrive as in `simulate`, at the same distances;
the first one at once. All is a function of the seed; each kind of draw has a generator of its own. Knows no
server but its limits.
"""

from __future__ import annotations

import random  # seeded, in a client
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
from google.protobuf import json_format

from superinfer_trt.cli.load_api import Job
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, SECOND, Nanos
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.sim.arrivals import Arrivals
from superinfer_trt.sim.lengths import Lengths
from superinfer_trt.sim.workload import Item, SloClass, load_lengths, make_items

LOWEST_PLAIN_ID = 256  # below live control and byte tokens in most vocabularies
REQUESTS_DEFAULT = 32
FOREVER_S = 1e9  # arrivals that end by their number


@dataclass(frozen=True, slots=True)
class ClassOption:
    """`NAME:SHARE:ttft=MS,tbt=MS`; an objective left out is the server's."""

    name: str
    share: float
    ttft_ms: float | None
    tbt_ms: float | None


@dataclass(frozen=True, slots=True)
class Workload:
    """What `bench` was asked to send.

    `arrivals`: None is all at once, or for a trace its own times. `requests` and `duration_s` bound it
    from above, whichever comes first; the sources of requests are in this order: `prompts_file`, `trace`,
    random lengths in the two ranges.
    """

    requests: int | None = None
    duration_s: float | None = None
    arrivals: Arrivals | None = None
    seed: int = 0
    prompt_tokens: tuple[int, int] = (32, 64)
    output_tokens: tuple[int, int] = (32, 64)
    trace: str | None = None
    own_times: bool = False
    drop_longer: bool = False
    prompts_file: Path | None = None
    classes: tuple[ClassOption, ...] = ()
    cancel_share: float = 0.0
    cancel_after_s: float = 1.0
    warmup_requests: int = 0


def class_option(text: str) -> ClassOption:
    """`gold:0.2:ttft=500,tbt=50`. Raises click.BadParameter."""
    refusal = f"{text!r} is not NAME:SHARE:ttft=MS,tbt=MS with a share of 0..1 and times > 0"
    name, _, rest = text.partition(":")
    share_text, _, objectives = rest.partition(":")
    values: dict[str, float] = {}
    try:
        share = float(share_text)
        for part in filter(None, objectives.split(",")):
            key, _, value = part.partition("=")
            values[key] = float(value)
    except ValueError:
        raise click.BadParameter(refusal, param_hint="--class") from None
    if not name or not 0 < share <= 1 or not values.keys() <= {"ttft", "tbt"}:
        raise click.BadParameter(refusal, param_hint="--class")
    if not all(0 < value <= 86_400_000 for value in values.values()):
        raise click.BadParameter(refusal, param_hint="--class")
    return ClassOption(name, share, values.get("ttft"), values.get("tbt"))


def make_jobs(workload: Workload, base: pb.GenerateRequest, info: pb.GetModelInfoResponse) -> list[Job]:
    """The load for a server. Raises click.UsageError and ConfigError for what does not fit."""
    rows = _rows(workload, info)
    times = due_times(workload, rows)
    placed = [replace(rows[at % len(rows)], arrival=time) for at, time in enumerate(times)]
    classes = [_sim_class(one, base, info) for one in workload.classes]
    items = make_items(placed, None, classes=classes, seed=workload.seed)
    if workload.prompts_file is None:
        requests = _synthetic(items, base, info, workload.seed)
    else:
        requests = requests_from(workload.prompts_file, base, len(items))
    named = {one.name: one.slo for one in classes}
    for item, request in zip(items, requests, strict=True):
        if item.tenant and not request.tenant:
            request.tenant = item.tenant
        if item.tenant in named:
            _fill(request.slo, named[item.tenant])
    return schedule(requests, times, workload, [item.tenant for item in items])


def schedule(
    requests: Sequence[pb.GenerateRequest],
    times: Sequence[Nanos],
    workload: Workload,
    groups: Sequence[str] = (),
) -> list[Job]:
    """Each request with its moment, and whether its caller gives up."""
    quitters = _random(f"cancels {workload.seed}")
    jobs = []
    for index, (request, time) in enumerate(zip(requests, times, strict=True)):
        quits = quitters.random() < workload.cancel_share
        after = round(workload.cancel_after_s * SECOND) if quits else None
        group = groups[index] if groups else ""
        jobs.append(Job(index, time, request, after, group, index >= workload.warmup_requests))
    return jobs


def due_times(workload: Workload, rows: Sequence[Lengths] = ()) -> list[Nanos]:
    """When requests are due, ascending. Raises ConfigError where a trace has no times or none is left."""
    count = workload.requests
    if workload.own_times:
        own = [row.arrival for row in rows[:count]]
        if any(time is None for time in own):
            raise ConfigError("--trace: has no arrival times; expected --rps, or --concurrency")
        times = [time for time in own if time is not None]
        if workload.duration_s is not None:
            times = [time for time in times if time <= workload.duration_s * SECOND]
        return times
    if workload.arrivals is None:
        return [0] * (count or REQUESTS_DEFAULT)
    if count is None and workload.duration_s is None:
        count = REQUESTS_DEFAULT
    # Not the count alone ends arrivals: so they are those of `simulate` at the same duration.
    process = replace(workload.arrivals, duration_s=workload.duration_s or FOREVER_S)
    times = [time for time, _ in zip(process.times(), range(count or 1 << 31), strict=False)]
    if not times:
        raise ConfigError("--duration-s: no request arrives in this time; expected a longer one")
    return [time - times[0] for time in times]


def requests_from(path: Path, base: pb.GenerateRequest, count: int) -> list[pb.GenerateRequest]:
    """`count` requests from a JSONL file, one GenerateRequest a line in proto's JSON, over `base`; the
    file is begun again when it is too short. Raises click.UsageError naming the line."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise click.UsageError(f"{path}: has no line")
    parsed = []
    for at, line in enumerate(lines[:count], start=1):
        request = pb.GenerateRequest()
        request.CopyFrom(base)
        try:
            own = json_format.Parse(line, pb.GenerateRequest())
        except json_format.ParseError as error:
            raise click.UsageError(f"{path}:{at}: {' '.join(str(error).split())}") from None
        request.MergeFrom(own)
        parsed.append(request)
    made = []
    for at in range(count):
        request = pb.GenerateRequest()
        request.CopyFrom(parsed[at % len(parsed)])  # classes write into it
        made.append(request)
    return made


def synthetic_requests(
    base: pb.GenerateRequest,
    info: pb.GetModelInfoResponse,
    count: int,
    prompt_tokens: tuple[int, int],
    output_tokens: tuple[int, int],
    seed: int = 0,
) -> list[pb.GenerateRequest]:
    """Random token ids of random lengths, the same for the same seed and vocabulary.

    Output runs to its length (ignore_eos). Raises click.UsageError when the longest does not fit.
    """
    rows = _random_lengths(info, count, prompt_tokens, output_tokens, seed)
    items = [Item(0, row.prompt_tokens, row.output_tokens) for row in rows]
    return _synthetic(items, base, info, seed)


def _rows(workload: Workload, info: pb.GetModelInfoResponse) -> list[Lengths]:
    """The lengths that requests go through in turn."""
    if workload.prompts_file is not None:
        return [Lengths(1, 1)]  # not looked at
    if workload.trace is None:
        count = workload.requests or (len(due_times(workload)) if workload.arrivals else REQUESTS_DEFAULT)
        return _random_lengths(info, count, workload.prompt_tokens, workload.output_tokens, workload.seed)
    rows = load_lengths(workload.trace, workload.seed)
    longest = info.request_tokens_max
    fitting = [row for row in rows if row.prompt_tokens + row.output_tokens <= longest]
    if workload.drop_longer:
        if not fitting:
            raise ConfigError(f"--trace {workload.trace}: every row is longer than {longest} tokens")
        return fitting
    if len(fitting) < len(rows):
        row = next(row for row in rows if row.prompt_tokens + row.output_tokens > longest)
        at = f"{workload.trace}:{row.line}" if row.line else workload.trace
        raise ConfigError(
            f"--trace {at}: {row.prompt_tokens} prompt + {row.output_tokens} output tokens do not fit the "
            f"server's {longest} tokens a request; --drop-longer leaves such rows out"
        )
    return rows


def _random_lengths(
    info: pb.GetModelInfoResponse,
    count: int,
    prompt_tokens: tuple[int, int],
    output_tokens: tuple[int, int],
    seed: int,
) -> list[Lengths]:
    longest = prompt_tokens[1] + output_tokens[1]
    if longest > info.request_tokens_max:
        raise click.UsageError(
            f"--prompt-tokens + --output-tokens: {longest} tokens do not fit the server's "
            f"{info.request_tokens_max} tokens a request"
        )
    source = _random(f"lengths {seed}")
    return [Lengths(source.randint(*prompt_tokens), source.randint(*output_tokens)) for _ in range(count)]


def _synthetic(
    items: Sequence[Item], base: pb.GenerateRequest, info: pb.GetModelInfoResponse, seed: int
) -> list[pb.GenerateRequest]:
    lowest = LOWEST_PLAIN_ID if info.vocabulary > 2 * LOWEST_PLAIN_ID else 0
    ids = range(lowest, info.vocabulary)
    source = _random(f"prompts {seed}")
    made = []
    for item in items:
        request = pb.GenerateRequest()
        request.CopyFrom(base)
        request.token_ids.ids.extend(source.choices(ids, k=item.prompt_tokens))
        request.sampling.max_tokens = item.output_tokens
        request.sampling.ignore_eos = True
        made.append(request)
    return made


def _sim_class(one: ClassOption, base: pb.GenerateRequest, info: pb.GetModelInfoResponse) -> SloClass:
    ttft_ms, tbt_ms = objectives_ms(base, info)
    ttft_ms = one.ttft_ms if one.ttft_ms is not None else ttft_ms
    tbt_ms = one.tbt_ms if one.tbt_ms is not None else tbt_ms
    return SloClass(one.name, one.share, Slo(round(ttft_ms * MILLISECOND), round(tbt_ms * MILLISECOND)))


def objectives_ms(request: pb.GenerateRequest, info: pb.GetModelInfoResponse) -> tuple[float, float]:
    """(TTFT, TBT) of a request; what it leaves out is the server's."""
    ttft_ms = request.slo.ttft_ms if request.slo.HasField("ttft_ms") else info.default_slo.ttft_ms
    tbt_ms = request.slo.tbt_ms if request.slo.HasField("tbt_ms") else info.default_slo.tbt_ms
    return ttft_ms, tbt_ms


def _fill(slo: pb.Slo, objectives: Slo) -> None:
    """A class is a promise to its requests: it wins over flags for everybody."""
    slo.ttft_ms, slo.tbt_ms = objectives.ttft / MILLISECOND, objectives.tbt / MILLISECOND


def _random(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311  # a reproducible load, not a secret
