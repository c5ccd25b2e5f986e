"""The executor's turn, where no golden script can see it."""

from __future__ import annotations

import pytest

from superinfer_trt.core.errors import EngineFailed
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.outcome import Outcome
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.units import MILLISECOND, SECOND, Nanos, RequestId
from superinfer_trt.core.view import Limits, View
from superinfer_trt.engine.modelled import ModelledEngine, StepCost
from superinfer_trt.sched.registry import make_policy
from support.links import PollLink
from support.world import Box, BoxClock

GEOMETRY = Geometry(layers=1, kv_heads=1, head_dim=8, element_bytes=2, block_tokens=4)
STEP = 10 * MILLISECOND


class FailingEngine(ModelledEngine):
    """Batch `failing` takes a minute and fails."""

    failing = -1
    collected = 0

    def __init__(self, clock: BoxClock) -> None:
        super().__init__(clock, GEOMETRY, StepCost(STEP, 0, 0, 0))
        self.own_clock = clock

    def collect(self) -> Outcome:
        outcome = super().collect()
        self.collected += 1
        if self.collected == self.failing:
            self.own_clock.time += 60 * SECOND
            raise EngineFailed("out of memory")
        return outcome


class Watched:
    """A policy, and what it was shown."""

    name = "watched"

    def __init__(self) -> None:
        self._inner = make_policy("rotasched")
        self.order = self._inner.order
        self.views: list[tuple[Nanos, int, int]] = []  # forecast of a step, steps learnt from, link blocks

    def __call__(self, view: View) -> Plan:
        forecast = view.forecast
        self.views.append((forecast.step_ns(1, 0, 8), forecast.steps, view.link_in_blocks))
        return self._inner(view)


class SlowLink(PollLink):
    """A block in ten milliseconds: what a turn may carry follows from how long a step takes."""

    def link_bytes_per_s(self, direction: object) -> float:
        return GEOMETRY.block_bytes * SECOND / STEP


@pytest.mark.parametrize("depth", [1, 2])
def test_a_failed_batch_teaches_nothing_of_steps(depth: int) -> None:
    clock, policy = BoxClock(), Watched()
    engine = FailingEngine(clock)
    engine.failing = 6
    box = Box(policy, engine, SlowLink(), Limits(32, 4, 4, 16, 16), depth=depth, clock=clock)
    first = Request(RequestId(1), (1, 2, 3), Sampling(max_tokens=12))
    second = Request(RequestId(2), (1, 2, 3), Sampling(max_tokens=12), arrival=70 * SECOND)
    result = box.run([first, second])
    assert result.endings[RequestId(1)].reason is FinishReason.FAILED
    assert result.endings[RequestId(2)].reason is FinishReason.LENGTH
    assert policy.views[-1][1] == engine.collected - 2, "all but the failed one and the last"
    assert max(step for step, _, _ in policy.views) < 2 * STEP
    assert max(blocks for _, _, blocks in policy.views) <= 1
