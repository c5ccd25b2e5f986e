"""A rank's share of a model: some KV heads with their query heads, and a slice of the MLP.

What attention and MLP add to the hidden state is then a partial sum; embedding, norms, routers and head are
whole on every rank. Shares need not be equal: three KV heads go to two ranks as one and two. Knows the names
of core.model.Weights, no kernel and no other rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.model import ModelConfig, Weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_UNITS = (32, 8)
"""Columns of the MLP go in whole kernel panels where there are enough, else in the least the engine takes."""

_QUERY, _KEY, _MLP = "query", "key", "mlp"
_ROWS = {
    "q_proj": _QUERY, "k_proj": _KEY, "v_proj": _KEY,
    "gate_proj": _MLP, "up_proj": _MLP, "w1": _MLP, "w3": _MLP,
}  # fmt: skip
_COLUMNS = {"o_proj": _QUERY, "down_proj": _MLP, "w2": _MLP}


class SplitWeights:
    """core.model.Weights of one rank: `config` and tensors are those of its share.

    Raises ConfigError when a rank would have no KV head or no column of the MLP.
    """

    def __init__(self, weights: Weights, rank: int, ranks: int) -> None:
        whole = weights.config
        if whole.kv_heads < ranks:
            raise ConfigError(
                f"engine.tp: {ranks} is more than {whole.name} has KV heads ({whole.kv_heads}); "
                f"at most {whole.kv_heads}"
            )
        unit = next((u for u in _UNITS if whole.intermediate >= u * ranks), 0)
        if not unit or whole.intermediate % _UNITS[-1]:
            raise ConfigError(
                f"engine.tp: {ranks} ranks cannot share the {whole.intermediate} columns of {whole.name}'s "
                f"MLP in multiples of {_UNITS[-1]}"
            )
        group = whole.heads // whole.kv_heads * whole.head_dim
        kv = slice(whole.kv_heads * rank // ranks, whole.kv_heads * (rank + 1) // ranks)
        mlp = slice(
            _bound(whole.intermediate, unit, rank, ranks), _bound(whole.intermediate, unit, rank + 1, ranks)
        )
        self._weights = weights
        self._slices = {
            _QUERY: slice(kv.start * group, kv.stop * group),
            _KEY: slice(kv.start * whole.head_dim, kv.stop * whole.head_dim),
            _MLP: mlp,
        }
        self.config: ModelConfig = replace(
            whole,
            heads=(kv.stop - kv.start) * whole.heads // whole.kv_heads,
            kv_heads=kv.stop - kv.start,
            intermediate=mlp.stop - mlp.start,
        )

    def tensor(self, name: str) -> Any:
        """The rank's rows or columns of a tensor; a view, or a copy."""
        tensor: NDArray[np.float32] = self._weights.tensor(name)
        part = name.split(".")[-2]
        if part in _ROWS:
            return tensor[self._slices[_ROWS[part]]]
        if part in _COLUMNS:
            return tensor[:, self._slices[_COLUMNS[part]]].copy()
        return tensor


def _bound(columns: int, unit: int, rank: int, ranks: int) -> int:
    """Where the share of `rank` begins: a multiple of `unit`, or the end."""
    return columns if rank == ranks else columns // unit * rank // ranks * unit
