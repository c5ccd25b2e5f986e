"""Events to messages: deltas without gap, text behind its tokens, one ending."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.core.model import TextStream
from superinfer_trt.core.outcome import Ending, Sampled, TokenEvent
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.units import MILLISECOND, RequestId
from superinfer_trt.serve.mapping import Accepted
from superinfer_trt.serve.output import Output
from superinfer_trt.serve.pb import executor_pb2 as pb
from support.echo_service import LetterTokenizer

ID = RequestId(3)
LETTERS = LetterTokenizer()


def output(
    *stop: str,
    stop_ids: frozenset[int] = frozenset(),
    logprobs: int = -1,
    text: bool = True,
    min_tokens: int = 0,
) -> Output:
    sampling = Sampling(max_tokens=99, stop_ids=stop_ids, logprobs=logprobs, min_tokens=min_tokens)
    return Output(Accepted(Request(ID, (1,), sampling), "name", stop), LETTERS if text else None)


def tokens(text: str, first: int = 0) -> list[TokenEvent]:
    return [TokenEvent(ID, 0, first + at, Sampled(ord(letter))) for at, letter in enumerate(text)]


def ending(reason: FinishReason, made: int, **times: int) -> Ending:
    known = {"arrival": 0, "admitted": 5, "first_token": 10, "last_token": 40} | times
    scaled = {name: value * MILLISECOND if value >= 0 else value for name, value in known.items()}
    return Ending(reason, "", 1, made, 2, 1, **scaled)


def last(reason: FinishReason, made: int, **times: int) -> TokenEvent:
    return TokenEvent(ID, 50 * MILLISECOND, ending=ending(reason, made, **times))


def test_a_delta_for_each_turn_and_an_ending() -> None:
    one = output()
    first = one.feed(tokens("ab"))
    second = one.feed(tokens("c", 2))
    third = one.feed([last(FinishReason.LENGTH, 3)])
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.delta.first_index, list(first.delta.token_ids), first.delta.text) == (0, [97, 98], "ab")
    assert (second.delta.first_index, second.delta.text) == (2, "c")
    assert not third.HasField("delta")
    assert one.ending is FinishReason.LENGTH
    told = third.ending
    assert (told.request_id, told.finish_reason) == ("name", pb.FINISH_REASON_LENGTH)
    assert (told.usage.prompt_tokens, told.usage.output_tokens) == (1, 3)
    assert (told.rotations, told.evictions) == (2, 1)
    times = told.timings
    assert (times.queue_ms, times.ttft_ms, times.tbt_mean_ms, times.total_ms) == (5, 10, 15, 50)


def test_what_never_happened_is_not_told() -> None:
    never = {"admitted": -1, "first_token": -1, "last_token": -1}
    response = output().feed([last(FinishReason.CANCELLED, 0, **never)])
    assert response is not None
    times = response.ending.timings
    assert not times.HasField("queue_ms")
    assert not times.HasField("ttft_ms")
    assert not times.HasField("tbt_mean_ms")
    one = output()
    response = one.feed([*tokens("a"), last(FinishReason.LENGTH, 1)])
    assert response is not None
    assert response.ending.timings.HasField("ttft_ms")
    assert not response.ending.timings.HasField("tbt_mean_ms")


def test_a_stop_id_is_in_the_ids_and_not_in_the_text() -> None:
    response = output(stop_ids=frozenset({ord("c")})).feed([*tokens("abc"), last(FinishReason.STOP, 3)])
    assert response is not None
    assert list(response.delta.token_ids) == [97, 98, 99]
    assert response.delta.text == "ab"
    assert response.ending.matched_token_id == 99


def test_tokens_behind_a_stop_string_are_dropped() -> None:
    one = output("cd")
    first = one.feed(tokens("abc"))
    assert first is not None
    assert (list(first.delta.token_ids), first.delta.text) == ([97, 98, 99], "ab")
    assert not one.stopped
    second = one.feed(tokens("def", 3))
    assert one.stopped
    assert second is not None
    assert (list(second.delta.token_ids), second.delta.text) == ([100], "")
    assert one.feed(tokens("gh", 6)) is None
    response = one.feed([last(FinishReason.CANCELLED, 8)])
    assert response is not None
    assert response.ending.finish_reason == pb.FINISH_REASON_STOP
    assert response.ending.matched_string == "cd"
    assert response.ending.usage.output_tokens == 4


def test_a_stop_string_does_not_end_in_the_first_min_tokens() -> None:
    one = output("ab", min_tokens=3)
    first = one.feed(tokens("ab"))
    assert first is not None
    assert (first.delta.text, one.stopped) == ("ab", False)
    second = one.feed(tokens("a", 2))
    assert second is not None
    assert second.delta.text == ""  # it may begin there, so it is held back
    third = one.feed([*tokens("b", 3), last(FinishReason.LENGTH, 4)])
    assert third is not None
    assert (third.delta.text, third.ending.matched_string) == ("", "ab")
    assert third.ending.usage.output_tokens == 4


class ByteTokenizer(LetterTokenizer):
    """A token for each byte of UTF-8: a character comes in up to four pieces."""

    def stream(self) -> TextStream:
        return _Bytes()


class _Bytes:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token]))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


@pytest.mark.parametrize("min_tokens", [0, 1])
def test_a_stop_string_of_characters_of_many_bytes(min_tokens: int) -> None:
    """It is found with the last byte of its last character; half a character is never said."""
    sampling = Sampling(max_tokens=99, min_tokens=min_tokens)
    one = Output(Accepted(Request(ID, (1,), sampling), "name", ("€é",)), ByteTokenizer())
    said = ""
    for at, byte in enumerate("a€€é".encode()):
        response = one.feed([TokenEvent(ID, 0, at, Sampled(byte))])
        said += response.delta.text if response is not None else ""
        assert one.stopped is (at == 8)
        assert "a€".startswith(said)
    assert said == "a€"


def test_a_character_that_is_never_finished_ends_as_a_replacement() -> None:
    one = Output(Accepted(Request(ID, (1,), Sampling(max_tokens=9)), "name", ("\ufffd",)), ByteTokenizer())
    one.feed([TokenEvent(ID, 0, 0, Sampled(ord("a"))), TokenEvent(ID, 0, 1, Sampled(0xE2))])
    response = one.feed([last(FinishReason.LENGTH, 2)])
    assert response is not None
    assert (response.delta.text, response.ending.matched_string) == ("", "\ufffd")


def test_held_text_comes_with_the_ending() -> None:
    one = output("xyz")
    first = one.feed(tokens("axy"))
    assert first is not None
    assert first.delta.text == "a"
    response = one.feed([last(FinishReason.LENGTH, 3)])
    assert response is not None
    assert (list(response.delta.token_ids), response.delta.text) == ([], "xy")
    assert response.delta.first_index == 3


def test_a_stop_string_beats_the_length_it_ends_with() -> None:
    response = output("ab").feed([*tokens("ab"), last(FinishReason.LENGTH, 2)])
    assert response is not None
    assert response.ending.finish_reason == pb.FINISH_REASON_STOP
    assert response.delta.text == ""


def test_log_probabilities_follow_their_tokens() -> None:
    sampled = Sampled(7, -0.25, ((7, -0.25), (9, -1.5)))
    response = output(logprobs=2, text=False).feed([TokenEvent(ID, 0, 0, sampled)])
    assert response is not None
    (one,) = response.delta.logprobs
    assert one.logprob == -0.25
    assert [(top.token_id, top.logprob) for top in one.top] == [(7, -0.25), (9, -1.5)]
    assert response.delta.text == ""


@given(st.text("abx", max_size=20), st.lists(st.integers(1, 4), min_size=20, max_size=20), st.booleans())
def test_however_turns_are_coalesced_the_stream_is_the_same(
    text: str, sizes: list[int], with_stop: bool
) -> None:
    stop = ("ax", "bb") if with_stop else ()

    def play(groups: list[list[TokenEvent]]) -> tuple[list[int], str, int]:
        one, ids, said = output(*stop), list[int](), ""
        for group in groups:
            response = one.feed(group)
            if response is not None:
                assert response.delta.first_index == len(ids) or not response.HasField("delta")
                ids += response.delta.token_ids
                said += response.delta.text
        assert one.ending is not None
        return ids, said, int(one.ending is FinishReason.STOP)

    events = [*tokens(text), last(FinishReason.LENGTH, len(text))]
    groups, rest = [], events
    for size in sizes:
        groups.append(rest[:size])
        rest = rest[size:]
    groups.append(rest)
    assert play(groups) == play([events]) == play([[event] for event in events])
