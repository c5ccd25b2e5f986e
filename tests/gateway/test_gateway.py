"""The real gateway in front of two replicas: OpenAI's API, and what happens when somebody leaves or dies."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from superinfer_trt.serve.pb import executor_pb2 as pb
from support.gateway import PATIENCE_S, Gateway, Replica, eventually, gateway, replica

MESSAGES = [{"role": "user", "content": "hello"}]
STEP_MS = 100
"""Of the modelled engine: far above what a word takes from a client through the gateway to a replica."""
TOKENS_BEHIND_MAX = 2
"""Tokens made after the client was gone, one turn at a time: that under way when they were counted, and
that under way when the word comes."""


def texts(answer: dict[str, Any]) -> str:
    """The new text of an event, or all of an answer."""
    choice = answer["choices"][0] if answer["choices"] else {}
    told = choice.get("message") or choice.get("delta") or choice
    return told.get("content") or told.get("text") or ""


# ---- values: a model with a tokenizer ------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(program: Path, model: Path, tokenizer: Path) -> Iterator[tuple[Gateway, list[Replica]]]:
    options = ("--model", str(model), "--hbm-blocks", "512", "--threads", "1")
    with ExitStack() as stack:
        replicas = [stack.enter_context(replica(*options)) for _ in range(2)]
        made = stack.enter_context(gateway(program, tokenizer, [one.target for one in replicas]))
        yield made, replicas


def own_text(one: Replica, tokens: int, **prompt: Any) -> str:
    """What our own service writes, greedily."""
    asked = pb.GenerateRequest(sampling=pb.Sampling(max_tokens=tokens), **prompt)
    return "".join(answer.delta.text for answer in one.stub.Generate(asked, timeout=PATIENCE_S))


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_both_replicas_say_what_our_own_service_says(
    pair: tuple[Gateway, list[Replica]], model: Path, kind: str
) -> None:
    made, replicas = pair
    before = [one.stats().accepted for one in replicas]
    if kind == "chat":
        path, asked = "/v1/chat/completions", {"messages": MESSAGES}
        prompt: dict[str, Any] = {"chat": pb.Chat(messages=[pb.ChatMessage(**one) for one in MESSAGES])}
    else:
        path, asked, prompt = "/v1/completions", {"prompt": "hello w"}, {"text": "hello w"}
    body = {"model": str(model), "max_tokens": 40, "temperature": 0, **asked}
    for _ in range(2):
        status, answer = made.post(path, body)
        assert status == 200, answer
        events = made.stream(path, {**body, "stream_options": {"include_usage": True}})
        told = list(events)
        assert (events.status, events.done) == (200, True)
        expected = own_text(replicas[0], 40, **prompt)
        assert len(expected) == 40
        assert texts(answer) == "".join(map(texts, told)) == expected
        assert answer["choices"][0]["finish_reason"] == "length"
        assert [one["usage"] for one in told if one.get("usage")][-1]["completion_tokens"] == 40
        assert answer["usage"]["completion_tokens"] == 40
    asked_here = [one.stats().accepted - count for one, count in zip(replicas, before, strict=True)]
    assert asked_here == [4, 2]  # two of the first's are ours


@pytest.mark.parametrize("streaming", [True, False])
def test_stop_strings_end_it_with_openais_word(
    pair: tuple[Gateway, list[Replica]], model: Path, streaming: bool
) -> None:
    made, replicas = pair
    whole = own_text(replicas[0], 40, text="hello")
    stop = whole[20:23]
    body = {"model": str(model), "prompt": "hello", "max_tokens": 40, "temperature": 0, "stop": [stop]}
    if streaming:
        told = list(made.stream("/v1/completions", body))
        text, last = "".join(map(texts, told)), [one for one in told if one["choices"]][-1]["choices"][0]
    else:
        _, answer = made.post("/v1/completions", body)
        text, last = texts(answer), answer["choices"][0]
    assert text == whole[: whole.index(stop)]
    assert last["finish_reason"] == "stop"


def test_log_probabilities(pair: tuple[Gateway, list[Replica]], model: Path) -> None:
    made, _ = pair
    body = {"model": str(model), "messages": MESSAGES, "max_tokens": 3, "temperature": 0}
    status, answer = made.post("/v1/chat/completions", {**body, "logprobs": True, "top_logprobs": 2})
    assert status == 200, answer
    told = answer["choices"][0]["logprobs"]["content"]
    assert "".join(one["token"] for one in told) == texts(answer)
    for one in told:
        assert one["logprob"] <= 0
        assert one["top_logprobs"][0]["token"] == one["token"]  # greedy
        assert len(one["top_logprobs"]) == 2


def test_what_cannot_be_done_is_the_clients_error(pair: tuple[Gateway, list[Replica]], model: Path) -> None:
    made, replicas = pair
    body = {"model": str(model), "messages": MESSAGES, "max_tokens": 3}
    for field, more in (
        ("guided_decoding", {"response_format": {"type": "json_object"}}),
        ("num_return_sequences", {"n": 2}),
    ):
        status, answer = made.post("/v1/chat/completions", {**body, **more})
        assert (status, field in answer["error"]["message"]) == (400, True), answer
    assert made.post("/v1/chat/completions", body)[0] == 200
    assert all(one.stats().serving for one in replicas)


def test_the_clients_request_id_leads_the_one_that_replicas_see(
    pair: tuple[Gateway, list[Replica]], model: Path
) -> None:
    made, _ = pair
    body = {"model": str(model), "messages": MESSAGES, "max_tokens": 2}
    for name in ("gold.7", "a b/ü!".encode().decode("latin-1"), "x" * 128):
        status, answer = made.post("/v1/chat/completions", body, x_request_id=name)
        assert status == 200, answer
        if name.startswith("gold."):
            assert answer["id"].startswith("gold.7-")


def test_a_chat_without_a_limit_of_its_own_is_taken(pair: tuple[Gateway, list[Replica]], model: Path) -> None:
    """The gateway then fills in 2,048, and the prompt has taken most of the context."""
    made, _ = pair
    long = [{"role": "user", "content": "a b " * 1000}]
    status, answer = made.post("/v1/chat/completions", {"model": str(model), "messages": long})
    assert status == 200, answer
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 4096


# ---- life and death: a modelled engine, whose steps take their time ---------------------------------


@contextmanager
def paced(
    program: Path, tokenizer: Path, *, policy: str = "round_robin", step_ms: int = 20, requests_max: int = 64
) -> Iterator[tuple[Gateway, list[Replica]]]:
    modelled = (
        "--engine", "sim", "--hbm-blocks", "4096", "--requests-max", str(requests_max),
        "--set", "engine.vocabulary=265", "--set", f"engine.step_cost.base_ns={step_ms * 1_000_000}",
        "--depth", "1",
    )  # fmt: skip
    with ExitStack() as stack:
        replicas = [stack.enter_context(replica(*modelled)) for _ in range(2)]
        targets = [one.target for one in replicas]
        options = (
            "--disable-retries",
            "--health-check-interval-secs", "1", "--health-check-timeout-secs", "1",
            "--health-failure-threshold", "1",
        )  # fmt: skip
        made = stack.enter_context(gateway(program, tokenizer, targets, *options, policy=policy))
        yield made, replicas


def long_chat() -> dict[str, Any]:
    """The modelled engine knows no end of a sequence, but the gateway does."""
    return {"model": "sim", "messages": MESSAGES, "max_tokens": 2000, "ignore_eos": True}


def made_tokens(replicas: list[Replica]) -> int:
    return sum(one.stats().output_tokens for one in replicas)


def test_who_leaves_ends_the_request_within_a_token(program: Path, tokenizer: Path) -> None:
    with paced(program, tokenizer, step_ms=STEP_MS) as (made, replicas):
        for streaming in (True, False):
            before = [one.stats() for one in replicas]
            if streaming:
                events = made.stream("/v1/chat/completions", long_chat())
                told = iter(events)
                while not texts(next(told)):
                    pass
                leave = events.leave
            else:
                leave = made.leaving("/v1/chat/completions", long_chat()).close
            start = sum(one.output_tokens for one in before)
            assert eventually(lambda start=start: made_tokens(replicas) >= start + 3)
            left_at = made_tokens(replicas)
            leave()
            assert eventually(lambda: all(one.live == 0 for one in replicas), 10)
            assert made_tokens(replicas) - left_at <= TOKENS_BEHIND_MAX
            cancelled = sum(one.finished_cancelled for one in before)
            assert sum(one.stats().finished_cancelled for one in replicas) == cancelled + 1
            at_rest = made_tokens(replicas)
            assert made.post("/v1/chat/completions", {**long_chat(), "max_tokens": 2})[0] == 200
            assert made_tokens(replicas) == at_rest + 2


def test_overload_is_429(program: Path, tokenizer: Path) -> None:
    with paced(program, tokenizer, requests_max=2) as (made, replicas):
        held = [made.stream("/v1/chat/completions", long_chat()) for _ in range(4)]
        assert [one.status for one in held] == [200] * 4
        assert [one.stats().streams for one in replicas] == [2, 2]
        for _ in range(2):
            status, answer = made.post("/v1/chat/completions", long_chat())
            assert status == 429, answer
            assert made.stream("/v1/chat/completions", long_chat()).status == 429
        assert [one.stats().refused for one in replicas] == [2, 2]
        for one in held:
            one.leave()
        assert eventually(lambda: all(one.live == 0 for one in replicas), 10)
        assert made.post("/v1/chat/completions", {**long_chat(), "max_tokens": 2})[0] == 200


def test_a_killed_replica_takes_only_its_own_streams_with_it(program: Path, tokenizer: Path) -> None:
    with paced(program, tokenizer) as (made, replicas):
        doomed, other = replicas
        body = {**long_chat(), "max_tokens": 150}
        held = [made.stream("/v1/chat/completions", body) for _ in range(4)]
        told = [iter(one) for one in held]
        for one in told:
            while not texts(next(one)):
                pass
        assert [one.stats().streams for one in replicas] == [2, 2]
        doomed.process.send_signal(signal.SIGKILL)
        doomed.process.wait()
        lost, whole = 0, 0
        for one, source in zip(held, told, strict=True):
            rest = list(source)
            if "error" in (rest[-1] if rest else {}):
                lost += 1
            else:
                whole += 1
                assert rest[-1]["choices"][0]["finish_reason"] == "length"
                assert one.done
        assert (lost, whole) == (2, 2)
        assert other.stats().finished_length == 2

        def only_the_other_is_asked() -> bool:
            answers = [made.post("/v1/chat/completions", {**body, "max_tokens": 1})[0] for _ in range(4)]
            return answers == [200] * 4

        assert eventually(only_the_other_is_asked, 30)
        before = other.stats().accepted
        assert only_the_other_is_asked()
        assert other.stats().accepted == before + 4


def test_who_has_less_to_do_gets_the_next(program: Path, tokenizer: Path) -> None:
    """Requests that came past the gateway: only the load that replicas tell can show them."""
    with paced(program, tokenizer, policy="cache_aware") as (made, replicas):
        busy, idle = replicas
        ids = pb.TokenIds(ids=[40, 41])
        asked = pb.GenerateRequest(token_ids=ids, sampling=pb.Sampling(max_tokens=1500))
        held = [busy.stub.Generate(asked) for _ in range(40)]

        def told() -> dict[str, Any]:
            _, loads = made.get("/loads")
            return {one["worker"]: one for one in loads["loads"]}

        def counts() -> list[int | None]:
            now = told()
            return [now.get(f"grpc://{one.target}", {}).get("num_total_reqs") for one in replicas]

        assert eventually(lambda: counts() == [40, 0], 15), told()
        assert told()[f"grpc://{busy.target}"]["max_running_requests"] == 64
        for number in range(8):
            messages = [{"role": "user", "content": f"{number} is another question"}]
            status, _ = made.post(
                "/v1/chat/completions", {**long_chat(), "messages": messages, "max_tokens": 2}
            )
            assert status == 200
        # The gateway weighs what it knows of prompts as well: by turns it would be four and four.
        assert busy.stats().accepted + idle.stats().accepted == 48
        assert idle.stats().accepted >= 6
        for one in held:
            one.cancel()
