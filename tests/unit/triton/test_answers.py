"""What the executor says of a row -> output tensors, without Triton."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.triton.answers import Answer, Row
from superinfer_trt.triton.mapping import Item, Wants
from superinfer_trt.triton.tensors import IDS, LLMAPI, TEXT, Face


def row(face: Face, *, stop: tuple[tuple[int, ...], ...] = (), batch_index: int = 0, **wants: bool) -> Row:
    request = pb.GenerateRequest(text="Hi ") if face.text else pb.GenerateRequest()
    if not face.text:
        request.token_ids.ids.extend([1, 2])
    return Row(face, Item(request, Wants(**wants), batch_index, stop))


def said(*ids: int, text: str = "", logprobs: tuple[float, ...] = (), reason: int = 0) -> pb.GenerateResponse:
    made = pb.GenerateResponse(delta=pb.Delta(token_ids=ids, text=text))
    made.delta.logprobs.extend(pb.TokenLogprobs(logprob=value) for value in logprobs)
    if reason:
        made.ending.finish_reason = reason  # type: ignore[assignment]
        made.ending.usage.prompt_tokens = 2
    return made


STOP, LENGTH, CANCELLED = pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_CANCELLED


def values(answer: Answer | None, name: str) -> Any:
    assert answer is not None
    return answer.tensors[name].reshape(-1).tolist()


def test_a_stream_brings_what_is_new() -> None:
    one = row(IDS, streaming=True, batch_index=3)
    first, last = one.feed(said(7, 8)), one.feed(said(9, reason=LENGTH))
    assert values(first, "output_ids") == [7, 8]
    assert values(first, "sequence_length") == [2]
    assert values(first, "batch_index") == [3]
    assert values(last, "output_ids") == [9]
    assert first is not None
    assert last is not None
    assert (first.final, last.final) == (False, True)


def test_without_a_stream_everything_comes_at_once() -> None:
    for exclude in (False, True):
        one = row(IDS, exclude_input=exclude)
        assert one.feed(said(7, 8)) is None
        assert values(one.feed(said(9, reason=STOP)), "output_ids") == (
            [7, 8, 9] if exclude else [1, 2, 7, 8, 9]
        )


def test_an_end_without_tokens_still_has_tensors_for_clients_that_skip_empty_answers() -> None:
    one = row(IDS, streaming=True)
    one.feed(said(7))
    last = one.feed(said(reason=STOP))
    assert last is not None
    assert last.final
    assert values(last, "output_ids") == []


def test_log_probabilities_add_up_over_a_stream() -> None:
    one = row(IDS, streaming=True, log_probs=True)
    first = one.feed(said(7, logprobs=(-0.5,)))
    last = one.feed(said(8, 9, logprobs=(-0.25, -1.0), reason=LENGTH))
    assert values(first, "cum_log_probs") == [-0.5]
    assert values(last, "cum_log_probs") == [-1.75]
    assert values(last, "output_log_probs") == [-0.25, -1.0]


def test_text_waits_until_it_is_certain() -> None:
    one = row(TEXT, streaming=True)
    assert one.feed(said(7)) is None
    assert values(one.feed(said(8, text="ab")), "text_output") == [b"ab"]
    assert values(one.feed(said(9, text="c", reason=STOP)), "text_output") == [b"c"]


def test_text_at_once_has_its_prompt_unless_excluded() -> None:
    for exclude in (False, True):
        one = row(TEXT, exclude_input=exclude)
        one.feed(said(8, text="ab"))
        found = values(one.feed(said(9, text="c", reason=STOP)), "text_output")
        assert found == [b"abc" if exclude else b"Hi abc"]


def test_the_llm_api_tells_all_text_so_far_and_why_it_ended() -> None:
    one = row(LLMAPI, streaming=True, exclude_input=True, finish_reason=True, stop_reason=True)
    assert values(one.feed(said(8, text="ab")), "text_output") == [b"ab"]
    assert one.feed(said(8)) is None
    response = said(9, text="c", reason=STOP)
    response.ending.matched_string = "d"
    last = one.feed(response)
    assert values(last, "text_output") == [b"abc"]
    assert (values(last, "finish_reason"), values(last, "stop_reason")) == ([b"stop"], [b"d"])


def test_what_was_made_before_a_cancel_is_not_lost() -> None:
    one = row(IDS, exclude_input=True)
    one.feed(said(7, 8))
    last = one.feed(said(reason=CANCELLED))
    assert values(last, "output_ids") == [7, 8]
    assert last is not None
    assert last.cancelled
    assert row(IDS, streaming=True).cut() == Answer({}, final=True, cancelled=True)


def test_times_are_nanoseconds_from_the_arrival_on() -> None:
    one = row(IDS, times=True)
    response = said(7, 8, 9, reason=LENGTH)
    response.ending.timings.CopyFrom(pb.Timings(queue_ms=1.5, ttft_ms=20, tbt_mean_ms=10, total_ms=41))
    last = one.feed(response)
    assert values(last, "arrival_time_ns") == [0]
    assert values(last, "first_scheduled_time_ns") == [1_500_000]
    assert values(last, "first_token_time_ns") == [20_000_000]
    assert values(last, "last_token_time_ns") == [40_000_000]


@given(
    tokens=st.lists(st.integers(0, 3), max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=6),
    words=st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=4), min_size=1, max_size=3),
    streaming=st.booleans(),
)
def test_a_stop_word_ends_the_output_wherever_the_messages_are_cut(
    tokens: list[int], cuts: list[int], words: list[list[int]], streaming: bool
) -> None:
    end = next(
        (at + 1 for at in range(len(tokens)) if any(tokens[: at + 1][-len(w) :] == w for w in words)), None
    )
    one = row(IDS, streaming=streaming, exclude_input=True, stop=tuple(map(tuple, words)))
    edges = sorted({0, len(tokens), *(cut for cut in cuts if cut < len(tokens))})
    pieces = [tokens[a:b] for a, b in pairwise(edges)] or [[]]
    out: list[int] = []
    for at, piece in enumerate(pieces):
        answer = one.feed(said(*piece, reason=LENGTH if at == len(pieces) - 1 else 0))
        if answer is not None:
            out += values(answer, "output_ids")
            if answer.final:
                break
    assert out == tokens[:end]


@pytest.mark.parametrize("face", [IDS, TEXT, LLMAPI], ids=lambda face: face.name)
def test_every_tensor_is_one_that_the_configuration_names(face: Face) -> None:
    wants = dict.fromkeys(("streaming", "log_probs", "times", "num_input_tokens", "num_output_tokens"), True)
    if face is LLMAPI:
        wants = dict.fromkeys(("times", "finish_reason", "stop_reason", "cumulative_logprob"), True)
    answer = row(face, **wants).feed(said(7, text="a", logprobs=(-1.0,), reason=STOP))
    assert answer is not None
    outputs = {one.name: one for one in face.outputs}
    for name, array in answer.tensors.items():
        assert array.ndim == len(outputs[name].dims) + face.batched
