"""The tensors of the three faces a Triton model of ours can have, by TensorRT-LLM's own names.

- `ids`: the `tensorrt_llm` model of the in-flight batcher; token ids in and out.
- `text`: the `ensemble` around it; text in and out.
- `llmapi`: the `tensorrt_llm` model of the LLM API; text in and out, one request at a time.

Pure tables. The configuration that is written and the mapping that reads a request both come from here.
Source: NVIDIA/TensorRT-LLM, triton_backend/all_models, config.pbtxt of each model (names, types, dims).
"""

from __future__ import annotations

from dataclasses import dataclass

REFUSED = ""
"""The role of an input that this executor cannot serve: given with any but a neutral value, it is refused."""

ANY = -1


@dataclass(frozen=True, slots=True)
class Input:
    """One input tensor. `data_type` without `TYPE_`; `dims` without the batch; `scalar`: one value a row.

    `role`: what it means to `mapping`. `neutral`: values that ask for nothing, of an input with the role
    REFUSED; a tensor without elements, and empty strings, always do.
    """

    name: str
    data_type: str
    dims: tuple[int, ...] = (1,)
    role: str = REFUSED
    scalar: bool = False
    required: bool = False
    neutral: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """One output tensor, in the same terms."""

    name: str
    data_type: str
    dims: tuple[int, ...] = (1,)


@dataclass(frozen=True, slots=True)
class Face:
    """One kind of model. `batched`: tensors have a leading batch dimension.

    `text`: its prompt and its output are text. `so_far`: a streamed text is all of it so far, not what is
    new. `cancel_is_error`: a cancelled request, and the one that cancels it, end with an error.
    """

    name: str
    model: str
    batched: bool
    text: bool
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    so_far: bool = False
    cancel_is_error: bool = False
    exclude_input: bool = False

    def tensor_of(self, role: str) -> str:
        """Name of the input with that role; the role itself where the face has none."""
        return next((one.name for one in self.inputs if one.role == role), role)


def _one(name: str, data_type: str, role: str = REFUSED, *neutral: float) -> Input:
    """One value a request."""
    return Input(name, data_type, role=role, scalar=True, neutral=neutral)


def _many(name: str, data_type: str, *dims: int, role: str = REFUSED) -> Input:
    return Input(name, data_type, dims or (ANY,), role)


_SAMPLING = (
    _one("temperature", "FP32", "temperature"),
    _one("repetition_penalty", "FP32", "repetition_penalty"),
    _one("presence_penalty", "FP32", "presence_penalty"),
    _one("frequency_penalty", "FP32", "frequency_penalty"),
    _one("min_tokens", "INT32", "min_tokens"),
    _one("seed", "UINT64", "seed"),
    _one("end_id", "INT32", "end_id"),
    _one("pad_id", "INT32", "pad_id"),
    _one("num_return_sequences", "INT32", REFUSED, 0, 1),
    _one("beam_width", "INT32", REFUSED, 0, 1),
    _one("exclude_input_in_output", "BOOL", "exclude_input"),
    _one("return_log_probs", "BOOL", "log_probs"),
    _one("return_perf_metrics", "BOOL", "times"),
    _one("return_num_input_tokens", "BOOL", "num_input_tokens"),
    _one("return_num_output_tokens", "BOOL", "num_output_tokens"),
    _one("return_context_logits", "BOOL", REFUSED, 0),
    _one("return_generation_logits", "BOOL", REFUSED, 0),
)

_ELSEWHERE = (
    _many("prompt_embedding_table", "FP16", ANY, ANY),
    _many("prompt_table_extra_ids", "UINT64"),
    _one("lora_task_id", "UINT64"),
    _many("lora_weights", "FP16", ANY, ANY),
    _many("lora_config", "INT32", ANY, 3),
    Input("guided_decoding_guide_type", "STRING"),
    Input("guided_decoding_guide", "STRING"),
    Input("lookahead_window_size", "INT32", neutral=(0,)),
    Input("lookahead_ngram_size", "INT32", neutral=(0,)),
    Input("lookahead_verification_set_size", "INT32", neutral=(0,)),
)

_TIMES = tuple(
    Output(name, "INT64")
    for name in (
        "arrival_time_ns",
        "first_scheduled_time_ns",
        "first_token_time_ns",
        "last_token_time_ns",
    )
)

_COUNTS = (
    *(
        Output(name, "INT32")
        for name in (
            "kv_cache_alloc_new_blocks",
            "kv_cache_reused_blocks",
            "kv_cache_alloc_total_blocks",
        )
    ),
    *_TIMES,
    Output("acceptance_rate", "FP32"),
    Output("total_accepted_draft_tokens", "INT32"),
    Output("total_draft_tokens", "INT32"),
    Output("num_input_tokens", "INT32"),
    Output("num_output_tokens", "INT32"),
)

_SCORES = (
    Output("cum_log_probs", "FP32", (ANY,)),
    Output("output_log_probs", "FP32", (ANY, ANY)),
    Output("context_logits", "FP32", (ANY, ANY)),
    Output("generation_logits", "FP32", (ANY, ANY, ANY)),
    Output("batch_index", "INT32"),
    Output("sequence_index", "INT32"),
)

IDS = Face(
    name="ids",
    model="tensorrt_llm",
    batched=True,
    text=False,
    inputs=(
        _many("input_ids", "INT32", role="input_ids"),
        Input("input_lengths", "INT32", role="input_lengths", scalar=True, required=True),
        Input("request_output_len", "INT32", role="max_tokens", scalar=True, required=True),
        *_SAMPLING,
        _one("streaming", "BOOL", "streaming"),
        _one("stop", "BOOL", "stop"),
        _one("runtime_top_k", "INT32", "top_k"),
        _one("runtime_top_p", "FP32", "top_p"),
        _one("runtime_top_p_min", "FP32", REFUSED, 0),
        _one("runtime_top_p_decay", "FP32", REFUSED, 0, 1),
        _one("runtime_top_p_reset_ids", "INT32", REFUSED, -1),
        _one("len_penalty", "FP32", REFUSED, 0, 1),
        _one("early_stopping", "BOOL", REFUSED, 0, 1),
        _one("beam_search_diversity_rate", "FP32", REFUSED, 0),
        _many("stop_words_list", "INT32", 2, ANY, role="stop_words_list"),
        _many("bad_words_list", "INT32", 2, ANY, role="bad_words_list"),
        Input("embedding_bias", "FP32", (ANY,), neutral=(0,)),
        _many("draft_input_ids", "INT32"),
        _many("draft_logits", "FP32", ANY, ANY),
        _one("draft_acceptance_threshold", "FP32"),
        _many("decoder_input_ids", "INT32"),
        _one("decoder_input_lengths", "INT32", REFUSED, 0),
        _many("encoder_input_features", "FP16", ANY, ANY),
        _one("encoder_output_lengths", "INT32", REFUSED, 0),
        _many("cross_attention_mask", "BOOL", ANY, ANY),
        Input("skip_cross_attn_blocks", "BOOL", neutral=(0,)),
        _one("prompt_vocab_size", "INT32", REFUSED, 0),
        *_ELSEWHERE,
        _many("context_phase_params", "UINT8"),
        _many("mrope_rotary_cos_sin", "FP32"),
        Input("mrope_position_deltas", "INT64"),
        _many("retention_token_range_starts", "INT32"),
        _many("retention_token_range_ends", "INT32"),
        _many("retention_token_range_priorities", "INT32"),
        _many("retention_token_range_durations_ms", "INT32"),
        Input("retention_decode_priority", "INT32"),
        Input("retention_decode_duration_ms", "INT32"),
    ),
    outputs=(
        Output("output_ids", "INT32", (ANY, ANY)),
        Output("sequence_length", "INT32", (ANY,)),
        *_SCORES,
        Output("context_phase_params", "UINT8", (ANY,)),
        *_COUNTS,
    ),
)

TEXT = Face(
    name="text",
    model="ensemble",
    batched=True,
    text=True,
    inputs=(
        Input("text_input", "STRING", role="text", required=True),
        Input("max_tokens", "INT32", role="max_tokens", required=True),
        *(Input(one.name, one.data_type, role=one.role, neutral=one.neutral) for one in _SAMPLING),
        Input("min_length", "INT32", role="min_tokens"),
        Input("stream", "BOOL", role="streaming"),
        Input("stop", "BOOL", role="stop"),
        Input("top_k", "INT32", role="top_k"),
        Input("top_p", "FP32", role="top_p"),
        Input("length_penalty", "FP32", neutral=(0, 1)),
        _many("stop_words", "STRING", role="stop_words"),
        _many("bad_words", "STRING"),
        _many("embedding_bias_words", "STRING"),
        Input("embedding_bias_weights", "FP32", (ANY,), neutral=(0,)),
        _many("decoder_text_input", "STRING"),
        Input("prompt_vocab_size", "INT32", neutral=(0,)),
        *(Input(one.name, one.data_type, one.dims, neutral=one.neutral) for one in _ELSEWHERE),
    ),
    outputs=(Output("text_output", "STRING", (ANY,)), *_SCORES, *_COUNTS),
)

_PARAM = "sampling_param_"

LLMAPI = Face(
    name="llmapi",
    model="tensorrt_llm",
    batched=False,
    text=True,
    so_far=True,
    cancel_is_error=True,
    exclude_input=True,
    inputs=(
        Input("text_input", "STRING", (ANY,), role="text", required=True),
        Input("streaming", "BOOL", role="streaming"),
        Input("stop", "BOOL", role="stop"),
        Input(f"{_PARAM}max_tokens", "INT32", role="max_tokens"),
        Input(f"{_PARAM}temperature", "FP32", role="temperature"),
        Input(f"{_PARAM}top_k", "INT32", role="top_k"),
        Input(f"{_PARAM}top_p", "FP32", role="top_p"),
        Input(f"{_PARAM}frequency_penalty", "FP32", role="frequency_penalty"),
        Input(f"{_PARAM}presence_penalty", "FP32", role="presence_penalty"),
        Input(f"{_PARAM}seed", "UINT64", role="seed"),
        _many(f"{_PARAM}stop", "STRING", role="stop_words"),
        Input(f"{_PARAM}best_of", "INT32", neutral=(0, 1)),
        Input(f"{_PARAM}exclude_input_from_output", "BOOL", role="exclude_input"),
        Input(f"{_PARAM}return_perf_metrics", "BOOL", role="times"),
        _many(f"{_PARAM}logits_post_processor_name", "STRING"),
        Input("return_finish_reason", "BOOL", role="finish_reason"),
        Input("return_stop_reason", "BOOL", role="stop_reason"),
        Input("return_cumulative_logprob", "BOOL", role="cumulative_logprob"),
        _many("image_url", "STRING"),
        Input("lora_id", "UINT64"),
        Input("lora_name", "STRING"),
        Input("lora_path", "STRING"),
        Input("lora_ckpt_source", "STRING"),
    ),
    outputs=(
        Output("text_output", "STRING", (ANY,)),
        Output("finish_reason", "STRING", (ANY,)),
        Output("stop_reason", "STRING", (ANY,)),
        Output("cumulative_logprob", "FP32", (ANY,)),
        *(
            Output(f"kv_cache_{name}", "INT32", (ANY,))
            for name in ("reused_block", "missed_block", "alloc_new_blocks", "alloc_total_blocks")
        ),
        Output("kv_cache_hit_rate", "FP32", (ANY,)),
        *_TIMES,
    ),
)

FACES = {face.name: face for face in (IDS, TEXT, LLMAPI)}
