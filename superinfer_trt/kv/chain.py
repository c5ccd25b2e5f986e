"""The blocks of one request: two slots and two counters each, kept as columns.

For block i: `device[i]`, `host[i]` (NO_SLOT if absent), `synced[i]` and the derived
filled(i) = clamp(tokens - i * block_tokens, 0, block_tokens), with 0 <= synced <= filled always (C5).
Dirty means synced < filled. Names such as "clean" or "resident" are derived, never stored.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from superinfer_trt.core.ports import KvFacts
from superinfer_trt.core.units import NO_SLOT, RequestId


def _slots() -> array[int]:
    return array("i")


@dataclass(slots=True, eq=False)
class Chain:
    """Mutable; owned by the ledger alone. Not thread-safe."""

    id: RequestId
    block_tokens: int
    facts: KvFacts
    device: array[int] = field(default_factory=_slots)
    host: array[int] = field(default_factory=_slots)
    synced: array[int] = field(default_factory=_slots)
    tokens: int = 0  # tokens whose KV is written (committed)
    scheduled: int = 0  # and those that the batch in the air will write
    touched: int = -1  # turn of the last batch that reads or writes it
    sent: int = 0  # leading full blocks that are synced or on their way
    host_owned: int = 0  # entries of `host` that are not NO_SLOT
    counted: int = 0  # what the ledger has counted of `backing`
    flying: set[int] = field(default_factory=set)  # blocks with a D2H copy under way
    flights: int = 0  # groups of copies that have not landed
    failed: bool = False  # a copy failed since flights last was 0
    leaving: bool = False
    arriving: bool = False
    doomed: bool = False  # released; its slots go back when flights reaches 0

    @property
    def blocks(self) -> int:
        """Blocks that hold its scheduled tokens."""
        return -(-self.scheduled // self.block_tokens)

    @property
    def backing(self) -> int:
        """Host slots that only back resident blocks and that no copy uses: reclaimable (L5)."""
        moving = self.leaving or self.arriving or self.doomed or self.flights
        return 0 if moving or not self.device else self.host_owned

    def filled(self, index: int) -> int:
        """Tokens written in block `index`."""
        return min(max(self.tokens - index * self.block_tokens, 0), self.block_tokens)

    def will_fill(self, index: int) -> int:
        """Tokens in block `index` once the batch in the air has ended."""
        return min(max(self.scheduled - index * self.block_tokens, 0), self.block_tokens)

    def host_behind(self, index: int) -> int:
        """The slot in DRAM that adjoins the one of the block before `index`; NO_SLOT if that has none."""
        before = self.host[index - 1] if 0 < index <= len(self.host) else NO_SLOT
        return before + 1 if before != NO_SLOT else NO_SLOT

    def own_host(self, index: int, slot: int) -> None:
        """Block `index` gets `slot` in DRAM."""
        missing = index + 1 - len(self.host)
        if missing > 0:
            self.host.extend([NO_SLOT] * missing)
            self.synced.extend([0] * missing)
        self.host[index] = slot
        self.host_owned += 1

    def drop_host(self, index: int) -> int:
        """Block `index` loses its copy in DRAM and is dirty again; returns the slot."""
        slot = self.host[index]
        self.host[index] = NO_SLOT
        self.synced[index] = 0
        self.host_owned -= 1
        self.sent = min(self.sent, index)
        return slot

    def count_sent(self) -> None:
        """Recounts `sent` from the columns; only while nothing flies."""
        full = self.tokens // self.block_tokens
        self.sent = 0
        while self.sent < min(full, len(self.synced)) and self.synced[self.sent] == self.block_tokens:
            self.sent += 1

    def tell(self) -> None:
        """Brings the facts that policies read up to date."""
        facts = self.facts
        facts.device_blocks = len(self.device)
        facts.host_blocks = self.host_owned
        facts.synced_blocks = self.sent
        facts.full_blocks = self.tokens // self.block_tokens if self.device else 0
