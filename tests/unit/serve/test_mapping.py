"""Every refusal of the door, with its field, its kind and the status it becomes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import grpc
import pytest

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.model import Tokenizer
from superinfer_trt.core.request import OPTIONAL_SAMPLING
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, RequestId
from superinfer_trt.serve import mapping
from superinfer_trt.serve.errors import status_of
from superinfer_trt.serve.mapping import Accepted, Bounds, accept
from superinfer_trt.serve.pb import executor_pb2 as pb
from support.echo_service import LetterTokenizer

BOUNDS = Bounds(
    vocabulary=256,
    context_tokens_max=100,
    pool_tokens_max=64,
    default_max_tokens=16,
    model_stop_ids=frozenset({0}),
    seed=7,
)
ROOMY = Bounds(vocabulary=256, context_tokens_max=64, pool_tokens_max=1000)
LETTERS = LetterTokenizer()


def took(
    message: pb.GenerateRequest, bounds: Bounds = BOUNDS, tokenizer: Tokenizer | None = LETTERS
) -> Accepted:
    return accept(message, id=RequestId(5), arrival=1234, bounds=bounds, tokenizer=tokenizer)


def ids(*values: int, **sampling: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=values), sampling=pb.Sampling(**sampling))  # type: ignore[arg-type]


def chat(*messages: tuple[str, str]) -> pb.GenerateRequest:
    parts = [pb.ChatMessage(role=role, content=content) for role, content in messages]
    return pb.GenerateRequest(chat=pb.Chat(messages=parts))


INVALID, TOO_LARGE, UNSUPPORTED = RefusalCode.INVALID, RefusalCode.TOO_LARGE, RefusalCode.UNSUPPORTED

REFUSED: list[tuple[str, pb.GenerateRequest, RefusalCode, str, str]] = [
    # name, message, kind, field, a part of the text that says the limit
    ("no prompt", pb.GenerateRequest(), INVALID, "prompt", "text, chat and token_ids"),
    ("empty text", pb.GenerateRequest(text=""), INVALID, "text", "at least 1 token"),
    ("no ids", ids(), INVALID, "token_ids", "at least 1 token"),
    ("no messages", chat(), INVALID, "chat.messages", "at least 1 message"),
    ("role", chat(("user", "a"), ("Bad Role", "b")), INVALID, "chat.messages[1].role", "1 to 32"),
    ("role of the template", chat(("tool", "a")), INVALID, "chat", "no role tool"),
    ("messages", chat(*[("user", "x")] * 1025), TOO_LARGE, "chat.messages", "at most 1024"),
    ("long chat", chat(("user", "x" * (1 << 20)), ("user", "y")), TOO_LARGE, "chat.messages", "1048576"),
    ("long text", pb.GenerateRequest(text="x" * ((1 << 20) + 1)), TOO_LARGE, "text", "1048576"),
    ("id", ids(1, 256), INVALID, "token_ids", "id 256 at place 1"),
    ("id, 32 bits", ids(2**32 - 1), INVALID, "token_ids", "vocabulary of 256"),
    ("text outside", pb.GenerateRequest(text="aé€"), INVALID, "text", "outside the engine's vocabulary"),
    ("long prompt", ids(*[1] * 64), TOO_LARGE, "token_ids", "64 tokens of the HBM pool"),
    ("long prompt text", pb.GenerateRequest(text="x" * 64), TOO_LARGE, "text", "64 tokens of the HBM pool"),
    ("max_tokens 0", ids(1, max_tokens=0), INVALID, "sampling.max_tokens", "1 or more"),
    ("max_tokens", ids(1, max_tokens=64), TOO_LARGE, "sampling.max_tokens", "64 tokens of the HBM pool"),
    ("max_tokens, 32 bits", ids(1, max_tokens=2**32 - 1), TOO_LARGE, "sampling.max_tokens", "do not fit"),
    ("temperature NaN", ids(1, temperature=math.nan), INVALID, "sampling.temperature", "0 to 100"),
    ("temperature inf", ids(1, temperature=math.inf), INVALID, "sampling.temperature", "0 to 100"),
    ("temperature < 0", ids(1, temperature=-0.1), INVALID, "sampling.temperature", "0 to 100"),
    ("temperature > 100", ids(1, temperature=101), INVALID, "sampling.temperature", "0 to 100"),
    ("top_p 0", ids(1, top_p=0.0), INVALID, "sampling.top_p", "above 0"),
    ("top_p > 1", ids(1, top_p=1.01), INVALID, "sampling.top_p", "at most 1"),
    ("top_p NaN", ids(1, top_p=math.nan), INVALID, "sampling.top_p", "above 0"),
    ("stop ids", ids(1, stop_token_ids=range(65)), TOO_LARGE, "sampling.stop_token_ids", "at most 64"),
    ("stop id", ids(1, stop_token_ids=[3, 256]), INVALID, "sampling.stop_token_ids[1]", "vocabulary of 256"),
    ("stop strings", ids(1, stop=["a"] * 17), TOO_LARGE, "sampling.stop", "at most 16"),
    ("empty stop", ids(1, stop=["a", ""]), INVALID, "sampling.stop[1]", "empty"),
    ("long stop", ids(1, stop=["x" * 10**6]), TOO_LARGE, "sampling.stop[0]", "at most 256"),
    ("logprobs", ids(1, logprobs=21), INVALID, "sampling.logprobs", "at most 20"),
    ("min_p < 0", ids(1, min_p=-0.1), INVALID, "sampling.min_p", "0 to 1"),
    ("min_p > 1", ids(1, min_p=1.1), INVALID, "sampling.min_p", "0 to 1"),
    ("min_p NaN", ids(1, min_p=math.nan), INVALID, "sampling.min_p", "0 to 1"),
    ("repetition 0", ids(1, repetition_penalty=0), INVALID, "sampling.repetition_penalty", "above 0"),
    (
        "repetition > 100",
        ids(1, repetition_penalty=101),
        INVALID,
        "sampling.repetition_penalty",
        "at most 100",
    ),
    (
        "repetition NaN",
        ids(1, repetition_penalty=math.nan),
        INVALID,
        "sampling.repetition_penalty",
        "above 0",
    ),
    ("presence", ids(1, presence_penalty=2.1), INVALID, "sampling.presence_penalty", "-2 to 2"),
    ("presence NaN", ids(1, presence_penalty=math.nan), INVALID, "sampling.presence_penalty", "-2 to 2"),
    ("frequency", ids(1, frequency_penalty=-2.1), INVALID, "sampling.frequency_penalty", "-2 to 2"),
    ("min_tokens", ids(1, max_tokens=4, min_tokens=5), INVALID, "sampling.min_tokens", "max_tokens (4)"),
    ("min_tokens of default", ids(1, min_tokens=200), INVALID, "sampling.min_tokens", "max_tokens (16)"),
    ("id of request", pb.GenerateRequest(request_id="x" * 129), TOO_LARGE, "request_id", "at most 128"),
    ("id's characters", pb.GenerateRequest(request_id="a b"), INVALID, "request_id", "A-Z"),
    ("id with newline", pb.GenerateRequest(request_id="a\n"), INVALID, "request_id", "A-Z"),
    ("tenant", pb.GenerateRequest(tenant="x" * 65), TOO_LARGE, "tenant", "at most 64"),
    ("tenant's characters", pb.GenerateRequest(tenant="é"), INVALID, "tenant", "A-Z"),
]
for _name in ("ttft_ms", "tbt_ms"):
    for _value in (0.0, -1.0, math.nan, math.inf, 86_400_001.0):
        REFUSED.append(
            (
                f"{_name} {_value}",
                pb.GenerateRequest(slo=pb.Slo(**{_name: _value})),
                INVALID,
                f"slo.{_name}",
                "at most 86400000",
            )
        )


@pytest.mark.parametrize(
    ("message", "code", "field", "limit"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused_with_field_and_limit(
    message: pb.GenerateRequest, code: RefusalCode, field: str, limit: str
) -> None:
    with pytest.raises(Refused) as caught:
        took(message)
    assert (caught.value.code, caught.value.field) == (code, field)
    assert limit in caught.value.message
    status = status_of(caught.value)
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(status.trailers) == {"superinfer-field": field, "superinfer-code": code.value}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.GenerateRequest(text="a"), "text"),
        (chat(("user", "a")), "chat"),
        (ids(1, stop=["x"]), "sampling.stop"),
    ],
)
def test_text_needs_a_tokenizer(message: pb.GenerateRequest, field: str) -> None:
    with pytest.raises(Refused) as caught:
        took(message, tokenizer=None)
    assert (caught.value.code, caught.value.field) == (UNSUPPORTED, field)
    assert status_of(caught.value).code is grpc.StatusCode.UNIMPLEMENTED


OPTIONAL = {
    "min_p": 0.5,
    "repetition_penalty": 1.5,
    "presence_penalty": -1.0,
    "frequency_penalty": 1.0,
    "min_tokens": 2,
}


@pytest.mark.parametrize("field", sorted(OPTIONAL_SAMPLING))
def test_what_an_engine_cannot_do_is_refused_by_name(field: str) -> None:
    message = ids(1, **{field: OPTIONAL[field]})
    with pytest.raises(Refused) as caught:
        took(message, replace(BOUNDS, supports=OPTIONAL_SAMPLING - {field}))
    assert (caught.value.code, caught.value.field) == (UNSUPPORTED, f"sampling.{field}")
    assert status_of(caught.value).code is grpc.StatusCode.UNIMPLEMENTED
    assert getattr(took(message).request.sampling, field) == OPTIONAL[field]


def test_a_value_that_changes_nothing_needs_no_support() -> None:
    message = ids(1, min_p=0, repetition_penalty=1, presence_penalty=0, frequency_penalty=0, min_tokens=0)
    sampling = took(message, replace(BOUNDS, supports=frozenset())).request.sampling
    assert not sampling.penalised
    assert sampling == took(ids(1)).request.sampling


def test_something_must_be_left_that_is_no_stop_id() -> None:
    tiny = replace(BOUNDS, vocabulary=2, model_stop_ids=frozenset({0, 5}))
    assert took(ids(1, min_tokens=1), tiny).request.sampling.stop_ids == {0}
    with pytest.raises(Refused, match="every token is a stop id"):
        took(ids(1, min_tokens=1, stop_token_ids=[1]), tiny)


def test_the_smaller_of_model_and_pools_counts() -> None:
    with pytest.raises(Refused, match="64 tokens of the model's context"):
        took(ids(*[1] * 64), ROOMY)
    with pytest.raises(Refused, match="64 tokens of the model's context"):
        took(ids(1, max_tokens=64), ROOMY)
    assert took(ids(1, max_tokens=63), ROOMY).request.sampling.max_tokens == 63
    assert took(ids(1, max_tokens=63)).request.sampling.max_tokens == 63


def test_a_plain_request_takes_the_defaults() -> None:
    accepted = took(ids(1, 2, 3))
    request = accepted.request
    assert request.prompt == (1, 2, 3)
    assert (request.id, request.arrival, accepted.name, request.tenant) == (5, 1234, "#5", "")
    assert request.slo == Slo()
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k, sampling.top_p) == (16, 0.0, 0, 1.0)
    assert sampling.stop_ids == {0}
    assert sampling.logprobs == -1


def test_a_full_request_is_taken_as_given() -> None:
    message = pb.GenerateRequest(
        request_id="a.b_c:d-e/9",
        text="hi",
        tenant="acme",
        slo=pb.Slo(ttft_ms=250, tbt_ms=0.5),
        sampling=pb.Sampling(
            max_tokens=62,
            temperature=0.75,
            top_k=40,
            top_p=0.5,
            seed=2**64 - 1,
            stop_token_ids=[9, 8],
            stop=["ab", "ab", "c"],
            ignore_eos=True,
            logprobs=3,
        ),
    )
    accepted = took(message)
    request = accepted.request
    assert (accepted.name, accepted.stop, request.tenant) == ("a.b_c:d-e/9", ("ab", "c"), "acme")
    assert request.slo == Slo(250 * MILLISECOND, MILLISECOND // 2)
    assert request.prompt == (104, 105)
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (62, 0.75, 40)
    assert (sampling.top_p, sampling.seed, sampling.logprobs) == (0.5, 2**64 - 1, 3)
    assert sampling.stop_ids == {8, 9}


def test_an_objective_left_out_is_the_servers() -> None:
    assert took(pb.GenerateRequest(text="a", slo=pb.Slo(ttft_ms=7))).request.slo == Slo(7 * MILLISECOND)


def test_default_output_is_cut_to_what_fits() -> None:
    assert took(ids(*[1] * 60)).request.sampling.max_tokens == 4


@pytest.mark.parametrize(("given", "meant"), [(255, 255), (256, 0), (2**32 - 1, 0)])
def test_top_k_of_everything_is_no_limit(given: int, meant: int) -> None:
    assert took(ids(1, top_k=given)).request.sampling.top_k == meant


@pytest.mark.parametrize(("given", "meant"), [(1e-30, 0.0), (2e-6, 2e-6)])
def test_a_temperature_near_zero_is_greedy(given: float, meant: float) -> None:
    assert took(ids(1, temperature=given)).request.sampling.temperature == pytest.approx(meant)


def test_seeds_of_requests_without_one_differ_and_repeat() -> None:
    seeds = [mapping.seed_of(7, RequestId(id)) for id in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert took(ids(1)).request.sampling.seed == seeds[5]
    assert mapping.seed_of(8, RequestId(5)) != seeds[5]


class Broken(LetterTokenizer):
    """A tokenizer with a bug."""

    def encode(self, text: str) -> list[int]:
        raise RuntimeError("secret path")


class Silent(LetterTokenizer):
    """A tokenizer that makes nothing of something."""

    def encode(self, text: str) -> list[int]:
        return []


@pytest.mark.parametrize(("make", "text"), [(Broken, "cannot be tokenised"), (Silent, "the prompt is empty")])
def test_trouble_in_a_tokenizer_is_a_refusal(make: Callable[[], Tokenizer], text: str) -> None:
    with pytest.raises(Refused, match=text) as caught:
        took(pb.GenerateRequest(text="a"), tokenizer=make())
    assert caught.value.field == "text"
    assert "secret" not in str(caught.value)
