"""Messages of one request -> its output line in OpenAI's Batch format. Pure; one `Answer` a request.

Nothing in a line depends on time or on who shared the batch: two runs over the same input write equal lines.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from superinfer_trt.batch.body import Asked, in_body
from superinfer_trt.core.errors import Refused
from superinfer_trt.core.units import Nanos
from superinfer_trt.serve.errors import STATUS_OF_REFUSAL
from superinfer_trt.serve.pb import executor_pb2 as pb

LOGPROB_LEAST = -9999.0
"""Stands for minus infinity, which JSON has no word for; OpenAI's number."""

_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNIMPLEMENTED: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_FINISH = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}

TokenText = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Naming:
    """What the ids of a run are made of. `token_text`: None writes tokens as `token_id:N`; `has_text`:
    whether the executor answers in text at all, else token ids are always written."""

    input_sha256: str
    created: int = 0
    token_text: TokenText | None = None
    has_text: bool = True


@dataclass(slots=True)
class Answer:
    """What an executor has said to one request, with the time of each token."""

    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[pb.TokenLogprobs] = field(default_factory=list)
    times: array[int] = field(default_factory=lambda: array("q"))
    ending: pb.Ending | None = None

    def take(self, response: pb.GenerateResponse, now: Nanos) -> None:
        """The next message."""
        delta = response.delta
        self.token_ids.extend(delta.token_ids)
        self.times.extend([now] * len(delta.token_ids))
        self.logprobs.extend(delta.logprobs)
        if delta.text:
            self.texts.append(delta.text)
        if response.HasField("ending"):
            self.ending = response.ending

    @property
    def finished(self) -> bool:
        """It ended as asked."""
        return self.ending is not None and self.ending.finish_reason in _FINISH


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a line has no answer. `field`: of the input line; empty if none."""

    status_code: int
    code: str
    message: str
    field: str = ""


def failure_of_refusal(refusal: Refused) -> Failure:
    """A line that was refused here."""
    status = _HTTP[STATUS_OF_REFUSAL[refusal.code]]
    return Failure(status, refusal.code.value, str(refusal), refusal.field)


def failure_of_status(
    status: grpc.StatusCode, message: str, *, code: str = "", wire_field: str = ""
) -> Failure:
    """A request that the executor refused or did not end well; its words, with the fields of this format."""
    name = in_body(wire_field)
    if wire_field and message.startswith(f"{wire_field}:"):
        message = name + message[len(wire_field) :]
    return Failure(_HTTP.get(status, 500), code or status.name.lower(), message, name)


def answer_line(number: int, custom_id: str, asked: Asked, answer: Answer, naming: Naming) -> bytes:
    """The output line of a request that ended as asked."""
    assert answer.ending is not None
    digest = _digest(naming, number)
    usage = answer.ending.usage
    body = {
        "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{digest}",
        "object": "chat.completion" if asked.chat else "text_completion",
        "created": naming.created,
        "model": asked.model,
        "choices": [_choice(asked, answer, naming)],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.prompt_tokens + usage.output_tokens,
        },
        "system_fingerprint": None,
    }
    return _line(digest, number, custom_id, 200, body, None)


def failure_line(number: int, custom_id: str | None, failure: Failure, naming: Naming) -> bytes:
    """The output line of a request without an answer."""
    digest = _digest(naming, number)
    kind = "invalid_request_error" if failure.status_code < 429 else "server_error"
    told = {"message": failure.message, "type": kind, "param": failure.field or None, "code": failure.code}
    error = {"code": failure.code, "message": failure.message}
    return _line(digest, number, custom_id, failure.status_code, {"error": told}, error)


def _line(digest: str, number: int, custom_id: str | None, status: int, body: object, error: object) -> bytes:
    line = {
        "id": f"batch_req_{digest}",
        "custom_id": custom_id,
        "line": number,
        "response": {"status_code": status, "request_id": digest, "body": body},
        "error": error,
    }
    return json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _digest(naming: Naming, number: int) -> str:
    return hashlib.sha256(f"{naming.input_sha256}:{number}".encode()).hexdigest()[:24]


def _choice(asked: Asked, answer: Answer, naming: Naming) -> dict[str, Any]:
    assert answer.ending is not None
    text = "".join(answer.texts)
    made: dict[str, Any] = {"index": 0}
    if asked.chat:
        made["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        made["text"] = text
    made["logprobs"] = None
    if asked.wants_logprobs:
        make = _chat_logprobs if asked.chat else _completion_logprobs
        made["logprobs"] = make(answer, naming.token_text or _by_id)
    made["finish_reason"] = _FINISH[answer.ending.finish_reason]
    if asked.wants_ids or not naming.has_text:
        made["token_ids"] = answer.token_ids
    return made


def _chat_logprobs(answer: Answer, text_of: TokenText) -> dict[str, Any]:
    def told(id: int, logprob: float) -> dict[str, Any]:
        text = text_of(id)
        whole = "\ufffd" not in text  # a part of a character has no text of its own
        return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode()) if whole else None}

    content = []
    for id, one in zip(answer.token_ids, answer.logprobs, strict=True):
        top = [told(other.token_id, other.logprob) for other in one.top]
        content.append({**told(id, one.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def _completion_logprobs(answer: Answer, text_of: TokenText) -> dict[str, Any]:
    tokens = [text_of(id) for id in answer.token_ids]
    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        at += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(one.logprob) for one in answer.logprobs],
        "top_logprobs": [
            {text_of(other.token_id): _finite(other.logprob) for other in one.top} for one in answer.logprobs
        ],
        "text_offset": offsets,
    }


def _by_id(id: int) -> str:
    return f"token_id:{id}"


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOGPROB_LEAST
