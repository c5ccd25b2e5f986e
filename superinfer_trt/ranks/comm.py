"""What ranks need of each other: a port, with two implementations (`room` for threads, `mpi`)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from superinfer_trt.core.errors import SuperInferError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class RankLost(SuperInferError):
    """Another rank does not answer or has failed: the ranks can do nothing more together."""


class Comm(Protocol):
    """One rank's way to the others.

    `texts`, `least`, `tell` and `hear` are the control plane, for one thread at a time; `add` is the data
    plane, for one thread at a time, beside the other. All are collective: each rank makes the same calls in
    the same order. No call waits longer than the implementation's limit; RankLost then, and ever after.
    """

    @property
    def rank(self) -> int: ...
    @property
    def ranks(self) -> int: ...
    @property
    def neighbours(self) -> int:
        """Ranks on this machine, this one counted."""
        ...

    @property
    def lost(self) -> str:
        """Why the ranks are apart; empty while they are not."""
        ...

    def texts(self, text: str) -> Sequence[str]:
        """The texts of all ranks, in their order. For the start; it waits for the slowest without limit."""
        ...

    def least(self, values: array[int]) -> array[int]:
        """The element-wise minimum of 64-bit integers over all ranks, on each of them."""
        ...

    def tell(self, words: array[int]) -> None:
        """Rank 0 hands 64-bit words to all others."""
        ...

    def hear(self) -> array[int]:
        """What rank 0 tells."""
        ...

    def add(self, partial: NDArray[np.float32]) -> None:
        """partial[n] becomes the sum over ranks, ((rank 0 + rank 1) + rank 2) + ..., with the same bits on
        each of them."""
        ...

    def alarm(self, text: str) -> None:
        """Ends the others' waits with RankLost(text); never waits. Any thread."""
        ...
