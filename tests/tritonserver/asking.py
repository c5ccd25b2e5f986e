"""A caller of a Triton model over its own client, one gRPC stream a request."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc.aio as grpcclient

if TYPE_CHECKING:
    from typing_extensions import Self

TYPES = {
    "input_ids": np.int32, "input_lengths": np.int32, "request_output_len": np.int32, "max_tokens": np.int32,
    "end_id": np.int32, "pad_id": np.int32, "runtime_top_k": np.int32, "beam_width": np.int32,
    "stop_words_list": np.int32, "bad_words_list": np.int32, "temperature": np.float32, "seed": np.uint64,
    "streaming": np.bool_, "stream": np.bool_, "stop": np.bool_, "exclude_input_in_output": np.bool_,
    "return_log_probs": np.bool_, "return_num_input_tokens": np.bool_, "return_num_output_tokens": np.bool_,
    "return_perf_metrics": np.bool_, "return_finish_reason": np.bool_, "return_cumulative_logprob": np.bool_,
    "sampling_param_max_tokens": np.int32, "lora_task_id": np.uint64, "draft_input_ids": np.int32,
    "text_input": np.object_, "stop_words": np.object_, "bad_words": np.object_, "image_url": np.object_,
    "sampling_param_stop": np.object_, "repetition_penalty": np.float32,
}  # fmt: skip
WIRE = {np.int32: "INT32", np.float32: "FP32", np.uint64: "UINT64", np.bool_: "BOOL", np.object_: "BYTES"}


def tensor(name: str, value: Any) -> grpcclient.InferInput:
    kind = TYPES[name]
    array = np.array(value, dtype=kind)
    if kind is np.object_:
        array = np.array([one.encode() for one in array.reshape(-1)], np.object_).reshape(array.shape)
    made = grpcclient.InferInput(name, array.shape, WIRE[kind])
    made.set_data_from_numpy(array)
    return made


def ids_inputs(prompt: list[int], output: int, **more: Any) -> list[grpcclient.InferInput]:
    """One row for the ids face; `more` without the batch dimension."""
    values = {
        "input_ids": [prompt],
        "input_lengths": [[len(prompt)]],
        "request_output_len": [[output]],
        **{name: [value] if isinstance(value, list) else [[value]] for name, value in more.items()},
    }
    return [tensor(name, value) for name, value in values.items()]


def text_inputs(prompt: str, output: int, **more: Any) -> list[grpcclient.InferInput]:
    values = {"text_input": prompt, "max_tokens": output, **more}
    return [tensor(name, [value] if isinstance(value, list) else [[value]]) for name, value in values.items()]


@dataclass
class Heard:
    """All that came for one request."""

    answers: list[Any] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    finals: list[bool] = field(default_factory=list)
    first: asyncio.Event = field(default_factory=asyncio.Event)
    third: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, result: Any, error: Any) -> None:
        if error is not None:
            self.errors.append(str(error))
        else:
            self.answers.append(result)
            self.finals.append(result.get_response().parameters["triton_final_response"].bool_param)
        self.first.set()
        if len(self.answers) >= 3:
            self.third.set()

    def all(self, name: str) -> list[Any]:
        """The values of one output, all answers in a row."""
        arrays = [answer.as_numpy(name) for answer in self.answers]
        return [value for array in arrays if array is not None for value in array.reshape(-1).tolist()]

    def text(self, name: str = "text_output") -> str:
        return b"".join(self.all(name)).decode()


class Caller:
    """Requests to one model."""

    def __init__(self, address: str, model: str) -> None:
        self.client = grpcclient.InferenceServerClient(address)
        self._model = model
        self.streams: list[Any] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def ask(self, inputs: list[Any], heard: Heard | None = None, **options: Any) -> Heard:
        """To its end; `heard` can be watched meanwhile."""
        heard = heard if heard is not None else Heard()
        stop, deadline_s = options.pop("hold", None), options.pop("deadline_s", None)

        async def requests():
            yield {"model_name": self._model, "inputs": inputs, **options}
            if stop is not None:  # an open stream: the caller may still cancel it
                await stop.wait()

        stream = self.client.stream_infer(requests(), stream_timeout=deadline_s)
        self.streams.append(stream)
        async for result, error in stream:
            heard.take(result, error)
        return heard


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    async def bounded():
        return await asyncio.wait_for(scenario, 90)

    return asyncio.run(bounded())
