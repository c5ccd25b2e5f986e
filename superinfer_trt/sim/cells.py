"""KV as one number a token: an engine and a link over two small pools in which every byte is accounted for.

The state at a position is a hash of all tokens up to it, so a block that was lost, crossed, torn, stale or
read too early holds other numbers than its request's own, and is noticed where it is read (C5, C6). Tokens
are a function of that state: whoever knows the request knows all of them beforehand (C12).

The link is as strict as the port allows: a target holds nothing from the start of its copy until its landing
is told, a source may not change in between, and a failed copy leaves rubbish. What is not modelled: time
(the wrapped link has it), bytes of a block that arrive one by one. Knows no ledger. One thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from superinfer_trt.core.errors import EngineFailed, InvariantViolation
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.core.outcome import Outcome, Sampled
from superinfer_trt.core.ports import TransferEngine
from superinfer_trt.core.request import Request, Sampling
from superinfer_trt.core.step import Batch, Copy, CopyDone, CopyKind, Direction, Row
from superinfer_trt.core.units import RequestId, SlotId, Ticket
from superinfer_trt.core.view import Limits

NOTHING = -1
"""What a cell holds that nobody may read."""

_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """A bijection of 64-bit words that spreads every bit (splitmix64's finaliser)."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def state_after(before: int, position: int, token: int) -> int:
    """The state at `position`, which holds `token`; `before` is that of the position before, or 0."""
    return _mix(before * 0x9E3779B97F4A7C15 + position * 0x632BE59BD9B4E019 + token + 1)


def token_after(state: int, sampling: Sampling, index: int, vocabulary: int) -> int:
    """Output token `index` after a chain that ends in `state`; skips ids that `min_tokens` forbids."""
    token = _mix(state ^ _mix(sampling.seed + index)) % vocabulary
    forbidden = sampling.forbidden(index)
    while token in forbidden:
        token = (token + 1) % vocabulary
    return token


def expected_tokens(request: Request, vocabulary: int) -> list[int]:
    """All output tokens of `request`, whatever a scheduler does (C12). O(prompt + max_tokens)."""
    state, position = 0, 0
    for token in request.prompt:
        state, position = state_after(state, position, token), position + 1
    output: list[int] = []
    while len(output) < request.sampling.max_tokens:
        token = token_after(state, request.sampling, len(output), vocabulary)
        output.append(token)
        if token in request.sampling.stop_ids:
            break
        state, position = state_after(state, position, token), position + 1
    return output


class Cells:
    """Both pools, [slot][offset], and what each request's own states are."""

    def __init__(self, limits: Limits) -> None:
        self.block_tokens = limits.block_tokens
        self.device = [[NOTHING] * limits.block_tokens for _ in range(limits.device_blocks)]
        self.host = [[NOTHING] * limits.block_tokens for _ in range(limits.host_blocks)]
        self.states: dict[RequestId, list[int]] = {}

    def check(
        self, pool: list[list[int]], id: RequestId, slots: Sequence[SlotId], tokens: int, where: str
    ) -> None:
        """Raises InvariantViolation unless `slots` of `pool` hold the first `tokens` states of `id`."""
        own, size = self.states.get(id, []), self.block_tokens
        for index in range(-(-tokens // size)):
            count = min(size, tokens - index * size)
            found = pool[slots[index]]
            if found[:count] == own[index * size : index * size + count]:
                continue
            owner = self._whose(found)
            raise InvariantViolation(
                f"C5: block {index} of request {id}, slot {slots[index]}, is not what was written, {where}"
                f"{owner}"
            )

    def _whose(self, found: list[int]) -> str:
        if found[0] == NOTHING:
            return "; it holds nothing yet"
        for id, states in self.states.items():
            if found[0] in states:
                return f"; it holds position {states.index(found[0])} of request {id}"
        return ""


class CellEngine:
    """core.ports.ModelEngine over `Cells`. Takes no time."""

    def __init__(self, cells: Cells, geometry: Geometry, vocabulary: int) -> None:
        self._cells = cells
        self._geometry = geometry
        self._vocabulary = vocabulary
        self._air: tuple[Batch, list[list[SlotId]]] | None = None

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    @property
    def context_tokens_max(self) -> int:
        return 1 << 20

    @property
    def supports(self) -> frozenset[str]:
        return frozenset({"min_tokens"})

    def launch(self, batch: Batch) -> None:
        """Verifies the history of all rows, and that no slot belongs to two of them."""
        if self._air is not None:
            raise InvariantViolation("launch: a batch is in the air")
        slots = [list(row.slots) for row in batch.rows]
        every = [slot for own in slots for slot in own]
        if len(set(every)) != len(every):
            raise InvariantViolation(f"C1: a slot stands twice in the batch of turn {batch.turn}")
        for row, own in zip(batch.rows, slots, strict=True):
            stop = row.start + len(row.tokens)
            if not row.tokens or len(own) * self._cells.block_tokens < stop:
                raise InvariantViolation(
                    f"C7: request {row.id}: {len(own)} slots, {len(row.tokens)} tokens up to {stop}"
                )
            self._verify(row, own)
        self._air = batch, slots

    def collect(self) -> Outcome:
        """Verifies once more, writes the rows' own states and makes the sampled tokens."""
        batch, slots = self._landed()
        sampled = {}
        for row, own in zip(batch.rows, slots, strict=True):
            self._verify(row, own)
            states = self._cells.states[row.id] if row.start else []
            self._cells.states[row.id] = states = states[: row.start]
            for offset, token in enumerate(row.tokens, row.start):
                states.append(state_after(states[-1] if states else 0, offset, token))
                block, place = divmod(offset, self._cells.block_tokens)
                self._cells.device[own[block]][place] = states[-1]
            if row.sample:
                sampled[row.id] = Sampled(token_after(states[-1], row.sampling, row.index, self._vocabulary))
        return Outcome(sampled)

    def drop(self, message: str) -> None:
        """The batch in the air fails, and leaves rubbish where it would have written. Raises EngineFailed."""
        batch, slots = self._landed()
        for row, own in zip(batch.rows, slots, strict=True):
            for offset in range(row.start, row.start + len(row.tokens)):
                block, place = divmod(offset, self._cells.block_tokens)
                self._cells.device[own[block]][place] = NOTHING
        raise EngineFailed(message)

    def close(self) -> None:
        self._air = None

    def _landed(self) -> tuple[Batch, list[list[SlotId]]]:
        air, self._air = self._air, None
        if air is None:
            raise InvariantViolation("collect: no batch is in the air")
        return air

    def _verify(self, row: Row, slots: Sequence[SlotId]) -> None:
        if row.start:
            self._cells.check(self._cells.device, row.id, slots, row.start, "where a batch reads it")


@dataclass(slots=True, eq=False)
class _Move:
    """A copy under way; `source` is what was read when it started."""

    copy: Copy
    source: list[list[int]] | None = None


class CellLink:
    """core.ports.TransferEngine: `inner` says when, this says what (see the module)."""

    def __init__(self, cells: Cells, inner: TransferEngine) -> None:
        self.inner = inner
        self._cells = cells
        self._marked = -1
        self._moves: dict[Ticket, _Move] = {}
        self.failed = 0

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        tickets = self.inner.submit(direction, copies)
        if tickets is None:
            return None
        for copy, ticket in zip(copies, tickets, strict=True):
            self._check_apart(copy)
            if copy.kind is CopyKind.IN:
                tokens = len(self._cells.states.get(copy.id, ()))
                if -(-tokens // self._cells.block_tokens) != len(copy.source):
                    raise InvariantViolation(
                        f"C5: {len(copy.source)} blocks of request {copy.id} come in, it has {tokens} tokens"
                    )
                self._cells.check(self._cells.host, copy.id, copy.source, tokens, "on its way to HBM")
            self._moves[ticket] = move = _Move(copy)
            if copy.after <= self._marked:
                self._start(move)
        return tickets

    def mark(self, turn: int) -> None:
        self.inner.mark(turn)
        self._marked = max(self._marked, turn)
        for move in self._moves.values():
            if move.source is None and move.copy.after <= self._marked:
                self._start(move)

    def poll(self) -> Sequence[CopyDone]:
        done = self.inner.poll()
        for item in done:
            self._land(self._moves.pop(item.ticket), ok=item.ok)
        return done

    def link_bytes_per_s(self, direction: Direction) -> float:
        return self.inner.link_bytes_per_s(direction)

    def close(self) -> None:
        self.inner.close()

    def _tiers(self, copy: Copy) -> tuple[list[list[int]], list[list[int]]]:
        cells = self._cells
        return (cells.host, cells.device) if copy.kind is CopyKind.IN else (cells.device, cells.host)

    def _check_apart(self, copy: Copy) -> None:
        """C6: a target is nobody else's source or target."""
        targets, sources = set(copy.target), set(copy.source)
        if len(targets) != len(copy.target):
            raise InvariantViolation(f"C6: a target stands twice in a copy of request {copy.id}")
        for other in (move.copy for move in self._moves.values()):
            same = other.direction is copy.direction
            written, read = (other.target, other.source) if same else (other.source, other.target)
            # `written`: the other's slots in the tier this copy writes; `read`: in the tier it reads.
            if not targets.isdisjoint(written) or (not same and not sources.isdisjoint(read)):
                raise InvariantViolation(
                    f"C6: copies of requests {copy.id} and {other.id} meet in a slot, both in the air"
                )

    def _start(self, move: _Move) -> None:
        source, target = self._tiers(move.copy)
        move.source = [list(source[slot]) for slot in move.copy.source]
        for slot in move.copy.target:
            target[slot] = [NOTHING] * self._cells.block_tokens

    def _land(self, move: _Move, *, ok: bool) -> None:
        copy = move.copy
        if move.source is None:
            raise InvariantViolation(f"C6: a copy of request {copy.id} landed before turn {copy.after} ended")
        source, target = self._tiers(copy)
        self.failed += not ok
        for at, (read, written) in enumerate(zip(copy.source, copy.target, strict=True)):
            if source[read] != move.source[at]:
                raise InvariantViolation(f"C6: slot {read} changed under a copy of request {copy.id}")
            if target[written] != [NOTHING] * self._cells.block_tokens:
                raise InvariantViolation(f"C6: slot {written} was written under a copy of request {copy.id}")
            if ok:
                target[written] = list(move.source[at])
