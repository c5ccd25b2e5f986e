"""Engines by name, from Python: what a step may say, and who may be published."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

_duplexkv = pytest.importorskip("superinfer_trt._duplexkv", reason="the native lanes are not built")


def longs(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_a_step_names_a_turn_and_its_tickets() -> None:
    berth = _duplexkv.Berth("python")
    berth.step(3, longs(7, 0))
    berth.step(4, longs())
    with pytest.raises(ValueError, match=r"tickets\[1\] is -2"):
        berth.step(5, longs(1, -2))
    with pytest.raises(ValueError, match="turn: -1"):
        berth.step(-1, longs(1))
    with pytest.raises(ValueError, match="64"):
        berth.step(5, longs(*range(65)))
    berth.withdraw()  # nobody is there


def test_refused_rows_are_the_engine_s_to_count() -> None:
    berth = _duplexkv.Berth("refusing")
    with pytest.raises(_duplexkv.LinkError, match="refusing"):
        berth.refused(_duplexkv.D2H)  # nobody is there
    with pytest.raises((ValueError, _duplexkv.LinkError)):
        berth.refused(2)


@pytest.mark.parametrize("key", ["", "k" * 64])
def test_a_name_has_1_to_63_bytes(key: str) -> None:
    with pytest.raises(ValueError, match="63"):
        _duplexkv.Berth(key)


def test_lanes_without_streams_are_not_published() -> None:
    pools = [_duplexkv.allocate(2, 256) for _ in range(2)]
    engine = _duplexkv.Engine(
        *pools, d2h_bytes_per_s=0.0, h2d_bytes_per_s=0.0, queue_groups_max=0, queue_bytes_max=0,
        slice_bytes_max=0,
    )  # fmt: skip
    with pytest.raises(_duplexkv.LinkError, match="no streams"):
        engine.publish("threads")
    engine.close()


def test_others_who_load_the_library_see_the_same_berths() -> None:
    """A plugin loads libduplexkv by itself: it must be the one this module uses, not a second one."""
    library = ctypes.CDLL(str(Path(_duplexkv.__file__).with_name("libduplexkv.so")))
    berth = ctypes.c_void_p()
    assert library.dkv_engine_lookup(b"shared", ctypes.byref(berth)) == 0
    absent = 13
    assert library.dkv_berth_mark(berth, 0, 1, None) == absent
    other = ctypes.CDLL("libduplexkv.so")  # by name alone, as a dependency is: already here
    again = ctypes.c_void_p()
    assert other.dkv_engine_lookup(b"shared", ctypes.byref(again)) == 0
    assert again.value == berth.value
