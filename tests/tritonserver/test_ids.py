"""The `tensorrt_llm` model: token ids in and out, through the real server. Values, not shapes."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

pytest.importorskip("tritonclient", reason="run by `scripts/test --only triton`")

from asking import Caller, Heard, ids_inputs, run, tensor

from superinfer_trt.serve.pb import executor_pb2 as pb

PROMPT = [5, 9, 2, 14, 7]
IDS = ["tensorrt_llm", "ids"]
"""In-process, and as a proxy to the same executor."""


def ask(stage: Any, model: str, inputs: list[Any], **options: Any) -> Heard:
    async def scenario() -> Heard:
        async with Caller(stage.triton.grpc, model) as caller:
            return await caller.ask(inputs, **options)

    return run(scenario())


def direct(stage: Any, prompt: list[int], tokens: int, **sampling: Any) -> tuple[list[int], str, list[float]]:
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt))
    request.sampling.CopyFrom(pb.Sampling(max_tokens=tokens, **sampling))
    return stage.whole.say(request)


@pytest.mark.parametrize("model", IDS)
def test_a_stream_brings_the_new_tokens_only_and_the_last_of_them_is_final(stage: Any, model: str) -> None:
    heard = ask(stage, model, ids_inputs(PROMPT, 24, streaming=True))
    assert heard.errors == []
    assert heard.all("output_ids") == direct(stage, PROMPT, 24)[0]
    assert len(heard.answers) > 1
    assert heard.finals == [False] * (len(heard.answers) - 1) + [True]
    assert sum(heard.all("sequence_length")) == 24
    assert set(heard.all("batch_index")) == set(heard.all("sequence_index")) == {0}


@pytest.mark.parametrize("model", IDS)
@pytest.mark.parametrize("exclude", [False, True])
def test_one_answer_has_the_prompt_unless_it_is_excluded(stage: Any, model: str, exclude: bool) -> None:
    heard = ask(stage, model, ids_inputs(PROMPT, 8, exclude_input_in_output=exclude))
    output = direct(stage, PROMPT, 8)[0]
    assert heard.finals == [True]
    assert heard.all("output_ids") == (output if exclude else PROMPT + output)
    assert heard.answers[0].as_numpy("output_ids").shape == (1, 1, 8 if exclude else 13)


@pytest.mark.parametrize("model", IDS)
def test_rows_of_a_batch_answer_for_themselves(stage: Any, model: str) -> None:
    """Padding behind input_lengths is no part of a prompt; one final flag ends all rows."""
    inputs = [
        tensor("input_ids", [PROMPT, [3, 1, 0, 0, 0]]),
        tensor("input_lengths", [[5], [2]]),
        tensor("request_output_len", [[6], [9]]),
        tensor("exclude_input_in_output", [[True], [True]]),
    ]
    heard = ask(stage, model, inputs)
    rows = {
        a.as_numpy("batch_index").item(): a.as_numpy("output_ids").reshape(-1).tolist() for a in heard.answers
    }
    assert rows == {0: direct(stage, PROMPT, 6)[0], 1: direct(stage, [3, 1], 9)[0]}
    assert heard.finals == [False, True]


def test_log_probabilities_and_counts(text_stage: Any) -> None:
    wants = {"return_log_probs": True, "return_num_input_tokens": True, "return_num_output_tokens": True}
    _, _, logprobs = direct(text_stage, PROMPT, 6, logprobs=0)
    for streaming in (False, True):
        heard = ask(text_stage, "tensorrt_llm", ids_inputs(PROMPT, 6, streaming=streaming, **wants))
        assert heard.all("output_log_probs") == pytest.approx(logprobs)
        assert heard.all("cum_log_probs")[-1] == pytest.approx(math.fsum(logprobs), rel=1e-5)
        assert heard.all("num_input_tokens") == [len(PROMPT)]
        assert heard.all("num_output_tokens") == [6]


def test_perf_metrics_are_nanoseconds_from_the_arrival_on(stage: Any) -> None:
    heard = ask(stage, "tensorrt_llm", ids_inputs(PROMPT, 6, return_perf_metrics=True))
    times = [
        heard.all(f"{name}_time_ns")[0]
        for name in ("arrival", "first_scheduled", "first_token", "last_token")
    ]
    assert times[0] == 0
    assert times == sorted(times)
    assert times[3] > 0


@pytest.mark.parametrize("model", IDS)
def test_a_sampled_request_depends_on_its_seed_alone(stage: Any, model: str) -> None:
    def drawn(seed: int) -> list[int]:
        given = {"temperature": 1.0, "runtime_top_k": 50, "seed": seed, "exclude_input_in_output": True}
        return ask(stage, model, ids_inputs(PROMPT, 12, **given)).all("output_ids")

    assert drawn(7) == drawn(7) == direct(stage, PROMPT, 12, temperature=1.0, top_k=50, seed=7)[0]
    assert drawn(7) != drawn(8)


@pytest.mark.parametrize("model", IDS)
def test_stop_words_of_one_token_and_of_more_end_the_output(stage: Any, model: str) -> None:
    output = direct(stage, PROMPT, 20)[0]
    for word in (output[4:5], output[6:9]):
        end = next(at for at in range(20) if output[max(0, at + 1 - len(word)) : at + 1] == word) + 1
        padded = [[[*word, 0], [len(word)] + [-1] * len(word)]]
        given = {"stop_words_list": padded[0], "exclude_input_in_output": True, "streaming": True}
        heard = ask(stage, model, ids_inputs(PROMPT, 20, **given))
        assert heard.all("output_ids") == output[:end]
        assert heard.finals[-1]


@pytest.mark.parametrize("model", IDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam_width", 2),
        ("lora_task_id", 3),
        ("draft_input_ids", [1, 2]),
        ("bad_words_list", [[4], [1]]),
        ("request_output_len", 0),
        ("request_output_len", 1 << 30),
        ("temperature", -1.0),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_own_name(
    stage: Any, model: str, name: str, value: Any
) -> None:
    inputs = [one for one in ids_inputs(PROMPT, 4) if one.name() != name]
    heard = ask(stage, model, [*inputs, tensor(name, [value] if isinstance(value, list) else [[value]])])
    assert heard.answers == []
    assert len(heard.errors) == 1
    assert f"{name}: " in heard.errors[0]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"ttft_slo_ms": -1}, "ttft_slo_ms: must be above 0"),
        ({"tpot_slo_ms": 0}, "tbt_slo_ms: must be above 0"),
        ({"slow_slo_ms": 5}, "slow_slo_ms: is not known here"),
        ({"tenant": "no spaces please"}, "tenant: only the characters"),
    ],
)
def test_a_wrong_objective_is_refused(stage: Any, parameters: dict[str, Any], named: str) -> None:
    for model in IDS:
        heard = ask(stage, model, ids_inputs(PROMPT, 4), parameters=parameters)
        assert named in heard.errors[0]


def test_the_objective_decides_who_goes_first(stage: Any) -> None:
    """One request fills HBM; of two behind it the later one overtakes because its objective is tight."""

    async def order(*slos: float) -> list[int]:
        async with Caller(stage.triton.grpc, "slow") as caller:
            came: list[int] = []
            first = Heard()
            loose = {"ttft_slo_ms": 3_600_000, "tbt_slo_ms": 3_600_000}
            tasks = [
                asyncio.create_task(
                    caller.ask(ids_inputs([1] * 90, 12, streaming=True), first, parameters=loose)
                )
            ]
            await first.first.wait()
            for at, slo in enumerate(slos):
                parameters = {"ttft_slo_ms": slo, "tpot_slo_ms": 3_600_000, "tenant": "test"}
                heard = Heard()
                ask = caller.ask(ids_inputs([2 + at] * 90, 4, streaming=True), heard, parameters=parameters)
                tasks.append(asyncio.create_task(ask))

                async def note(heard: Heard = heard, at: int = at) -> None:
                    await heard.first.wait()
                    came.append(at)

                tasks.append(asyncio.create_task(note()))
                while stage.slow.stats().accepted < before + 2 + at:
                    await asyncio.sleep(0.005)
            await asyncio.gather(*tasks)
            return came

    before = stage.slow.stats().accepted
    assert run(order(3_600_000, 3_600_000)) == [0, 1]
    before = stage.slow.stats().accepted
    assert run(order(3_600_000, 1)) == [1, 0]
