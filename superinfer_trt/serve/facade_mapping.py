"""trtllm.GenerateRequest -> superinfer.v1.GenerateRequest, and the way back for names of fields.

What cannot be done is refused here, by its name; what can be done is only translated: limits are checked
where they are for every front (serve.mapping). Pure: knows no server, clock or call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.serve.mapping import NAME_PATTERN, REQUEST_ID_CHARS_MAX, Bounds
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt

NGRAM_NONE = 1 << 30
"""TensorRT-LLM's own way to say that n-grams may repeat."""

_NOT_DONE: tuple[tuple[str, Callable[[trt.GenerateRequest], bool]], ...] = (
    ("tokenized.query_token_ids", lambda m: bool(m.tokenized.query_token_ids)),
    ("sampling_config.beam_width", lambda m: m.sampling_config.beam_width not in (0, 1)),
    ("sampling_config.num_return_sequences", lambda m: m.sampling_config.num_return_sequences > 1),
    ("sampling_config.top_p_decay", lambda m: _set(m.sampling_config, "top_p_decay", 1.0)),
    ("sampling_config.top_p_reset_ids", lambda m: _reset_ids(m.sampling_config)),
    ("sampling_config.prompt_ignore_length", lambda m: m.sampling_config.prompt_ignore_length != 0),
    ("sampling_config.no_repeat_ngram_size", lambda m: _ngrams(m.sampling_config)),
    ("sampling_config.beam_width_array", lambda m: any(w != 1 for w in m.sampling_config.beam_width_array)),
    ("output_config.prompt_logprobs", lambda m: m.output_config.prompt_logprobs != 0),
    ("output_config.return_context_logits", lambda m: m.output_config.return_context_logits),
    ("output_config.return_generation_logits", lambda m: m.output_config.return_generation_logits),
    ("output_config.return_encoder_output", lambda m: m.output_config.return_encoder_output),
    ("guided_decoding", lambda m: _guided(m.guided_decoding)),
    ("embedding_bias", lambda m: bool(m.embedding_bias)),
    ("lora_config", lambda m: m.lora_config.ByteSize() > 0),
    ("prompt_tuning_config", lambda m: m.prompt_tuning_config.ByteSize() > 0),
    ("multimodal_input", lambda m: m.multimodal_input.ByteSize() > 0),
    ("kv_cache_retention", lambda m: m.kv_cache_retention.ByteSize() > 0),
    ("disaggregated_params", lambda m: m.disaggregated_params.ByteSize() > 0),
    ("lookahead_config", lambda m: m.lookahead_config.ByteSize() > 0),
    ("bad", lambda m: bool(m.bad)),
    ("bad_token_ids", lambda m: bool(m.bad_token_ids)),
)
"""Fields of what is not done, each with whether a request asks for it; values that ask for nothing pass."""

_FIELDS = {
    "token_ids": "tokenized.input_token_ids",
    "sampling.max_tokens": "max_tokens",
    "sampling.stop_token_ids": "stop_token_ids",
    "sampling.stop": "stop",
    "sampling.logprobs": "output_config.logprobs",
    "sampling.": "sampling_config.",
}
"""Beginnings of names in superinfer.v1 and here; the first that fits counts."""


def translate(message: trt.GenerateRequest, bounds: Bounds) -> pb.GenerateRequest:
    """The same request in superinfer.v1, without objectives. Raises Refused, field as in trtllm."""
    for name, asked in _NOT_DONE:
        if asked(message):
            raise Refused(RefusalCode.UNSUPPORTED, name, "this server cannot do it")
    ids = message.tokenized.input_token_ids
    if not ids:
        raise Refused(RefusalCode.INVALID, "tokenized.input_token_ids", "at least 1 token is required")
    made = pb.GenerateRequest(request_id=name_of(message.request_id))
    made.token_ids.ids.extend(ids)
    if message.max_tokens:
        # A gateway fills in its own default (2,048 for a chat), which must not refuse a short context.
        room = bounds.request_tokens_max - len(ids)
        made.sampling.max_tokens = min(message.max_tokens, room) if room > 0 else message.max_tokens
    made.sampling.stop.extend(message.stop)
    made.sampling.stop_token_ids.extend(message.stop_token_ids)
    made.sampling.ignore_eos = message.ignore_eos
    _sampling(made.sampling, message.sampling_config)
    if message.output_config.HasField("logprobs"):
        count = message.output_config.logprobs
        if count < 0:
            raise Refused(RefusalCode.INVALID, "output_config.logprobs", f"must be 0 or more, not {count}")
        made.sampling.logprobs = count
    return made


def name_of(request_id: str) -> str:
    """The id in superinfer.v1 of any id here: itself, or its digest when it is not allowed there."""
    if len(request_id) <= REQUEST_ID_CHARS_MAX and NAME_PATTERN.match(request_id):
        return request_id
    return "sha256:" + hashlib.sha256(request_id.encode()).hexdigest()


def refusal_of(refused: Refused) -> Refused:
    """The same refusal in the names of this service.

    Unsupported is invalid here: a gateway takes UNIMPLEMENTED for a fault of the server.
    """
    code = RefusalCode.INVALID if refused.code is RefusalCode.UNSUPPORTED else refused.code
    for ours, theirs in _FIELDS.items():
        if refused.field.startswith(ours):
            return Refused(code, theirs + refused.field[len(ours) :], refused.message)
    return Refused(code, refused.field, refused.message)


def _sampling(made: pb.Sampling, config: trt.SamplingConfig) -> None:
    made.temperature = config.temperature if config.HasField("temperature") else 1.0
    if config.top_k > 0:
        made.top_k = config.top_k
    if config.HasField("top_p"):
        if config.top_p == 0:
            made.temperature = 0.0
        elif config.top_p != 1:
            made.top_p = config.top_p
    if config.HasField("seed"):
        made.seed = config.seed
    if config.HasField("repetition_penalty") and config.repetition_penalty != 1:
        made.repetition_penalty = config.repetition_penalty
    made.presence_penalty = config.presence_penalty
    made.frequency_penalty = config.frequency_penalty
    made.min_p = config.min_p
    made.min_tokens = config.min_tokens


def _set(config: trt.SamplingConfig, name: str, neutral: float) -> bool:
    return config.HasField(name) and getattr(config, name) != neutral


def _reset_ids(config: trt.SamplingConfig) -> bool:
    return config.HasField("top_p_reset_ids") and config.top_p_reset_ids >= 0


def _ngrams(config: trt.SamplingConfig) -> bool:
    size = config.no_repeat_ngram_size
    return size != 0 and size < NGRAM_NONE


def _guided(guide: trt.GuidedDecodingParams) -> bool:
    return bool(guide.guide) or guide.guide_type == trt.GuidedDecodingParams.GUIDE_TYPE_JSON
