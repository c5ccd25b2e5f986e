"""Lines of OpenAI's Batch format: what becomes of them, and what is refused by which name."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.batch.body import CHAT, COMPLETIONS, Asked, Rules, custom_id_of, in_body, read_line
from superinfer_trt.batch.fields import parse_object
from superinfer_trt.core.errors import Refused

RULES = Rules("served", frozenset({"served", "alias"}), seed=7)
TEXT = {"prompt": "Once"}
TALK = {"messages": [{"role": "user", "content": "Hello"}]}


def read(body: dict[str, Any], url: str = COMPLETIONS, number: int = 1, **line: Any) -> Asked:
    made = {"custom_id": "a", "method": "POST", "url": url, "body": body, **line}
    return read_line(parse_object(json.dumps(made).encode()), number, RULES)


def refused(body: dict[str, Any], url: str = COMPLETIONS, **line: Any) -> Refused:
    with pytest.raises(Refused) as told:
        read(body, url, **line)
    return told.value


def test_a_completion() -> None:
    asked = read(
        {
            **TEXT,
            "model": "alias",
            "max_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.25,
            "top_k": 4,
            "min_p": 0.125,
            "seed": -1,
            "stop": ["a", "b"],
            "stop_token_ids": [3],
            "ignore_eos": True,
            "logprobs": 2,
            "presence_penalty": 1,
            "frequency_penalty": -1,
            "repetition_penalty": 1.5,
            "min_tokens": 2,
            "superinfer": {"ttft_slo_ms": 250, "tbt_slo_ms": 50, "tenant": "gold"},
        }
    )
    request, sampling = asked.request, asked.request.sampling
    assert (request.text, request.tenant, request.slo.ttft_ms, request.slo.tbt_ms) == (
        "Once",
        "gold",
        250,
        50,
    )
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (5, 0.5, 0.25, 4)
    assert (sampling.min_p, sampling.seed, list(sampling.stop)) == (0.125, (1 << 64) - 1, ["a", "b"])
    assert (list(sampling.stop_token_ids), sampling.ignore_eos, sampling.logprobs) == ([3], True, 2)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert (sampling.repetition_penalty, sampling.min_tokens) == (1.5, 2)
    assert (asked.model, asked.chat, asked.wants_logprobs, asked.wants_ids) == ("alias", False, True, False)


def test_a_conversation() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    talk = [{"role": "system", "content": "Be."}, {"role": "user", "content": parts}]
    asked = read({"messages": talk, "logprobs": True, "top_logprobs": 3, "max_completion_tokens": 9}, CHAT)
    assert [(one.role, one.content) for one in asked.request.chat.messages] == [
        ("system", "Be."),
        ("user", "one\ntwo"),
    ]
    assert asked.request.sampling.logprobs == 3
    assert asked.request.sampling.max_tokens == 9
    assert (asked.model, asked.chat) == ("served", True)


def test_left_out_is_openais_default() -> None:
    asked = read(TEXT)
    assert asked.request.sampling.temperature == 1.0
    assert not asked.request.sampling.HasField("max_tokens")
    assert not asked.request.sampling.HasField("logprobs")
    assert not asked.request.HasField("slo")
    assert read({**TEXT, "temperature": None, "stop": None, "logit_bias": None}) == asked, "null is left out"


def test_a_line_without_a_seed_gets_one_of_its_number() -> None:
    seeds = {read(TEXT, number=number).request.sampling.seed for number in range(1, 100)}
    assert len(seeds) == 99
    assert read(TEXT, number=4) == read(TEXT, number=4)


@pytest.mark.parametrize(
    ("prompt", "kind"), [("a", "text"), (["a"], "text"), ([1, 2], "token_ids"), ([[1, 2]], "token_ids")]
)
def test_prompts(prompt: Any, kind: str) -> None:
    assert read({"prompt": prompt}).request.WhichOneof("prompt") == kind


@pytest.mark.parametrize(
    "given",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "flex"},
        {"n": 1, "stream": False, "logit_bias": {}, "response_format": {"type": "text"}},
        {"echo": False, "best_of": 1, "suffix": ""},
    ],
)
def test_what_changes_nothing_is_taken(given: dict[str, Any]) -> None:
    assert read({**TEXT, **given}) == read(TEXT)


@pytest.mark.parametrize(
    ("given", "field", "code"),
    [
        ({"n": 2}, "body.n", "unsupported"),
        ({"n": True}, "body.n", "unsupported"),
        ({"stream": True}, "body.stream", "unsupported"),
        ({"logit_bias": {"1": 5}}, "body.logit_bias", "unsupported"),
        ({"response_format": {"type": "json_object"}}, "body.response_format", "unsupported"),
        ({"echo": True}, "body.echo", "unsupported"),
        ({"tools": []}, "body.tools", "unsupported"),
        ({"max_completion_tokens": 3}, "body.max_completion_tokens", "unsupported"),
        ({"temprature": 0}, "body.temprature", "unsupported"),
        ({"model": "gpt"}, "body.model", "unknown"),
        ({"prompt": None}, "body.prompt", "invalid"),
        ({"prompt": ["a", "b"]}, "body.prompt", "invalid"),
        ({"prompt": [[1], [2]]}, "body.prompt", "invalid"),
        ({"prompt": [1, -2]}, "body.prompt[1]", "invalid"),
        ({"prompt": [1, 1.5]}, "body.prompt[1]", "invalid"),
        ({"prompt": "\ud800"}, "body.prompt", "invalid"),
        ({"temperature": "0"}, "body.temperature", "invalid"),
        ({"temperature": 10**400}, "body.temperature", "invalid"),
        ({"max_tokens": 1 << 32}, "body.max_tokens", "invalid"),
        ({"max_tokens": 2.0}, "body.max_tokens", "invalid"),
        ({"seed": 1 << 64}, "body.seed", "invalid"),
        ({"stop": ["a", 1]}, "body.stop[1]", "invalid"),
        ({"superinfer": {"ttft": 1}}, "body.superinfer.ttft", "unsupported"),
        ({"superinfer": {"tenant": 1}}, "body.superinfer.tenant", "invalid"),
    ],
)
def test_a_wrong_completion_names_the_field(given: dict[str, Any], field: str, code: str) -> None:
    refusal = refused({**TEXT, **given})
    assert (refusal.field, refusal.code.value) == (field, code)
    assert str(refusal).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"messages": "hi"}, "body.messages"),
        ({"messages": [{"content": "hi"}]}, "body.messages[0].role"),
        ({"messages": [{"role": "user"}]}, "body.messages[0].content"),
        ({"messages": [{"role": "user", "content": "a", "name": "me"}]}, "body.messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "body.messages[0].content[0].type",
        ),
        ({"tools": [{"type": "function"}]}, "body.tools"),
        ({"top_logprobs": 2}, "body.top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "body.max_tokens"),
        ({"echo": True}, "body.echo"),
    ],
)
def test_a_wrong_conversation_names_the_field(given: dict[str, Any], field: str) -> None:
    assert refused({**TALK, **given}, CHAT).field == field


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"method": "GET"}, "method"),
        ({"url": "/v1/embeddings"}, "url"),
        ({"url": None}, "url"),
        ({"body": None}, "body"),
        ({"body": []}, "body"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_wrong_line_names_the_field(line: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as told:
        read_line({"custom_id": "a", "method": "POST", "url": CHAT, "body": TALK} | line, 1, RULES)
    assert told.value.field == field


@pytest.mark.parametrize("custom_id", [None, 5, "", "x" * 513, "\ud800"])
def test_a_line_needs_an_id(custom_id: Any) -> None:
    with pytest.raises(Refused, match="custom_id"):
        custom_id_of({"custom_id": custom_id})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[1]",
        b'{"a":NaN}',
        b'{"a":1,"a":2}',
        b"\xff",
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        parse_object(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        *("model", "prompt", "messages", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n"),
        *("stop_token_ids", "logprobs", "top_logprobs", "max_tokens", "max_completion_tokens", "superinfer"),
        *("tools", "ignore_eos", "return_token_ids", "user", "echo"),
    ]
)


@given(st.sampled_from((CHAT, COMPLETIONS)), st.dictionaries(NAMES, JSON))
def test_any_body_is_understood_or_refused(url: str, body: dict[str, Any]) -> None:
    """Nothing but Refused comes out, and what is understood fits the wire."""
    with contextlib.suppress(Refused):
        asked = read_line({"custom_id": "a", "method": "POST", "url": url, "body": body}, 1, RULES)
        assert asked.request.SerializeToString()


def test_fields_of_the_wire_in_words_of_the_body() -> None:
    assert in_body("sampling.top_p") == "body.top_p"
    assert in_body("sampling.stop[2]") == "body.stop[2]"
    assert in_body("chat.messages[3].role") == "body.messages[3].role"
    assert in_body("token_ids") == "body.prompt"
    assert in_body("slo.tbt_ms") == "body.superinfer.tbt_slo_ms"
    assert in_body("") == ""
