"""View: growth, and the inequality that makes deadlock impossible."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.core.phase import Phase
from superinfer_trt.core.units import RequestId
from superinfer_trt.core.view import CandidateValue, Limits, View


def view(device: int = 8, host: int = 16, block_tokens: int = 4) -> View:
    return View(
        turn=0,
        now=0,
        limits=Limits(32, 4, block_tokens, device, host),
        waiting=[],
        rotary=[],
        running=[],
        live={},
        device_free=device,
        device_leaving=0,
        host_free=host,
        host_backing=0,
        promised_blocks=0,
        promised_blocks_max=0,
        waiting_blocks=0,
        rotary_blocks=0,
        link_out_blocks=4,
        link_in_blocks=4,
    )


@pytest.mark.parametrize(
    ("computed", "blocks", "needed"), [(7, 2, False), (8, 2, True), (8, 3, False), (0, 0, True)]
)
def test_a_token_needs_a_block_when_the_held_ones_are_full(computed: int, blocks: int, needed: bool) -> None:
    one = CandidateValue(RequestId(1), Phase.DECODE, computed_tokens=computed, device_blocks=blocks)
    assert view().decode_needs_block(one) is needed


@pytest.mark.parametrize(
    ("blocks", "promised", "largest", "fits"),
    [
        (8, 0, 0, True),  # alone: HBM holds it
        (4, 14, 6, True),  # 18 <= 8 + 16 - 6
        (5, 14, 6, False),
        (6, 12, 4, True),  # the newcomer is the largest: 18 <= 24 - 6
        (7, 12, 4, False),
    ],
)
def test_admission_leaves_room_for_one_more_whole_request(
    blocks: int, promised: int, largest: int, fits: bool
) -> None:
    assert view().admission_fits(blocks, promised, largest) is fits


def test_without_a_host_pool_only_what_hbm_holds_to_the_end_fits() -> None:
    assert view(host=0).admission_fits(4, 4, 4)
    assert not view(host=0).admission_fits(5, 4, 4)


@given(device=st.integers(1, 50), host=st.integers(0, 200), sizes=st.lists(st.integers(1, 50), max_size=20))
def test_what_was_admitted_can_always_rotate(device: int, host: int, sizes: list[int]) -> None:
    """With HBM full of some of them, DRAM still has room for the largest of all, or HBM holds all."""
    moment = view(device, host)
    admitted: list[int] = []
    for size in (size for size in sizes if size <= min(device, max(host, device))):
        if moment.admission_fits(size, sum(admitted), max(admitted, default=0)):
            admitted.append(size)
    if sum(admitted) > device:
        assert sum(admitted) - device + max(admitted) <= host


def test_candidate_values_cannot_be_written() -> None:
    one = CandidateValue(RequestId(1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.computed_tokens = 3  # type: ignore[misc]
