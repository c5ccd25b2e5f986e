"""What a simulation is asked to serve: requests with a time, two lengths, objectives and a tenant.

Lengths (a trace or a synthetic mixture) meet arrivals (a process, or the trace's own times); classes of
objectives and sessions of several turns are drawn from the seed, each from a generator of its own, so
that arrivals stay what they are. Knows no clock and no engine. Any thread.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import SECOND, Nanos
from superinfer_trt.sim.arrivals import Arrivals
from superinfer_trt.sim.lengths import Lengths, read_lengths
from superinfer_trt.sim.synthetic import SYNTHETIC, synthetic_lengths

_LENGTH_ROWS = 20_000
"""Rows of a synthetic trace; more requests wrap around, as with a file."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A later question of a session: asked `think` after the answer before it has ended."""

    think: Nanos
    prompt_tokens: int  # the whole conversation so far included
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Item:
    """One request to come, and the turns that follow it."""

    arrival: Nanos
    prompt_tokens: int
    output_tokens: int
    slo: Slo = field(default_factory=Slo)
    tenant: str = ""
    then: tuple[Turn, ...] = ()
    line: int = 0  # of the trace, for refusals


@dataclass(frozen=True, slots=True)
class SloClass:
    """A share of the requests with objectives of their own; its name is their tenant."""

    name: str
    share: float
    slo: Slo


@dataclass(frozen=True, slots=True)
class Sessions:
    """Conversations: up to `turns_max` questions (uniform from 1), `think_s` on average between them."""

    turns_max: int = 1
    think_s: float = 10.0

    def __post_init__(self) -> None:
        """Raises ConfigError for a number of turns or a time that is none."""
        if self.turns_max < 1 or not 0 < self.think_s < float("inf"):
            raise ConfigError(
                f"sessions: {self.turns_max} turns, {self.think_s} s of thought; "
                "expected turns >= 1 and a time > 0"
            )


def load_lengths(trace: str, seed: int) -> list[Lengths]:
    """The lengths of a file, or of a synthetic workload by name. Raises ConfigError."""
    if trace in SYNTHETIC and not Path(trace).is_file():
        return synthetic_lengths(trace, _LENGTH_ROWS, seed)
    if not Path(trace).exists():
        raise ConfigError(
            f"trace: {trace!r} is neither a file nor a synthetic workload ({', '.join(SYNTHETIC)})"
        )
    return read_lengths(Path(trace))


def make_items(
    lengths: Sequence[Lengths],
    arrivals: Arrivals | None,
    *,
    slo: Slo | None = None,
    classes: Sequence[SloClass] = (),
    sessions: Sessions | None = None,
    seed: int = 42,
    requests_max: int | None = None,
) -> list[Item]:
    """The requests by arrival. Lengths in their order, from the start again when they run out.

    `arrivals` None: the trace's own times. Raises ConfigError.
    """
    times = _own_times(lengths) if arrivals is None else list(arrivals.times())
    times = times[:requests_max]
    if not times:
        raise ConfigError("workload: no request arrives in this time; expected a longer one or a higher rate")
    shares = sum(one.share for one in classes)
    if classes and not (all(one.share > 0 for one in classes) and shares <= 1 + 1e-9):
        raise ConfigError(f"classes: shares add up to {shares}; expected > 0 each and <= 1 together")
    class_source, session_source = random.Random(f"classes {seed}"), random.Random(f"sessions {seed}")
    items = []
    for index, arrival in enumerate(times):
        row = lengths[index % len(lengths)]
        chosen = _chosen(classes, class_source) if classes else None
        then: tuple[Turn, ...] = ()
        if sessions is not None and sessions.turns_max > 1:
            then = _turns(lengths, row, sessions, session_source)
        items.append(
            Item(
                arrival,
                row.prompt_tokens,
                row.output_tokens,
                chosen.slo if chosen else slo or Slo(),
                chosen.name if chosen else row.tenant,
                then,
                row.line,
            )
        )
    return items


def check_lengths(items: Iterable[Item], context_tokens_max: int, pool_tokens: int, source: str) -> None:
    """Raises ConfigError for the first request that neither model nor HBM pool could ever hold."""
    for number, item in enumerate(items, 1):
        for prompt, output in ((item.prompt_tokens, item.output_tokens), *_lengths(item.then)):
            tokens = prompt + output
            if tokens <= context_tokens_max and tokens - 1 <= pool_tokens:
                continue
            at = f"{source}:{item.line}" if item.line else f"{source}: request {number}"
            limit = f"at most {context_tokens_max}, which the model takes"
            if tokens <= context_tokens_max:
                limit = f"at most {pool_tokens + 1}, which the HBM pool holds"
            raise ConfigError(f"{at}: {prompt} prompt + {output} output tokens; expected {limit}")


def _lengths(turns: Iterable[Turn]) -> list[tuple[int, int]]:
    return [(turn.prompt_tokens, turn.output_tokens) for turn in turns]


def _own_times(lengths: Sequence[Lengths]) -> list[Nanos]:
    times = [row.arrival for row in lengths]
    if any(time is None for time in times):
        raise ConfigError("trace: has no arrival times; expected --rps")
    return [time for time in times if time is not None]


def _chosen(classes: Sequence[SloClass], source: random.Random) -> SloClass | None:
    """The class of one request; None for what the shares leave over."""
    at = source.random()
    for one in classes:
        at -= one.share
        if at < 0:
            return one
    return None


def _turns(
    lengths: Sequence[Lengths], first: Lengths, sessions: Sessions, source: random.Random
) -> tuple[Turn, ...]:
    history = first.prompt_tokens + first.output_tokens
    turns = []
    for _ in range(source.randint(1, sessions.turns_max) - 1):
        row = lengths[source.randrange(len(lengths))]
        think = round(source.expovariate(1 / sessions.think_s) * SECOND)
        turns.append(Turn(think, history + row.prompt_tokens, row.output_tokens))
        history += row.prompt_tokens + row.output_tokens
    return tuple(turns)
