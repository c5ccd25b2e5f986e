"""Where fuzzing begins: inputs of every door that are taken, or nearly."""

from __future__ import annotations

import struct

from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from support.fuzzed import BOUNDS, TOKEN

EXECUTOR, FACADE, METADATA, BEARER, TRITON = range(5)


def seeds() -> list[bytes]:
    found = []
    for limits in range(len(BOUNDS)):
        bodies = [(EXECUTOR, body) for body in _executor()] + [(FACADE, body) for body in _facade()]
        bodies += [(METADATA, body) for body in (b"500\x0020\x00acme", b"nan\0inf\0-1\0x", b"1e999", b"")]
        bodies += [(BEARER, b"Bearer " + TOKEN.encode()), (BEARER, b"Basic x"), (BEARER, b"bearer \xff")]
        bodies += [(TRITON, body) for body in _triton()]
        found += [bytes((door, limits)) + body for door, body in bodies]
    return found


def _executor() -> list[bytes]:
    whole = pb.GenerateRequest(request_id="a/b.c:1", tenant="acme", token_ids=pb.TokenIds(ids=[1, 1, 1]))
    sampling = pb.Sampling(
        max_tokens=4, temperature=0.7, top_k=5, top_p=0.9, seed=2**64 - 1, stop_token_ids=[1], stop=["end"],
        logprobs=2, min_p=0.1, repetition_penalty=1.1, presence_penalty=-1, frequency_penalty=2, min_tokens=2,
    )  # fmt: skip
    whole.sampling.CopyFrom(sampling)
    whole.slo.ttft_ms, whole.slo.tbt_ms = 500, float("inf")
    text = pb.GenerateRequest(text="ab\u20ac", sampling=pb.Sampling(max_tokens=1, stop=["x"]))
    chat = pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="hello")]))
    plain = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[0]), sampling=pb.Sampling(max_tokens=1))
    return [one.SerializeToString() for one in (whole, text, chat, plain)]


def _facade() -> list[bytes]:
    plain = trt.GenerateRequest(
        request_id="gold.1", tokenized=trt.TokenizedInput(input_token_ids=[1, 1]), max_tokens=3
    )
    full = trt.GenerateRequest()
    full.CopyFrom(plain)
    full.request_id = "not allowed \u20ac"
    full.streaming, full.ignore_eos = True, True
    full.stop.append("x")
    full.stop_token_ids.append(1)
    config = full.sampling_config
    config.temperature, config.top_p, config.top_k, config.seed = 0.5, 0.0, 1, 7
    config.repetition_penalty, config.min_p, config.min_tokens = 1.2, 0.1, 1
    full.output_config.logprobs = 1
    return [one.SerializeToString() for one in (plain, full)]


def _triton() -> list[bytes]:
    number = struct.pack("<q", 1)
    return [bytes((face,)) + (b"\0\x01" + number) * 30 for face in range(3)]
