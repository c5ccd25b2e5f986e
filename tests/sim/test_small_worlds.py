"""Small worlds, enumerated: two requests, three blocks in HBM and three in DRAM, every choice in every turn.

All states that any policy can reach are visited, under depth 1 and 2, and from each of them the production
policy gets everybody home. With one more of each fault (cancel at any moment, failed copy, failed step,
eviction) at a time the world is still looked at whole; with all of them together up to a number of turns. The
gate does a part of that; `PYTHONPATH=.:tests python -m sim.small_world` does all (docs/reliability.md).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from props.test_ledger_canaries import frees_what_a_copy_reads, lets_in_before_out, trusts_failed_copies
from sim.small_world import EVERYTHING, QUIET, enumerate_world
from superinfer_trt.core.phase import Phase

TURNS_MAX = 40
"""No path is so long: whatever is planned, tokens and budgets run out."""

STATES = {
    (1, ""): 197,
    (1, "copy_failures"): 511,
    (2, ""): 415,
}


@pytest.mark.parametrize(("depth", "fault"), STATES)
def test_every_state_is_sound_and_leads_home(depth: int, fault: str) -> None:
    size = replace(QUIET, depth=depth, **({fault: 1} if fault else {}))
    found = enumerate_world(size, TURNS_MAX)
    assert found.complete, f"after {TURNS_MAX} turns there are new states: {found.levels}"
    assert found.states == STATES[depth, fault], "the world has changed: see whether it should"
    met = {phase for phases in found.phases for phase in phases}
    assert met == set(Phase) - {Phase.FINISHED}
    # Both are away at once, cross in both directions at once, and one runs while the other is on its way.
    assert {(Phase.ROTARY, Phase.ROTARY), (Phase.ROTATING_OUT, Phase.ROTATING_IN)} <= found.phases
    assert {(Phase.DECODE, Phase.ROTATING_IN), (Phase.ROTATING_OUT, Phase.DECODE)} <= found.phases


def test_everything_at_once_for_a_few_turns() -> None:
    assert enumerate_world(EVERYTHING, 3).states > 400


@pytest.mark.parametrize(
    ("mutate", "fault"),
    [
        (trusts_failed_copies, "copy_failures"),
        (frees_what_a_copy_reads, "cancels"),
        (lets_in_before_out, "cancels"),
    ],
)
def test_a_broken_ledger_is_found(mutate, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="script"):
        enumerate_world(replace(QUIET, **{fault: 1}), TURNS_MAX)
