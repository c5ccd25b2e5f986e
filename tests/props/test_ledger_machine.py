"""The ledger and the roster against a naive twin that keeps every byte (C1, C2, C5, C6, L1-L6).

The machine plays executor, engine and link at once: plans are random legal ones, copies land in any
interleaving of the two directions and may fail, requests are cancelled at any moment, and the next plan
may be made while a batch is in the air. The twin's memory holds, per slot, what was written there.
"""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from superinfer_trt.core.check import check_plan
from superinfer_trt.core.outcome import Outcome, Sampled, Totals
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.step import Copy, CopyDone, CopyKind, Direction
from superinfer_trt.core.units import RequestId, Ticket
from superinfer_trt.core.view import Limits, Order
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.runtime.roster import Roster
from support.legal_plans import random_legal_plan

BLOCK = 4
POISON = ("poison",)


class LedgerMachine(RuleBasedStateMachine):
    @initialize(device=st.integers(3, 9), host=st.integers(0, 12))
    def start(self, device: int, host: int) -> None:
        self.limits = Limits(
            step_tokens=12, seats=4, block_tokens=BLOCK, device_blocks=device, host_blocks=host
        )
        order = Order(
            waiting=lambda c: c.arrival, rotary=lambda c: c.last_token, running=lambda c: c.run_start
        )
        self.ledger = KvLedger(self.limits)
        self.roster = Roster(self.limits, order, Totals())
        self.now = 0
        self.turn = 0
        self.next_id = 0
        self.next_ticket = 0
        self.planned = None  # applied, not launched
        self.air = None  # launched, not collected
        self.marked = -1
        self.device = [[POISON] * BLOCK for _ in range(device)]
        self.host = [[POISON] * BLOCK for _ in range(host)]
        self.lanes: dict[Direction, list[tuple[Ticket, Copy]]] = {d: [] for d in Direction}
        self.generation: dict[RequestId, int] = {}
        self.endings: dict[RequestId, int] = {}

    # -- the world ---------------------------------------------------------------------------------

    @rule(prompt=st.integers(1, 14), limit=st.integers(1, 8))
    def arrive(self, prompt: int, limit: int) -> None:
        if -(-(prompt + limit) // BLOCK) > self.limits.device_blocks:
            return
        id = RequestId(self.next_id)
        self.next_id += 1
        request = Request(id, tuple(range(prompt)), Sampling(max_tokens=limit), arrival=self.now)
        self.ledger.open(id, self.roster.arrive(request))
        self.generation[id] = 0

    @rule(seed=st.integers(0, 2**32 - 1), turns=st.integers(1, 12))
    def several_turns(self, seed: int, turns: int) -> None:
        """Turns of depth 1 or 2 with everything that usually happens in one."""
        random = Random(seed)
        for _ in range(turns):
            if self.planned is None:
                self.plan(random.getrandbits(32))
            if self.air is not None:
                self.collect_now(stop={random.randrange(16)})
            if self.planned is not None:
                self.launch()
            if self.air is not None and random.randrange(2):
                self.collect_now(stop={random.randrange(16)})
            for direction in Direction:
                self.land(direction, random.randrange(3), random.randrange(12) == 0)

    @precondition(lambda self: self.planned is None)
    @rule(seed=st.integers(0, 2**32 - 1))
    def plan(self, seed: int) -> None:
        random = Random(seed)
        self.now += 1
        view = self.roster.view(self.turn, self.now, self.ledger, random.randrange(9), random.randrange(9))
        plan = check_plan(random_legal_plan(view, random.randrange), view)
        free_before = self.ledger.device_free
        copies = self.ledger.apply(plan)
        assert self.ledger.device_free <= free_before, "L3: slots given up are usable from the next turn"
        self.roster.enter(plan, self.now)
        for id in plan.evict:
            self.generation[id] += 1
        for rejection in plan.reject:
            self.tell(self.roster.end(self.roster.live[rejection.id], FinishReason.REJECTED, self.now))
        self.turn += 1
        self.check_one_master(copies)
        for copy in copies:
            ticket = Ticket(self.next_ticket)
            self.next_ticket += 1
            self.ledger.submitted(copy, ticket)
            self.lanes[copy.direction].append((ticket, copy))
        self.planned = plan

    @precondition(lambda self: self.planned is not None and self.air is None)
    @rule()
    def launch(self) -> None:
        plan, self.planned = self.planned, None
        rows = self.roster.rows(plan, self.ledger)
        for row in rows:
            slots = list(row.slots)
            assert len(slots) * BLOCK >= row.start + len(row.tokens)
            for position in range(row.start):  # L4, C6: all history is readable
                found = self.device[slots[position // BLOCK]][position % BLOCK]
                assert found == (row.id, self.generation[row.id], position)
        self.air = (plan.turn, [(row, list(row.slots), self.generation[row.id]) for row in rows])
        if not rows:
            self.collect_now(stop=())

    @precondition(lambda self: self.air is not None)
    @rule(stop=st.sets(st.integers(0, 3)))
    def collect(self, stop: set[int]) -> None:
        self.collect_now(stop)

    def collect_now(self, stop: set[int] | tuple[int, ...]) -> None:
        (turn, rows), self.air = self.air, None
        self.now += 1
        sampled = {}
        for index, (row, slots, generation) in enumerate(rows):
            for offset in range(len(row.tokens)):
                position = row.start + offset
                self.device[slots[position // BLOCK]][position % BLOCK] = (row.id, generation, position)
            if row.sample:
                sampled[row.id] = Sampled(index)
            sequence = self.roster.live[row.id]
            if sequence.phase is not Phase.WAITING:
                self.ledger.commit(row.id, row.start + len(row.tokens))
            if index in stop and sequence.ending is None:
                sequence.ending = FinishReason.STOP
        self.marked = max(self.marked, turn)
        self.tell(self.roster.commit([row for row, _, _ in rows], Outcome(sampled), self.now))

    @rule(direction=st.sampled_from(list(Direction)), count=st.integers(1, 3), fail=st.booleans())
    def land(self, direction: Direction, count: int, fail: bool) -> None:
        """The oldest copies of one lane finish, in order; those that must wait for a batch do."""
        done = []
        while (
            self.lanes[direction] and len(done) < count and self.lanes[direction][0][1].after <= self.marked
        ):
            ticket, copy = self.lanes[direction].pop(0)
            source, target = (
                (self.host, self.device) if copy.kind is CopyKind.IN else (self.device, self.host)
            )
            for a, b in zip(copy.source, copy.target, strict=True):
                target[b] = list(source[a]) if not fail else [POISON] * BLOCK
            done.append(CopyDone(ticket, not fail))
        self.now += 1
        self.tell(self.roster.land(self.ledger.land(done), self.now))

    @precondition(lambda self: self.roster.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence = self.roster.live[data.draw(st.sampled_from(sorted(self.roster.live)))]
        self.tell(self.roster.end(sequence, FinishReason.CANCELLED, self.now))

    def tell(self, events) -> None:
        for event in events:
            if event.ending is not None:
                self.ledger.release(event.id)
                self.endings[event.id] = self.endings.get(event.id, 0) + 1

    # -- what must hold ----------------------------------------------------------------------------

    def check_one_master(self, copies: list[Copy]) -> None:
        """L2: in one step no slot is a target twice, nor source of one and target of the other lane."""
        in_flight = [copy for lane in self.lanes.values() for _, copy in lane] + copies
        for tier in ("device", "host"):
            written = [
                slot
                for copy in in_flight
                if (copy.kind is CopyKind.IN) == (tier == "device")
                for slot in copy.target
            ]
            read = {
                slot
                for copy in in_flight
                if (copy.kind is CopyKind.IN) != (tier == "device")
                for slot in copy.source
            }
            assert len(written) == len(set(written))
            assert not read & set(written)
        if self.air is not None:  # C6: what the batch in the air touches is no copy's target
            used = {slot for _, slots, _ in self.air[1] for slot in slots}
            assert not used & {s for c in in_flight if c.kind is CopyKind.IN for s in c.target}

    @invariant()
    def conserved(self) -> None:
        """C1, C5, L1, L5, L6, and every token once written is still where the ledger says."""
        if not hasattr(self, "ledger"):
            return
        self.ledger.audit()
        for id, sequence in self.roster.live.items():
            chain = self.ledger._chains[id]
            for index in range(len(chain.synced)):
                for offset in range(chain.synced[index]):
                    position = index * BLOCK + offset
                    assert self.host[chain.host[index]][offset] == (id, self.generation[id], position)
            if sequence.phase in (Phase.PREFILL, Phase.DECODE, Phase.ROTATING_OUT):
                for position in range(chain.tokens):
                    found = self.device[chain.device[position // BLOCK]][position % BLOCK]
                    assert found == (id, self.generation[id], position)

    @invariant()
    def sums_are_right(self) -> None:
        """The view's O(1) sums equal what a walk over everybody gives."""
        if not hasattr(self, "ledger"):
            return
        view = self.roster.view(self.turn, self.now, self.ledger, 0, 0)
        live = list(self.roster.live.values())
        assert view.waiting_blocks == sum(s.total_blocks for s in live if s.phase is Phase.WAITING)
        assert view.rotary_blocks == sum(s.total_blocks for s in live if s.phase is Phase.ROTARY)
        holders = [s.max_blocks for s in live if s.phase is not Phase.WAITING]
        assert view.promised_blocks == sum(holders)
        assert view.promised_blocks_max == max(holders, default=0)
        assert [s.id for s in view.waiting] == [
            s.id for s in sorted(live, key=lambda s: (s.arrival, s.id)) if s.phase is Phase.WAITING
        ]
        assert all(count == 1 for count in self.endings.values()), "C3: each request ends once"
        assert not set(self.endings) & set(self.roster.live)

    def teardown(self) -> None:
        """C2: when everybody has ended and all copies have landed, both tiers are empty."""
        if not hasattr(self, "ledger"):
            return
        if self.planned is not None and self.air is None:
            self.launch()
        if self.air is not None:
            self.collect_now(stop=())
        if self.planned is not None:
            self.launch()
            if self.air is not None:
                self.collect_now(stop=())
        for sequence in list(self.roster.live.values()):
            self.tell(self.roster.end(sequence, FinishReason.CANCELLED, self.now))
        for direction in Direction:
            while self.lanes[direction]:
                self.land(direction, 3, fail=False)
        self.ledger.land([])
        self.ledger.audit()
        assert self.ledger.empty
        assert set(self.endings) == set(range(self.next_id))


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
