"""Rotation in the fake worker is invisible: token for token what the model says, in both loops."""

from __future__ import annotations

from random import Random

import pytest

from support.trtllm.gpu import expected_output
from support.trtllm.request import LlmRequest
from support.trtllm.rotating import RotatingWorker, RotationShape
from support.trtllm.worker import END_ID, WorkerShape, make_requests

POLICIES = ("rotasched", "rota-slack", "waiting-first", "swapped-first")


def check(requests: list[LlmRequest]) -> None:
    """Each finished request said what the model says; a cancelled one a beginning of it."""
    for request in requests:
        prompt = request.get_tokens(0)[: request.orig_prompt_len]
        expected = expected_output(prompt, request.py_max_new_tokens, END_ID)
        said = request.output
        assert request.is_finished
        assert said == (expected[: len(said)] if request.cancelled else expected), request.request_id
        assert request.pauses == 0


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_rotation_is_invisible(policy: str, overlap: bool) -> None:
    rotations = 0
    for seed in range(8):
        shape = WorkerShape(blocks=24, overlap=overlap, seed=seed, eager=(seed % 4) / 4)
        worker = RotatingWorker(shape, RotationShape(policy=policy, polls_max=1 + seed % 4))
        requests = make_requests(16, seed)
        random = Random(seed)
        todo = list(requests)
        while todo:
            for _ in range(random.randint(0, 3)):
                if todo:
                    worker.enqueue(todo.pop(0))
            worker.step()
        worker.drain()
        check(requests)
        rotations += worker.rotation.totals.rotations_in
    assert rotations > 20
