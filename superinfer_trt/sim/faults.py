"""What may go wrong in a chaotic world, drawn from a seed, and the clock and the engine that do it.

Modelled: copies that come late, fail, or are told in another order than those of the other direction; busy
lanes; steps that fail at launch or at the end, and leave rubbish; steps that take a hundred times as long, or
no time; a clock that stands still or leaps; cancels at any moment; clients that read late, never, or vanish;
bursts. The link's whims are those of `transfer.wrap`. Not modelled: a link or an engine that lies (it says
"done" and was not: tests/equiv/test_canary.py), memory that runs out, a process that dies. One thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from superinfer_trt.core.errors import EngineFailed
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.outcome import Outcome
from superinfer_trt.core.step import Batch
from superinfer_trt.core.units import MILLISECOND, Nanos
from superinfer_trt.sim.cells import CellEngine

LEAP_NS: Nanos = 30_000 * MILLISECOND

FAILED_ON_PURPOSE = "failed on purpose"
"""Stands in the message of every failure that was asked for."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities, each of one call or one turn. All 0: a world in which nothing goes wrong."""

    copy_fails: float = 0.0
    copy_late_polls: int = 0
    sync_apart: bool = False
    lane_busy: float = 0.0
    step_fails: float = 0.0
    step_slow: float = 0.0
    clock_stands: float = 0.0
    clock_leaps: float = 0.0
    cancels: float = 0.0
    reader_never: float = 0.0
    reader_vanishes: float = 0.0
    loop_late: float = 0.0

    @classmethod
    def draw(cls, dice: Random) -> Faults:
        """Each fault is off in about half of the worlds, and common in some (swarm testing)."""

        def one(*often: float) -> float:
            return dice.choice((*(0.0 for _ in often), *often))

        return cls(
            copy_fails=one(0.1, 0.4),
            copy_late_polls=dice.choice((0, 0, 3, 25)),
            sync_apart=dice.random() < 0.5,
            lane_busy=one(0.2, 0.7),
            step_fails=one(0.003, 0.03),
            step_slow=one(0.05, 0.3),
            clock_stands=one(0.01, 0.1),
            clock_leaps=one(0.02),
            cancels=one(0.01, 0.1),
            reader_never=one(0.1, 1.0),
            reader_vanishes=one(0.1),
            loop_late=one(0.3, 0.9),
        )


class UnsteadyClock:
    """core.ports.Clock: each look costs `look_ns`; it can stand still and leap, but never go back."""

    def __init__(self, look_ns: Nanos) -> None:
        self._look_ns = look_ns
        self._time: Nanos = 0
        self.standing_turns = 0

    def now(self) -> Nanos:
        if not self.standing_turns:
            self._time += self._look_ns
        return self._time

    def park(self, until: Nanos | None) -> None:
        """At `until` at once; returns without it while the clock stands."""
        if until is not None and not self.standing_turns:
            self._time = max(self._time, until)

    def wake(self) -> None:
        """Nobody is ever parked when somebody else runs."""

    def turned(self) -> None:
        """A turn is over; a clock that stands does so for one turn less."""
        self.standing_turns = max(0, self.standing_turns - 1)


class FlakyEngine:
    """core.ports.ModelEngine: `engine`, whose steps take `step_ns` and fail or crawl now and then."""

    def __init__(
        self,
        engine: CellEngine,
        clock: UnsteadyClock,
        step_ns: Nanos,
        faults: Faults,
        dice: Random,
        note: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._step_ns = step_ns
        self._faults = faults
        self._dice = dice
        self._note = note
        self._fails = False
        self._until: Nanos = 0
        self.failures = 0

    @property
    def geometry(self) -> Geometry:
        return self._engine.geometry

    @property
    def vocabulary(self) -> int:
        return self._engine.vocabulary

    @property
    def context_tokens_max(self) -> int:
        return self._engine.context_tokens_max

    @property
    def supports(self) -> frozenset[str]:
        return self._engine.supports

    def heal(self) -> None:
        """No step fails or crawls from now on, but for the one in the air."""
        self._faults = Faults()

    def launch(self, batch: Batch) -> None:
        if self._dice.random() < self._faults.step_fails / 2:
            self._fail(f"launch of turn {batch.turn} {FAILED_ON_PURPOSE}")
        self._engine.launch(batch)
        self._fails = self._dice.random() < self._faults.step_fails / 2
        slow = self._dice.random() < self._faults.step_slow
        self._until = self._clock.now() + self._step_ns * (100 if slow else 1)
        if slow:
            self._note(f"step of turn {batch.turn} crawls")

    def collect(self) -> Outcome:
        self._clock.park(self._until)
        if self._fails:
            self._fails = False
            self.failures += 1
            self._note(f"a step {FAILED_ON_PURPOSE}")
            self._engine.drop(f"step {FAILED_ON_PURPOSE}")
        return self._engine.collect()

    def close(self) -> None:
        self._engine.close()

    def _fail(self, message: str) -> None:
        self.failures += 1
        self._note(message)
        raise EngineFailed(message)
