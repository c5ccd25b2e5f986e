"""A fake of TensorRT-LLM's request: states, counters and the `py_*` attributes that a scheduler meets.

Written from the public source of TensorRT-LLM (`llm_request.py` and the request class under it, about 1.2),
facts only. Nothing here knows rotation. One thread.
"""

from __future__ import annotations

from enum import Enum


class LlmRequestState(Enum):
    """The states a PyTorch-backend request without disaggregation passes through; upstream's values."""

    UNKNOWN = 0
    ENCODER_INIT = 1
    DISAGG_GENERATION_INIT = 8
    CONTEXT_INIT = 10
    GENERATION_IN_PROGRESS = 13
    GENERATION_TO_COMPLETE = 14
    GENERATION_COMPLETE = 20


class LlmRequest:
    """One request. `end_id` -1: only its length ends it."""

    def __init__(self, id: int, prompt: list[int], max_new_tokens: int, *, end_id: int = -1) -> None:
        self.request_id = self.py_request_id = id
        self.state = LlmRequestState.CONTEXT_INIT
        self.prompt_len = self.orig_prompt_len = self.py_orig_prompt_len = len(prompt)
        self.max_new_tokens = self.py_max_new_tokens = max_new_tokens
        self.end_id = end_id
        self.context_current_position = 0
        self.context_chunk_size = len(prompt)
        self.py_seq_slot: int | None = None
        self.py_batch_idx: int | None = None
        self.py_decoding_iter = 0
        self.py_draft_tokens: list[int] = []
        self.py_scheduling_params: object | None = None
        self.is_dummy = False
        self.cancelled = False
        self.pauses = 0
        self._tokens = list(prompt)

    @property
    def state_value(self) -> int:
        return self.state.value

    @property
    def max_beam_num_tokens(self) -> int:
        """Tokens the host knows: prompt and collected output."""
        return len(self._tokens)

    def get_num_tokens(self, beam: int) -> int:
        assert beam == 0
        return len(self._tokens)

    def get_tokens(self, beam: int) -> list[int]:
        assert beam == 0
        return list(self._tokens)

    @property
    def output(self) -> list[int]:
        """For tests: what was generated, also across pauses."""
        return self._tokens[self.orig_prompt_len :]

    @property
    def context_remaining_length(self) -> int:
        return self.prompt_len - self.context_current_position

    @property
    def is_first_context_chunk(self) -> bool:
        return self.context_current_position == 0

    @property
    def is_last_context_chunk(self) -> bool:
        return self.context_current_position + self.context_chunk_size >= self.prompt_len

    @property
    def is_finished(self) -> bool:
        return self.state is LlmRequestState.GENERATION_COMPLETE

    def move_to_next_context_chunk(self) -> None:
        """The scheduled chunk counts as done as soon as its forward was launched."""
        self.context_current_position += self.context_chunk_size
        self.context_chunk_size = 0

    def will_complete_next_iteration(self) -> bool:
        """Whether the batch that was just launched brings the last token."""
        return len(self._tokens) + 1 >= self.prompt_len + self.max_new_tokens

    def add_new_token(self, token: int) -> None:
        """The host learns a token; stops by end id or length."""
        self._tokens.append(token)
        self.py_decoding_iter += 1
        if token == self.end_id or len(self._tokens) >= self.prompt_len + self.max_new_tokens:
            self.state = LlmRequestState.GENERATION_COMPLETE

    def finish_by_cancel(self) -> None:
        self.cancelled = True
        self.state = LlmRequestState.GENERATION_COMPLETE

    def pause(self, max_input_len: int) -> None:
        """Recompute, not swap: what was generated becomes prompt, all KV is computed again."""
        generated = len(self._tokens) - self.prompt_len
        self.pauses += 1
        self.prompt_len = min(max_input_len, self.prompt_len + generated)
        self.max_new_tokens -= generated
        self.state = LlmRequestState.CONTEXT_INIT
        self.context_current_position = 0
        self.context_chunk_size = self.prompt_len
        self.py_seq_slot = None
        self.py_batch_idx = None
