"""Who owns which slot in which tier: the only owner of block state, and the author of copy lists.

Knows requests by id only; no clock, no bytes, no thread (call it from one). Rules, each an assertion
here and a property in tests/props (docs/invariants.md): L1 one owner a slot; L2 one master a step;
L3 leave before enter; L4 not readable before landed; L5 dirty only by compute, clean only by a landed
copy; L6 nobody lives nowhere.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.plan import Plan, SyncRun
from superinfer_trt.core.ports import KvFacts
from superinfer_trt.core.step import Copy, CopyDone, CopyKind, Landing
from superinfer_trt.core.units import NO_SLOT, RequestId, SlotId, Ticket
from superinfer_trt.core.view import Limits
from superinfer_trt.kv.chain import Chain
from superinfer_trt.kv.slots import SlotPool, SlotStack


@dataclass(slots=True, eq=False)
class _Flight:
    """A group of copies under way: whose, which blocks, what for."""

    chain: Chain
    kind: CopyKind
    blocks: Sequence[int]


class KvLedger:
    """The ledger of one executor (core.ports.Ledger). `places` False: somebody else says where in HBM the
    blocks are, device slots only count them (docs/adr/0009)."""

    def __init__(self, limits: Limits, *, places: bool = True) -> None:
        self._block_tokens = limits.block_tokens
        self._device = SlotPool(limits.device_blocks) if places else SlotStack(limits.device_blocks)
        self._host = SlotPool(limits.host_blocks, roomy=True)
        self._chains: dict[RequestId, Chain] = {}
        self._doomed: set[Chain] = set()
        self._cooling: list[SlotId] = []  # L3: given back in this turn, usable from the next
        self._handed_out: dict[Copy, _Flight] = {}  # until it has a ticket
        self._flights: dict[Ticket, _Flight] = {}
        self._backing: dict[RequestId, Chain] = {}  # chains whose host slots may be reclaimed
        self._backing_slots = 0
        self._leaving_slots = 0
        self._settled: list[Chain] = []  # leaving with nothing to copy: land at the next `land`

    # -- what the view is made of ------------------------------------------------------------------

    @property
    def device_free(self) -> int:
        """Device slots that a plan may take now."""
        return len(self._device)

    @property
    def device_leaving(self) -> int:
        """Device slots that come free without a further decision."""
        return self._leaving_slots + len(self._cooling)

    @property
    def host_free(self) -> int:
        """Free host slots."""
        return len(self._host)

    @property
    def host_backing(self) -> int:
        """Host slots that only back resident blocks."""
        return self._backing_slots

    @property
    def in_flight(self) -> int:
        """Groups of copies handed out and not landed."""
        return len(self._handed_out) + len(self._flights) + len(self._settled)

    def slots(self, id: RequestId) -> Sequence[SlotId]:
        """Its device slots, in order; a live array, read it at once."""
        return self._chains[id].device

    # -- the verbs ---------------------------------------------------------------------------------

    def open(self, id: RequestId, facts: KvFacts) -> None:
        """A request came to live; it holds nothing yet."""
        if id in self._chains:
            raise InvariantViolation(f"request {id} is already in the ledger")
        self._chains[id] = Chain(id, self._block_tokens, facts)

    def apply(self, plan: Plan) -> list[Copy]:
        """Takes and gives slots as `plan` says; returns the copies to submit. O(what it names).

        Everything that leaves is marked before anything takes a host slot, so that a victim's own
        copies are never reclaimed for it (F6); device slots given up here are not handed out here (L3).
        """
        for id in plan.evict:
            self._evict(self._chains[id])
        leaving = [self._chains[id] for id in plan.rotate_out]
        for chain in leaving:
            chain.leaving = True
            self._count_backing(chain)
        copies = [self._sync(self._chains[run.id], run) for run in plan.sync]
        for chain in leaving:
            copies.extend(self._rotate_out(chain))
        copies.extend(self._rotate_in(self._chains[id]) for id in plan.rotate_in)
        for id in plan.admit:
            self._admit(self._chains[id])
        for chunk in plan.prefill:
            chain = self._chains[chunk.id]
            chain.scheduled += chunk.length  # admission took its blocks
            chain.touched = plan.turn
        self._decode(plan)
        return copies

    def submitted(self, copy: Copy, ticket: Ticket) -> None:
        """Tells under which ticket `copy` will land."""
        self._flights[ticket] = self._handed_out.pop(copy)

    def land(self, done: Iterable[CopyDone]) -> list[Landing]:
        """Finished copies become facts; returns the rotations that ended with them."""
        self._device.give(self._cooling)
        self._cooling.clear()
        landings: list[Landing] = []
        settled, self._settled = self._settled, []
        for chain in settled:
            self._landed(chain, landings)
        for item in done:
            flight = self._flights.pop(item.ticket, None)
            if flight is None:
                raise InvariantViolation(f"ticket {item.ticket} landed twice or was never submitted")
            self._take_down(flight, ok=item.ok)
            self._landed(flight.chain, landings)
        return landings

    def commit(self, id: RequestId, tokens: int) -> None:
        """The KV of the first `tokens` tokens is written. L5: `filled` grows here and nowhere else."""
        self.commit_all((id,), (tokens,))

    def commit_all(self, ids: Iterable[RequestId], tokens: Iterable[int]) -> None:
        """`commit` of each; a batch at once."""
        chains, block_tokens = self._chains, self._block_tokens
        for id, count in zip(ids, tokens, strict=True):
            chain = chains[id]
            if not chain.tokens <= count <= chain.scheduled:
                state = f"{chain.tokens} written, {chain.scheduled} scheduled"
                raise InvariantViolation(f"request {id} commits {count} tokens; {state}")
            chain.tokens = count
            chain.facts.full_blocks = count // block_tokens

    def release(self, id: RequestId) -> None:
        """Gives all its slots back; those a copy still uses follow when it has landed."""
        chain = self._chains.pop(id)
        self._dismiss(chain, cool=False)

    # -- device side -------------------------------------------------------------------------------

    def _admit(self, chain: Chain) -> None:
        """Slots for its whole prefill target at once: no hold and wait (F3)."""
        chain.device = self._device.take(-(-chain.facts.target_tokens // self._block_tokens))
        chain.tell()

    def _decode(self, plan: Plan) -> None:
        """One more token for each; a block for those whose last one is full."""
        chains, turn, block_tokens = self._chains, plan.turn, self._block_tokens
        opening = 1 % block_tokens  # a token after so many whole blocks is the first of one
        for id in plan.decode:
            chain = chains[id]
            chain.scheduled = scheduled = chain.scheduled + 1
            chain.touched = turn
            if scheduled % block_tokens == opening and scheduled > len(chain.device) * block_tokens:
                chain.device.append(self._device.take_one(chain.device[-1] + 1 if chain.device else NO_SLOT))
                chain.facts.device_blocks = len(chain.device)

    def _evict(self, chain: Chain) -> None:
        """Drops its KV; the request starts again with an empty chain."""
        fresh = Chain(chain.id, self._block_tokens, chain.facts)
        self._chains[chain.id] = fresh
        self._dismiss(chain, cool=True)
        fresh.tell()

    def _dismiss(self, chain: Chain, *, cool: bool) -> None:
        """L2: a slot that a copy or the batch in the air still uses is not handed out again."""
        if chain.leaving:
            self._leaving_slots -= len(chain.device)
        chain.doomed = True
        self._count_backing(chain)
        if chain in self._settled:
            self._settled.remove(chain)
        if chain.flights:
            self._doomed.add(chain)
            self._leaving_slots += len(chain.device)
            return
        if cool:
            self._cooling.extend(chain.device)
        else:
            self._device.give(chain.device)
        self._host.give(chain_host_slots(chain))

    # -- copies ------------------------------------------------------------------------------------

    def _sync(self, chain: Chain, run: SyncRun) -> Copy:
        blocks = range(run.first, run.first + run.count)
        for index in blocks:
            if index >= len(chain.host) or chain.host[index] == NO_SLOT:
                chain.own_host(index, self._host.take_one(chain.host_behind(index)))
        chain.sent = run.first + run.count
        return self._copy(chain, CopyKind.SYNC, blocks, after=-1)  # full and collected: nobody writes it

    def _rotate_out(self, chain: Chain) -> list[Copy]:
        """Only dirty blocks cross the link; the device slots are held until the copies have landed, so
        that a failed copy loses nothing."""
        flying, synced, host = chain.flying, chain.synced, chain.host
        dirty = [
            index
            for index in range(chain.sent, chain.blocks)  # those before are synced or on their way
            if index not in flying and (index >= len(synced) or synced[index] < chain.will_fill(index))
        ]
        for index in dirty:
            if index >= len(host) or host[index] == NO_SLOT:
                chain.own_host(index, self._take_host(chain.host_behind(index)))
        self._leaving_slots += len(chain.device)
        if not dirty:
            if not chain.flights:
                self._settled.append(chain)
            chain.tell()
            return []
        return [self._copy(chain, CopyKind.OUT, dirty, after=chain.touched)]

    def _rotate_in(self, chain: Chain) -> Copy:
        if chain.device or chain.tokens != chain.scheduled:
            raise InvariantViolation(f"request {chain.id} rotates in while it is in HBM (L6)")
        chain.device = self._device.take(chain.blocks)
        chain.arriving = True
        return self._copy(chain, CopyKind.IN, range(chain.blocks), after=-1)

    def _copy(self, chain: Chain, kind: CopyKind, blocks: Sequence[int], *, after: int) -> Copy:
        first, stop = blocks[0], blocks[-1] + 1
        if stop - first == len(blocks):  # the usual run: a slice
            device, host = chain.device[first:stop], chain.host[first:stop]
        else:
            device = array("i", [chain.device[index] for index in blocks])
            host = array("i", [chain.host[index] for index in blocks])
        inward = kind is CopyKind.IN
        copy = Copy(chain.id, kind, host if inward else device, device if inward else host, after)
        if not inward:
            chain.flying.update(blocks)
            synced = chain.synced
            for index in blocks:
                synced[index] = 0  # until it has landed, the host slot may hold anything
        self._handed_out[copy] = _Flight(chain, kind, blocks)
        chain.flights += 1
        self._count_backing(chain)
        chain.tell()
        return copy

    def _take_host(self, near: SlotId) -> SlotId:
        """A host slot, `near` if that is free; reclaimed from a resident request if none is (L5: that block
        turns dirty again)."""
        if not len(self._host):
            if not self._backing:
                raise InvariantViolation("no host slot left: a plan was not checked")
            chain = self._backing[next(reversed(self._backing))]
            last = next(i for i in range(len(chain.host) - 1, -1, -1) if chain.host[i] != NO_SLOT)
            self._host.give((chain.drop_host(last),))
            self._count_backing(chain)
            chain.tell()
        return self._host.take_one(near)

    def _count_backing(self, chain: Chain) -> None:
        """Keeps the count of reclaimable slots right after a change of what `Chain.backing` is made of; who
        counts now is the first to be reclaimed from. O(1)."""
        backing, counted = chain.backing, chain.counted
        if counted:
            del self._backing[chain.id]
        if backing:
            self._backing[chain.id] = chain
        self._backing_slots += backing - counted
        chain.counted = backing

    def _take_down(self, flight: _Flight, *, ok: bool) -> None:
        """One group has landed: L5, clean only here."""
        chain = flight.chain
        chain.flights -= 1
        if flight.kind is not CopyKind.IN:
            chain.flying.difference_update(flight.blocks)
            if ok:
                synced, filled = chain.synced, chain.filled
                for index in flight.blocks:
                    synced[index] = filled(index)
        chain.failed = chain.failed or not ok

    def _landed(self, chain: Chain, landings: list[Landing]) -> None:
        """Ends what can end now that one of the chain's groups has landed."""
        if chain.flights:
            return
        failed, chain.failed = chain.failed, False
        if chain.doomed:
            self._doomed.discard(chain)
            self._leaving_slots -= len(chain.device)
            self._device.give(chain.device)
            self._host.give(chain_host_slots(chain))
            return
        if chain.leaving:
            self._leaving_slots -= len(chain.device)
            if not failed:
                if chain.tokens != chain.scheduled:
                    raise InvariantViolation(f"request {chain.id} left before its last token was written")
                self._device.give(chain.device)
                chain.device = array("i")
            landings.append(Landing(chain.id, CopyKind.OUT, ok=not failed))
        elif chain.arriving:
            if failed:
                self._device.give(chain.device)
                chain.device = array("i")
            landings.append(Landing(chain.id, CopyKind.IN, ok=not failed))
        if failed:
            chain.count_sent()
        elif chain.leaving:  # L6: all of it is in DRAM now
            chain.sent = chain.tokens // self._block_tokens
        chain.leaving = chain.arriving = False
        self._count_backing(chain)
        chain.tell()

    # -- audit -------------------------------------------------------------------------------------

    def audit(self) -> None:
        """Raises InvariantViolation if a slot is lost or owned twice, a counter is off, or a block lives
        nowhere (L1, L5, L6, C1, C5). O(slots)."""
        everyone = [*self._chains.values(), *self._doomed]
        device = [slot for chain in everyone for slot in chain.device]
        device += [*self._cooling, *self._device.free_slots()]
        host = [slot for chain in everyone for slot in chain_host_slots(chain)]
        host += list(self._host.free_slots())
        for name, owned, pool in (("device", device, self._device), ("host", host, self._host)):
            if sorted(owned) != list(range(pool.capacity)):
                raise InvariantViolation(f"{name} slots are lost or owned twice (L1)")
        if self._backing_slots != sum(chain.backing for chain in everyone):
            raise InvariantViolation("reclaimable host slots are miscounted")
        moving = [chain for chain in everyone if chain.leaving or chain in self._doomed]
        if self._leaving_slots != sum(len(chain.device) for chain in moving):
            raise InvariantViolation("leaving device slots are miscounted")
        for chain in self._chains.values():
            self._audit_chain(chain)

    def _audit_chain(self, chain: Chain) -> None:
        for index, synced in enumerate(chain.synced):
            if not 0 <= synced <= chain.filled(index):
                raise InvariantViolation(f"request {chain.id} block {index}: synced {synced} > filled (C5)")
            if synced and chain.host[index] == NO_SLOT:
                raise InvariantViolation(f"request {chain.id} block {index}: synced to nowhere (L5)")
        for index in range(-(-chain.tokens // self._block_tokens)):
            on_device = index < len(chain.device) and not chain.arriving
            on_host = index < len(chain.synced) and chain.synced[index] == chain.filled(index)
            if not (on_device or on_host):
                raise InvariantViolation(f"request {chain.id} block {index} lives nowhere (L6)")

    @property
    def empty(self) -> bool:
        """Whether every slot of both tiers is free (C2)."""
        return len(self._device) == self._device.capacity and len(self._host) == self._host.capacity


def chain_host_slots(chain: Chain) -> Iterator[SlotId]:
    """The host slots a chain owns."""
    return (slot for slot in chain.host if slot != NO_SLOT)
