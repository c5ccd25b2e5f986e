"""An input line of OpenAI's Batch format -> a `superinfer.v1` request, or Refused that names the field.

Only what the wire has no room for is refused here; whatever it can carry is judged by the executor, as every
other client's requests are (`serve/mapping.py`). What would change a result and cannot be heeded is refused;
what cannot change one (user, metadata) is ignored. Pure, thread-safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from superinfer_trt.batch.fields import Fields, checked_text, checked_whole, each, refuse, shown
from superinfer_trt.core.errors import RefusalCode
from superinfer_trt.core.units import RequestId
from superinfer_trt.serve.mapping import seed_of
from superinfer_trt.serve.pb import executor_pb2 as pb

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CUSTOM_ID_CHARS_MAX = 512
_TEMPERATURE_DEFAULT = 1.0  # OpenAI's; the wire's own is greedy
_IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "parallel_tool_calls",
)  # fmt: skip
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "stream": (False,),
    "stream_options": (),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
}
_NEUTRAL_CHAT: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
}
_NEUTRAL_COMPLETIONS: Mapping[str, tuple[Any, ...]] = {"best_of": (1,), "echo": (False,), "suffix": ("",)}
_NEUTRAL_MESSAGE: Mapping[str, tuple[Any, ...]] = {
    "tool_calls": ([],),
    "function_call": (),
    "audio": (),
    "refusal": ("",),
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What a run takes. `models`: names that mean the served model; empty: any name. `seed`: where the
    seeds of lines come from that bring none."""

    served: str
    models: frozenset[str] = field(default_factory=frozenset)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """One line, understood. `model`: as the line calls it. `wants_ids`: token ids in the answer."""

    request: pb.GenerateRequest
    chat: bool
    model: str
    wants_logprobs: bool
    wants_ids: bool


def custom_id_of(line: Mapping[str, Any]) -> str:
    """Raises Refused."""
    value = line.get("custom_id")
    if value is None:
        refuse("custom_id", "is required")
    text = checked_text(value, "custom_id")
    if not 1 <= len(text) <= CUSTOM_ID_CHARS_MAX:
        refuse("custom_id", f"must have 1 to {CUSTOM_ID_CHARS_MAX} characters, not {len(text)}")
    return text


def read_line(line: Mapping[str, Any], number: int, rules: Rules) -> Asked:
    """What line `number` asks for. Raises Refused."""
    fields = Fields(line)
    fields.ignore("custom_id")
    method, url = fields.text("method"), fields.text("url")
    if method not in (None, "POST"):
        refuse("method", f'must be "POST", not {shown(method)}')
    if url not in (CHAT, COMPLETIONS):
        refuse("url", f"must be {CHAT} or {COMPLETIONS}, not {shown(url)}")
    body = fields.objects("body")
    fields.end()
    if body is None:
        refuse("body", "is required")
    return _Body(body, chat=url == CHAT).asked(number, rules)


class _Body:
    """The fields of one body, each taken once."""

    def __init__(self, fields: Fields, *, chat: bool) -> None:
        self._fields = fields
        self._chat = chat

    def asked(self, number: int, rules: Rules) -> Asked:
        fields = self._fields
        model = self._model(rules)
        request = pb.GenerateRequest()
        self._prompt(request)
        self._sampling(request.sampling, number, rules)
        wants_logprobs = self._logprobs(request.sampling)
        self._extension(request)
        wants_ids = fields.flag("return_token_ids")
        own = _NEUTRAL_CHAT if self._chat else _NEUTRAL_COMPLETIONS
        for name, allowed in (*_NEUTRAL.items(), *own.items()):
            fields.neutral(name, *allowed)
        fields.ignore(*_IGNORED)
        fields.end()
        return Asked(request, self._chat, model, wants_logprobs, wants_ids)

    def _model(self, rules: Rules) -> str:
        model = self._fields.text("model")
        if model is None:
            return rules.served
        if rules.models and model not in rules.models:
            known = ", ".join(sorted(rules.models))
            why = f"{shown(model)} is not served here; there are {known} (--model-alias adds a name)"
            refuse(self._fields.name("model"), why, RefusalCode.UNKNOWN)
        return model

    def _prompt(self, request: pb.GenerateRequest) -> None:
        name = "messages" if self._chat else "prompt"
        value, full = self._fields.take(name), self._fields.name(name)
        if value is None:
            refuse(full, "is required")
        if self._chat:
            if not isinstance(value, list):
                refuse(full, f"must be a list of messages, not {shown(value)}")
            request.chat.messages.extend(each(value, full, _message))
            return
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list)):
            value = value[0]  # a list of one prompt
        if isinstance(value, str):
            request.text = checked_text(value, full)
        elif isinstance(value, list) and not any(isinstance(one, (str, list)) for one in value):
            request.token_ids.ids.extend(each(value, full, checked_whole))
        else:
            refuse(full, "must be one string or one list of token ids; give each prompt a line of its own")

    def _sampling(self, sampling: pb.Sampling, number: int, rules: Rules) -> None:
        fields = self._fields
        temperature = fields.number("temperature")
        sampling.temperature = _TEMPERATURE_DEFAULT if temperature is None else temperature
        for name in ("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            value = fields.number(name)
            if value is not None:
                setattr(sampling, name, value)
        sampling.top_k = max(0, fields.whole("top_k", -1) or 0)
        sampling.min_tokens = fields.whole("min_tokens") or 0
        sampling.ignore_eos = fields.flag("ignore_eos")
        seed = fields.whole("seed", -(1 << 63), (1 << 64) - 1)
        sampling.seed = seed_of(rules.seed, RequestId(number)) if seed is None else seed % (1 << 64)
        self._max_tokens(sampling)
        stop, full = fields.take("stop"), fields.name("stop")
        if stop is not None:
            sampling.stop.extend(each(stop if isinstance(stop, list) else [stop], full, checked_text))
        ids, full = fields.take("stop_token_ids"), fields.name("stop_token_ids")
        if ids is not None:
            if not isinstance(ids, list):
                refuse(full, f"must be a list of token ids, not {shown(ids)}")
            sampling.stop_token_ids.extend(each(ids, full, checked_whole))

    def _max_tokens(self, sampling: pb.Sampling) -> None:
        fields = self._fields
        given = fields.whole("max_tokens")
        newer = fields.whole("max_completion_tokens") if self._chat else None
        if given is not None and newer is not None and given != newer:
            refuse(fields.name("max_tokens"), f"is {given}, but max_completion_tokens is {newer}")
        tokens = given if newer is None else newer
        if tokens is not None:
            sampling.max_tokens = tokens

    def _logprobs(self, sampling: pb.Sampling) -> bool:
        fields = self._fields
        if not self._chat:
            count = fields.whole("logprobs")
        else:
            wanted, top = fields.flag("logprobs"), fields.whole("top_logprobs")
            if top and not wanted:
                refuse(fields.name("top_logprobs"), "needs logprobs: true")
            count = (top or 0) if wanted else None
        if count is None:
            return False
        sampling.logprobs = count
        return True

    def _extension(self, request: pb.GenerateRequest) -> None:
        own = self._fields.objects("superinfer")
        if own is None:
            return
        for name, target in (("ttft_slo_ms", "ttft_ms"), ("tbt_slo_ms", "tbt_ms")):
            value = own.number(name)
            if value is not None:
                setattr(request.slo, target, value)
        request.tenant = own.text("tenant") or ""
        own.end()


def _message(value: Any, name: str) -> pb.ChatMessage:
    if not isinstance(value, dict):
        refuse(name, f"must be an object, not {shown(value)}")
    fields = Fields(value, f"{name}.")
    role, content = fields.text("role"), fields.take("content")
    if role is None:
        refuse(fields.name("role"), "is required")
    for field_name, allowed in _NEUTRAL_MESSAGE.items():
        fields.neutral(field_name, *allowed)
    fields.end()
    return pb.ChatMessage(role=role, content=_content(content, f"{name}.content"))


def _content(value: Any, name: str) -> str:
    """A string, or parts of text, joined by a new line as vLLM does."""
    if value is None:
        refuse(name, "is required")
    if isinstance(value, list):
        return "\n".join(each(value, name, _part))
    return checked_text(value, name)


def _part(value: Any, name: str) -> str:
    if not isinstance(value, dict):
        refuse(name, f"must be an object, not {shown(value)}")
    fields = Fields(value, f"{name}.")
    kind, text = fields.text("type"), fields.text("text")
    if kind != "text" or text is None:
        refuse(fields.name("type"), f"{shown(kind)} cannot be done here; only text", RefusalCode.UNSUPPORTED)
    fields.end()
    return text


_BODY_FIELD = {
    "text": "prompt",
    "token_ids": "prompt",
    "chat": "messages",
    "tenant": "superinfer.tenant",
    "slo.ttft_ms": "superinfer.ttft_slo_ms",
    "slo.tbt_ms": "superinfer.tbt_slo_ms",
}


def in_body(name: str) -> str:
    """A field of the wire as this format calls it: `sampling.top_p` is `body.top_p`."""
    if not name:
        return ""
    base = name.partition("[")[0]
    known = _BODY_FIELD.get(base)
    if known is not None:
        return f"body.{known}{name[len(base) :]}"
    return f"body.{name.removeprefix('sampling.').removeprefix('chat.')}"
