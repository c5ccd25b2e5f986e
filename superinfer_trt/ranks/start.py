"""The start of all ranks together: either each of them is ready, or none goes on and rank 0 says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from superinfer_trt.core.errors import ConfigError, SuperInferError
from superinfer_trt.ranks.comm import Comm

Made = TypeVar("Made")


class NotStarted(SuperInferError):
    """Raised on the ranks above 0 when a rank could not start; rank 0 says why."""


def together(comm: Comm, make: Callable[[], Made], alike: str) -> Made:
    """What `make` makes on this rank, once it has on every rank. Collective.

    `alike`: what must be the same everywhere, as text. Raises on rank 0 its own error, or another rank's
    with its number; NotStarted on the others.
    """
    error: SuperInferError | None = None
    try:
        made = make()
    except SuperInferError as failure:
        error = failure
    errors = comm.texts("" if error is None else str(error) or type(error).__name__)
    texts = comm.texts(alike)
    differing = [rank for rank, text in enumerate(texts) if text != texts[0]]
    failed = [(rank, text) for rank, text in enumerate(errors) if text]
    if not (differing or failed):
        return made
    if comm.rank:
        raise NotStarted("another rank says why")
    if error is not None:
        raise error
    if differing:
        raise ConfigError(
            f"engine.tp: rank {differing[0]} was started with another configuration than rank 0"
        )
    raise SuperInferError(f"rank {failed[0][0]}: {failed[0][1]}")
