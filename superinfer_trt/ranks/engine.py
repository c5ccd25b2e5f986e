"""A rank's engine as its executor sees it: what cannot have happened on all ranks alike ends them all.

Keeps a digest of what was sampled, which the ranks compare once a turn. Knows no model. Threads: as the
engine's.
"""

from __future__ import annotations

import zlib
from array import array

from superinfer_trt.core.errors import EngineFailed
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.outcome import Outcome
from superinfer_trt.core.ports import ModelEngine
from superinfer_trt.core.step import Batch
from superinfer_trt.ranks.comm import Comm, RankLost


class RankEngine:
    """core.ports.ModelEngine over the rank's own one."""

    def __init__(self, engine: ModelEngine, comm: Comm) -> None:
        self._engine = engine
        self._comm = comm
        self._digest = 0

    def digest(self) -> int:
        """Of all tokens sampled so far, and of batches that failed."""
        return self._digest

    @property
    def geometry(self) -> Geometry:
        """Of the rank's own blocks."""
        return self._engine.geometry

    @property
    def vocabulary(self) -> int:
        return self._engine.vocabulary

    @property
    def context_tokens_max(self) -> int:
        return self._engine.context_tokens_max

    @property
    def supports(self) -> frozenset[str]:
        return self._engine.supports

    def launch(self, batch: Batch) -> None:
        """A batch that does not fit fits nowhere: EngineFailed on each rank. Anything else is RankLost."""
        try:
            self._engine.launch(batch)
        except EngineFailed as error:
            self._fold(b"refused")
            if not isinstance(error.__cause__, (ValueError, TypeError, OverflowError)):
                raise RankLost(f"rank {self._comm.rank}: {error}") from error
            raise

    def collect(self) -> Outcome:
        try:
            outcome = self._engine.collect()
        except EngineFailed as error:
            if self._comm.lost:
                raise RankLost(self._comm.lost) from error
            self._fold(b"failed")
            raise
        self._fold(array("i", [one.token for one in outcome.sampled.values()]).tobytes())
        return outcome

    def _fold(self, data: bytes) -> None:
        self._digest = zlib.crc32(data, self._digest)

    def close(self) -> None:
        self._engine.close()
