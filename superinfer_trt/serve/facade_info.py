"""What a gateway asks of a server beside requests: model, load, tokenizer, as messages of its service.

Pure reading; knows no call.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping

import superinfer_trt
from superinfer_trt.core.units import SECOND, Nanos
from superinfer_trt.serve.mapping import Bounds
from superinfer_trt.serve.pb import trtllm_common_pb2 as common
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from superinfer_trt.serve.service import Service

CHUNK_BYTES = 512 << 10  # well below the 4 MiB that clients take by default
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same archive for the same files


def model_info(service: Service, bounds: Bounds, name: str) -> trt.GetModelInfoResponse:
    """What is served, and the limits of a request. `name`: empty takes the model's own, or the engine's."""
    model = service.model
    features = ["streaming", "logprobs", "slo"]
    if service.tokenizer is not None:
        features.append("stop_strings")
    return trt.GetModelInfoResponse(
        model_id=name or (model.name if model is not None else service.engine),
        max_input_len=bounds.request_tokens_max - 1,
        max_seq_len=bounds.request_tokens_max,
        max_batch_size=service.limits.seats,
        vocab_size=bounds.vocabulary,
        hidden_size=model.hidden if model is not None else 0,
        num_layers=model.layers if model is not None else 0,
        num_heads=model.heads if model is not None else 0,
        supported_features=sorted(features),
    )


def server_info(service: Service) -> trt.GetServerInfoResponse:
    """One process, one device."""
    return trt.GetServerInfoResponse(
        version=superinfer_trt.__version__,
        backend=f"superinfer-{service.engine}",
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        context_parallel_size=1,
        world_size=1,
    )


class LoadReader:
    """The load of one service, record after record; one per subscriber. Rates are since the last record."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sample = 0
        self._read_at: Nanos = service.clock.now()
        self._tokens = service.executor.totals.output_tokens

    def next(self) -> common.KvEventBatch:
        """The load now. Rotated requests count as waiting: what a gateway sends more delays them."""
        service = self._service
        now, seen, tokens = service.clock.now(), service.executor.snapshot(), service.executor.totals
        rate = (tokens.output_tokens - self._tokens) * SECOND / max(1, now - self._read_at)
        self._read_at, self._tokens = now, tokens.output_tokens
        self._sample += 1
        paused = seen.rotating_out + seen.rotary + seen.rotating_in
        taken = seen.device_total - seen.device_free
        usage = taken / max(1, seen.device_total)
        block_tokens = service.limits.block_tokens
        load = common.EngineLoad(
            running_requests=seen.prefill + seen.decode,
            waiting_requests=seen.waiting + paused,
            token_usage=usage,
            active_token_usage=usage,
            gen_throughput=rate,
            max_running_requests=service.limits.seats,
            sample=self._sample,
            load_only=True,
            num_used_tokens=taken * block_tokens,
            max_total_num_tokens=seen.device_total * block_tokens,
            queues=common.EngineQueues(waiting=seen.waiting, paused=paused),
        )
        return common.KvEventBatch(load=load)


def archive(files: Mapping[str, bytes]) -> bytes:
    """A zip archive, the same for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archived:
        for name in sorted(files):
            archived.writestr(zipfile.ZipInfo(name, _ZIP_DATE), files[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def pieces(data: bytes) -> Iterator[common.GetTokenizerChunk]:
    """`data` in order; the last piece has the digest of the whole."""
    starts = range(0, len(data), CHUNK_BYTES)
    for start in starts:
        piece = common.GetTokenizerChunk(data=data[start : start + CHUNK_BYTES])
        if start == starts[-1]:
            piece.sha256 = hashlib.sha256(data).hexdigest()
        yield piece
