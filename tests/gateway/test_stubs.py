"""The gateway's own stubs against our service: the same wire, and the same meaning."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from superinfer_trt.serve.pb import executor_pb2 as pb
from support.gateway import PATIENCE_S, replica

TESTS = Path(__file__).resolve().parents[1]
PROMPT = [40, 41, 42]


def in_gateway(venv: Path, *command: str | Path) -> str:
    python = venv / "bin" / "python"
    done = subprocess.run(
        [python, "-I", *command], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_numbers_and_types_are_the_gateways(venv: Path) -> None:
    module = "smg_grpc_proto.generated.trtllm_service_pb2"
    theirs = in_gateway(venv, TESTS / "support" / "described.py", module, "TrtllmService")
    assert theirs == (TESTS / "wire" / "trtllm_fields.txt").read_text()


@pytest.fixture(scope="module")
def told(venv: Path, model: Path) -> dict[str, Any]:
    """What the client saw, and our own service's answer to the same prompt."""
    with replica("--model", str(model), "--hbm-blocks", "512", "--threads", "1", "--seats", "8") as one:
        said: dict[str, Any] = json.loads(in_gateway(venv, TESTS / "gateway" / "stub_client.py", one.target))
        asked = pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT), sampling=pb.Sampling(max_tokens=8))
        answers = one.stub.Generate(asked, timeout=PATIENCE_S)
        said["ours"] = [token for answer in answers for token in answer.delta.token_ids]
        said["cancelled"] = one.stats().finished_cancelled
    return said


def test_tokens_are_those_of_our_own_service(told: dict[str, Any]) -> None:
    streamed, whole = told["streamed"], told["whole"]
    assert len(told["ours"]) == 8
    assert [token for chunk in streamed["chunks"] for token in chunk] == streamed["ids"] == told["ours"]
    assert (whole["chunks"], whole["ids"]) == ([], told["ours"])
    for one in (streamed, whole):
        assert (one["finish_reason"], one["counts"]) == ("length", [3, 8, 0])
    assert (streamed["logprobs"], streamed["timed"]) == ([], False)
    assert (whole["logprobs"], whole["timed"]) == (told["ours"], True)


def test_abort_reaches_the_request(told: dict[str, Any]) -> None:
    assert told["aborted"] == {"finish_reason": "cancelled", "found": True, "found_again": False}
    assert told["cancelled"] == 1


def test_refusals_name_the_field(told: dict[str, Any]) -> None:
    assert told["guided"] == ["INVALID_ARGUMENT", "guided_decoding"]
    assert told["lora"] == ["INVALID_ARGUMENT", "lora_config"]
    assert told["embed"] == "UNIMPLEMENTED"


def test_what_is_told_beside_requests(told: dict[str, Any], model: Path, tokenizer: Path) -> None:
    assert (told["health"], told["backend"]) == ("OK", "superinfer-native")
    assert told["model"] == [str(model), 265, 4096]
    assert told["load"] == [[0, True, 1, 8], [0, True, 2, 8]]
    assert told["tokenizer"]["whole"]
    assert told["tokenizer"]["files"] == {
        one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in tokenizer.iterdir()
    }
