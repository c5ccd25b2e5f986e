"""`neo`: part of the requests decode with their KV in DRAM, their attention done by the CPU.

The device pool of this policy is HBM (`hbm_blocks`) and behind it the DRAM that may be decoded from. Where
a request's KV lies is a function of where it lay before and of the order of arrival (`split`): the last one
in HBM leaves when blocks run short; else the first one in DRAM comes back while there is room. A turn:

1. All decodes in HBM are in. When the whole pool is short, or DRAM, the newest are dropped and recomputed.
2. Prefills first come, first served: into HBM until one does not fit, then "into DRAM", while those of one
   step fit into HBM on their way and DRAM keeps room for all that lies in HBM. So a new one may overtake
   those who wait in DRAM for room.
3. Two sub-batches: all prefills and decodes in HBM are in the first; decodes in DRAM are dealt one by one to
   the one with more room, while the CPU's attention hides behind the GPU (`neo_times.spare_ms`); who does
   not fit is passed over with all longer ones.
4. Prefills into DRAM are taken back while the batch stays wide (`narrow_tokens`) and everything hides.
5. The two of them, or only what lies in HBM: whichever gives more requests a millisecond of the GPU.

A plan cannot say where a decode happens, and a policy remembers nothing: `compose` tells the places beside
the plan, for the engine that does it, and whoever keeps them hands them in again. With `hbm_blocks` None all
of the pool is HBM, so that nothing ever lies in DRAM: `fcfs`, for any engine.

Differs from its source: who leaves HBM is the newest by arrival, there the last that came in. Prompts may be
chunked, and blocks of a whole prompt are taken at admission. A request larger than HBM is refused.

Source: NEO (MLSys 2025) and its published scheduler. Knows no slot and no clock. Stateless, any thread.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.units import RequestId
from superinfer_trt.core.view import Candidate, Order, View
from superinfer_trt.sched.budget import Budget
from superinfer_trt.sched.fcfs import arrival, first_come_first_served, may_overcommit
from superinfer_trt.sched.lag import whole
from superinfer_trt.sched.neo_times import CpuTimes, SubBatch, rate, spare_ms

RETURN_PERCENT = 95
"""Of HBM, up to which requests come back from DRAM; the rest is left for growth."""


@dataclass(frozen=True, slots=True)
class NeoParameters:
    """`hbm_blocks`: how much of the pool is HBM; None: all of it. The rest matters only beside it:
    `host_*` is attention on the CPU (`neo_times.CpuTimes`); a step of fewer than `narrow_tokens` tokens
    takes the GPU as long, so prefills may widen it to that. Raises ConfigError."""

    hbm_blocks: int | None = None
    host_tokens_per_ms: float = 800.0
    host_row_us: float = 10.0
    host_launch_ms: float = 3.0
    narrow_tokens: int = 128

    def __post_init__(self) -> None:
        if self.hbm_blocks is not None:
            whole("hbm_blocks", self.hbm_blocks, 1)
        whole("narrow_tokens", self.narrow_tokens, 1)
        self.cpu_times()

    def cpu_times(self) -> CpuTimes:
        """Of attention on the CPU."""
        return CpuTimes(self.host_tokens_per_ms, self.host_row_us, self.host_launch_ms)


@dataclass(frozen=True, slots=True)
class Composition:
    """A plan, and what a plan cannot say. `in_dram`: whose KV lies in DRAM in that turn, with the tokens it
    had before; `second`: the decodes of the second sub-batch (the others make the first)."""

    plan: Plan
    in_dram: Mapping[RequestId, int] = field(default_factory=dict)
    second: frozenset[RequestId] = frozenset()


class Split(NamedTuple):
    """Running requests by where their KV lies, and the blocks they need with their next token."""

    in_hbm: list[Candidate]
    in_dram: list[Candidate]
    hbm_blocks: int
    dram_blocks: int


def split(
    running: Sequence[Candidate], hbm_blocks: int, block_tokens: int, before: Collection[RequestId] = ()
) -> Split:
    """Who lies where, when those of `before` lay in DRAM: of nobody known, HBM holds the longest prefix that
    fits. One is always in HBM: admission lets nobody in whom it could not hold alone. O(running)."""
    blocks = {c.id: c.device_blocks + _grows(c, block_tokens) for c in running}
    outside = {c.id for c in running if c.id in before}
    inside = [c for c in running if c.id not in outside]
    hbm, left = sum(blocks[c.id] for c in inside), False
    while hbm > hbm_blocks and len(inside) > 1:
        last = inside.pop()
        outside.add(last.id)
        hbm, left = hbm - blocks[last.id], True
    if outside and not left:
        room = hbm_blocks * RETURN_PERCENT // 100
        for candidate in running:
            if candidate.id in outside:
                if hbm and hbm + blocks[candidate.id] > room:
                    break
                outside.remove(candidate.id)
                hbm += blocks[candidate.id]
    in_hbm = [c for c in running if c.id not in outside]
    in_dram = [c for c in running if c.id in outside]
    return Split(in_hbm, in_dram, hbm, sum(blocks[c.id] for c in in_dram))


def _grows(candidate: Candidate, block_tokens: int) -> bool:
    """Whether its next token needs a block it does not hold."""
    decoding = candidate.phase is Phase.DECODE
    return decoding and candidate.computed_tokens >= candidate.device_blocks * block_tokens


class Neo:
    """The policy; see the module."""

    name = "neo"
    rotates = False
    order = Order(waiting=arrival, rotary=arrival, running=arrival)

    def __init__(self, parameters: NeoParameters | None = None) -> None:
        self.parameters = parameters or NeoParameters()
        self._cpu = self.parameters.cpu_times()

    def __call__(self, view: View) -> Plan:
        return self.compose(view).plan

    def compose(self, view: View, before: Collection[RequestId] = ()) -> Composition:
        """The plan and who decodes where; as pure as the plan. `before`: `in_dram` of the last turn."""
        hbm_blocks = self.parameters.hbm_blocks
        if hbm_blocks is None or hbm_blocks >= view.limits.device_blocks:
            return Composition(first_come_first_served(Budget(view)))
        return _Turn(view, before, hbm_blocks, self._cpu, self.parameters.narrow_tokens).compose()


class _Prefill(NamedTuple):
    """A chunk that could run. `optional`: new and on its way to DRAM, so it can be taken back."""

    candidate: Candidate
    start: int
    length: int
    optional: bool


class _Turn:
    """One composition in the making: `compose`, once."""

    def __init__(
        self,
        view: View,
        before: Collection[RequestId],
        hbm_blocks: int,
        cpu: CpuTimes,
        narrow_tokens: int,
    ) -> None:
        self._view = view
        self._before = before
        self._hbm_blocks = hbm_blocks
        self._dram_blocks = view.limits.device_blocks - hbm_blocks
        self._cpu = cpu
        self._narrow_tokens = narrow_tokens
        self._tokens = view.limits.step_tokens
        self._seats = view.limits.seats
        self._free = view.device_free
        self._starved = False
        # Who has only to be collected is not computed any more, wherever it lies.
        running = [c for c in view.running if c.phase is not Phase.DECODE or c.remaining_tokens > 0]
        self._evicted, self._leaving = self._make_room(running)
        staying = [c for c in running if c.id not in self._evicted]
        self._split = split(staying, hbm_blocks, view.limits.block_tokens, before)

    def compose(self) -> Composition:
        """The turn."""
        decodes = self._hbm_decodes()
        prefills = self._prefills()
        alone, first, second = (SubBatch(self._view.forecast, self._cpu) for _ in range(3))
        for batch in (alone, first):
            for prefill in prefills:
                batch.chunk(prefill.start, prefill.length)
            for candidate in decodes:
                batch.gpu_decode(candidate.computed_tokens + 1)
        kept = self._trimmed(prefills, alone)
        dealt, seconds = self._deal(first, second)
        if seconds:
            piped = self._trimmed(prefills, first, second)
            if rate(alone) < rate(first, second):
                return self._composition(decodes, piped, dealt, seconds)
        return self._composition(decodes, kept, (), frozenset())

    # --- who could run ---------------------------------------------------------------------------

    def _make_room(self, running: Sequence[Candidate]) -> tuple[Collection[RequestId], int]:
        """Whom a short pool drops, newest first, and the slots that are coming then."""
        budget = Budget(self._view)
        found = split(running, self._hbm_blocks, self._view.limits.block_tokens, self._before)
        wanted = max(budget.shortage, found.dram_blocks - self._dram_blocks)
        if wanted > 0:
            budget.evict_newest(wanted)
        return budget.plan().evict, budget.coming

    def _hbm_decodes(self) -> list[Candidate]:
        wanting = [c for c in self._split.in_hbm if c.phase is Phase.DECODE]
        decodes = [c for c in wanting if self._take(c)]
        self._starved = len(decodes) < len(wanting)
        return decodes

    def _take(self, candidate: Candidate) -> bool:
        """Sets aside what a decode takes; False if there is not enough."""
        if self._tokens <= 0 or self._seats <= 0:
            return False
        grows = _grows(candidate, self._view.limits.block_tokens)
        if grows and self._free <= 0:
            return False
        self._free -= grows
        self._tokens -= 1
        self._seats -= 1
        return True

    def _prefills(self) -> list[_Prefill]:
        """Those begun, and the new ones that could come, in order."""
        found: list[_Prefill] = []
        parts = self._split
        for candidate in (*parts.in_hbm, *parts.in_dram):
            if candidate.phase is Phase.PREFILL:
                self._chunk(found, candidate, optional=False)
        if self._evicted or self._starved:
            return found
        hbm, dram, crossing = parts.hbm_blocks, parts.dram_blocks, 0
        to_dram = False
        for candidate in self._view.waiting:
            blocks = candidate.total_blocks
            if candidate.max_blocks > self._hbm_blocks:
                continue  # to be refused
            if self._tokens <= 0 or self._seats <= 0 or blocks > self._free:
                break
            to_dram = to_dram or hbm + blocks > self._hbm_blocks
            if to_dram:
                crossing += blocks
                dram += blocks
                if crossing > self._hbm_blocks or dram > self._dram_blocks - self._hbm_blocks:
                    break
            else:
                hbm += blocks
            self._free -= blocks
            self._chunk(found, candidate, optional=to_dram)
        return found

    def _chunk(self, found: list[_Prefill], candidate: Candidate, *, optional: bool) -> None:
        start = candidate.computed_tokens
        length = min(candidate.target_tokens - start, self._tokens)
        if length > 0 and self._seats > 0:
            found.append(_Prefill(candidate, start, length, optional))
            self._tokens -= length
            self._seats -= 1

    # --- two sub-batches -------------------------------------------------------------------------

    def _deal(self, first: SubBatch, second: SubBatch) -> tuple[list[Candidate], frozenset[RequestId]]:
        """Deals the decodes in DRAM: (all of them that run, those in the second)."""
        batches, seconds, dealt = (first, second), set(), []
        shortest_out: float = float("inf")
        at = 1
        for candidate in self._split.in_dram:
            context_tokens = candidate.computed_tokens + 1
            if candidate.phase is not Phase.DECODE or context_tokens >= shortest_out:
                continue
            batches[at].cpu_decode(context_tokens)
            spare = spare_ms(first, second), spare_ms(second, first)
            if min(spare) < 0:
                batches[at].cpu_decode(context_tokens, -1)
                shortest_out = context_tokens
                continue
            if not self._take(candidate):
                batches[at].cpu_decode(context_tokens, -1)
                break
            dealt.append(candidate)
            if at == 1:
                seconds.add(candidate.id)
            at = int(spare[1] > spare[0])
        return dealt, frozenset(seconds)

    def _trimmed(
        self, prefills: Sequence[_Prefill], batch: SubBatch, other: SubBatch | None = None
    ) -> list[_Prefill]:
        """`prefills` without those into DRAM that `batch` needs neither to be wide nor to hide."""
        kept = list(prefills)
        while kept and kept[-1].optional:
            last = kept[-1]
            batch.chunk(last.start, last.length, -1)
            hides = other is None or min(spare_ms(batch, other), spare_ms(other, batch)) >= 0
            if batch.tokens < self._narrow_tokens or not hides:
                batch.chunk(last.start, last.length)
                break
            kept.pop()
        return kept

    # --- the result ------------------------------------------------------------------------------

    def _composition(
        self,
        decodes: Sequence[Candidate],
        prefills: Sequence[_Prefill],
        dealt: Sequence[Candidate],
        second: frozenset[RequestId],
    ) -> Composition:
        """Plans those who were chosen, by the rules all policies keep (`Budget`)."""
        chosen = {c.id for c in (*decodes, *dealt)} | {p.candidate.id for p in prefills}
        view, parts = self._view, self._split
        running = [c for c in view.running if c.id in chosen]
        budget = Budget(
            replace(
                view,
                running=running,
                limits=replace(view.limits, device_blocks=self._hbm_blocks),
                device_leaving=self._leaving,
            )
        )
        budget.run()
        in_dram = {c.id: c.computed_tokens for c in parts.in_dram}
        if not self._evicted and not self._starved:
            optional = {p.candidate.id: p.optional for p in prefills}
            for candidate in budget.waiting():
                if candidate.id not in optional or not may_overcommit(budget, candidate):
                    break
                budget.admit(candidate)
                if optional[candidate.id]:
                    in_dram[candidate.id] = 0
        return Composition(replace(budget.plan(), evict=tuple(self._evicted)), in_dram, second)
