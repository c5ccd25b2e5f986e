"""`rota-slack`: no tenant can starve another, whatever its traffic and whoever is late.

The naive world of test_plan_world, with one tenant that asks for several times what there is and never
stops, and another that asks for little.
"""

from __future__ import annotations

import random

import pytest

from props.test_plan_world import TURN_NS, Record, World
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.view import Limits

TURNS = 500


class Watched(World):
    """Notes in which turn each request ended."""

    def end(self, record: Record) -> None:
        super().end(record)
        self.lived[record.id] = self.turn - record.arrival // TURN_NS

    def watch(self) -> Watched:
        self.lived: dict[int, int] = {}
        self.tenant = {record.id: record.tenant for record in self.arrivals}
        return self


def flooded(seed: int, ttft_turns: int, parameters: dict[str, object]) -> Watched:
    draw = random.Random(seed)
    slo = Slo(ttft=ttft_turns * TURN_NS, tbt=draw.choice([1, 5]) * TURN_NS)
    arrivals = []
    # The flood is of prompts as short as they can be; the others' are long, and come after it has begun.
    for turn in range(TURNS):
        arrivals.append(Record(len(arrivals), draw.randint(1, 4), 20, turn * TURN_NS, 4, slo, tenant="flood"))
        if turn > 100 and turn % 40 == 0:
            arrivals.append(Record(len(arrivals), 60, 12, turn * TURN_NS, 4, slo, tenant="modest"))
    return Watched(
        policy_name="rota-slack",
        seed=seed,
        limits=Limits(step_tokens=16, seats=6, block_tokens=4, device_blocks=40, host_blocks=200),
        arrivals=arrivals,
        latency=draw.choice([1, 3]),
        depth=draw.choice([1, 2]),
        link=draw.choice([4, 100]),
        failing=0,
        cancelling=0,
        parameters=parameters,
    ).watch()


@pytest.mark.parametrize("ttft_turns", [1, 30, 10_000])
@pytest.mark.parametrize(
    "parameters", [{}, {"weights": {"flood": 5.0}}, {"length_weight_ms": 50.0}, {"late_share": 0.0}]
)
def test_a_flood_starves_nobody(ttft_turns: int, parameters: dict[str, object]) -> None:
    for seed in range(4):
        world = flooded(seed, ttft_turns, parameters)
        for _ in range(TURNS):
            world.step()
        flood = [r for r in world.live.values() if r.tenant == "flood"]
        assert len(flood) > TURNS // 4, "no flood"
        modest = {id: turns for id, turns in world.lived.items() if world.tenant[id] == "modest"}
        waiting_since = [r.arrival // TURN_NS for r in world.live.values() if r.tenant == "modest"]
        # Alone it takes about 20 turns.
        assert max(modest.values()) < 140, (seed, modest)
        assert all(since > TURNS - 140 for since in waiting_since), (seed, waiting_since)


def test_a_flood_is_served_as_well() -> None:
    for seed in range(4):
        world = flooded(seed, 30, {})
        for _ in range(TURNS):
            world.step()
        ended = [id for id in world.lived if world.tenant[id] == "flood"]
        assert len(ended) > 40
