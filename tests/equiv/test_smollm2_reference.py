"""SmolLM2 in fp32 says token for token what transformers says, on 50 prompts, greedily.

Prompts are token ids: transformers' own reading of the tokenizer in this file differs before digits.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from superinfer_trt.core.errors import ModelError
from superinfer_trt.core.request import Request, Sampling
from superinfer_trt.core.units import RequestId
from superinfer_trt.core.view import Limits
from superinfer_trt.engine.native import NativeEngine, element_bytes_for
from superinfer_trt.model.open import OpenModel, open_model
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.transfer.native import DuplexLink
from superinfer_trt.transfer.pools import allocate_pool
from support.world import Box

pytestmark = [pytest.mark.reference, pytest.mark.model]
torch = pytest.importorskip("torch", reason="needs torch (extra `equiv`)")
transformers = pytest.importorskip("transformers", reason="needs transformers (extra `equiv`)")
pytest.importorskip("gguf", reason="transformers reads GGUF through gguf (extra `equiv`)")

PROMPTS, TOKENS, BLOCK = 50, 24, 16
SUBJECTS = ("The sea", "A good loaf of bread", "My neighbour's dog", "The oldest map", "An honest answer")
VERBS = ("is", "was once", "never seems", "began as", "reminds me of")


@pytest.fixture(scope="module")
def model() -> OpenModel:
    try:
        return open_model("smollm2")
    except ModelError as error:
        pytest.skip(str(error))


def prompts(model: OpenModel) -> list[tuple[int, ...]]:
    """25 texts of different beginnings, 15 conversations, 10 of random ids."""
    random = Random(5)
    texts = [f"{subject} {verb}" for subject in SUBJECTS for verb in VERBS]
    made = [tuple(model.tokenizer.encode(text)) for text in texts]
    for index in range(15):
        about = texts[index].lower()
        made.append(tuple(model.tokenizer.chat([{"role": "user", "content": f"Continue: {about}"}])))
    while len(made) < PROMPTS:
        made.append(
            tuple(random.randrange(256, model.config.vocabulary) for _ in range(random.randint(2, 40)))
        )
    return made


def ours(model: OpenModel, wanted: list[tuple[int, ...]]) -> list[list[int]]:
    limits = Limits(256, 32, BLOCK, 512, 0)
    block_bytes = model.config.geometry(BLOCK, element_bytes_for("fp32")).block_bytes
    device, host = allocate_pool(512, block_bytes), allocate_pool(1, block_bytes)
    link = DuplexLink(device, host)
    engine = NativeEngine(model.weights, device, block_tokens=BLOCK, dtype="fp32")
    requests = [
        Request(RequestId(index), prompt, Sampling(max_tokens=TOKENS)) for index, prompt in enumerate(wanted)
    ]
    try:
        result = Box(make_policy("fcfs"), engine, link, limits).run(requests, audit=False)
    finally:
        link.close()
        engine.close()
    return [result.tokens[RequestId(index)] for index in range(len(wanted))]


def theirs(model: OpenModel, wanted: list[tuple[int, ...]], answers: list[list[int]]) -> list[list[int]]:
    """What transformers would choose after each prefix of ours. Where that is our own next token at every
    position, its greedy generation is ours, by induction; and one pass a prompt is enough to see it."""
    path = Path(model.source)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    ).eval()
    made = []
    with torch.no_grad():
        for prompt, answer in zip(wanted, answers, strict=True):
            ids = torch.tensor([[*prompt, *answer[:-1]]])
            made.append(reference(ids).logits[0, len(prompt) - 1 :].argmax(-1).tolist())
    return made


def test_greedy_tokens_are_transformers_own(model: OpenModel) -> None:
    wanted = prompts(model)
    assert len(wanted) == PROMPTS
    answers = ours(model, wanted)
    assert all(len(answer) == TOKENS for answer in answers)
    assert answers == theirs(model, wanted, answers)
