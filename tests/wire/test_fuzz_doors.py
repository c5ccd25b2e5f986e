"""The doors under bytes that grow out of good ones: a box in CI; atheris_mapping.py goes deeper, by hand."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from support.fuzzed import BOUNDS, TOKEN, Judge, check_facade
from support.fuzzed_seeds import BEARER, seeds

INPUTS = 20_000
PIECES = (
    *(b"\xff" * 9 + b"\x01", b"\x80" * 5),  # numbers of protobuf: the largest, and one without an end
    *(b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"nan"),
    *(b"\xf4\x8f\xbf\xbf", b"\xed\xa0\x80"),  # the last character, and half of one
)
JUDGE = Judge()
FOUND: list[bytes] = []
"""Inputs that once did what none may do."""


def mutated(data: bytes, other: bytes, dice: random.Random) -> bytes:
    """A few edits: bits, bytes, numbers at their ends, pieces left out, doubled, or taken from another."""
    made = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(made) + 1)
        kind = dice.randrange(6)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << dice.randrange(8)
        elif kind == 1 and at < len(made):
            made[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        elif kind == 2:
            made[at:at] = dice.choice(
                (
                    b"\xff" * 9 + b"\x01",
                    b"\0\0\xc0\x7f",
                    b"\0\0\x80\xff",
                    b"\x80" * 5,
                    b"nan",
                    b"\xf4\x8f\xbf\xbf",
                )
            )
        elif kind == 3:
            del made[at : at + dice.randint(1, 8)]
        elif kind == 4:
            made[at:at] = made[at : at + dice.randint(1, 64)]
        else:
            start = dice.randrange(len(other) + 1)
            made[at:] = other[start:]
    return bytes(made)


def test_a_box_of_mutations_reaches_every_door_and_both_answers() -> None:
    dice, corpus, seen = random.Random(7), seeds(), Counter[tuple[str, bool]]()
    for _ in range(INPUTS):
        data = mutated(dice.choice(corpus), dice.choice(corpus), dice)
        try:
            door, taken = JUDGE(data)
        except Exception as error:
            raise AssertionError(f"for FOUND: {data!r}") from error
        seen[door, taken] += 1
        if taken and len(corpus) < 500:
            corpus.append(data)  # what is taken is further inside than where it came from
    for door in ("executor", "facade", "metadata", "token", "triton"):
        assert seen[door, True], f"nothing was taken at {door}: {seen}"
        assert seen[door, False] > 100, f"too little was refused at {door}: {seen}"


@pytest.mark.parametrize("data", [*seeds(), *FOUND])
def test_where_it_begins_and_what_was_found(data: bytes) -> None:
    JUDGE(data)


def test_only_the_token_is_the_token() -> None:
    good = bytes((BEARER, 0)) + b"Bearer " + TOKEN.encode()
    assert JUDGE(good) == ("token", True)
    for at in range(2, len(good)):
        for bit in range(8):
            changed = bytearray(good)
            changed[at] ^= 1 << bit
            if bytes(changed[2:]).lower() != good[2:].lower() or at >= 9:
                assert JUDGE(bytes(changed)) == ("token", False)


sampling = st.builds(
    trt.SamplingConfig,
    beam_width=st.integers(0, 2),
    num_return_sequences=st.integers(0, 2),
    top_k=st.none() | st.integers(-(2**31), 2**31 - 1),
    top_p=st.none() | st.floats(width=32),
    temperature=st.none() | st.floats(width=32),
    min_tokens=st.none() | st.integers(0, 2**31 - 1),
    seed=st.none() | st.integers(0, 2**64 - 1),
    repetition_penalty=st.none() | st.floats(width=32),
    presence_penalty=st.none() | st.floats(width=32),
    frequency_penalty=st.none() | st.floats(width=32),
    min_p=st.none() | st.floats(width=32),
)
asked = st.builds(
    trt.GenerateRequest,
    request_id=st.text(max_size=140) | st.sampled_from(["gold.1", "a", "."]),
    tokenized=st.builds(trt.TokenizedInput, input_token_ids=st.lists(st.integers(0, 300), max_size=80)),
    sampling_config=sampling | st.just(trt.SamplingConfig()),
    output_config=st.builds(trt.OutputConfig, logprobs=st.none() | st.integers(-5, 30)),
    max_tokens=st.integers(0, 2**32 - 1) | st.integers(1, 8),
    streaming=st.booleans(),
    stop=st.lists(st.text(max_size=300), max_size=20),
    stop_token_ids=st.lists(st.integers(0, 300), max_size=70),
    ignore_eos=st.booleans(),
)


@given(asked, st.sampled_from(BOUNDS))
@settings(max_examples=500)
def test_any_message_of_a_gateway(message: trt.GenerateRequest, limits: object) -> None:
    check_facade(message, limits)  # type: ignore[arg-type]
