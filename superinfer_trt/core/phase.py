"""The phases of a request and the one table of legal moves.

The paper's waiting / running / rotary are {WAITING} / {PREFILL, DECODE} /
{ROTATING_OUT, ROTARY, ROTATING_IN}. The table serves the assertion, the drawing and the coverage test.
"""

from __future__ import annotations

from enum import Enum

from superinfer_trt.core.errors import InvariantViolation


class Phase(Enum):
    """Where a request is in its life."""

    WAITING = "waiting"  # holds no block
    PREFILL = "prefill"  # holds device blocks for its whole prompt
    DECODE = "decode"  # makes one token a step
    ROTATING_OUT = "rotating_out"  # dirty blocks on their way to DRAM
    ROTARY = "rotary"  # holds host blocks only
    ROTATING_IN = "rotating_in"  # blocks on their way to HBM
    FINISHED = "finished"  # the client has its ending; blocks leave as soon as no copy uses them

    # Members are unique objects; Enum's own hash is a call in Python, and moves are looked up every turn.
    __hash__ = object.__hash__


RUNNING = frozenset({Phase.PREFILL, Phase.DECODE})

LEGAL: dict[tuple[Phase, Phase], str] = {
    (Phase.WAITING, Phase.PREFILL): "admit",
    (Phase.PREFILL, Phase.DECODE): "last chunk",
    (Phase.DECODE, Phase.ROTATING_OUT): "rotate out",
    (Phase.ROTATING_OUT, Phase.ROTARY): "landed",
    (Phase.ROTATING_OUT, Phase.DECODE): "copy failed",
    (Phase.ROTARY, Phase.ROTATING_IN): "rotate in",
    (Phase.ROTATING_IN, Phase.DECODE): "landed",
    (Phase.ROTATING_IN, Phase.ROTARY): "copy failed",
    (Phase.PREFILL, Phase.WAITING): "evict",
    (Phase.DECODE, Phase.WAITING): "evict",
    (Phase.WAITING, Phase.FINISHED): "reject, cancel",
    (Phase.PREFILL, Phase.FINISHED): "cancel, failure",
    (Phase.DECODE, Phase.FINISHED): "stop, length, cancel, failure",
    (Phase.ROTATING_OUT, Phase.FINISHED): "cancel, failure, stop while in the air",
    (Phase.ROTARY, Phase.FINISHED): "cancel",
    (Phase.ROTATING_IN, Phase.FINISHED): "cancel, failure",
}


def check_move(source: Phase, target: Phase) -> None:
    """Raises InvariantViolation unless the table allows source -> target (C8)."""
    if (source, target) not in LEGAL:
        raise InvariantViolation(f"illegal phase move {source.value} -> {target.value}")


def drawing() -> str:
    """The table as text, one edge a line; docs/invariants.md carries it."""
    return "\n".join(f"{a.value:>12} -> {b.value:<12} {why}" for (a, b), why in LEGAL.items())
