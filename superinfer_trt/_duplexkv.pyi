# The native core of DuplexKV (plugins/duplexkv): two lanes of block copies between two pools.
#
# Ids are contiguous int32 buffers (an array('i') or a numpy array), offsets and turns int64; nothing
# is converted. ValueError for what can never be right, MemoryError, LinkError for a poisoned, closed
# or forked engine.

from array import array
from collections.abc import Sequence
from typing import Any, Final, TypeAlias, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

_Int32s: TypeAlias = NDArray[np.int32] | array[int]
_Int64s: TypeAlias = NDArray[np.int64] | array[int]
_Bytes: TypeAlias = NDArray[np.uint8] | array[int]

D2H: Final = 0
H2D: Final = 1
EAGER: Final = 1  # a flag of a group
DONE: Final = 0
FAILED: Final = 1
CANCELLED: Final = 2

class LinkError(RuntimeError): ...

class _HostInfo(TypedDict):
    kind: int
    bytes: int
    ready_bytes: int
    chunk_bytes: int
    growing: bool
    note: str

# Page-locked memory; a pool keeps it alive. `finish` runs without the GIL.
class HostMemory:
    def __init__(self, *, device: int, bytes: int, step_bytes: int, node: int) -> None: ...
    def info(self) -> _HostInfo: ...
    def finish(self) -> None: ...
    # [blocks, block_bytes] from the start; the caller has looked at ready_bytes.
    def pool(self, blocks: int, block_bytes: int) -> NDArray[np.uint8]: ...

# An engine over a GPU; the numbers are those of the C header.
class CudaChoice:
    def __init__(
        self,
        *,
        device: int,
        route: int,
        batch: int,
        sms_max: int,
        host_chunk_bytes: int,
        routes_file: str | None,
    ) -> None: ...

def cuda_info(device: int) -> dict[str, Any]: ...

# A rate that the engines made with it keep together. ValueError for one below 1e6.
class Budget:
    def __init__(self, bytes_per_s: float) -> None: ...

# Both lanes. Any thread may call; `submit`, `mark`, `wait` and `close` run without the GIL.
class Engine:
    # Pools are [blocks, block_bytes], writable, kept alive. A rate of 0 is no limit; a limit of 0 is
    # the default. With `cuda` the device pool is memory of its GPU (DLPack), the host pool page-locked.
    @overload
    def __init__(
        self,
        device: object,
        host: NDArray[np.uint8],
        *,
        d2h_bytes_per_s: float,
        h2d_bytes_per_s: float,
        queue_groups_max: int,
        queue_bytes_max: int,
        slice_bytes_max: int,
        cuda: CudaChoice | None = None,
        host_threads: int = 1,
        budget: Budget | None = None,
    ) -> None: ...
    # Pools in parts: each of [blocks, bytes], rows may lie apart; a block is its parts in order. The
    # device's are memory of the GPU with `cuda`.
    @overload
    def __init__(
        self,
        *,
        device_parts: Sequence[object],
        host_parts: Sequence[NDArray[np.uint8]],
        d2h_bytes_per_s: float,
        h2d_bytes_per_s: float,
        queue_groups_max: int,
        queue_bytes_max: int,
        slice_bytes_max: int,
        cuda: CudaChoice | None = None,
        host_threads: int = 1,
        budget: Budget | None = None,
    ) -> None: ...
    # First of len(after) consecutive tickets, or None when busy. Group g is the ids from offsets[g]
    # up to offsets[g + 1]; it starts once turn after[g] is marked. Eager groups run when no other is ready.
    def submit(
        self,
        direction: int,
        source: _Int32s,
        target: _Int32s,
        offsets: _Int64s,
        after: _Int64s,
        flags: _Bytes | None = None,
    ) -> int | None: ...
    # One group, without the arrays around it; `flags` of this group.
    def submit_group(
        self, direction: int, source: _Int32s, target: _Int32s, after: int, flags: int
    ) -> int | None: ...
    # Under this name TensorRT plugins find it; LinkError without streams. The name is free when it goes.
    def publish(self, key: str) -> None: ...
    def mark(self, turn: int) -> None: ...
    # False: busy. `stream` is a CUstream.
    def mark_stream(self, turn: int, stream: int) -> bool: ...
    def stream_wait(self, ticket: int, stream: int, external: bool) -> bool: ...
    # Fills both arrays with ended groups; returns how many. Never waits.
    def poll(self, tickets: NDArray[np.int64], outcomes: NDArray[np.uint8]) -> int: ...
    # Whether a group has ended and is not polled; False when none is to come, the time is over or the
    # interpreter is about to end.
    def wait(self, timeout_s: float) -> bool: ...
    # Told as CANCELLED; no effect on a ticket that was told. ValueError for one that was never given.
    def cancel(self, ticket: int) -> None: ...
    def poison(self, direction: int) -> None: ...
    def stats(self, direction: int) -> dict[str, int]: ...
    def close(self) -> None: ...

# The place of one name. `step` is said before the batch of `turn` is enqueued: tickets[g] is the last
# copy in that group g of layers must see, 0 none. `withdraw` returns when no plugin is inside.
class Berth:
    def __init__(self, key: str) -> None: ...
    def step(self, turn: int, tickets: _Int64s) -> None: ...
    # Rows of plans that were skipped so far; LinkError without an engine that rotates.
    def refused(self, direction: int) -> int: ...
    def withdraw(self) -> None: ...

def allocate(blocks: int, block_bytes: int) -> NDArray[np.uint8]: ...

# Bytes/s that one thread of this machine copies.
def measure_copy() -> float: ...

# major << 16 | minor of the library.
def version() -> int: ...
