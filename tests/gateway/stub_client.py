"""A client through the gateway's own stubs: `python stub_client.py TARGET`, JSON on stdout.

Runs in the gateway's environment, where this project is not installed.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import sys
import threading
import zipfile
from typing import Any

import grpc
from smg_grpc_proto.generated import common_pb2 as common
from smg_grpc_proto.generated import trtllm_service_pb2 as trt
from smg_grpc_proto.generated.trtllm_service_pb2_grpc import TrtllmServiceStub

PROMPT = [40, 41, 42]


def ask(**fields: Any) -> trt.GenerateRequest:
    greedy = trt.SamplingConfig(beam_width=1, num_return_sequences=1, temperature=0.0, top_p=1.0)
    prompt = trt.TokenizedInput(input_token_ids=PROMPT)
    made = trt.GenerateRequest(tokenized=prompt, sampling_config=greedy, max_tokens=8, streaming=True)
    made.MergeFrom(trt.GenerateRequest(**fields))
    return made


def generated(stub: TrtllmServiceStub, request: trt.GenerateRequest) -> dict[str, Any]:
    chunks, complete = [], None
    for response in stub.Generate(request, timeout=60):
        if response.HasField("chunk"):
            chunks.append(list(response.chunk.token_ids))
        else:
            complete = response.complete
    assert complete is not None
    return {
        "chunks": chunks,
        "ids": list(complete.output_token_ids),
        "finish_reason": complete.finish_reason,
        "counts": [complete.prompt_tokens, complete.completion_tokens, complete.cached_tokens],
        "logprobs": [one.token_id for one in complete.logprobs],
        "timed": complete.HasField("perf_metrics"),
    }


def aborted(stub: TrtllmServiceStub) -> dict[str, Any]:
    """Aborts at the first chunk, from beside the stream."""
    call = stub.Generate(ask(request_id="long", max_tokens=4000), timeout=60)
    told: list[bool] = []
    reason = ""
    for response in call:
        if response.HasField("complete"):
            reason = response.complete.finish_reason
        elif not told:
            told.append(False)
            thread = threading.Thread(target=lambda: told.append(abort(stub)))
            thread.start()
    thread.join()
    return {"finish_reason": reason, "found": told[-1], "found_again": abort(stub)}


def abort(stub: TrtllmServiceStub) -> bool:
    success: bool = stub.Abort(trt.AbortRequest(request_id="long"), timeout=60).success
    return success


def status(stub: TrtllmServiceStub, **fields: Any) -> list[str]:
    try:
        for _ in stub.Generate(ask(**fields), timeout=60):
            pass
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata())
        return [error.code().name, trailers.get("superinfer-field", "")]
    return ["OK", ""]


def tokenizer(stub: TrtllmServiceStub) -> dict[str, Any]:
    pieces = list(stub.GetTokenizer(common.GetTokenizerRequest(), timeout=60))
    whole = b"".join(piece.data for piece in pieces)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return {
            "whole": hashlib.sha256(whole).hexdigest() == pieces[-1].sha256,
            "files": {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()},
        }


def main(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        stub = TrtllmServiceStub(channel)
        whole = ask(output_config=trt.OutputConfig(logprobs=1, return_perf_metrics=True))
        whole.streaming = False
        load = stub.SubscribeKvEvents(common.SubscribeKvEventsRequest(load_records_before_first_batch=True))
        model = stub.GetModelInfo(trt.GetModelInfoRequest(), timeout=60)
        told = {
            "health": stub.HealthCheck(trt.HealthCheckRequest(), timeout=60).status,
            "model": [model.model_id, model.vocab_size, model.max_seq_len],
            "backend": stub.GetServerInfo(trt.GetServerInfoRequest(), timeout=60).backend,
            "streamed": generated(stub, ask()),
            "whole": generated(stub, whole),
            "aborted": aborted(stub),
            "guided": status(stub, guided_decoding=trt.GuidedDecodingParams(guide="{}")),
            "lora": status(stub, lora_config=trt.LoraConfig(task_id=1)),
            "tokenizer": tokenizer(stub),
            "load": [
                [one.sequence_number, one.load.load_only, one.load.sample, one.load.max_running_requests]
                for one in itertools.islice(load, 2)
            ],
        }
        load.cancel()
        try:
            stub.Embed(trt.EmbedRequest(), timeout=60)
        except grpc.RpcError as error:
            told["embed"] = error.code().name
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
