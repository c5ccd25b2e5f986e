"""All live requests by phase: who waits, who runs, who is rotary. The only owner of phases.

Knows no slot, no engine and no policy; its queues take the policy's static order. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.forecast import StepForecast
from superinfer_trt.core.outcome import Ending, Outcome, TokenEvent, Totals
from superinfer_trt.core.phase import RUNNING, Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.ports import Ledger
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.step import CopyKind, Landing, Row
from superinfer_trt.core.units import Nanos, RequestId
from superinfer_trt.core.view import Limits, Order, View
from superinfer_trt.runtime.heap import LazyHeap
from superinfer_trt.runtime.lanes import Lanes
from superinfer_trt.runtime.queue import OrderedQueue
from superinfer_trt.runtime.sequence import Sequence

OUTSIDE = frozenset({Phase.WAITING, Phase.ROTARY})

UNFITTED = StepForecast()

COPIES_FAILED_MAX = 8
"""Failed rotations after which a request ends as failed instead of trying for ever."""


class Roster:
    """Live records, their queues and the sums that a view offers in O(1)."""

    def __init__(self, limits: Limits, order: Order, totals: Totals) -> None:
        self._limits = limits
        self._totals = totals
        self.live: dict[RequestId, Sequence] = {}
        self.waiting = OrderedQueue(order.waiting)
        self.rotary = OrderedQueue(order.rotary)
        self.running = OrderedQueue(order.running)
        self._lanes = Lanes.asked_for(order)
        self._waiting_blocks = 0
        self._rotary_blocks = 0
        self._promised_blocks = 0
        self._promised: set[RequestId] = set()
        self._promised_heap = LazyHeap[tuple[int, RequestId]](lambda entry: entry[1] in self._promised)

    # -- what the view is made of ------------------------------------------------------------------

    def view(
        self,
        turn: int,
        now: Nanos,
        ledger: Ledger,
        out_blocks: int,
        in_blocks: int,
        forecast: StepForecast = UNFITTED,
    ) -> View:
        """This moment, in O(1), but for O(log n) for each request that has become late."""
        return View(
            turn=turn,
            now=now,
            limits=self._limits,
            waiting=self.waiting,
            rotary=self.rotary,
            running=self.running,
            live=self.live,
            device_free=ledger.device_free,
            device_leaving=ledger.device_leaving,
            host_free=ledger.host_free,
            host_backing=ledger.host_backing,
            promised_blocks=self._promised_blocks,
            promised_blocks_max=self._largest_promise(),
            waiting_blocks=self._waiting_blocks,
            rotary_blocks=self._rotary_blocks,
            link_out_blocks=out_blocks,
            link_in_blocks=in_blocks,
            forecast=forecast,
            lanes=self._lanes.at(now) if self._lanes is not None else None,
        )

    def _largest_promise(self) -> int:
        largest = self._promised_heap.first()  # (-max_blocks, id)
        return -largest[0] if largest else 0

    # -- classes -----------------------------------------------------------------------------------

    def _place(self, sequence: Sequence) -> None:
        """Puts a record into the class of its phase; those on the link are in none."""
        phase = sequence.phase
        if phase in RUNNING:
            self.running.add(sequence)
        elif phase is Phase.WAITING:
            self.waiting.add(sequence)
            self._waiting_blocks += sequence.total_blocks
        elif phase is Phase.ROTARY:
            self.rotary.add(sequence)
            self._rotary_blocks += sequence.total_blocks
        if self._lanes is not None and phase in OUTSIDE:
            self._lanes.add(sequence)

    def _lift(self, sequence: Sequence) -> None:
        """Takes a record out of the class of its phase."""
        phase = sequence.phase
        if phase in RUNNING:
            self.running.remove(sequence)
        elif phase is Phase.WAITING:
            self.waiting.remove(sequence)
            self._waiting_blocks -= sequence.total_blocks
        elif phase is Phase.ROTARY:
            self.rotary.remove(sequence)
            self._rotary_blocks -= sequence.total_blocks
        if self._lanes is not None and phase in OUTSIDE:
            self._lanes.remove(sequence)

    def _promise(self, sequence: Sequence) -> None:
        self._promised.add(sequence.id)
        self._promised_blocks += sequence.max_blocks
        self._promised_heap.push((-sequence.max_blocks, sequence.id), len(self._promised))

    def _forgive(self, sequence: Sequence) -> None:
        if sequence.id in self._promised:
            self._promised.remove(sequence.id)
            self._promised_blocks -= sequence.max_blocks

    # -- the verbs ---------------------------------------------------------------------------------

    def arrive(self, request: Request) -> Sequence:
        """A new request waits."""
        if request.id in self.live:
            raise InvariantViolation(f"request id {request.id} is live already")
        sequence = Sequence.of(request, self._limits.block_tokens)
        self.live[request.id] = sequence
        self._place(sequence)
        return sequence

    def enter(self, plan: Plan, now: Nanos) -> None:
        """Phases and counts move as the plan says, as if its batch had already run."""
        for id in plan.evict:
            sequence = self.live[id]
            self._lift(sequence)
            sequence.restart()
            self._forgive(sequence)
            self._place(sequence)
        for id in plan.admit:
            sequence = self.live[id]
            self._lift(sequence)
            sequence.move(Phase.PREFILL)
            sequence.enter_device(now)
            if sequence.admitted < 0:
                sequence.admitted = now
            self._promise(sequence)
            self._place(sequence)
        for id in plan.rotate_out:
            self.live[id].left = now
            self._shift(self.live[id], Phase.ROTATING_OUT)
        for id in plan.rotate_in:
            self._shift(self.live[id], Phase.ROTATING_IN)
        for chunk in plan.prefill:
            self.live[chunk.id].plan_chunk(chunk.length)
        self.decode(plan.decode)

    def decode(self, ids: Iterable[RequestId]) -> list[Sequence]:
        """Counts one decode step of each as if it were done; returns their records. Raises InvariantViolation
        for one that cannot."""
        live, block_tokens, decode = self.live, self._limits.block_tokens, Phase.DECODE
        records = [live[id] for id in ids]
        for record in records:
            remaining, computed = record.remaining_tokens, record.computed_tokens
            if record.phase is not decode or remaining <= 0:
                phase = record.phase.value
                raise InvariantViolation(f"decode of {record.id}: {phase}, {remaining} tokens left")
            if computed == record.total_blocks * block_tokens:
                record.total_blocks += 1
            record.computed_tokens = computed + 1
            record.produced_tokens += 1
            record.stint_tokens += 1
            record.remaining_tokens = remaining - 1
        return records

    def _shift(self, sequence: Sequence, phase: Phase) -> None:
        self._lift(sequence)
        sequence.move(phase)
        self._place(sequence)

    def land(self, landings: Iterable[Landing], now: Nanos) -> Iterator[TokenEvent]:
        """Rotations that ended; yields the endings of requests whose copies failed too often."""
        for landing in landings:
            sequence = self.live[landing.id]
            outward = landing.kind is CopyKind.OUT
            self._lift(sequence)
            if outward == landing.ok:
                sequence.move(Phase.ROTARY)
                sequence.run_start = -1
            else:
                sequence.move(Phase.DECODE)
                sequence.come_back(now)
                if not outward:
                    sequence.enter_device(now)
            self._place(sequence)
            if landing.ok:
                sequence.rotations += outward
                self._totals.rotations_out += outward
                self._totals.rotations_in += not outward
            else:
                sequence.copies_failed += 1
                self._totals.copies_failed += 1
                if sequence.copies_failed >= COPIES_FAILED_MAX:
                    message = f"{COPIES_FAILED_MAX} rotations of this request failed on the host link"
                    yield from self.end(sequence, FinishReason.FAILED, now, message)

    def rows(self, plan: Plan, ledger: Ledger) -> list[Row]:
        """The rows of the plan's batch, without the requests that ended since it was made."""
        live, slots = self.live, ledger.slots
        rows: list[Row] = []
        for chunk in plan.prefill:
            sequence = live.get(chunk.id)
            if sequence is not None:
                sequence.in_air = True
                start, stop = chunk.start, chunk.start + chunk.length
                tokens, last = sequence.tokens(start, stop), stop == sequence.target_tokens
                count, sampling = len(sequence.output), sequence.request.sampling
                seen = sequence.history() if last and sequence.seen is not None else ()
                rows.append(Row(chunk.id, start, tokens, slots(chunk.id), last, count, sampling, seen))
        for id in plan.decode:
            sequence = live.get(id)
            if sequence is not None:
                sequence.in_air = True
                start, output = sequence.computed_tokens - 1, sequence.output
                # All before it has been collected: it reads the newest token. Positional: half the time.
                row = (id, start, output[-1:], slots(id), True, len(output), sequence.request.sampling)
                rows.append(Row(*row) if sequence.seen is None else Row(*row, sequence.history()))
        return rows

    def commit(self, rows: Iterable[Row], outcome: Outcome, now: Nanos) -> list[TokenEvent]:
        """What the batch brought: tokens to clients, and endings."""
        live, sampled_of = self.live, outcome.sampled
        events: list[TokenEvent] = []
        output_tokens = 0
        for row in rows:
            id = row.id
            sequence = live[id]
            sequence.in_air = False
            sampled = sampled_of.get(id) if row.sample else None
            if sampled is not None:
                token, output, sampling = sampled.token, sequence.output, row.sampling
                output.append(token)
                output_tokens += 1
                sequence.last_token = now
                if sequence.first_token < 0:
                    sequence.first_token = now
                stops = token in sampling.stop_ids
                if stops or len(output) >= sampling.max_tokens:
                    reason = FinishReason.STOP if stops else FinishReason.LENGTH
                    ending = self._finish(sequence, reason, now, "")
                    events.append(TokenEvent(id, now, row.index, sampled, ending))
                    continue
                events.append(TokenEvent(id, now, row.index, sampled))
            if sequence.ending is not None:
                events.extend(self.end(sequence, sequence.ending, now))
        self._totals.output_tokens += output_tokens
        return events

    def end(
        self, sequence: Sequence, reason: FinishReason, now: Nanos, message: str = ""
    ) -> Iterator[TokenEvent]:
        """Ends a request now, or when the batch that reads it has been collected (C3: exactly once)."""
        if sequence.in_air:
            if sequence.ending is None:
                sequence.ending = reason
            return
        yield TokenEvent(sequence.id, now, ending=self._finish(sequence, reason, now, message))

    def _finish(self, sequence: Sequence, reason: FinishReason, now: Nanos, message: str) -> Ending:
        self._lift(sequence)
        sequence.come_back(now)
        sequence.move(Phase.FINISHED)
        self._forgive(sequence)
        del self.live[sequence.id]
        self._totals.finished[reason] = self._totals.finished.get(reason, 0) + 1
        return Ending(
            reason=reason,
            message=message,
            prompt_tokens=len(sequence.request.prompt),
            output_tokens=len(sequence.output),
            rotations=sequence.rotations,
            evictions=sequence.evictions,
            arrival=sequence.arrival,
            admitted=sequence.admitted,
            first_token=sequence.first_token,
            last_token=sequence.last_token if sequence.first_token >= 0 else -1,
            away=sequence.away,
        )
