"""The Plan: all that one turn will do, in request ids and counts. The hinge of the design.

Knows no slot, tensor or byte, so that the same plan drives the simulator, the embedded engine and
TensorRT-LLM, and can be logged, diffed, broadcast and replayed (docs/adr/0001).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote

from superinfer_trt.core.units import Nanos, RequestId


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one prompt: tokens start .. start + length - 1 of its prefill target."""

    id: RequestId
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class SyncRun:
    """Full blocks first .. first + count - 1 of one request, copied to DRAM ahead of need."""

    id: RequestId
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Rejection:
    """A waiting request that is refused, with the reason the client reads."""

    id: RequestId
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """One turn. Its rules are checked by `superinfer_trt.core.check.check_plan`."""

    turn: int
    now: Nanos
    admit: tuple[RequestId, ...] = ()  # WAITING -> PREFILL; takes device blocks for its whole target
    prefill: tuple[Chunk, ...] = ()
    decode: tuple[RequestId, ...] = ()  # one token each
    rotate_out: tuple[RequestId, ...] = ()  # DECODE -> ROTATING_OUT; only dirty blocks cross the link
    rotate_in: tuple[RequestId, ...] = ()  # ROTARY -> ROTATING_IN; runs once its copies have landed
    sync: tuple[SyncRun, ...] = ()
    evict: tuple[RequestId, ...] = ()  # running -> WAITING; its KV is dropped and recomputed
    reject: tuple[Rejection, ...] = ()  # WAITING -> FINISHED

    @property
    def idle(self) -> bool:
        """Whether the turn would change nothing."""
        return not (
            self.admit
            or self.prefill
            or self.decode
            or self.rotate_out
            or self.rotate_in
            or self.sync
            or self.evict
            or self.reject
        )

    @property
    def runs(self) -> bool:
        """Whether the turn launches a batch."""
        return bool(self.prefill or self.decode)

    def line(self) -> str:
        """One line of text; `parse_line` reads it back. Equal lines are what a seed promises (C11)."""
        fields = (
            ("admit", _ids(self.admit)),
            ("prefill", ",".join(f"{c.id}:{c.start}+{c.length}" for c in self.prefill)),
            ("decode", _ids(self.decode)),
            ("out", _ids(self.rotate_out)),
            ("in", _ids(self.rotate_in)),
            ("sync", ",".join(f"{s.id}:{s.first}+{s.count}" for s in self.sync)),
            ("evict", _ids(self.evict)),
            ("reject", ",".join(f"{r.id}:{quote(r.reason, safe='')}" for r in self.reject)),
        )
        body = " ".join(f"{name}={text}" for name, text in fields if text)
        return f"turn={self.turn} now={self.now} {body or 'idle'}"


def parse_line(line: str) -> Plan:
    """The plan of a `Plan.line()`, exactly. Raises ValueError for anything else."""
    words = dict(word.split("=", 1) for word in line.split() if word != "idle")

    def ids(key: str) -> tuple[RequestId, ...]:
        return tuple(RequestId(int(x)) for x in words.get(key, "").split(",") if x)

    def runs(key: str) -> list[tuple[RequestId, int, int]]:
        found = []
        for word in words.get(key, "").split(","):
            if word:
                owner, span = word.split(":")
                first, count = span.split("+")
                found.append((RequestId(int(owner)), int(first), int(count)))
        return found

    rejections = [word.split(":", 1) for word in words.get("reject", "").split(",") if word]
    try:
        return Plan(
            turn=int(words["turn"]),
            now=int(words["now"]),
            admit=ids("admit"),
            prefill=tuple(Chunk(*run) for run in runs("prefill")),
            decode=ids("decode"),
            rotate_out=ids("out"),
            rotate_in=ids("in"),
            sync=tuple(SyncRun(*run) for run in runs("sync")),
            evict=ids("evict"),
            reject=tuple(Rejection(RequestId(int(i)), unquote(why)) for i, why in rejections),
        )
    except KeyError as error:
        raise ValueError(f"not a plan line (no {error}): {line[:80]!r}") from error


def _ids(ids: tuple[RequestId, ...]) -> str:
    return ",".join(map(str, ids))
