# The native module of the embedded CPU engine (plugins/cpu_engine).

from collections.abc import Callable

from numpy import float32, float64, int32, int64, uint8, uint64
from numpy.typing import NDArray

class Shape:
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_tokens_max: int
    experts: int
    experts_per_token: int
    block_tokens: int
    tied_embedding: bool
    qkv_bias: bool
    norm_eps: float
    def __init__(self) -> None: ...

class Engine:
    def __init__(
        self, shape: Shape, pool: NDArray[uint8], dtype: str, threads: int, kernels: str
    ) -> None: ...
    def load_matrix(self, part: str, layer: int, expert: int, data: NDArray[float32]) -> None: ...
    def load_vector(self, part: str, layer: int, data: NDArray[float32]) -> None: ...
    def finish(self, frequencies: NDArray[float32]) -> None: ...
    def set_reduce(self, reduce: Callable[[NDArray[float32]], None] | None) -> None: ...
    def launch(
        self,
        tokens: NDArray[int32],
        slots: NDArray[int32],
        rows: NDArray[int64],
        reals: NDArray[float64],
        seeds: NDArray[uint64],
        history: NDArray[int32],
        forbidden: NDArray[int32],
    ) -> None: ...
    def collect(self) -> list[tuple[int, float, tuple[tuple[int, float], ...]]]: ...
    def keep_logits(self, keep: bool) -> None: ...
    def logits(self, index: int) -> NDArray[float32] | None: ...
    def close(self) -> None: ...
    @property
    def kernels(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...

def kernel_sets(dtype: str) -> list[str]: ...
