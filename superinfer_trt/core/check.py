"""One function that says whether a plan may be carried out (C7). O(what the plan names).

Behind it nothing is checked again: `Ledger.apply` may not fail for a plan that passed here.
"""

from __future__ import annotations

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.units import RequestId
from superinfer_trt.core.view import Candidate, View


def check_plan(plan: Plan, view: View) -> Plan:
    """Returns `plan`; raises InvariantViolation with the broken rule and the plan's line.

    Rules: every id is live and in the phase its field asks for; nobody is moved and run in one turn;
    sum(prefill) + len(decode) <= step_tokens; rows <= seats; device blocks taken <= device_free;
    dirty blocks out + sync fit the host pool and the D2H allowance; blocks in fit the H2D allowance
    (one rotation larger than an allowance that is not 0 may go alone, or it would never go); the admission
    inequality holds unless the plan's policy evicts instead of rotating (host pool of 0 blocks).
    """
    _Check(plan, view).run()
    return plan


class _Check:
    """The rules, one method each; lives for one call. Decodes, the one long list, are walked once."""

    __slots__ = ("_growing", "_plan", "_view")

    def __init__(self, plan: Plan, view: View) -> None:
        self._plan = plan
        self._view = view
        self._growing = 0  # decodes that take a block

    def run(self) -> None:
        self._header()
        self._decodes()
        self._phases()
        self._apart()
        self._batch()
        self._device()
        self._link_and_host()

    def _require(self, condition: bool, rule: str) -> None:
        if not condition:
            raise self._broken(rule)

    def _broken(self, rule: str) -> InvariantViolation:
        return InvariantViolation(f"plan breaks a rule: {rule} | {self._plan.line()}")

    def _candidate(self, id: RequestId) -> Candidate:
        candidate = self._view.live.get(id)
        if candidate is None:
            raise InvariantViolation(f"plan names {id}, which is not live | {self._plan.line()}")
        return candidate

    def _header(self) -> None:
        plan, view = self._plan, self._view
        self._require(plan.turn == view.turn and plan.now == view.now, "turn and now are the view's")

    def _decodes(self) -> None:
        live, block_tokens, decode = self._view.live, self._view.limits.block_tokens, Phase.DECODE
        growing = 0
        for id in self._plan.decode:
            candidate = live.get(id) or self._candidate(id)
            if candidate.phase is not decode:
                raise self._broken(f"decode of {id}, which is {candidate.phase.value}")
            if candidate.remaining_tokens <= 0:
                raise self._broken(f"decode of {id}, which has no token left")
            # View.decode_needs_block, spelled out
            if candidate.computed_tokens >= candidate.device_blocks * block_tokens:
                growing += 1
        self._growing = growing

    def _phases(self) -> None:
        plan = self._plan
        running = (Phase.PREFILL, Phase.DECODE)
        admitted = set(plan.admit)
        # Tuples of members and not sets: a member is found by identity, a set would hash it in Python.
        wanted = (
            (plan.admit, (Phase.WAITING,), "admit"),
            ([r.id for r in plan.reject], (Phase.WAITING,), "reject"),
            (plan.rotate_out, (Phase.DECODE,), "rotate_out"),
            (plan.rotate_in, (Phase.ROTARY,), "rotate_in"),
            ([s.id for s in plan.sync], running, "sync"),
            (plan.evict, running, "evict"),
            ([c.id for c in plan.prefill if c.id not in admitted], (Phase.PREFILL,), "prefill"),
        )
        for ids, phases, name in wanted:
            for id in ids:
                phase = self._candidate(id).phase
                if phase not in phases:
                    raise self._broken(f"{name} of {id}, which is {phase.value}")

    def _apart(self) -> None:
        plan = self._plan
        moved: list[RequestId] = [
            *(c.id for c in plan.prefill),
            *plan.rotate_out,
            *plan.rotate_in,
            *plan.evict,
            *(r.id for r in plan.reject),
        ]
        named = set(plan.decode)
        if len(named) != len(plan.decode):
            twice = next(id for id in named if plan.decode.count(id) > 1)
            raise self._broken(f"{twice} is named twice")
        for id in moved:
            if id in named:
                raise self._broken(f"{id} is named twice")
            named.add(id)
        gone = set(plan.rotate_out) | set(plan.evict)
        synced = {s.id for s in plan.sync}
        self._require(len(synced) == len(plan.sync), "one sync run a request")
        self._require(not (synced & gone), "nobody is synced and moved in one turn")
        self._require(len(set(plan.admit)) == len(plan.admit), "one admission a request")
        self._require(not set(plan.admit) & {r.id for r in plan.reject}, "admitted and rejected")

    def _batch(self) -> None:
        plan, limits = self._plan, self._view.limits
        tokens = sum(c.length for c in plan.prefill) + len(plan.decode)
        self._require(tokens <= limits.step_tokens, f"{tokens} tokens > step_tokens {limits.step_tokens}")
        rows = len(plan.prefill) + len(plan.decode)
        self._require(rows <= limits.seats, f"{rows} rows > seats {limits.seats}")
        for chunk in plan.prefill:
            candidate = self._candidate(chunk.id)
            self._require(chunk.start == candidate.computed_tokens, f"chunk of {chunk.id} starts off")
            self._require(
                0 < chunk.length <= candidate.target_tokens - chunk.start,
                f"chunk of {chunk.id} has length {chunk.length}",
            )

    def _device(self) -> None:
        plan, view = self._plan, self._view
        taken = self._growing
        taken += sum(self._candidate(id).total_blocks for id in (*plan.admit, *plan.rotate_in))
        self._require(taken <= view.device_free, f"{taken} device blocks > {view.device_free} free")
        promised, largest = view.promised_blocks, view.promised_blocks_max
        if not view.limits.host_blocks:
            return  # nobody rotates: eviction is the escape, so overcommit is allowed
        for id in plan.admit:
            blocks = self._candidate(id).max_blocks
            self._require(
                view.admission_fits(blocks, promised, largest),
                f"admission of {id} ({blocks} blocks) breaks the admission inequality",
            )
            promised, largest = promised + blocks, max(largest, blocks)

    def _link_and_host(self) -> None:
        plan, view = self._plan, self._view
        out = [self._candidate(id) for id in plan.rotate_out]
        dirty = [c.total_blocks - c.synced_blocks for c in out]
        synced = sum(s.count for s in plan.sync)
        alone = len(out) == 1 and not plan.sync and view.link_out_blocks > 0
        self._require(
            sum(dirty) + synced <= view.link_out_blocks or alone,
            f"{sum(dirty) + synced} blocks out > {view.link_out_blocks}",
        )
        room = view.host_free + view.host_backing - sum(c.host_blocks for c in out)
        self._require(sum(dirty) <= room, f"{sum(dirty)} dirty blocks > {room} host slots")
        self._require(
            not synced or sum(dirty) + synced <= view.host_free, f"{synced} blocks of sync > free host slots"
        )
        for run in plan.sync:
            candidate = self._candidate(run.id)
            self._require(
                run.count > 0
                and run.first == candidate.synced_blocks
                and run.first + run.count <= candidate.full_blocks,
                f"sync of {run.id} {run.first}+{run.count} is not its next full blocks",
            )
        blocks_in = sum(self._candidate(id).total_blocks for id in plan.rotate_in)
        self._require(
            blocks_in <= view.link_in_blocks or (len(plan.rotate_in) == 1 and view.link_in_blocks > 0),
            f"{blocks_in} blocks in > {view.link_in_blocks}",
        )
