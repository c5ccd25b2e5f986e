"""Tensors of a Triton request -> requests of the wire, without Triton."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.triton.mapping import Asked, in_tensors, read, word_list
from superinfer_trt.triton.tensors import FACES, IDS, LLMAPI, REFUSED, TEXT, Face

NUMPY = {
    "INT32": np.int32, "INT64": np.int64, "UINT64": np.uint64, "UINT8": np.uint8, "FP32": np.float32,
    "FP16": np.float16, "BOOL": np.bool_, "STRING": np.object_,
}  # fmt: skip
KINDS = {one.name: NUMPY[one.data_type] for face in FACES.values() for one in face.inputs}


def tensors(**values: Any) -> dict[str, Any]:
    return {name: np.array(value, KINDS[name]) for name, value in values.items()}


def ids(**more: Any) -> dict[str, Any]:
    """One row, as Triton gives it to a model: scalars are [1]."""
    given = {"input_ids": [[4, 5, 6]], "input_lengths": [3], "request_output_len": [8], **more}
    return tensors(**given)


def text(**more: Any) -> dict[str, Any]:
    return tensors(**{"text_input": [[b"Hello"]], "max_tokens": [[8]], **more})


def llmapi(**more: Any) -> dict[str, Any]:
    return tensors(**{"text_input": [b"Hello"], **more})


PLAIN: dict[str, Any] = {"ids": ids, "text": text, "llmapi": llmapi}


def one(face: Face, given: dict[str, Any], **parameters: object) -> Any:
    asked = read(face, given, parameters)
    assert len(asked.items) == 1
    return asked.items[0]


def refusal(face: Face, given: dict[str, Any], **parameters: object) -> Refused:
    with pytest.raises(Refused) as caught:
        read(face, given, parameters)
    return caught.value


def test_a_plain_request_is_greedy_and_keeps_the_servers_defaults() -> None:
    item = one(IDS, ids())
    assert list(item.request.token_ids.ids) == [4, 5, 6]
    assert item.request.sampling.max_tokens == 8
    assert item.request.sampling.temperature == 0
    assert not item.request.sampling.ignore_eos
    assert not item.request.HasField("slo")
    assert not item.wants.exclude_input
    assert one(TEXT, text()).request.text == "Hello"
    assert one(LLMAPI, llmapi()).wants.exclude_input
    assert not one(LLMAPI, llmapi()).request.sampling.HasField("max_tokens")


def test_padding_behind_the_length_is_no_prompt() -> None:
    assert list(one(IDS, ids(input_lengths=[2])).request.token_ids.ids) == [4, 5]
    assert refusal(IDS, ids(input_lengths=[4])).field == "input_lengths"
    assert refusal(IDS, ids(input_lengths=[0])).field == "input_lengths"
    assert refusal(IDS, ids(input_ids=[[4, -1, 6]])).field == "input_ids"


def test_rows_of_a_batch_are_requests_with_their_own_values() -> None:
    given = ids(
        input_ids=[[1, 2, 0], [3, 4, 5]],
        input_lengths=[2, 3],
        request_output_len=[4, 9],
        temperature=[0.0, 0.5],
    )
    first, second = read(IDS, given, {}).items
    assert (list(first.request.token_ids.ids), first.batch_index) == ([1, 2], 0)
    assert (list(second.request.token_ids.ids), second.batch_index) == ([3, 4, 5], 1)
    assert second.request.sampling.max_tokens == 9
    assert second.request.sampling.temperature == 0.5
    assert refusal(IDS, ids(temperature=[0.1, 0.2])).message.startswith("has a batch of")


@pytest.mark.parametrize(
    ("given", "greedy"),
    [
        ({}, True),
        ({"runtime_top_k": [1], "temperature": [1.0], "runtime_top_p": [0.0]}, True),
        ({"temperature": [0.7]}, False),
        ({"runtime_top_k": [5]}, False),
        ({"runtime_top_p": [0.9]}, False),
        ({"runtime_top_p": [0.0]}, True),
        ({"temperature": [0.0], "runtime_top_k": [50]}, True),
    ],
)
def test_when_tokens_are_drawn(given: dict[str, Any], greedy: bool) -> None:
    sampling = one(IDS, ids(**given)).request.sampling
    assert (sampling.temperature == 0) == greedy
    if not greedy and "temperature" not in given:
        assert sampling.temperature == 1


def test_an_end_id_takes_the_place_of_the_models_own() -> None:
    sampling = one(IDS, ids(end_id=[2], pad_id=[2])).request.sampling
    assert (sampling.ignore_eos, list(sampling.stop_token_ids)) == (True, [2])
    sampling = one(IDS, ids(end_id=[-1])).request.sampling
    assert (sampling.ignore_eos, list(sampling.stop_token_ids)) == (True, [])


def test_stop_words_by_their_length() -> None:
    item = one(IDS, ids(stop_words_list=[[[7, 8, 9, 4, 0], [1, 3, 4, -1, -1]]]))
    assert list(item.request.sampling.stop_token_ids) == [7, 4]
    assert item.stop_sequences == ((8, 9),)
    assert word_list("x", np.array([[0, 0], [-1, -1]])) == ()
    for wrong in ([[7, 8], [3, -1]], [[7, 8], [2, 1]], [[-1, 8], [2, -1]], [7, 8]):
        with pytest.raises(Refused) as caught:
            word_list("stop_words_list", np.array(wrong))
        assert caught.value.field == "stop_words_list"
    given = text(stop_words=[[b"end", b"", "schlu\u00df".encode()]])
    assert list(one(TEXT, given).request.sampling.stop) == ["end", "schlu\u00df"]


def test_bad_words_are_refused_unless_there_are_none() -> None:
    assert refusal(IDS, ids(bad_words_list=[[[7], [1]]])).field == "bad_words_list"
    one(IDS, ids(bad_words_list=[[[0], [-1]]]))
    assert refusal(TEXT, text(bad_words=[[b"x"]])).code is RefusalCode.UNSUPPORTED
    one(TEXT, text(bad_words=[[b""]]))


REFUSED_INPUTS = [
    (face.name, one.name) for face in FACES.values() for one in face.inputs if one.role == REFUSED
]


@pytest.mark.parametrize(("name", "tensor"), REFUSED_INPUTS)
def test_what_cannot_be_served_is_refused_by_name_and_its_neutral_values_are_not(
    name: str, tensor: str
) -> None:
    face = FACES[name]
    spec = next(one for one in face.inputs if one.name == tensor)
    shape = () if spec.scalar else tuple(3 if dim == -1 else dim for dim in spec.dims)

    def filled(value: Any) -> dict[str, Any]:
        array = np.full((1, *shape) if face.batched else shape, value, KINDS[tensor])
        return {**PLAIN[name](), tensor: array}

    asking: Any = b"x" if spec.data_type == "STRING" else True if spec.data_type == "BOOL" else 7
    if spec.data_type != "BOOL" or not set(spec.neutral) >= {0, 1}:
        refused = refusal(face, filled(asking))
        assert refused.field == tensor
        assert refused.code is RefusalCode.UNSUPPORTED
    for neutral in spec.neutral:
        one(face, filled(neutral))
    if spec.data_type == "STRING":
        one(face, filled(b""))


@pytest.mark.parametrize("face", FACES.values(), ids=lambda face: face.name)
def test_penalties_at_their_neutral_value_are_left_out(face: Face) -> None:
    names = [one.name for one in face.inputs if one.role.endswith("penalty")]
    shape = (1,) if not face.batched or face is IDS else (1, 1)
    given = {name: np.full(shape, 1.0 if "repetition" in name else 0.0, np.float32) for name in names}
    sampling = one(face, {**PLAIN[face.name](), **given}).request.sampling
    assert not any(field.name.endswith("penalty") for field, _ in sampling.ListFields())
    given = {name: np.full(shape, 1.25, np.float32) for name in names}
    sampling = one(face, {**PLAIN[face.name](), **given}).request.sampling
    assert sampling.presence_penalty == 1.25


def test_objectives_come_as_parameters() -> None:
    request = one(IDS, ids(), ttft_slo_ms=250, tbt_slo_ms="20.5", tenant="team/a").request
    assert (request.slo.ttft_ms, request.slo.tbt_ms, request.tenant) == (250, 20.5, "team/a")
    assert one(IDS, ids(), tpot_slo_ms=30.0).request.slo.tbt_ms == 30
    assert one(IDS, ids(), tpot_slo_ms=30.0, tbt_slo_ms=30).request.slo.tbt_ms == 30
    assert refusal(IDS, ids(), tpot_slo_ms=30, tbt_slo_ms=31).field == "tbt_slo_ms"
    assert refusal(IDS, ids(), ttft_slo_ms="soon").field == "ttft_slo_ms"
    assert refusal(IDS, ids(), ttft_slo_ms=True).field == "ttft_slo_ms"
    assert refusal(IDS, ids(), e2e_slo_ms=3).field == "e2e_slo_ms"
    assert one(IDS, ids(), x_request_header="anything", triton_own=True).request.slo.ttft_ms == 0


def test_priority_has_no_effect_and_says_so() -> None:
    assert read(IDS, ids(), {"priority": 3}).remarks[0].startswith("priority has no effect")
    assert read(IDS, ids(), {}).remarks == ()


def test_stop_asks_for_nothing_else() -> None:
    assert read(IDS, ids(stop=[True]), {}) == Asked((), stop=True)
    assert not read(IDS, ids(stop=[False]), {}).stop


def test_what_the_wire_cannot_carry_is_refused_here() -> None:
    assert refusal(IDS, ids(request_output_len=[0])).field == "request_output_len"
    assert refusal(TEXT, text(max_tokens=[[-3]])).field == "max_tokens"
    assert refusal(TEXT, text(text_input=[[b"\xff"]])).field == "text_input"
    assert refusal(IDS, {k: v for k, v in ids().items() if k != "input_ids"}).field == "input_ids"
    assert refusal(IDS, ids(end_id=[-2])).field == "end_id"


def test_a_refusal_of_the_executor_is_told_in_the_callers_names() -> None:
    said = in_tensors(IDS, "sampling.max_tokens", "sampling.max_tokens: 9 do not fit")
    assert said == "request_output_len: 9 do not fit"
    assert in_tensors(TEXT, "sampling.max_tokens", "sampling.max_tokens: no").startswith("max_tokens:")
    assert (
        in_tensors(LLMAPI, "sampling.stop[1]", "sampling.stop[1]: is empty")
        == "sampling_param_stop[1]: is empty"
    )
    assert in_tensors(IDS, "slo.tbt_ms", "slo.tbt_ms: is not") == "tbt_slo_ms: is not"
    assert in_tensors(IDS, "", "the queue is full") == "the queue is full"


NUMBERS = st.one_of(
    st.integers(-(1 << 31), (1 << 31) - 1), st.floats(width=32), st.booleans(), st.just(0), st.just(1)
)


@given(st.data())
def test_whatever_is_given_is_mapped_or_refused(data: st.DataObject) -> None:
    """Any values of the right types: no other exception gets out."""
    name = data.draw(st.sampled_from(sorted(FACES)))
    face = FACES[name]
    given_tensors = PLAIN[name]()
    for spec in data.draw(st.lists(st.sampled_from(face.inputs), max_size=5)):
        kind = KINDS[spec.name]
        dims = (
            ()
            if spec.scalar
            else tuple(data.draw(st.integers(0, 3)) if dim == -1 else dim for dim in spec.dims)
        )
        count = int(np.prod(dims, dtype=int))
        if kind is np.object_:
            values: Any = data.draw(st.lists(st.binary(max_size=4), min_size=count, max_size=count))
            array = np.empty(count, np.object_)
            array[:] = values
        else:
            drawn = data.draw(st.lists(NUMBERS, min_size=count, max_size=count))
            with np.errstate(all="ignore"):
                array = np.array(drawn, np.float64).astype(kind)
        given_tensors[spec.name] = array.reshape((1, *dims) if face.batched else dims)
    with suppress(Refused):
        assert read(face, given_tensors, {}).items or "stop" in given_tensors
