"""Any message of a gateway becomes a valid request or a refusal, and nothing else."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import event, given
from hypothesis import strategies as st

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import RequestId
from superinfer_trt.serve.facade_mapping import name_of, refusal_of, translate
from superinfer_trt.serve.mapping import Bounds, accept
from superinfer_trt.serve.objectives import fill_from_class, fill_from_metadata
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt

BOUNDS = Bounds(vocabulary=50, context_tokens_max=64, pool_tokens_max=48)
KNOWN = set(trt.GenerateRequest.DESCRIPTOR.fields_by_name) | {"slo", "tenant"}
SMALL = st.integers(0, 60)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: st.text(max_size=6),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=4),
    FieldDescriptor.TYPE_FLOAT: st.sampled_from([0.0, 1.0, -0.0, 0.5, -1.0, 2.0]) | st.floats(width=32),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_INT32: SMALL | st.integers(-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: SMALL | st.integers(-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT32: SMALL | st.integers(0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: SMALL | st.integers(0, (1 << 64) - 1),
    FieldDescriptor.TYPE_ENUM: st.integers(0, 9),
}


@st.composite
def fields(draw: st.DrawFn, kind: Descriptor) -> dict[str, Any]:
    """A few fields of a message, as the arguments of its constructor."""
    made: dict[str, Any] = {}
    for field in kind.fields:
        if draw(st.integers(0, 3)):
            continue
        below = fields(field.message_type) if field.message_type is not None else SCALARS[field.type]
        made[field.name] = draw(st.lists(below, max_size=3) if field.is_repeated else below)
    return made


@st.composite
def messages(draw: st.DrawFn) -> trt.GenerateRequest:
    """With a prompt that can be served, more often than not; and mostly without what is not done."""
    made = trt.GenerateRequest(**draw(fields(trt.GenerateRequest.DESCRIPTOR)))
    if draw(st.booleans()):
        for name in KNOWN - {"slo", "tenant"}:
            if name not in {"request_id", "sampling_config", "max_tokens", "stop_token_ids"}:
                made.ClearField(name)
        config = trt.SamplingConfig(
            temperature=made.sampling_config.temperature, top_k=made.sampling_config.top_k, top_p=0.9
        )
        made.sampling_config.CopyFrom(config)
    if draw(st.booleans()):
        made.tokenized.CopyFrom(trt.TokenizedInput(input_token_ids=[1, 2, 3]))
    return made


METADATA = st.lists(
    st.tuples(
        st.sampled_from(["superinfer-ttft-slo-ms", "superinfer-tbt-slo-ms", "superinfer-tenant", "other"]),
        st.text(st.characters(codec="ascii"), max_size=5) | st.sampled_from(["100", "1e3", "nan", "-inf"]),
    ),
    max_size=3,
)


@given(message=messages(), metadata=METADATA)
def test_it_is_valid_or_refused_by_a_name(
    message: trt.GenerateRequest, metadata: list[tuple[str, str]]
) -> None:
    kept = trt.GenerateRequest.FromString(message.SerializeToString())
    try:
        made = translate(message, BOUNDS)
        fill_from_metadata(made, metadata)
        fill_from_class(made, message.request_id, {"gold": Slo(5, 5)})
        accepted = accept(made, id=RequestId(7), arrival=0, bounds=BOUNDS, tokenizer=None)
    except Refused as refused:
        told = refusal_of(refused)
        assert told.code is not RefusalCode.UNSUPPORTED
        top = told.field.split(".")[0].split("[")[0]
        assert top in KNOWN or top.startswith("superinfer-"), told.field
    else:
        event("valid")
        request = accepted.request
        assert request.prompt == tuple(message.tokenized.input_token_ids)
        room = BOUNDS.request_tokens_max - len(request.prompt)
        assert 1 <= request.sampling.max_tokens <= room
        if message.max_tokens:
            assert request.sampling.max_tokens == min(message.max_tokens, room)
        assert accepted.name == (name_of(message.request_id) or "#7")
    assert message.SerializeToString() == kept.SerializeToString()


@given(one=st.text(max_size=150), other=st.text(max_size=150))
def test_names_stay_apart_and_are_always_allowed(one: str, other: str) -> None:
    assert (name_of(one) == name_of(other)) == (one == other)
    made = pb.GenerateRequest(request_id=name_of(one), token_ids=pb.TokenIds(ids=[1]))
    made.sampling.max_tokens = 1
    accept(made, id=RequestId(1), arrival=0, bounds=BOUNDS, tokenizer=None)
