"""Any message at all: a request that keeps every limit, or Refused; never another exception (C3)."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from superinfer_trt.core.model import Tokenizer
from superinfer_trt.serve.mapping import Bounds
from superinfer_trt.serve.pb import executor_pb2 as pb
from support.echo_service import LetterTokenizer
from support.fuzzed import check

u32 = st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1))
f32 = st.floats(width=32)
maybe_tokenizer = st.sampled_from([None, LetterTokenizer()])
bounds = st.builds(
    Bounds,
    vocabulary=st.integers(2, 1000),
    context_tokens_max=st.integers(2, 500),
    pool_tokens_max=st.integers(1, 500),
    default_max_tokens=st.integers(1, 500),
    model_stop_ids=st.frozensets(st.integers(0, 1), max_size=2),
    seed=st.integers(0, 2**64 - 1),
)
sampling = st.builds(
    pb.Sampling,
    max_tokens=st.none() | u32,
    temperature=f32,
    top_k=u32,
    top_p=st.none() | f32,
    seed=st.none() | st.integers(0, 2**64 - 1),
    stop_token_ids=st.lists(u32, max_size=70),
    stop=st.lists(st.text(max_size=300), max_size=20),
    ignore_eos=st.booleans(),
    logprobs=st.none() | u32,
    min_p=f32 | st.just(0.0),
    repetition_penalty=st.none() | f32,
    presence_penalty=f32 | st.just(0.0),
    frequency_penalty=f32 | st.just(0.0),
    min_tokens=u32 | st.just(0),
)
tame = st.builds(
    pb.Sampling,
    max_tokens=st.none() | st.integers(1, 40),
    temperature=st.floats(0, 2, width=32),
    min_p=st.floats(0, 1, width=32),
    repetition_penalty=st.none() | st.floats(0.5, 2, width=32),
    presence_penalty=st.floats(-2, 2, width=32),
    min_tokens=st.integers(0, 3),
)
chats = st.builds(
    pb.Chat,
    messages=st.lists(st.builds(pb.ChatMessage, role=st.text(max_size=40), content=st.text()), max_size=5),
)
prompts = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"text": st.text()}),
    st.fixed_dictionaries({"chat": chats}),
    st.fixed_dictionaries({"token_ids": st.builds(pb.TokenIds, ids=st.lists(u32, max_size=60))}),
    st.fixed_dictionaries({"token_ids": st.builds(pb.TokenIds, ids=st.lists(st.integers(0, 1), min_size=1))}),
)


@st.composite
def messages(draw: st.DrawFn) -> pb.GenerateRequest:
    message = pb.GenerateRequest(
        request_id=draw(st.text(max_size=140) | st.just("")),
        tenant=draw(st.text(max_size=70) | st.just("")),
        sampling=draw(sampling | tame),
        **draw(prompts),
    )
    if draw(st.booleans()):
        message.slo.ttft_ms = draw(st.floats())
        message.slo.tbt_ms = draw(st.floats())
    return message


@given(messages(), bounds, maybe_tokenizer)
@settings(max_examples=500)
def test_any_message(message: pb.GenerateRequest, limits: Bounds, tokenizer: Tokenizer | None) -> None:
    check(message, limits, tokenizer)


@given(st.binary(max_size=400), bounds)
@settings(max_examples=500)
def test_any_bytes(wire: bytes, limits: Bounds) -> None:
    try:
        message = pb.GenerateRequest.FromString(wire)
    except DecodeError:
        return  # gRPC answers INTERNAL before the servicer is asked
    check(message, limits, LetterTokenizer())


@given(messages(), st.data())
@settings(max_examples=200)
def test_a_valid_message_with_one_byte_changed(message: pb.GenerateRequest, data: st.DataObject) -> None:
    limits = Bounds(vocabulary=1 << 21, context_tokens_max=400, pool_tokens_max=400)
    wire = bytearray(message.SerializeToString())
    if wire:
        at = data.draw(st.integers(0, len(wire) - 1))
        wire[at] ^= data.draw(st.integers(1, 255))
    try:
        changed = pb.GenerateRequest.FromString(bytes(wire))
    except DecodeError:
        return
    check(changed, limits, LetterTokenizer())


def test_the_fuzz_reaches_both_answers() -> None:
    limits = Bounds(vocabulary=256, context_tokens_max=64, pool_tokens_max=64)
    assert check(pb.GenerateRequest(text="ab"), limits, LetterTokenizer())
    assert not check(pb.GenerateRequest(), limits, LetterTokenizer())
