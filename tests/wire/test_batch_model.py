"""`superinfer-trt batch` with a real model: OpenAI's objects, and the same bytes here and over a server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from superinfer_trt.core.errors import ModelError
from superinfer_trt.model.cache import ModelCache
from superinfer_trt.model.open import locate

pytestmark = pytest.mark.model

PATIENCE_S = 120
COMMAND = [sys.executable, "-c", "from superinfer_trt.cli.main import main; main()"]
POOLS = ["--hbm-blocks", "24", "--dram-blocks", "256"]
TALK = [{"role": "user", "content": "Name three colours."}]
GREEDY = {"model": "smollm2", "messages": TALK, "temperature": 0, "max_tokens": 12}
NUMBERS = {"prompt": "1, 2, 3, 4,", "temperature": 0, "max_tokens": 40, "stop": " 9"}
ONCE = {"prompt": "Once upon a", "max_tokens": 6, "logprobs": 1, "return_token_ids": True}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("chat/completions", {**GREEDY, "logprobs": True, "top_logprobs": 2}),
    "drawn": ("chat/completions", {"messages": TALK, "max_tokens": 24}),
    "seeded": ("chat/completions", {"messages": TALK, "max_tokens": 24, "seed": -5, "top_p": 0.9}),
    "stopped": ("completions", NUMBERS),
    "tokens": ("completions", ONCE),
    "other": ("completions", {"model": "gpt-4o", "prompt": "Once"}),
    "hot": ("completions", {"prompt": "Once", "temperature": 1000}),
    "empty": ("chat/completions", {"messages": []}),
}


@pytest.fixture(scope="module", autouse=True)
def cached() -> None:
    try:
        locate("smollm2", ModelCache())
    except ModelError as error:
        pytest.skip(str(error))


def run(*arguments: str) -> None:
    command = [*COMMAND, "batch", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 3, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("batch") / "requests.jsonl"
    with path.open("w") as file:
        for id, (url, body) in REQUESTS.items():
            line = {"custom_id": id, "method": "POST", "url": f"/v1/{url}", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


@pytest.fixture(scope="module")
def here(source: Path) -> Path:
    output = source.with_name("here.jsonl")
    run(str(source), str(output), *POOLS, "--ordered")
    return output


@pytest.fixture(scope="module")
def answers(here: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in here.read_bytes().splitlines()]
    assert [line["line"] for line in lines] == list(range(1, len(REQUESTS) + 1))
    return {line["custom_id"]: line for line in lines}


def test_a_server_gives_the_same_bytes(source: Path, here: Path) -> None:
    output = source.with_name("there.jsonl")
    process = subprocess.Popen([*COMMAND, "serve", *POOLS, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        target = json.loads(process.stdout.readline())["target"]
        run(str(source), str(output), "--target", target, "--ordered")
    finally:
        process.kill()
        process.communicate()
    assert output.read_bytes() == here.read_bytes()


def test_a_chat_completion(answers: dict[str, Any]) -> None:
    response = answers["greedy"]["response"]
    body = response["body"]
    assert (response["status_code"], answers["greedy"]["error"]) == (200, None)
    assert (body["object"], body["model"], len(body["choices"])) == ("chat.completion", "smollm2", 1)
    choice = body["choices"][0]
    assert (choice["message"]["role"], choice["finish_reason"]) == ("assistant", "length")
    told = choice["logprobs"]["content"]
    assert "".join(one["token"] for one in told) == choice["message"]["content"]
    for one in told:
        assert bytes(one["bytes"]).decode() == one["token"]
        assert [one["token"], one["logprob"]] == [one["top_logprobs"][0][key] for key in ("token", "logprob")]
        assert len(one["top_logprobs"]) == 2
    usage = body["usage"]
    assert usage["completion_tokens"] == 12 == usage["total_tokens"] - usage["prompt_tokens"]


def test_completions(answers: dict[str, Any]) -> None:
    stopped = answers["stopped"]["response"]["body"]["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == (" 5, 6, 7, 8,", "stop")
    made = answers["tokens"]["response"]["body"]
    choice = made["choices"][0]
    assert made["object"] == "text_completion"
    assert len(choice["token_ids"]) == len(choice["logprobs"]["tokens"]) == made["usage"]["completion_tokens"]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    for at, token in zip(told["text_offset"], told["tokens"], strict=True):
        assert choice["text"][at:].startswith(token)


def test_lines_without_a_seed_are_drawn_apart(answers: dict[str, Any]) -> None:
    texts = {
        answers[id]["response"]["body"]["choices"][0]["message"]["content"] for id in ("drawn", "seeded")
    }
    assert len(texts) == 2


@pytest.mark.parametrize(
    ("id", "status", "param"),
    [("other", 404, "body.model"), ("hot", 400, "body.temperature"), ("empty", 400, "body.messages")],
)
def test_what_is_refused_names_the_field(answers: dict[str, Any], id: str, status: int, param: str) -> None:
    response = answers[id]["response"]
    assert response["status_code"] == status
    assert response["body"]["error"]["param"] == param
    assert answers[id]["error"]["message"] == response["body"]["error"]["message"]
