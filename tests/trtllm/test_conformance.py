"""The same scene gives the same plans under the embedded executor and under TensorRT-LLM's loops.

Plan for plan: who is admitted, in which chunks, who decodes, leaves, comes back and is synced, and when. The
plain loop is compared with depth 1, the overlap loop with depth 2. What is made equal on purpose: `lockstep`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest

import pytest

from golden.test_golden import RULE, SCRIPTS
from golden.test_golden import scene as parsed
from superinfer_trt.core.errors import SuperInferError
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.sched.registry import POLICIES, make_policy
from superinfer_trt.trtllm.crossing import Crossing
from superinfer_trt.trtllm.rotation import Rotation
from support.trtllm.lockstep import STEP, Asked, Scene, adapted, embedded, random_scene

ROTATING = [name for name in POLICIES if make_policy(name).rotates]
DEPTHS = pytest.mark.parametrize("depth", [1, 2], ids=["plain", "overlap"])
SEEDS = range(8)
REFUSED_EARLIER = "too_large"
"""Its request cannot be: a worker whose longest sequence does not fit into HBM does not start to rotate."""
GOLDEN = [
    path
    for path in SCRIPTS
    if path.stem != REFUSED_EARLIER and make_policy(parsed(path.read_text().split(RULE)[0]).policy).rotates
]


def difference(scene: Scene) -> str:
    """The first plan in which the two loops differ; empty if none."""
    for number, (here, there) in enumerate(zip_longest(embedded(scene), adapted(scene))):
        if here != there:
            return f"plan {number}: embedded {here} | adapter {there}"
    return ""


def golden_scene(text: str, depth: int) -> Scene:
    """A golden script in whole turns: its times are scaled so that its step is ours, arrivals rounded up."""
    script = parsed(text)
    step_ns = script.step_ms * MILLISECOND
    cancelled = {id: -(-moment // step_ns) for moment, id in script.cancels}
    requests = [
        Asked(
            -(-request.arrival // step_ns),
            len(request.prompt),
            request.sampling.max_tokens,
            cancelled=cancelled.get(request.id, -1),
            slo=Slo(request.slo.ttft * STEP // step_ns, request.slo.tbt * STEP // step_ns),
        )
        for request in script.requests
    ]
    return Scene(
        script.policy,
        requests,
        depth,
        {"min_stint_tokens": script.stint} if script.stint else {},
        script.device,
        script.host,
        script.block,
        script.seats,
        script.tokens,
        script.land,
    )


@DEPTHS
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_scripts_give_the_same_plans(path, depth: int) -> None:
    text = path.read_text().split(RULE)[0]
    assert difference(golden_scene(text, depth)) == ""


def test_golden_scripts_that_rotate_are_most() -> None:
    assert len(GOLDEN) >= 7


@DEPTHS
@pytest.mark.parametrize("policy", ROTATING)
def test_random_scenes_give_the_same_plans(policy: str, depth: int) -> None:
    rotations = 0
    for seed in SEEDS:
        scene = random_scene(policy, depth, seed)
        assert difference(scene) == "", seed
        rotations += sum(" out=" in line for line in embedded(scene))
    assert rotations > 10


# What is changed in the adapter, and must show as another plan.
Mutation = Callable[[pytest.MonkeyPatch], None]


def admits_one_prompt_less(patch: pytest.MonkeyPatch) -> None:
    fitting = Rotation._fitting
    patch.setattr(
        Rotation, "_fitting", lambda self, plan: fitting(self, replace(plan, prefill=plan.prefill[:1]))
    )


def trusts_the_link_with_a_block_at_a_time(patch: pytest.MonkeyPatch) -> None:
    allowance = Rotation._allowance
    patch.setattr(Rotation, "_allowance", lambda self, direction: min(1, allowance(self, direction)))


def tells_of_landings_a_turn_late(patch: pytest.MonkeyPatch) -> None:
    agreed = Crossing.agreed

    def late(self, landed):  # type: ignore[no-untyped-def]
        held = getattr(self, "held", [])
        self.held = agreed(self, landed)
        return held

    patch.setattr(Crossing, "agreed", late)


def forgets_to_sync(patch: pytest.MonkeyPatch) -> None:
    move = Rotation._move
    patch.setattr(Rotation, "_move", lambda self, plan: move(self, replace(plan, sync=())))


def leaves_a_decode_out(patch: pytest.MonkeyPatch) -> None:
    fitting = Rotation._fitting
    patch.setattr(
        Rotation, "_fitting", lambda self, plan: fitting(self, replace(plan, decode=plan.decode[:3]))
    )


def dates_tokens_by_the_turn_before(patch: pytest.MonkeyPatch) -> None:
    commit = Rotation._commit

    def early(self):  # type: ignore[no-untyped-def]
        self._now, now = self._now - STEP, self._now
        commit(self)
        self._now = now

    patch.setattr(Rotation, "_commit", early)


MUTATIONS = (
    admits_one_prompt_less,
    trusts_the_link_with_a_block_at_a_time,
    tells_of_landings_a_turn_late,
    forgets_to_sync,
    leaves_a_decode_out,
    dates_tokens_by_the_turn_before,
)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_change_of_the_adapter_shows(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)

    def differs(scene: Scene) -> bool:
        try:
            return difference(scene) != ""
        except (SuperInferError, AssertionError, RuntimeError, KeyError):
            return True

    scenes = (random_scene(policy, depth, seed) for seed in SEEDS for policy in ROTATING for depth in (1, 2))
    assert any(differs(scene) for scene in scenes)
