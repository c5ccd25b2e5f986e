"""The CUDA side of a link as far as it goes without a GPU: choices, refusals, no driver."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from superinfer_trt.core.errors import ConfigError, TransferFailed
from superinfer_trt.transfer.cuda import CudaLink, PinnedMemory, cuda_facts
from superinfer_trt.transfer.native import DuplexLink
from superinfer_trt.transfer.pools import allocate_pool


def has_gpu() -> bool:
    try:
        cuda_facts()
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"device": -1}, "device -1"),
        ({"route": "dma"}, "route 'dma'"),
        ({"batch": "always"}, "batch 'always'"),
        ({"sms_max": 0}, "sms_max 0"),
        ({"host_chunk_bytes": -5}, "host_chunk_bytes -5"),
    ],
)
def test_choices_that_cannot_work_are_refused_by_name(options: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        CudaLink(**options)  # type: ignore[arg-type]


def test_every_choice_reaches_the_native_module() -> None:
    for route in ("auto", "copy-engine", "register", "tma"):
        for batch in ("auto", "on", "off"):
            CudaLink(route=route, batch=batch, routes_file=Path("/nowhere")).native()  # type: ignore[arg-type]


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU: the refusal cannot be seen")
@pytest.mark.parametrize("parts", [1, 2])
def test_pools_in_parts_reach_the_gpu_s_backend(parts: int) -> None:
    """Where there is none, that is what is said."""
    device, host = [allocate_pool(4, 4096) for _ in range(parts)], allocate_pool(4, 4096 * parts)
    for pools in ((device, host), (device, [host]), (np.concatenate(device, axis=1), [host])):
        with pytest.raises(ConfigError, match="cuda: "):
            DuplexLink(*pools, cuda=CudaLink(host_chunk_bytes=1 << 20))
    with pytest.raises(ConfigError, match="incompatible"):
        DuplexLink([object()], [host], cuda=CudaLink())  # type: ignore[list-item]


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU: the refusal cannot be seen")
def test_without_a_driver_everything_says_so() -> None:
    with pytest.raises(ConfigError, match="cuda: "):
        cuda_facts()
    with pytest.raises(ConfigError, match="pinned memory: cuda: "):
        PinnedMemory(1 << 20)
    with pytest.raises(ConfigError, match="link: cuda: "):
        DuplexLink(allocate_pool(4, 64), allocate_pool(4, 64), cuda=CudaLink())


def test_pinned_memory_of_no_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="memory_bytes 0"):
        PinnedMemory(0)
    with pytest.raises(ConfigError, match="step_bytes -1"):
        PinnedMemory(1, step_bytes=-1)


def test_a_link_over_host_memory_has_no_streams() -> None:
    link = DuplexLink(allocate_pool(4, 64), allocate_pool(4, 64))
    assert link.cuda is None
    with pytest.raises(TransferFailed, match="stream"):
        link.mark_stream(1, 0x7000)
    link.close()
