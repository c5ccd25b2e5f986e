from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_CANCELLED: _ClassVar[FinishReason]
    FINISH_REASON_REJECTED: _ClassVar[FinishReason]
    FINISH_REASON_FAILED: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_CANCELLED: FinishReason
FINISH_REASON_REJECTED: FinishReason
FINISH_REASON_FAILED: FinishReason

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "text", "chat", "token_ids", "sampling", "slo", "tenant")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: str
    chat: Chat
    token_ids: TokenIds
    sampling: Sampling
    slo: Slo
    tenant: str
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[str] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., slo: _Optional[_Union[Slo, _Mapping]] = ..., tenant: _Optional[str] = ...) -> None: ...

class Chat(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_k", "top_p", "seed", "stop_token_ids", "stop", "ignore_eos", "logprobs", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    stop: _containers.RepeatedScalarFieldContainer[str]
    ignore_eos: bool
    logprobs: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    min_tokens: int
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., stop: _Optional[_Iterable[str]] = ..., ignore_eos: _Optional[bool] = ..., logprobs: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., min_tokens: _Optional[int] = ...) -> None: ...

class Slo(_message.Message):
    __slots__ = ("ttft_ms", "tbt_ms")
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TBT_MS_FIELD_NUMBER: _ClassVar[int]
    ttft_ms: float
    tbt_ms: float
    def __init__(self, ttft_ms: _Optional[float] = ..., tbt_ms: _Optional[float] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("delta", "ending")
    DELTA_FIELD_NUMBER: _ClassVar[int]
    ENDING_FIELD_NUMBER: _ClassVar[int]
    delta: Delta
    ending: Ending
    def __init__(self, delta: _Optional[_Union[Delta, _Mapping]] = ..., ending: _Optional[_Union[Ending, _Mapping]] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("first_index", "token_ids", "text", "logprobs")
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    first_index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    def __init__(self, first_index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("logprob", "top")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TopLogprob]
    def __init__(self, logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TopLogprob, _Mapping]]] = ...) -> None: ...

class TopLogprob(_message.Message):
    __slots__ = ("token_id", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class Ending(_message.Message):
    __slots__ = ("request_id", "finish_reason", "message", "usage", "timings", "rotations", "evictions", "matched_token_id", "matched_string")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    ROTATIONS_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    MATCHED_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    MATCHED_STRING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    finish_reason: FinishReason
    message: str
    usage: Usage
    timings: Timings
    rotations: int
    evictions: int
    matched_token_id: int
    matched_string: str
    def __init__(self, request_id: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., message: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., rotations: _Optional[int] = ..., evictions: _Optional[int] = ..., matched_token_id: _Optional[int] = ..., matched_string: _Optional[str] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "output_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    output_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_ms", "ttft_ms", "tbt_mean_ms", "total_ms")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TBT_MEAN_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    ttft_ms: float
    tbt_mean_ms: float
    total_ms: float
    def __init__(self, queue_ms: _Optional[float] = ..., ttft_ms: _Optional[float] = ..., tbt_mean_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class AbortResponse(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: bool
    def __init__(self, found: _Optional[bool] = ...) -> None: ...

class GetModelInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelInfoResponse(_message.Message):
    __slots__ = ("engine", "policy", "model", "architecture", "vocabulary", "context_tokens_max", "request_tokens_max", "has_tokenizer", "stop_token_ids", "block_tokens", "device_blocks", "host_blocks", "seats", "step_tokens", "default_slo", "default_max_tokens", "requests_max", "version")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_MAX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TOKENS_MAX_FIELD_NUMBER: _ClassVar[int]
    HAS_TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HOST_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SEATS_FIELD_NUMBER: _ClassVar[int]
    STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_SLO_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_MAX_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    engine: str
    policy: str
    model: str
    architecture: str
    vocabulary: int
    context_tokens_max: int
    request_tokens_max: int
    has_tokenizer: bool
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    block_tokens: int
    device_blocks: int
    host_blocks: int
    seats: int
    step_tokens: int
    default_slo: Slo
    default_max_tokens: int
    requests_max: int
    version: str
    def __init__(self, engine: _Optional[str] = ..., policy: _Optional[str] = ..., model: _Optional[str] = ..., architecture: _Optional[str] = ..., vocabulary: _Optional[int] = ..., context_tokens_max: _Optional[int] = ..., request_tokens_max: _Optional[int] = ..., has_tokenizer: _Optional[bool] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., block_tokens: _Optional[int] = ..., device_blocks: _Optional[int] = ..., host_blocks: _Optional[int] = ..., seats: _Optional[int] = ..., step_tokens: _Optional[int] = ..., default_slo: _Optional[_Union[Slo, _Mapping]] = ..., default_max_tokens: _Optional[int] = ..., requests_max: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("stats",)
    STATS_FIELD_NUMBER: _ClassVar[int]
    stats: Stats
    def __init__(self, stats: _Optional[_Union[Stats, _Mapping]] = ...) -> None: ...

class WatchStatsRequest(_message.Message):
    __slots__ = ("period_ms",)
    PERIOD_MS_FIELD_NUMBER: _ClassVar[int]
    period_ms: int
    def __init__(self, period_ms: _Optional[int] = ...) -> None: ...

class WatchStatsResponse(_message.Message):
    __slots__ = ("stats",)
    STATS_FIELD_NUMBER: _ClassVar[int]
    stats: Stats
    def __init__(self, stats: _Optional[_Union[Stats, _Mapping]] = ...) -> None: ...

class Stats(_message.Message):
    __slots__ = ("serving", "uptime_s", "waiting", "prefill", "decode", "rotating_out", "rotary", "rotating_in", "device_blocks_free", "device_blocks", "host_blocks_free", "host_blocks", "turns", "batches", "step_tokens", "output_tokens", "accepted", "finished_stop", "finished_length", "finished_cancelled", "finished_rejected", "finished_failed", "refused", "rotations_out", "rotations_in", "evictions", "copies_failed", "link_out_blocks", "link_in_blocks", "plan_s", "apply_s", "step_s", "streams", "messages", "waiting_oldest_ms", "rotary_oldest_ms", "waiting_urgency", "rotary_urgency", "link_out_bytes", "link_in_bytes", "link_out_bytes_per_s", "link_in_bytes_per_s", "ttft_met", "ttft_missed", "tbt_met", "tbt_missed", "joint_met", "joint_missed")
    SERVING_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    ROTATING_OUT_FIELD_NUMBER: _ClassVar[int]
    ROTARY_FIELD_NUMBER: _ClassVar[int]
    ROTATING_IN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BLOCKS_FREE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HOST_BLOCKS_FREE_FIELD_NUMBER: _ClassVar[int]
    HOST_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_STOP_FIELD_NUMBER: _ClassVar[int]
    FINISHED_LENGTH_FIELD_NUMBER: _ClassVar[int]
    FINISHED_CANCELLED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_REJECTED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FAILED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    ROTATIONS_OUT_FIELD_NUMBER: _ClassVar[int]
    ROTATIONS_IN_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    COPIES_FAILED_FIELD_NUMBER: _ClassVar[int]
    LINK_OUT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LINK_IN_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PLAN_S_FIELD_NUMBER: _ClassVar[int]
    APPLY_S_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    WAITING_OLDEST_MS_FIELD_NUMBER: _ClassVar[int]
    ROTARY_OLDEST_MS_FIELD_NUMBER: _ClassVar[int]
    WAITING_URGENCY_FIELD_NUMBER: _ClassVar[int]
    ROTARY_URGENCY_FIELD_NUMBER: _ClassVar[int]
    LINK_OUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LINK_IN_BYTES_FIELD_NUMBER: _ClassVar[int]
    LINK_OUT_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    LINK_IN_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    TTFT_MET_FIELD_NUMBER: _ClassVar[int]
    TTFT_MISSED_FIELD_NUMBER: _ClassVar[int]
    TBT_MET_FIELD_NUMBER: _ClassVar[int]
    TBT_MISSED_FIELD_NUMBER: _ClassVar[int]
    JOINT_MET_FIELD_NUMBER: _ClassVar[int]
    JOINT_MISSED_FIELD_NUMBER: _ClassVar[int]
    serving: bool
    uptime_s: float
    waiting: int
    prefill: int
    decode: int
    rotating_out: int
    rotary: int
    rotating_in: int
    device_blocks_free: int
    device_blocks: int
    host_blocks_free: int
    host_blocks: int
    turns: int
    batches: int
    step_tokens: int
    output_tokens: int
    accepted: int
    finished_stop: int
    finished_length: int
    finished_cancelled: int
    finished_rejected: int
    finished_failed: int
    refused: int
    rotations_out: int
    rotations_in: int
    evictions: int
    copies_failed: int
    link_out_blocks: int
    link_in_blocks: int
    plan_s: float
    apply_s: float
    step_s: float
    streams: int
    messages: int
    waiting_oldest_ms: float
    rotary_oldest_ms: float
    waiting_urgency: float
    rotary_urgency: float
    link_out_bytes: int
    link_in_bytes: int
    link_out_bytes_per_s: float
    link_in_bytes_per_s: float
    ttft_met: int
    ttft_missed: int
    tbt_met: int
    tbt_missed: int
    joint_met: int
    joint_missed: int
    def __init__(self, serving: _Optional[bool] = ..., uptime_s: _Optional[float] = ..., waiting: _Optional[int] = ..., prefill: _Optional[int] = ..., decode: _Optional[int] = ..., rotating_out: _Optional[int] = ..., rotary: _Optional[int] = ..., rotating_in: _Optional[int] = ..., device_blocks_free: _Optional[int] = ..., device_blocks: _Optional[int] = ..., host_blocks_free: _Optional[int] = ..., host_blocks: _Optional[int] = ..., turns: _Optional[int] = ..., batches: _Optional[int] = ..., step_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., accepted: _Optional[int] = ..., finished_stop: _Optional[int] = ..., finished_length: _Optional[int] = ..., finished_cancelled: _Optional[int] = ..., finished_rejected: _Optional[int] = ..., finished_failed: _Optional[int] = ..., refused: _Optional[int] = ..., rotations_out: _Optional[int] = ..., rotations_in: _Optional[int] = ..., evictions: _Optional[int] = ..., copies_failed: _Optional[int] = ..., link_out_blocks: _Optional[int] = ..., link_in_blocks: _Optional[int] = ..., plan_s: _Optional[float] = ..., apply_s: _Optional[float] = ..., step_s: _Optional[float] = ..., streams: _Optional[int] = ..., messages: _Optional[int] = ..., waiting_oldest_ms: _Optional[float] = ..., rotary_oldest_ms: _Optional[float] = ..., waiting_urgency: _Optional[float] = ..., rotary_urgency: _Optional[float] = ..., link_out_bytes: _Optional[int] = ..., link_in_bytes: _Optional[int] = ..., link_out_bytes_per_s: _Optional[float] = ..., link_in_bytes_per_s: _Optional[float] = ..., ttft_met: _Optional[int] = ..., ttft_missed: _Optional[int] = ..., tbt_met: _Optional[int] = ..., tbt_missed: _Optional[int] = ..., joint_met: _Optional[int] = ..., joint_missed: _Optional[int] = ...) -> None: ...

class ProfileRequest(_message.Message):
    __slots__ = ("duration_ms",)
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    duration_ms: int
    def __init__(self, duration_ms: _Optional[int] = ...) -> None: ...

class ProfileResponse(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...
