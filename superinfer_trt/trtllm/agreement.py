"""What all ranks must see alike before they plan: the time, the landed copies, the speed of the link.

Every rank plans for itself from the same facts, so nothing that differs between ranks may reach a plan. Here
is the one exchange a turn that makes them alike: the clock of the first rank, the copies that have landed on
all ranks, the slowest link. One call a turn from the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.units import Nanos


@dataclass(frozen=True, slots=True)
class Sample:
    """What one rank sees at the beginning of a turn. `landed`: (group of copies, ok), ascending;
    a group stays in it until it is agreed. Rates in bytes/s. `checksum`: of all plans so far."""

    now: Nanos
    landed: tuple[tuple[int, bool], ...] = ()
    out_bytes_per_s: float = 0.0
    in_bytes_per_s: float = 0.0
    out_busy: bool = False
    in_busy: bool = False
    checksum: int = 0


class Agreement(Protocol):
    """Turns the sample of a rank into the one that all ranks use."""

    def __call__(self, sample: Sample) -> Sample: ...

    def planned(self, plan: Plan) -> None:
        """Tells what was planned."""
        ...


class Alone:
    """One rank: what it sees is what is."""

    def __call__(self, sample: Sample) -> Sample:
        return sample

    def planned(self, plan: Plan) -> None:
        """Nobody to compare with."""


class AmongRanks:
    """Tensor parallel ranks. `allgather(value)` returns the values of all ranks in their order."""

    def __init__(self, allgather: Callable[[object], Sequence[object]]) -> None:
        self._allgather = allgather
        self._plan: Plan | None = None
        self._checksum = 0

    def planned(self, plan: Plan) -> None:
        """Counts the plan into the checksum that goes with the next sample. Numbers hash alike in every
        process, and text is not made before somebody reads it."""
        self._plan = plan
        self._checksum = hash((self._checksum, plan))

    def __call__(self, sample: Sample) -> Sample:
        """Raises InvariantViolation on every rank, with the plans, when two ranks planned differently."""
        gathered = self._allgather(replace(sample, checksum=self._checksum))
        samples = [one for one in gathered if isinstance(one, Sample)]
        if any(s.checksum != samples[0].checksum for s in samples):
            line = self._plan.line() if self._plan is not None else "nothing"
            lines = [f"rank {rank}: {line}" for rank, line in enumerate(self._allgather(line))]
            raise InvariantViolation("ranks have planned differently: " + " | ".join(lines))
        everywhere = set.intersection(*({group for group, _ in s.landed} for s in samples))
        failed = {group for s in samples for group, ok in s.landed if not ok}
        return Sample(
            now=samples[0].now,
            landed=tuple((group, group not in failed) for group in sorted(everywhere)),
            out_bytes_per_s=min(s.out_bytes_per_s for s in samples),
            in_bytes_per_s=min(s.in_bytes_per_s for s in samples),
            out_busy=any(s.out_busy for s in samples),
            in_busy=any(s.in_busy for s in samples),
        )
