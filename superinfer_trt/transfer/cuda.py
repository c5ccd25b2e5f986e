"""What a link over CUDA is asked for, and page-locked memory for its host tier.

Imports and configures without CUDA; where there is no driver, what needs one raises ConfigError and
says so. Knows no engine and no policy. Safe from any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from superinfer_trt import _duplexkv
from superinfer_trt.core.errors import ConfigError

Route = Literal["auto", "copy-engine", "register", "tma"]
Batch = Literal["auto", "on", "off"]

_ROUTES: dict[Route, int] = {"auto": 0, "copy-engine": 1, "register": 2, "tma": 3}
_BATCHES: dict[Batch, int] = {"auto": 0, "on": 1, "off": 2}
_KINDS = ("node memory", "registered", "allocated")


class DeviceArray(Protocol):
    """An array on a GPU, uint8 [blocks, block_bytes]: anything that speaks DLPack, such as a tensor."""

    def __dlpack__(self, *, stream: object = None) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class CudaLink:
    """The GPU behind a link, and how its bytes move.

    `route`: "auto" measures at start (50 ms at most) which way is fastest for which segments; the
    kernels "register" and "tma" take at most `sms_max` multiprocessors. `batch`: many copies in one
    call of the driver; "auto" where that is known to be safe and a trial copied every byte.
    `host_chunk_bytes`: of the pool's PinnedMemory. `routes_file` keeps what was measured.
    """

    device: int = 0
    route: Route = "auto"
    batch: Batch = "auto"
    sms_max: int = 4
    host_chunk_bytes: int = 0
    routes_file: Path | None = None

    def __post_init__(self) -> None:
        if self.route not in _ROUTES:
            raise ConfigError(f"link: route {self.route!r} is none of {', '.join(_ROUTES)}")
        if self.batch not in _BATCHES:
            raise ConfigError(f"link: batch {self.batch!r} is none of {', '.join(_BATCHES)}")
        for field, value, low, high in (
            ("device", self.device, 0, 1 << 16),
            ("sms_max", self.sms_max, 1, 1024),
            ("host_chunk_bytes", self.host_chunk_bytes, 0, 1 << 48),
        ):
            if not low <= value <= high:
                raise ConfigError(f"link: {field} {value} outside {low}..{high}")

    def native(self) -> _duplexkv.CudaChoice:
        """As the native module takes it."""
        return _duplexkv.CudaChoice(
            device=self.device,
            route=_ROUTES[self.route],
            batch=_BATCHES[self.batch],
            sms_max=self.sms_max,
            host_chunk_bytes=self.host_chunk_bytes,
            routes_file=None if self.routes_file is None else str(self.routes_file),
        )


@dataclass(frozen=True, slots=True)
class CudaFacts:
    """What is known of one GPU. `capability` is 10 * major + minor, `host_node` -1 where unknown."""

    name: str
    uuid: str
    capability: int
    sms: int
    driver_version: int
    host_node: int
    kernels: bool


def cuda_facts(device: int = 0) -> CudaFacts:
    """Raises ConfigError where there is no such GPU or no driver."""
    try:
        return CudaFacts(**_duplexkv.cuda_info(device))
    except _duplexkv.LinkError as error:
        raise ConfigError(str(error)) from error


class PinnedMemory:
    """Page-locked memory of the node nearest to a GPU, hundreds of GB if need be, growing in steps.

    The first step is there when the constructor returns, the others follow in the background.
    Arrays made by `pool` keep the memory alive. Raises ConfigError where not even the first step can
    be had, and for a node without CPUs.
    """

    def __init__(
        self, memory_bytes: int, *, device: int = 0, step_bytes: int = 2 << 30, node: int | None = None
    ) -> None:
        for field, value in (("memory_bytes", memory_bytes), ("step_bytes", step_bytes)):
            if not 0 < value < 1 << 63:
                raise ConfigError(f"pinned memory: {field} {value} outside 1..2^63 - 1")
        try:
            self._memory = _duplexkv.HostMemory(
                device=device, bytes=memory_bytes, step_bytes=step_bytes, node=-1 if node is None else node
            )
        except (ValueError, MemoryError, _duplexkv.LinkError) as error:
            raise ConfigError(f"pinned memory: {error}") from error

    @property
    def ready_bytes(self) -> int:
        """From the start on; only these may be used."""
        return self._memory.info()["ready_bytes"]

    @property
    def chunk_bytes(self) -> int:
        """For CudaLink.host_chunk_bytes."""
        return self._memory.info()["chunk_bytes"]

    @property
    def growing(self) -> bool:
        return self._memory.info()["growing"]

    @property
    def kind(self) -> str:
        """Which way it was had: node memory, registered or allocated."""
        return _KINDS[self._memory.info()["kind"]]

    @property
    def note(self) -> str:
        """Why it falls short or lies elsewhere than asked for; empty when all is well."""
        return self._memory.info()["note"]

    def finish(self) -> int:
        """Waits until it grows no more; returns `ready_bytes`."""
        self._memory.finish()
        return self.ready_bytes

    def pool(self, blocks: int, block_bytes: int) -> NDArray[np.uint8]:
        """[blocks, block_bytes] from the start of the memory. Raises ConfigError beyond `ready_bytes`."""
        ready_bytes = self.ready_bytes
        if blocks <= 0 or block_bytes <= 0 or blocks * block_bytes > ready_bytes:
            raise ConfigError(
                f"pinned memory: {blocks} blocks of {block_bytes} bytes outside 1..{ready_bytes} ready"
            )
        return self._memory.pool(blocks, block_bytes)
