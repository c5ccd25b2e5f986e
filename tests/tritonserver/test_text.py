"""The models with text in and out, before the embedded model."""

from __future__ import annotations

import json
import math
import urllib.request
from typing import Any

import pytest

pytest.importorskip("tritonclient", reason="run by `scripts/test --only triton`")

from asking import Caller, Heard, run, tensor, text_inputs

from superinfer_trt.serve.pb import executor_pb2 as pb

PROMPT = "The capital of France is"
TEXT = ["ensemble", "text"]


def ask(stage: Any, model: str, inputs: list[Any], **options: Any) -> Heard:
    async def scenario() -> Heard:
        async with Caller(stage.triton.grpc, model) as caller:
            return await caller.ask(inputs, **options)

    return run(scenario())


def direct(stage: Any, tokens: int, **sampling: Any) -> tuple[list[int], str, list[float]]:
    return stage.whole.say(
        pb.GenerateRequest(text=PROMPT, sampling=pb.Sampling(max_tokens=tokens, **sampling))
    )


def llmapi(output: int, **more: Any) -> list[Any]:
    values = {"text_input": PROMPT, "sampling_param_max_tokens": output, **more}
    return [tensor(name, value if isinstance(value, list) else [value]) for name, value in values.items()]


@pytest.mark.parametrize("model", TEXT)
def test_a_stream_of_text_is_the_text_of_the_direct_path(text_stage: Any, model: str) -> None:
    heard = ask(text_stage, model, text_inputs(PROMPT, 24, stream=True))
    assert heard.errors == []
    assert heard.text() == direct(text_stage, 24)[1]
    assert len(heard.answers) > 1
    assert heard.finals == [False] * (len(heard.answers) - 1) + [True]


@pytest.mark.parametrize("model", TEXT)
def test_one_answer_has_the_prompt_unless_it_is_excluded(text_stage: Any, model: str) -> None:
    text = direct(text_stage, 12)[1]
    assert ask(text_stage, model, text_inputs(PROMPT, 12)).text() == PROMPT + text
    excluded = text_inputs(PROMPT, 12, exclude_input_in_output=True)
    assert ask(text_stage, model, excluded).text() == text


@pytest.mark.parametrize("model", TEXT)
def test_stop_words_are_not_in_the_output(text_stage: Any, model: str) -> None:
    text = direct(text_stage, 24)[1]
    word = text[8:12]
    heard = ask(text_stage, model, text_inputs(PROMPT, 24, stop_words=[word, ""], stream=True))
    assert heard.text() == text[: text.index(word)]


@pytest.mark.parametrize("model", TEXT)
def test_bad_words_are_refused_by_name_and_empty_ones_ask_for_nothing(text_stage: Any, model: str) -> None:
    assert "bad_words: " in ask(text_stage, model, text_inputs(PROMPT, 4, bad_words=["Paris"])).errors[0]
    assert ask(text_stage, model, text_inputs(PROMPT, 4, bad_words=[""])).errors == []


def test_penalties_reach_the_engine(text_stage: Any) -> None:
    heard = ask(
        text_stage, "text", text_inputs(PROMPT, 24, repetition_penalty=1.5, exclude_input_in_output=True)
    )
    assert heard.text() == direct(text_stage, 24, repetition_penalty=1.5)[1]
    assert heard.text() != direct(text_stage, 24)[1]


def test_the_llm_api_form_streams_the_text_so_far(text_stage: Any) -> None:
    _, text, logprobs = direct(text_stage, 16, logprobs=0)
    wants = {"return_finish_reason": True, "return_cumulative_logprob": True}
    heard = ask(text_stage, "llmapi", llmapi(16, streaming=True, **wants))
    pieces = [piece.decode() for piece in heard.all("text_output")]
    assert pieces[-1] == text
    assert all(text.startswith(piece) for piece in pieces)
    assert len(pieces) > 1
    assert heard.all("finish_reason") == [b"length"]
    assert heard.all("cumulative_logprob")[-1] == pytest.approx(math.fsum(logprobs), rel=1e-5)
    assert ask(text_stage, "llmapi", llmapi(16)).text() == text


def test_the_llm_api_form_refuses_by_name(text_stage: Any) -> None:
    assert "image_url: " in ask(text_stage, "llmapi", llmapi(4, image_url=["x"])).errors[0]
    assert (
        "sampling_param_stop[0]: "
        in ask(text_stage, "llmapi", llmapi(4, sampling_param_stop=["x" * 300])).errors[0]
    )


def test_http_generate_stream_with_objectives_in_its_parameters(text_stage: Any) -> None:
    body = {
        "text_input": PROMPT,
        "max_tokens": 8,
        "stream": True,
        "parameters": {"ttft_slo_ms": 500, "tenant": "web"},
    }
    request = urllib.request.Request(
        f"http://{text_stage.triton.http}/v2/models/ensemble/generate_stream",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    lines = urllib.request.urlopen(request, timeout=60).read().decode().splitlines()
    pieces = [json.loads(line[6:])["text_output"] for line in lines if line.startswith("data: ")]
    assert "".join(pieces) == direct(text_stage, 8)[1]
