"""An engine without a model: a batch takes the time a cost model says, on the injected clock.

For load tests of the service and for simulation: KV is neither read nor written, so what is shown is
scheduling, not correctness (see `pattern` for that). Implements core.ports.ModelEngine. Keeps one hash
a request. Not thread-safe; `collect` parks on the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from superinfer_trt.core.errors import ConfigError, EngineFailed, InvariantViolation
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.outcome import Outcome, Sampled
from superinfer_trt.core.ports import Clock
from superinfer_trt.core.step import Batch
from superinfer_trt.core.units import Nanos, RequestId
from superinfer_trt.engine.token_hash import (
    HASHED_SAMPLING,
    Recent,
    check_batch,
    is_last,
    sample,
    starts_off,
    states,
)

Cost = Callable[[Batch], Nanos]


@dataclass(frozen=True, slots=True)
class StepCost:
    """Duration of a step, linear in its work. All terms are nanoseconds.

    A row is a prefill row when it computes more than one token or starts at position 0; its context is
    the tokens it reads, its own included.
    """

    base_ns: float = 8_000_000.0  # streaming the weights and launching, whatever the batch
    row_ns: float = 50_000.0  # each row of the batch
    prefill_token_ns: float = 240_000.0  # each token of a prefill row
    context_token_ns: float = 1_250.0  # each token of context that any row reads

    def __call__(self, batch: Batch) -> Nanos:
        """Nanoseconds of one batch."""
        prefill_tokens = context_tokens = 0
        for row in batch.rows:
            length = len(row.tokens)
            context_tokens += row.start + length
            if length > 1 or not row.start:
                prefill_tokens += length
        return round(
            self.base_ns
            + self.row_ns * len(batch.rows)
            + self.prefill_token_ns * prefill_tokens
            + self.context_token_ns * context_tokens
        )


PRESETS: Mapping[str, StepCost] = {
    # SmolLM2-135M, bf16, two cores: 8.3 ms at batch 1, 22 ms at 32 rows of 256 tokens, 53 ms at 32 of
    # 1,024, prefill 4,100 tokens/s. Fitted by hand to measured steps of a CPU decoder.
    "smollm2-2-cores": StepCost(),
    # Qwen2.5-32B, bf16, one GH200: 20 ms at batch 1, 37 ms at 256 rows of 500 tokens, 11,000 prefill
    # tokens/s. A line through a roofline model (742 TFLOP/s, 4.17 TB/s), not a measurement.
    "qwen2.5-32b-gh200": StepCost(19_700_000.0, 36_000.0, 82_000.0, 63.0),
    # Llama-3-8B, bf16, one GH200, from the same roofline model.
    "llama-3-8b-gh200": StepCost(7_800_000.0, 13_000.0, 20_000.0, 31.0),
}


def step_cost(preset: str = "smollm2-2-cores", terms: Mapping[str, float] | None = None) -> StepCost:
    """A preset with some terms replaced. Raises ConfigError for unknown names and negative terms."""
    if preset not in PRESETS:
        raise ConfigError(f"step cost: {preset!r} is unknown; known are {', '.join(PRESETS)}")
    known = [field.name for field in fields(StepCost)]
    for name, value in (terms or {}).items():
        if name not in known:
            raise ConfigError(f"step cost: no term {name!r}; terms are {', '.join(known)}")
        if not 0 <= value < float("inf"):
            raise ConfigError(f"step cost: {name} is {value}; expected a finite number >= 0")
    return replace(PRESETS[preset], **(terms or {}))


@dataclass(frozen=True, slots=True)
class _Flight:
    """The batch in the air: when it ends, and what is true then."""

    until: Nanos
    chains: Mapping[RequestId, tuple[int, int]]
    sampled: Mapping[RequestId, Sampled]
    ended: Sequence[RequestId]


class ModelledEngine:
    """See the module. `cost` gives a batch's nanoseconds; tokens are a hash of the chain of tokens,
    so they do not depend on scheduling (C12). `requests_max` bounds the records, as in PatternEngine."""

    def __init__(
        self,
        clock: Clock,
        geometry: Geometry,
        cost: Cost | None = None,
        *,
        vocabulary: int = 32_000,
        context_tokens_max: int = 32_768,
        requests_max: int = 131_072,
    ) -> None:
        self._clock = clock
        self._geometry = geometry
        self._cost: Cost = StepCost() if cost is None else cost
        self._vocabulary = vocabulary
        self._context_tokens_max = context_tokens_max
        self._chains: Recent[tuple[int, int]] = Recent(requests_max)  # (tokens computed, state)
        self._air: _Flight | EngineFailed | None = None
        self._closed = False

    @property
    def geometry(self) -> Geometry:
        """Of the blocks the pools are said to have."""
        return self._geometry

    @property
    def vocabulary(self) -> int:
        """Token ids are below it."""
        return self._vocabulary

    @property
    def context_tokens_max(self) -> int:
        """Positions of one request are below it."""
        return self._context_tokens_max

    @property
    def supports(self) -> frozenset[str]:
        """Made-up tokens have no logits to take a penalty from."""
        return HASHED_SAMPLING

    def launch(self, batch: Batch) -> None:
        """Returns at once; the batch ends `cost(batch)` nanoseconds from now."""
        if self._closed or self._air is not None:
            raise InvariantViolation("launch: closed" if self._closed else "launch: a batch is in the air")
        try:
            check_batch(batch, self._vocabulary, self._context_tokens_max, self._geometry.block_tokens)
            self._air = self._flight(batch)
        except EngineFailed as failure:
            self._air = failure

    def collect(self) -> Outcome:
        """Parks until the batch has ended. A wake meant for somebody else is passed on."""
        air, self._air = self._air, None
        if air is None:
            raise InvariantViolation("collect: no batch is in the air")
        if isinstance(air, EngineFailed):
            raise air
        woken = False
        while self._clock.now() < air.until:
            self._clock.park(air.until)
            woken = woken or self._clock.now() < air.until
        if woken:
            self._clock.wake()
        for id, chain in air.chains.items():
            self._chains.put(id, chain)
        for id in air.ended:
            self._chains.drop(id)
        return Outcome(air.sampled)

    def close(self) -> None:
        """Forgets everything. Idempotent."""
        self._closed = True
        self._air = None
        self._chains = Recent(0)

    def _flight(self, batch: Batch) -> _Flight:
        chains: dict[RequestId, tuple[int, int]] = {}
        sampled: dict[RequestId, Sampled] = {}
        for row in batch.rows:
            known, before = (self._chains.get(row.id) or (0, 0)) if row.start else (0, 0)
            if known != row.start:
                raise starts_off(row, known)
            state = int(states(before, row.start, row.tokens)[-1])
            chains[row.id] = (row.start + len(row.tokens), state)
            if row.sample:
                sampled[row.id] = sample(state, row.sampling, row.index, self._vocabulary)
        ended = [row.id for row in batch.rows if row.sample and is_last(row, sampled[row.id].token)]
        return _Flight(self._clock.now() + self._cost(batch), chains, sampled, ended)
