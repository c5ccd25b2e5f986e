"""What one turn may still spend, and what it has decided so far. Lives for one pass of one policy.

Holds what all policies share: continuous batching with chunked prefill (decodes first, then chunks of
requests already in prefill, then new ones), the growth of decodes, the two doors in (`admit`,
`resume`), the two doors out (`rotate_out`, `evict`) and eager block sync. Each door keeps the
rules of `core.check`, so a policy only decides who goes through, in which order.

Slots that leave in this turn can be taken from a later turn on. They are counted in `coming`, so that
no shortage is paid twice. Knows no policy, no slot and no clock. One thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Chunk, Plan, Rejection, SyncRun
from superinfer_trt.core.units import RequestId
from superinfer_trt.core.view import Candidate, View

SPENT = -1
"""A link allowance after a move larger than it: not even a move of 0 blocks may join."""


class Budget:
    """Allowances of one view, and the plan in the making. Build, spend, then `plan()`."""

    __slots__ = (
        "_admit",
        "_chunks",
        "_decoding",
        "_dirty_out",
        "_evict",
        "_gone",
        "_needy",
        "_refused",
        "_reject",
        "_rotate_in",
        "_rotate_out",
        "_sync",
        "_unsynced",
        "coming",
        "ending",
        "free",
        "host_room",
        "largest",
        "link_in",
        "link_out",
        "prefilling",
        "promised",
        "residents",
        "seats",
        "starved",
        "tokens",
        "view",
    )

    def __init__(self, view: View, *, eager: bool = False) -> None:
        """Surveys `view.running` once. `eager`: also notes the full blocks that could be synced."""
        self.view = view
        self.tokens = view.limits.step_tokens
        self.seats = view.limits.seats
        self.free = view.device_free  # device slots that this turn may still take
        self.coming = view.device_leaving  # slots that later turns get without a further decision
        self.link_out = view.link_out_blocks
        self.link_in = view.link_in_blocks
        self.host_room = view.host_free + view.host_backing
        self.promised = view.promised_blocks
        self.largest = view.promised_blocks_max
        self.starved = 0  # decodes that found no block
        self.residents: list[Candidate] = []  # all that could decode, in running order
        self.prefilling: list[Candidate] = []
        self.ending: list[Candidate] = []  # whose last token is in the air
        self._needy: list[Candidate] = []  # those of them whose next token needs a block
        self._unsynced: list[Candidate] = []
        self._gone: set[RequestId] = set()
        self._decoding: list[RequestId] = []
        self._chunks: list[Chunk] = []
        self._admit: list[RequestId] = []
        self._rotate_in: list[RequestId] = []
        self._rotate_out: list[RequestId] = []
        self._evict: list[RequestId] = []
        self._reject: list[Rejection] = []
        self._refused: set[RequestId] = set()
        self._sync: list[SyncRun] = []
        self._dirty_out = 0
        self._survey(eager=eager)

    # --- the ones that run -----------------------------------------------------------------------

    def _survey(self, *, eager: bool) -> None:
        residents, needy, unsynced = self.residents, self._needy, self._unsynced
        prefilling, ending = self.prefilling, self.ending
        block_tokens = self.view.limits.block_tokens
        rows = min(self.tokens, self.seats)
        decode = Phase.DECODE
        for candidate in self.view.running:
            if candidate.phase is not decode:
                prefilling.append(candidate)
            elif candidate.remaining_tokens > 0:
                residents.append(candidate)
                # View.decode_needs_block, spelled out: this is the only loop over all that run.
                if (
                    candidate.computed_tokens >= candidate.device_blocks * block_tokens
                    and len(residents) <= rows
                ):
                    needy.append(candidate)
            else:  # its last token is in the air: its blocks come free when that is collected
                ending.append(candidate)
                self.coming += candidate.device_blocks
                continue
            if eager and candidate.full_blocks > candidate.synced_blocks:
                unsynced.append(candidate)

    @property
    def shortage(self) -> int:
        """Blocks that growth lacks even after all that is coming; > 0: somebody has to leave."""
        lacking = sum(1 for c in self._needy if c.id not in self._gone)
        return lacking - self.free - self.coming

    @property
    def decoding(self) -> int:
        """Rows of decodes that want to run."""
        return len(self.residents) - len(self._gone)

    def cap_tokens(self, tokens: int) -> None:
        """Lets the step carry at most `tokens` tokens. Call before `run`."""
        self.tokens = min(self.tokens, tokens)

    @property
    def moved_out(self) -> bool:
        """Whether this turn takes HBM from anybody."""
        return bool(self._gone)

    @property
    def runners(self) -> int:
        """Requests that hold HBM and will run on: the decoding ones and those in prefill."""
        return len(self.residents) + len(self.prefilling) - len(self._gone)

    def run(self) -> None:
        """Plans decodes and the chunks of requests already in prefill. Call after forced moves.

        Oldest stay first. A decode that finds no block is left out and counted in `starved`; the
        blocks it will take are set aside from `coming`.
        """
        gone = self._gone
        without: set[RequestId] = set()
        for candidate in self._needy:
            if candidate.id in gone:
                continue
            if self.free > 0:
                self.free -= 1
            else:
                without.add(candidate.id)
        self.starved = len(without)
        self.coming = max(0, self.coming - self.starved)
        skipped = gone | without
        rows = self.residents[: min(self.tokens, self.seats)]
        if skipped:
            self._decoding = [c.id for c in rows if c.id not in skipped]
        else:
            self._decoding = [c.id for c in rows]
        self.tokens -= len(self._decoding)
        self.seats -= len(self._decoding)
        for candidate in self.prefilling:
            if self.tokens <= 0 or self.seats <= 0:
                break
            if candidate.id not in gone:
                self._chunk(candidate)
        # A starved one keeps its seat from newcomers: it decodes as soon as its block has come.
        self.seats -= self.starved

    def _chunk(self, candidate: Candidate) -> None:
        start = candidate.computed_tokens
        length = min(candidate.target_tokens - start, self.tokens)
        if length > 0:
            self._chunks.append(Chunk(candidate.id, start, length))
            self.tokens -= length
            self.seats -= 1

    # --- the two doors in ------------------------------------------------------------------------

    def waiting(self, among: Iterable[Candidate] | None = None) -> Iterator[Candidate]:
        """The waiting ones (or those `among` them) in order, lazily; those that HBM could not hold even
        alone are rejected."""
        device_blocks = self.view.limits.device_blocks
        for candidate in self.view.waiting if among is None else among:
            blocks = candidate.max_blocks
            if blocks <= device_blocks:
                yield candidate
            elif candidate.id not in self._refused:
                self._refused.add(candidate.id)
                reason = f"needs {blocks} KV blocks at its end, the HBM pool has {device_blocks}"
                self._reject.append(Rejection(candidate.id, reason))

    def rotary(self) -> Iterator[Candidate]:
        """Those that could come back, in order, lazily; the ones under way are passed over."""
        return (c for c in self.view.rotary if c.phase is Phase.ROTARY)

    def fits(self, blocks: int, reserve: int) -> bool:
        """Whether `blocks` are free now and leave `reserve` free; an empty HBM needs no reserve."""
        busy = self.runners > 0 or self._admit or self._rotate_in
        return blocks + (reserve if busy else 0) <= self.free

    def admission_open(self, candidate: Candidate) -> bool:
        """Whether deadlock stays impossible with one more request (View.admission_fits)."""
        return self.view.admission_fits(candidate.max_blocks, self.promised, self.largest)

    def may_admit(self, candidate: Candidate) -> bool:
        """Whether tokens, seats and the admission inequality let it in now, blocks apart."""
        return self.tokens > 0 and self.seats > 0 and self.admission_open(candidate)

    def _promise(self, candidate: Candidate) -> None:
        blocks = candidate.max_blocks
        self.promised += blocks
        self.largest = max(self.largest, blocks)

    def await_slots(self, candidate: Candidate) -> None:
        """Counts a waiting request that is to be admitted as soon as its slots have come: its promise,
        and the share of a step's tokens that its prompt will take, so that nobody has to leave for
        more prompts than one step can start."""
        self._promise(candidate)
        self.tokens -= min(candidate.target_tokens, self.tokens)

    def admit(self, candidate: Candidate) -> None:
        """Takes blocks for its whole prefill target and plans its first chunk. The caller has seen
        `may_admit` and `free >= total_blocks`."""
        self.free -= candidate.total_blocks
        self._promise(candidate)
        self._admit.append(candidate.id)
        self._chunk(candidate)

    def blocks_back(self, candidate: Candidate) -> int:
        """Blocks a rotary request wants: its own, and one more if its next token needs it at once
        (without it, it would come back only to wait)."""
        blocks = candidate.total_blocks
        return blocks + (candidate.computed_tokens >= blocks * self.view.limits.block_tokens)

    def resumption_open(self, candidate: Candidate) -> bool:
        """Whether seat and H2D allowance let it come back now. One larger than an allowance that is
        not 0 may come alone."""
        fits = candidate.total_blocks <= self.link_in or (self.link_in > 0 and not self._rotate_in)
        return fits and self.seats > 0

    def resume(self, candidate: Candidate) -> None:
        """Brings it back. The caller has seen an open resumption and `free >= blocks_back`."""
        blocks = candidate.total_blocks
        self.free -= self.blocks_back(candidate)
        self.link_in = self.link_in - blocks if blocks <= self.link_in else SPENT
        self.seats -= 1
        self._rotate_in.append(candidate.id)

    # --- the two doors out -----------------------------------------------------------------------

    def rotate_out(
        self,
        wanted: int,
        *,
        stint_tokens: int,
        keep: int = 0,
        newest: bool = False,
        among: Iterable[Candidate] | None = None,
    ) -> int:
        """Rotates decoding requests out until `wanted` blocks are covered; returns what is uncovered.

        Longest stay first, or `newest` first, or `among` these in their order. Only those that made
        `stint_tokens` in this stay; at least `keep` of the decoding ones stay. One whose dirty blocks
        exceed the D2H allowance or the host room is passed over; but when none fits an allowance that is
        not 0, one goes alone.
        """
        staying = len(self.residents) - len(self._gone)
        oversize: Candidate | None = None
        if among is None:
            among = reversed(self.residents) if newest else self.residents
        for candidate in among:
            if wanted <= 0 or staying <= keep:
                break
            if candidate.stint_tokens < stint_tokens or candidate.id in self._gone:
                continue
            dirty = candidate.total_blocks - candidate.synced_blocks
            # A victim's own host slots back its own blocks: they are no room for it.
            if dirty > self.host_room - candidate.host_blocks:
                continue
            if dirty > self.link_out:
                oversize = oversize or candidate
                continue
            wanted -= self._leave(candidate, dirty)
            staying -= 1
        if wanted > 0 and oversize and not self._rotate_out and self.link_out > 0:
            dirty = oversize.total_blocks - oversize.synced_blocks
            wanted -= self._leave(oversize, dirty)
            self.link_out = SPENT
        return wanted

    def _leave(self, candidate: Candidate, dirty: int) -> int:
        self._rotate_out.append(candidate.id)
        self.link_out -= dirty
        self._dirty_out += dirty
        self.host_room -= dirty + candidate.host_blocks
        return self._lose(candidate)

    def evict_newest(self, wanted: int) -> int:
        """Drops the newest running requests, in prefill or decoding, until `wanted` blocks are
        covered or one is left; returns what is uncovered."""
        for candidate in reversed(list(self.view.running)):  # a queue is cheap from its head only
            if wanted <= 0 or self.runners <= 1:
                break
            if candidate.phase is Phase.DECODE and candidate.remaining_tokens <= 0:
                continue
            wanted -= self.evict(candidate)
        return wanted

    def evict(self, candidate: Candidate) -> int:
        """Drops one that runs, in prefill or decoding; returns by how much that eases a shortage."""
        self._evict.append(candidate.id)
        return self._lose(candidate)

    def _lose(self, candidate: Candidate) -> int:
        """Takes it off the running ones; returns by how much that eases a shortage."""
        self._gone.add(candidate.id)
        self.coming += candidate.device_blocks
        # If it was to grow, that block is not wanted any more.
        grows = candidate.phase is Phase.DECODE and self.view.decode_needs_block(candidate)
        return candidate.device_blocks + grows

    # --- eager block rotation --------------------------------------------------------------------

    def sync(self) -> None:
        """Spends what is left of D2H on full unsynced blocks, oldest stay first, into free host
        slots. Call last: room for those who leave comes first."""
        left = min(self.link_out, self.view.host_free - self._dirty_out)
        for candidate in self._unsynced:
            if left <= 0:
                break
            if candidate.id in self._gone:
                continue
            first = candidate.synced_blocks
            count = min(candidate.full_blocks - first, left)
            self._sync.append(SyncRun(candidate.id, first, count))
            left -= count

    # --- the result ------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """What was decided."""
        gone = self._gone
        decoding: Iterable[RequestId] = self._decoding
        if gone:
            decoding = (id for id in decoding if id not in gone)
        return Plan(
            turn=self.view.turn,
            now=self.view.now,
            admit=tuple(self._admit),
            prefill=tuple(self._chunks),
            decode=tuple(decoding),
            rotate_out=tuple(self._rotate_out),
            rotate_in=tuple(self._rotate_in),
            sync=tuple(self._sync),
            evict=tuple(self._evict),
            reject=tuple(self._reject),
        )
