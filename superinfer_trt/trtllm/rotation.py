"""One worker's turn inside TensorRT-LLM's loop: its requests become a view, the plan becomes moves.

The loop calls four times a turn: `schedule` (plan; copies and sequences move), `batched` (what upstream's
micro batch really took becomes fact), `collected` (tokens are on the host), and `freed` for each request that
ended. Policy, roster and ledger are those of the embedded executor: the plan that is applied is the policy's,
cut down to the batch that upstream made of it, with upstream's chunk lengths.

Upstream's list of active requests is not walked: who is new is at its end, who has to be left out was in the
last batch. Once in WALKED_TURNS turns it is, and whenever its length is not the count of those known here.

Rotation is an omission: a request that is away stays in upstream's list of active requests, in its state
and with its sequence slot, only its sequence of blocks is gone. Why so: docs/adr/0009. Knows no CUDA,
no torch and no name of tensorrt_llm. One thread: the loop's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from superinfer_trt.core.check import check_plan
from superinfer_trt.core.errors import InvariantViolation, TransferFailed
from superinfer_trt.core.outcome import Totals
from superinfer_trt.core.phase import RUNNING, Phase
from superinfer_trt.core.plan import Chunk, Plan
from superinfer_trt.core.ports import Clock, Ledger, Policy, TransferEngine
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.step import CopyKind, Direction
from superinfer_trt.core.units import MILLISECOND, SECOND, Nanos, RequestId
from superinfer_trt.core.view import Limits, View
from superinfer_trt.runtime.roster import Roster
from superinfer_trt.runtime.sequence import Sequence as Record
from superinfer_trt.runtime.step_fit import StepFit
from superinfer_trt.runtime.trace import PlanTrace
from superinfer_trt.trtllm.agreement import Agreement, Alone, Sample
from superinfer_trt.trtllm.crossing import Crossing
from superinfer_trt.trtllm.slo import ServiceTerms
from superinfer_trt.trtllm.upstream import CacheImpl, StateValues, StreamOrder, UpstreamBatch, UpstreamRequest

WALKED_TURNS = 16
"""Once in so many turns the whole list of active requests is looked at, and the whole plan is checked. In the
others its moves are when they are planned, and its decodes when they are batched."""


@dataclass(frozen=True, slots=True)
class RotationParts:
    """What a worker's rotation is made of. `block_bytes`: of one block, all layers, K and V.
    `window_tokens`: the one attention window; `sequence_tokens_max`: upstream's max_seq_len."""

    policy: Policy
    ledger: Ledger
    transfers: TransferEngine
    order: StreamOrder
    cache: CacheImpl
    clock: Clock
    limits: Limits
    block_bytes: int
    window_tokens: int
    sequence_tokens_max: int
    terms: ServiceTerms = field(default_factory=ServiceTerms)
    states: StateValues = field(default_factory=StateValues)
    agreement: Agreement = field(default_factory=Alone)


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    """A batch that upstream has launched: who is in it, and how many tokens of KV each has after it."""

    batch: UpstreamBatch
    chunks: list[tuple[Record, int, bool]]  # (record, tokens, whether it brings a token)
    ids: list[RequestId]  # of those that decode
    decodes: list[Record]
    tokens: list[int]
    ended: set[RequestId] = field(default_factory=set)  # since the launch: what it brings them is nothing

    def settle(self) -> None:
        """Forgets those that have ended."""
        for id in self.ended.intersection(self.ids):
            index = self.ids.index(id)
            del self.ids[index], self.decodes[index], self.tokens[index]
        if self.ended:
            self.chunks[:] = [chunk for chunk in self.chunks if chunk[0].id not in self.ended]

    def of(self, batch: UpstreamBatch) -> bool:
        """Whether upstream's `batch` is this one; another object may hold the same requests."""
        if batch is self.batch:
            return True
        here = {id(request) for request in (*self.batch.context_requests, *self.batch.generation_requests)}
        return here == {id(request) for request in (*batch.context_requests, *batch.generation_requests)}


class Rotation:
    """See the module. `totals` and `trace` may be read from other threads."""

    def __init__(self, parts: RotationParts, trace: PlanTrace | None = None) -> None:
        self.totals = Totals()
        self.trace = trace if trace is not None else PlanTrace()
        self.parts = parts
        self._roster = Roster(parts.limits, parts.policy.order, self.totals)
        self._crossing = Crossing(parts.transfers, parts.ledger, parts.order)
        self._requests: dict[RequestId, UpstreamRequest] = {}
        self._turn = 0
        self._launched = -1  # newest turn whose batch is on the stream
        self._marked = -1
        self._plan = Plan(turn=0, now=0)  # of this turn
        self._planned: set[RequestId] = set()  # who may be in its batch
        self._batched: set[RequestId] = set()  # who was in the newest batch: these have an index in it
        self._strangers: list[UpstreamRequest] = []  # active ones that are none of ours
        self._flights: deque[_Flight] = deque()
        self._collected: list[_Flight] = []  # since the last sample
        self._seen = Sample(now=0)
        self._now: Nanos = 0
        self._step: Nanos = 10 * MILLISECOND
        self._work = (0, 0, 0)  # rows, prefill tokens, context tokens of the batch launched last
        self._fit = StepFit()

    @property
    def live(self) -> dict[RequestId, Record]:
        """The live records, for inspection."""
        return self._roster.live

    # -- the four calls ----------------------------------------------------------------------------

    def schedule(self, active: Sequence[UpstreamRequest]) -> list[UpstreamRequest]:
        """Plans one turn over upstream's active requests, moves who is to move, and returns those that
        may be batched, decodes first. Raises InvariantViolation (a bug, or an upstream that keeps other
        books), TransferFailed."""
        if self._launched != self._turn:
            self._leave_out(self._batched)  # the turn before came to no batch: all have skipped one
        self._turn += 1
        self._observe()
        self._arrive(active)
        view = self._view()
        plan = self._checked(self.parts.policy(view), view)
        if not plan.idle:
            self.totals.turns += 1
            self.trace.plan(plan)
        self.parts.agreement.planned(plan)
        self._plan = plan
        self._move(plan)
        return self._fitting(plan)

    def batched(self, batch: UpstreamBatch) -> None:
        """Upstream is about to launch this batch: what it holds of the plan is applied now. Called
        before the KV manager takes blocks, whose arithmetic is the ledger's."""
        plan, live = self._plan, self._roster.live
        chunks, admitted = [], []
        for request in batch.context_requests:
            if not request.is_dummy:
                id = self._expect(request)
                chunks.append(Chunk(id, request.context_current_position, request.context_chunk_size))
                if live[id].phase is Phase.WAITING:
                    admitted.append(id)
        actual = Plan(
            plan.turn,
            plan.now,
            admit=tuple(admitted),
            prefill=tuple(chunks),
            decode=self._decoding(batch.generation_requests),
        )
        self._check_chunks(actual)
        self.parts.ledger.apply(actual)
        self._roster.enter(replace(actual, decode=()), plan.now)
        self._launch(actual, self._roster.decode(actual.decode), batch)

    def collected(self, batch: UpstreamBatch) -> None:
        """The tokens of this batch are on the host; they count from the next turn on."""
        while self._flights:
            flight = self._flights.popleft()
            if flight.of(batch):
                self._collected.append(flight)
                return
            flight.settle()
            if flight.ids or flight.chunks:
                break  # a batch may be passed over only when it failed and all its requests with it
        rows = len(batch.generation_requests) + len(batch.context_requests)
        raise InvariantViolation(f"upstream has collected a batch of {rows} rows that is not under way")

    def freed(self, request: UpstreamRequest) -> None:
        """Upstream takes everything back from a request: it ended, in whatever phase. Never waits."""
        id = RequestId(request.py_request_id)
        record = self._roster.live.get(id)
        if record is None:
            return
        finished = request.state_value >= self.parts.states.generation_complete
        reason = FinishReason.STOP if finished else FinishReason.CANCELLED
        for _ in self._roster.end(record, reason, self._now):
            pass  # clients are told by upstream
        self._crossing.abandon(id)
        self.parts.ledger.release(id)
        self._batched.discard(id)
        for flight in (*self._flights, *self._collected):
            flight.ended.add(id)
        del self._requests[id]

    # -- what has happened -------------------------------------------------------------------------

    def _observe(self) -> None:
        """Time, tokens and landings since the last turn."""
        parts, crossing = self.parts, self._crossing
        if self._launched > self._marked and parts.order.mark(self._launched):
            self._marked = self._launched
        rate = parts.transfers.link_bytes_per_s
        seen = parts.agreement(
            Sample(
                now=parts.clock.now(),
                landed=crossing.landed,
                out_bytes_per_s=rate(Direction.D2H),
                in_bytes_per_s=rate(Direction.H2D),
                out_busy=crossing.busy(Direction.D2H),
                in_busy=crossing.busy(Direction.H2D),
            )
        )
        self._learn(seen.now)
        self._seen = seen
        self._now = seen.now
        self._commit()
        self._land()

    def _learn(self, now: Nanos) -> None:
        """How long a turn with a batch takes, from one sample to the next."""
        rows, prefill_tokens, context_tokens = self._work
        if rows:
            took = now - self._now
            self._step += (took - self._step) // 8
            self._fit.add(rows, prefill_tokens, context_tokens, took)
            self._work = (0, 0, 0)

    def _commit(self) -> None:
        ledger, totals, now = self.parts.ledger, self.totals, self._now
        for flight in self._collected:
            flight.settle()
            for record, tokens, sampled in flight.chunks:
                ledger.commit(record.id, tokens)
                if sampled:
                    totals.output_tokens += 1
                    record.first_token = record.last_token = now
            for record in flight.decodes:
                record.last_token = now
            ledger.commit_all(flight.ids, flight.tokens)
            totals.output_tokens += len(flight.ids)
        self._collected.clear()

    def _land(self) -> None:
        """Blocks of those who have left go back to upstream only here: L3, leave before enter."""
        landings = self.parts.ledger.land(self._crossing.agreed(self._seen.landed))
        for landing in landings:
            if (landing.kind is CopyKind.OUT) == landing.ok:
                self.parts.cache.remove_sequence(landing.id)
        for event in self._roster.land(landings, self._now):
            reason = event.ending.message if event.ending is not None else ""
            raise TransferFailed(f"request {event.id}: {reason}")

    def _arrive(self, active: Sequence[UpstreamRequest]) -> None:
        """Upstream appends whom it takes in: the new ones are at the end."""
        known, arrived = self._requests, []
        for request in reversed(active):
            if request.py_request_id in known:
                break
            arrived.append(request)
        for request in reversed(arrived):
            self._welcome(request)
        if len(known) != len(active) or self._turn % WALKED_TURNS == 0:
            self._walk(active)

    def _walk(self, active: Iterable[UpstreamRequest]) -> None:
        """All of them: who came in elsewhere, who is none of ours, and who is gone without a word."""
        known, here = self._requests, set()
        self._strangers = []
        for request in active:
            id = request.py_request_id
            if id not in known:
                self._welcome(request)
                if id not in known:
                    self._strangers.append(request)
            here.add(id)
        for id in [id for id in known if id not in here]:
            self.freed(known[id])

    def _welcome(self, request: UpstreamRequest) -> None:
        """A new request waits from now on, unless it is a dummy or one that is under way already."""
        if request.is_dummy or request.state_value != self.parts.states.context_init:
            return
        id = RequestId(request.py_request_id)
        terms = self.parts.terms.of(request, self._now)
        output = min(request.py_max_new_tokens, self.parts.sequence_tokens_max - request.prompt_len)
        record = self._roster.arrive(
            Request(
                id=id,
                prompt=(0,) * request.prompt_len,  # only its length matters here
                sampling=Sampling(max_tokens=max(1, output)),
                slo=terms.slo,
                arrival=terms.arrival,
                tenant=terms.tenant,
            )
        )
        self._requests[id] = request
        self.parts.ledger.open(id, record)
        self.totals.accepted += 1

    # -- what is decided ---------------------------------------------------------------------------

    def _view(self) -> View:
        ledger = self.parts.ledger
        free = self.parts.cache.get_kv_cache_stats().free_num_blocks
        if free < ledger.device_free:
            raise InvariantViolation(
                f"the KV cache has {free} free blocks where the ledger counts {ledger.device_free}: "
                "somebody else takes blocks; raise spare_blocks"
            )
        out_blocks, in_blocks = self._allowance(Direction.D2H), self._allowance(Direction.H2D)
        return self._roster.view(self._turn, self._now, ledger, out_blocks, in_blocks, self._fit.forecast)

    def _checked(self, plan: Plan, view: View) -> Plan:
        """Raises InvariantViolation. Decodes are named apart from the moves and counted here; that each may
        run is seen when it is batched."""
        if plan.evict or plan.reject:
            raise InvariantViolation(f"a policy that rotates does not evict or reject here: {plan.line()}")
        decodes, limits = len(plan.decode), view.limits
        whole = plan.turn % WALKED_TURNS == 0
        check_plan(plan if whole else replace(plan, decode=()), view)
        chosen = self._planned = {*plan.decode, *[chunk.id for chunk in plan.prefill]}
        rows = decodes + len(plan.prefill)
        tokens = decodes + sum([chunk.length for chunk in plan.prefill])
        if rows > limits.seats or tokens > limits.step_tokens:
            raise InvariantViolation(f"plan has {rows} rows and {tokens} tokens: {plan.line()}")
        if len(chosen) < rows or not chosen.isdisjoint((*plan.rotate_out, *plan.rotate_in)):
            raise InvariantViolation(f"plan names a request twice: {plan.line()}")
        return plan

    def _allowance(self, direction: Direction) -> int:
        """Blocks that cross behind one step, less those on their way; at least one while nothing is.
        Of agreed figures only, so that it is the same on every rank."""
        seen, limits = self._seen, self.parts.limits
        outward = direction is Direction.D2H
        if seen.out_busy if outward else seen.in_busy:
            return 0
        bytes_per_s = seen.out_bytes_per_s if outward else seen.in_bytes_per_s
        step_bytes = bytes_per_s * max(self._step, MILLISECOND) / SECOND
        blocks = int(min(step_bytes / self.parts.block_bytes, limits.device_blocks + limits.host_blocks))
        return max(0, max(1, blocks) - self._crossing.blocks[direction])

    def _move(self, plan: Plan) -> None:
        """Rotations and syncs start now; the batch follows when upstream has made it."""
        completing = self.parts.states.generation_to_complete
        out = tuple(id for id in plan.rotate_out if self._requests[id].state_value < completing)
        moves = Plan(plan.turn, plan.now, rotate_out=out, rotate_in=plan.rotate_in, sync=plan.sync)
        if not moves.idle:
            copies = self.parts.ledger.apply(moves)
            self._roster.enter(moves, plan.now)
            for id in moves.rotate_in:
                self._return_to_cache(id)
            blocks: dict[int, int] = {}
            for id in {copy.id for copy in copies}:
                blocks.update(self._blocks(id))
            out_blocks, in_blocks = self._crossing.hand_over(copies, blocks, self._launched)
            self.totals.link_out_blocks += out_blocks
            self.totals.link_in_blocks += in_blocks
        self._crossing.submit()

    def _return_to_cache(self, id: RequestId) -> None:
        """Upstream gets a sequence of as many tokens as are in DRAM, and blocks for it."""
        record, request = self._roster.live[id], self._requests[id]
        held = request.get_num_tokens(0) - 1  # the newest token has no KV yet
        if held != record.computed_tokens:
            raise InvariantViolation(
                f"request {id} has {held} tokens of KV; {record.computed_tokens} counted"
            )
        self.parts.cache.add_sequence(id, record.computed_tokens, 1)

    def _blocks(self, id: RequestId) -> Iterable[tuple[int, int]]:
        """(the ledger's slot, upstream's block) of a request."""
        slots = self.parts.ledger.slots(id)
        (ids,) = self.parts.cache.get_cache_block_ids(id, self.parts.window_tokens)
        if len(ids) != len(slots):
            raise InvariantViolation(
                f"request {id} has {len(ids)} blocks in the KV cache, {len(slots)} counted"
            )
        return zip(slots, ids, strict=True)

    def _fitting(self, plan: Plan) -> list[UpstreamRequest]:
        """Decodes before chunks: a prompt that does not fit ends upstream's walk over the list. Those whose
        last token is on its way pass, and strangers."""
        requests, completing = self._requests, self.parts.states.generation_to_complete
        skipping = sorted(self._batched - self._planned)
        fitting = [requests[id] for id in skipping if requests[id].state_value >= completing]
        self._leave_out(skipping)
        fitting += self._strangers
        fitting += [requests[id] for id in plan.decode]
        fitting += [requests[chunk.id] for chunk in plan.prefill]
        return fitting

    def _leave_out(self, ids: Iterable[RequestId]) -> None:
        """Who skips a batch reads its next input token from the host; with the index of its last batch
        upstream would read a stale one and count one position too many."""
        requests = self._requests
        for id in ids:
            requests[id].py_batch_idx = None

    # -- the batch ---------------------------------------------------------------------------------

    def _expect(self, request: UpstreamRequest) -> RequestId:
        id = request.py_request_id
        if id not in self._planned:
            raise InvariantViolation(f"upstream batches {id}, which was left out: {self._plan.line()}")
        return cast("RequestId", id)

    def _decoding(self, generation: Sequence[UpstreamRequest]) -> tuple[RequestId, ...]:
        """Those of the plan's decodes that upstream has taken; the others are left out."""
        plan = self._plan
        if [request.py_request_id for request in generation] == list(plan.decode):
            return plan.decode
        taken = {self._expect(request) for request in generation if not request.is_dummy}
        self._leave_out(id for id in plan.decode if id not in taken)
        return tuple(id for id in plan.decode if id in taken)

    def _check_chunks(self, actual: Plan) -> None:
        """Upstream may take other chunks than were planned, but in order and not more blocks."""
        live, ledger = self._roster.live, self.parts.ledger
        for chunk in actual.prefill:
            record = live[chunk.id]
            if record.phase not in RUNNING and record.phase is not Phase.WAITING:
                raise InvariantViolation(f"chunk of {chunk.id}, which is {record.phase.value}")
            if chunk.start != record.computed_tokens or chunk.length <= 0:
                raise InvariantViolation(
                    f"chunk of {chunk.id}: {chunk.start}+{chunk.length}, {record.computed_tokens} counted"
                )
        taken = sum(live[id].total_blocks for id in actual.admit)
        if taken > ledger.device_free:
            raise InvariantViolation(f"the batch takes {taken} blocks > {ledger.device_free} free")

    def _launch(self, actual: Plan, decodes: list[Record], batch: UpstreamBatch) -> None:
        """The batch is a fact: `decodes` are its records, counts have moved."""
        live, chunks = self._roster.live, actual.prefill
        rows = [(live[c.id], c.start + c.length, live[c.id].phase is Phase.DECODE) for c in chunks]
        tokens = [record.computed_tokens for record in decodes]
        context = sum([chunk.start for chunk in chunks]) + sum(tokens) - len(tokens)
        whole = actual.decode is self._plan.decode and len(chunks) == len(self._plan.prefill)
        self._batched = self._planned if whole else {*actual.decode, *[chunk.id for chunk in chunks]}
        self._flights.append(_Flight(batch, rows, list(actual.decode), decodes, tokens))
        self._launched = actual.turn
        self.totals.batches += 1
        prefill_tokens = sum([chunk.length for chunk in chunks])
        self.totals.step_tokens += prefill_tokens + len(decodes)
        self._work = (len(rows) + len(decodes), prefill_tokens, context)
