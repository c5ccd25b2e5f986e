"""Proto -> core.Request, or Refused with the field and the limit. All validation of requests lives here.

Pure: knows no server, clock or queue; the caller brings id, arrival and bounds. Raises `Refused` and
nothing else for any message. Thread-safe (a long text is mapped off the event loop).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.model import Tokenizer
from superinfer_trt.core.request import OPTIONAL_SAMPLING, Request, Sampling
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, Nanos, RequestId
from superinfer_trt.serve.pb import executor_pb2 as pb

NAME_PATTERN = re.compile(r"[A-Za-z0-9._:/-]*\Z")
ROLE_PATTERN = re.compile(r"[a-z0-9_]{1,32}\Z")
REQUEST_ID_CHARS_MAX = 128
TENANT_CHARS_MAX = 64
TEXT_CHARS_MAX = 1 << 20
MESSAGES_MAX = 1024
TEMPERATURE_MAX = 100.0
TEMPERATURE_MIN = 1e-6  # below it counts as 0: dividing logits by less overflows
STOP_IDS_MAX = 64
STOP_STRINGS_MAX = 16
STOP_STRING_CHARS_MAX = 256
LOGPROBS_MAX = 20
REPETITION_MAX = 100.0
PENALTY_MAX = 2.0  # of presence and frequency, either sign
SLO_MS_MAX = 86_400_000.0
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Bounds:
    """What this server can serve; constant while it lives.

    `pool_tokens_max`: tokens that the HBM pool holds, prompt and output together. `seed`: where the
    seeds of requests that bring none come from. `supports`: what of core.request.OPTIONAL_SAMPLING the
    engine can do; the rest is refused by name.
    """

    vocabulary: int
    context_tokens_max: int
    pool_tokens_max: int
    default_max_tokens: int = 128
    default_slo: Slo = field(default_factory=Slo)
    model_stop_ids: frozenset[int] = frozenset()
    seed: int = 0
    supports: frozenset[str] = OPTIONAL_SAMPLING
    stop_ids: frozenset[int] = field(init=False)  # the model's, as far as the engine knows them
    request_tokens_max: int = field(init=False)  # prompt and output together

    def __post_init__(self) -> None:
        known = frozenset(token for token in self.model_stop_ids if token < self.vocabulary)
        object.__setattr__(self, "stop_ids", known)
        object.__setattr__(self, "request_tokens_max", min(self.context_tokens_max, self.pool_tokens_max))


_Given = Mapping[str, Any]
"""What a caller has set of pb.Sampling, by name: three of the fifteen fields or so, and to read one that is
not set costs as much as to read one that is."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A valid request, and what only the door needs of it."""

    request: Request
    name: str  # the caller's request_id, or one made here
    stop: tuple[str, ...]


def accept(
    message: pb.GenerateRequest,
    *,
    id: RequestId,
    arrival: Nanos,
    bounds: Bounds,
    tokenizer: Tokenizer | None,
) -> Accepted:
    """The request in `message`. Raises Refused, naming the field and the limit."""
    name = _name(message.request_id, "request_id", REQUEST_ID_CHARS_MAX) or f"#{id}"
    tenant = _name(message.tenant, "tenant", TENANT_CHARS_MAX)
    slo = slo_of(message.slo, bounds.default_slo) if message.HasField("slo") else bounds.default_slo
    given = {field.name: value for field, value in message.sampling.ListFields()}
    stop = _stop_strings(given["stop"], tokenizer) if "stop" in given else ()
    _check_sampling(given, bounds)
    source, prompt = _prompt(message, bounds, tokenizer)
    max_tokens = _max_tokens(given, source, len(prompt), bounds)
    sampling = _sampling(given, max_tokens, id, bounds)
    return Accepted(Request(id, prompt, sampling, slo, arrival, tenant), name, stop)


def text_chars(message: pb.GenerateRequest) -> int:
    """Characters that `accept` will tokenise; tells the door whether to do it off the event loop."""
    if message.HasField("text"):
        return len(message.text)
    if message.HasField("chat"):
        return sum(len(part.content) for part in message.chat.messages)
    return 0


def slo_of(message: pb.Slo, default: Slo) -> Slo:
    """The objectives in `message`, each from `default` where left out. Raises Refused."""
    ttft, tbt = default.ttft, default.tbt
    if message.HasField("ttft_ms"):
        ttft = _duration(message.ttft_ms, "slo.ttft_ms")
    if message.HasField("tbt_ms"):
        tbt = _duration(message.tbt_ms, "slo.tbt_ms")
    return Slo(ttft, tbt)


def seed_of(server_seed: int, id: RequestId) -> int:
    """A seed for a request that brings none: SplitMix64 of the two numbers (Steele et al., 2014)."""
    value = (server_seed + (id + 1) * 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def _refuse(code: RefusalCode, name: str, message: str) -> Refused:
    return Refused(code, name, message)


def _invalid(name: str, message: str) -> Refused:
    return Refused(RefusalCode.INVALID, name, message)


def _name(value: str, name: str, chars_max: int) -> str:
    if not value:
        return value
    if len(value) > chars_max:
        raise _refuse(
            RefusalCode.TOO_LARGE, name, f"has {len(value)} characters; at most {chars_max} are allowed"
        )
    if not NAME_PATTERN.match(value):
        raise _invalid(name, "only the characters A-Z a-z 0-9 . _ : - / are allowed")
    return value


def _duration(value_ms: float, name: str) -> Nanos:
    if not (0 < value_ms <= SLO_MS_MAX):  # false for NaN too
        raise _invalid(name, f"must be above 0 and at most {SLO_MS_MAX:.0f} ms, not {value_ms}")
    return max(1, round(value_ms * MILLISECOND))


def _prompt(
    message: pb.GenerateRequest, bounds: Bounds, tokenizer: Tokenizer | None
) -> tuple[str, tuple[int, ...]]:
    """(name of the field, token ids); never empty."""
    kind = message.WhichOneof("prompt")
    if kind == "token_ids":
        return kind, _token_ids(message.token_ids.ids, bounds)
    if kind is None:
        raise _invalid("prompt", "one of text, chat and token_ids is required")
    if tokenizer is None:
        raise _refuse(RefusalCode.UNSUPPORTED, kind, "this engine has no tokenizer; send token_ids instead")
    made = _encode(message.text, tokenizer) if kind == "text" else _render(message.chat, tokenizer)
    prompt = tuple(made)
    if not prompt:
        raise _empty(kind)
    _check_prompt_tokens(kind, len(prompt), bounds)
    if min(prompt) < 0 or max(prompt) >= bounds.vocabulary:
        raise _invalid(
            kind, f"the tokenizer made an id outside the engine's vocabulary of {bounds.vocabulary}"
        )
    return kind, prompt


def _token_ids(ids: Sequence[int], bounds: Bounds) -> tuple[int, ...]:
    """They are unsigned on the wire."""
    _check_prompt_tokens("token_ids", len(ids), bounds)  # before they are copied
    prompt = tuple(ids)
    if not prompt:
        raise _empty("token_ids")
    if max(prompt) >= bounds.vocabulary:
        at = next(i for i, token in enumerate(prompt) if token >= bounds.vocabulary)
        raise _invalid(
            "token_ids", f"id {prompt[at]} at place {at} is not below the vocabulary of {bounds.vocabulary}"
        )
    return prompt


def _empty(kind: str) -> Refused:
    return _invalid(kind, "the prompt is empty; at least 1 token is required")


def _check_prompt_tokens(name: str, count: int, bounds: Bounds) -> None:
    """At least one output token must fit behind the prompt."""
    limit, why = bounds.context_tokens_max, "the model's context"
    if bounds.pool_tokens_max < limit:
        limit, why = bounds.pool_tokens_max, "the HBM pool"
    if count + 1 > limit:
        raise _refuse(
            RefusalCode.TOO_LARGE,
            name,
            f"{count} prompt tokens and at least 1 output token do not fit the {limit} tokens of {why}",
        )


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
    if not text:
        raise _empty("text")
    _check_chars("text", len(text))
    try:
        return tokenizer.encode(text)
    except Refused:
        raise
    except Exception as error:
        raise _invalid("text", f"cannot be tokenised ({type(error).__name__})") from error


def _render(chat: pb.Chat, tokenizer: Tokenizer) -> list[int]:
    if not chat.messages:
        raise _invalid("chat.messages", "is empty; at least 1 message is required")
    if len(chat.messages) > MESSAGES_MAX:
        raise _refuse(
            RefusalCode.TOO_LARGE,
            "chat.messages",
            f"has {len(chat.messages)} messages; at most {MESSAGES_MAX} are allowed",
        )
    _check_chars("chat.messages", sum(len(part.content) for part in chat.messages))
    for at, part in enumerate(chat.messages):
        if not ROLE_PATTERN.match(part.role):
            raise _invalid(
                f"chat.messages[{at}].role", "must be 1 to 32 lower-case letters, digits or underscores"
            )
    try:
        return tokenizer.chat([{"role": part.role, "content": part.content} for part in chat.messages])
    except Refused:
        raise
    except Exception as error:
        raise _invalid("chat", f"cannot be rendered ({type(error).__name__})") from error


def _check_chars(name: str, count: int) -> None:
    if count > TEXT_CHARS_MAX:
        raise _refuse(
            RefusalCode.TOO_LARGE, name, f"has {count} characters; at most {TEXT_CHARS_MAX} are allowed"
        )


def _stop_strings(stop: Sequence[str], tokenizer: Tokenizer | None) -> tuple[str, ...]:
    if tokenizer is None:
        raise _refuse(
            RefusalCode.UNSUPPORTED, "sampling.stop", "this engine has no tokenizer; use stop_token_ids"
        )
    if len(stop) > STOP_STRINGS_MAX:
        raise _refuse(
            RefusalCode.TOO_LARGE,
            "sampling.stop",
            f"has {len(stop)} strings; at most {STOP_STRINGS_MAX} are allowed",
        )
    for at, text in enumerate(stop):
        if not text:
            raise _invalid(f"sampling.stop[{at}]", "is empty; it would stop everything")
        if len(text) > STOP_STRING_CHARS_MAX:
            raise _refuse(
                RefusalCode.TOO_LARGE,
                f"sampling.stop[{at}]",
                f"has {len(text)} characters; at most {STOP_STRING_CHARS_MAX} are allowed",
            )
    return tuple(dict.fromkeys(stop))


def _check_sampling(given: _Given, bounds: Bounds) -> None:
    if "temperature" in given and not (0 <= given["temperature"] <= TEMPERATURE_MAX):  # false for NaN too
        raise _invalid(
            "sampling.temperature", f"must be 0 to {TEMPERATURE_MAX:.0f}, not {given['temperature']}"
        )
    if "top_p" in given and not (0 < given["top_p"] <= 1):
        raise _invalid("sampling.top_p", f"must be above 0 and at most 1, not {given['top_p']}")
    if not OPTIONAL_SAMPLING.isdisjoint(given):
        _check_optional(given, bounds)
    if "stop_token_ids" in given:
        _check_stop_ids(given["stop_token_ids"], bounds)
    if "logprobs" in given and given["logprobs"] > min(LOGPROBS_MAX, bounds.vocabulary):
        raise _invalid(
            "sampling.logprobs",
            f"must be at most {min(LOGPROBS_MAX, bounds.vocabulary)}, not {given['logprobs']}",
        )


def _check_stop_ids(stop_ids: Sequence[int], bounds: Bounds) -> None:
    if len(stop_ids) > STOP_IDS_MAX:
        raise _refuse(
            RefusalCode.TOO_LARGE,
            "sampling.stop_token_ids",
            f"has {len(stop_ids)} ids; at most {STOP_IDS_MAX} are allowed",
        )
    for at, token in enumerate(stop_ids):
        if token >= bounds.vocabulary:
            raise _invalid(
                f"sampling.stop_token_ids[{at}]",
                f"{token} is not below the vocabulary of {bounds.vocabulary}",
            )


def _check_optional(given: _Given, bounds: Bounds) -> None:
    """What not every engine can do; a value that changes nothing is always taken."""
    min_p = given.get("min_p", 0.0)
    if not (0 <= min_p <= 1):  # false for NaN too
        raise _invalid("sampling.min_p", f"must be 0 to 1, not {min_p}")
    repetition = given.get("repetition_penalty", 1.0)
    if not (0 < repetition <= REPETITION_MAX):
        raise _invalid(
            "sampling.repetition_penalty",
            f"must be above 0 and at most {REPETITION_MAX:.0f}, not {repetition}",
        )
    for name in ("presence_penalty", "frequency_penalty"):
        value = given.get(name, 0.0)
        if not (-PENALTY_MAX <= value <= PENALTY_MAX):
            raise _invalid(
                f"sampling.{name}", f"must be -{PENALTY_MAX:.0f} to {PENALTY_MAX:.0f}, not {value}"
            )
    for name in ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens"):
        neutral = 1 if name == "repetition_penalty" else 0
        if given.get(name, neutral) != neutral and name not in bounds.supports:
            raise _refuse(RefusalCode.UNSUPPORTED, f"sampling.{name}", "this engine cannot do it")


def _max_tokens(given: _Given, source: str, prompt_tokens: int, bounds: Bounds) -> int:
    """Output tokens; `source` is the prompt's field, already known to leave room for one."""
    room = bounds.request_tokens_max - prompt_tokens
    if "max_tokens" not in given:
        return min(bounds.default_max_tokens, room)
    max_tokens: int = given["max_tokens"]
    if max_tokens == 0:
        raise _invalid("sampling.max_tokens", "must be 1 or more, not 0")
    if max_tokens > room:
        pool = bounds.pool_tokens_max < bounds.context_tokens_max
        why = "the HBM pool" if pool else "the model's context"
        raise _refuse(
            RefusalCode.TOO_LARGE,
            "sampling.max_tokens",
            f"{prompt_tokens} prompt tokens ({source}) + {max_tokens} do not fit the "
            f"{bounds.request_tokens_max} tokens of {why}",
        )
    return max_tokens


def _sampling(given: _Given, max_tokens: int, id: RequestId, bounds: Bounds) -> Sampling:
    stop_ids = frozenset[int]() if given.get("ignore_eos") else bounds.stop_ids
    if "stop_token_ids" in given:
        stop_ids = stop_ids.union(given["stop_token_ids"])
    min_tokens = given.get("min_tokens", 0)
    if min_tokens > max_tokens:
        raise _invalid("sampling.min_tokens", f"must be at most max_tokens ({max_tokens}), not {min_tokens}")
    if min_tokens and len(stop_ids) >= bounds.vocabulary:
        raise _invalid("sampling.min_tokens", "every token is a stop id, so none could be made")
    temperature, top_k = given.get("temperature", 0.0), given.get("top_k", 0)
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature if temperature >= TEMPERATURE_MIN else 0.0,
        top_k=top_k if top_k < bounds.vocabulary else 0,
        top_p=given.get("top_p", 1.0),
        seed=given["seed"] if "seed" in given else seed_of(bounds.seed, id),
        stop_ids=stop_ids,
        logprobs=given.get("logprobs", -1),
        min_p=given.get("min_p", 0.0),
        repetition_penalty=given.get("repetition_penalty", 1.0),
        presence_penalty=given.get("presence_penalty", 0.0),
        frequency_penalty=given.get("frequency_penalty", 0.0),
        min_tokens=min_tokens,
    )
