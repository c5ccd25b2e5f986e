"""Drives a ModelEngine by hand: jobs, random schedules of their rows, and what came out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from superinfer_trt.core.ports import ModelEngine
from superinfer_trt.core.request import Sampling
from superinfer_trt.core.step import Batch, Row
from superinfer_trt.core.units import RequestId


@dataclass
class Job:
    """One request on its way through an engine; `slots` cover its last token."""

    id: RequestId
    prompt: list[int]
    sampling: Sampling
    slots: list[int]
    computed: int = 0
    output: list[int] = field(default_factory=list)

    @property
    def known(self) -> list[int]:
        return self.prompt + self.output

    @property
    def done(self) -> bool:
        return len(self.output) >= self.sampling.max_tokens

    def row(self, length: int) -> Row:
        """The next `length` tokens of it; the last known one yields a token."""
        stop = min(self.computed + length, len(self.known))
        return Row(
            self.id,
            self.computed,
            self.known[self.computed : stop],
            self.slots,
            stop == len(self.known),
            len(self.output),
            self.sampling,
            self.known[:stop] if self.sampling.penalised and stop == len(self.known) else (),
        )


def run_rows(engine: ModelEngine, rows: Sequence[Row], turn: int = 0) -> dict[RequestId, int]:
    """One batch; tokens by request."""
    engine.launch(Batch(turn, tuple(rows)))
    return {id: sampled.token for id, sampled in engine.collect().sampled.items()}


def step(engine: ModelEngine, work: Iterable[tuple[Job, int]]) -> None:
    """One batch of (job, tokens to compute)."""
    pairs = list(work)
    rows = [job.row(length) for job, length in pairs]
    tokens = run_rows(engine, rows)
    assert set(tokens) == {row.id for row in rows if row.sample}
    for (job, _), row in zip(pairs, rows, strict=True):
        job.computed = row.start + len(row.tokens)
        if row.sample:
            job.output.append(tokens[job.id])


def run_alone(engine: ModelEngine, job: Job) -> list[int]:
    """The whole prompt at once, then token by token, with nobody beside it."""
    while not job.done:
        step(engine, [(job, len(job.known) - job.computed)])
    return job.output


def run_mixed(
    engine: ModelEngine, jobs: Sequence[Job], draw: random.Random, between: Callable[[], None] = lambda: None
) -> dict[RequestId, list[int]]:
    """All jobs, in random batches with random chunks; `between` runs between two batches."""
    while live := [job for job in jobs if not job.done]:
        chosen = draw.sample(live, draw.randint(1, len(live)))
        step(engine, [(job, draw.randint(1, len(job.known) - job.computed)) for job in chosen])
        between()
    return {job.id: job.output for job in jobs}
