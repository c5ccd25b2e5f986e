"""An engine that only takes time: every sampled token is the same, every batch lasts what a model says.

For scheduling studies: no KV, no token hash (engine.modelled has one), O(rows) a step. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.outcome import Outcome, Sampled
from superinfer_trt.core.step import Batch
from superinfer_trt.core.units import Nanos
from superinfer_trt.sim.clock import SimClock

TOKEN = Sampled(0)


class SimEngine:
    """core.ports.ModelEngine. `watch(batch, start, end)` hears of every batch."""

    def __init__(
        self,
        clock: SimClock,
        geometry: Geometry,
        cost: Callable[[Batch], Nanos],
        context_tokens_max: int,
        watch: Callable[[Batch, Nanos, Nanos], None] | None = None,
    ) -> None:
        self._clock = clock
        self._geometry = geometry
        self._cost = cost
        self._context_tokens_max = context_tokens_max
        self._watch = watch
        self._air: tuple[Batch, Nanos] | None = None

    @property
    def geometry(self) -> Geometry:
        """Of the blocks the pools are said to have."""
        return self._geometry

    @property
    def vocabulary(self) -> int:
        """There is one token."""
        return 2

    @property
    def context_tokens_max(self) -> int:
        """Positions of one request are below it."""
        return self._context_tokens_max

    @property
    def supports(self) -> frozenset[str]:
        """Nothing is chosen."""
        return frozenset()

    def launch(self, batch: Batch) -> None:
        """The batch ends `cost(batch)` nanoseconds from now."""
        if self._air is not None:
            raise InvariantViolation("launch: a batch is in the air")
        now = self._clock.now()
        until = now + self._cost(batch)
        if self._watch is not None:
            self._watch(batch, now, until)
        self._air = (batch, until)

    def collect(self) -> Outcome:
        """Parks until the batch has ended."""
        air, self._air = self._air, None
        if air is None:
            raise InvariantViolation("collect: no batch is in the air")
        batch, until = air
        self._clock.park(until)
        return Outcome({row.id: TOKEN for row in batch.rows if row.sample})

    def close(self) -> None:
        """Forgets the batch in the air."""
        self._air = None
