"""`rota-slack`: rotation by what each reader can spare. Ours, the recommended default.

Source: this project. `rotasched` shares a shortage evenly, so that under overload nearly everybody misses
something. This policy spends HBM where it still buys an objective:

1. **Step cap.** A step carries only as many prefill tokens as keep it, by the forecast in the view, under
   `step_share` of the tightest TBT objective among those in it (never fewer than `prefill_tokens_min`).
2. **Stream lag** = (now - first token) - (tokens - 1) * S_B: how far the reader is ahead of the stream; below
   0 tokens lie in the reader's buffer. Who is ahead by more than `ahead_min_s` may leave, most ahead first;
   who is away comes back when less than `guard_s` of the buffer is left.
3. **Minimum stay** of `min_stint_tokens`, or requests would swap places for ever.
4. **Triage.** A request whose first token can no longer come in time, or whose stream is more than `lost_s`
   late, is late: it takes leftover room only and leaves first, youngest before older, for blocks that the
   others want, and also when their prompts lack tokens of the step. The late ones have a right to
   `late_share` of HBM, whoever came first before the others (who has begun as if `begun_lead_s` earlier), so
   that every one of them ends.
5. **Order of admission**: arrival + `length_weight_ms` for each prompt token. 0 is first come, first
   served; more serves short prompts first, which saves most objectives, and a longer prompt is overtaken
   only by what arrives within that much time: ageing. A new prompt makes somebody ahead leave only after
   `patience` of its TTFT objective.
6. **Tenants.** At each step of a class the tenant that holds least HBM for its weight goes first, and who
   goes first and does not fit is waited for. No tenant can starve another.

A pure function (C10). Slots that leave can be used in a later turn: who fits goes now, for the others
victims leave now, and what is on its way counts as theirs. A closed gate never blocks another one.
Cost: O(running + moved + tenants), with the lanes of the view however long the backlog. Knows no slot and
no clock. Stateless, any thread.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, takewhile

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.units import MILLISECOND, Nanos, RequestId
from superinfer_trt.core.view import Candidate, Lane, Order, View, lanes_of
from superinfer_trt.sched.budget import Budget
from superinfer_trt.sched.lag import THOUSAND, fraction, stay_began, thousandths, whole

HBM_SHARE_THOUSANDTHS = 150
"""Part of HBM that may change hands in one turn, as in `rotasched`."""


@dataclass(frozen=True, slots=True)
class RotaSlackParameters:
    """Times in seconds of the reader's stream, all rounded to milliseconds. Raises ConfigError.

    `step_share`: part of the tightest TBT objective that a step may take, 0 < share < 1.
    `prefill_tokens_min`: prefill tokens that a step may carry even so. `ahead_min_s`, `guard_s`, `lost_s`:
    see the module; ahead_min_s > guard_s. `min_stint_tokens`: tokens a stay lasts at least. `late_share`:
    of HBM. `length_weight_ms`: milliseconds of arrival that a prompt token counts. `output_weight_ms`: the
    same for each output token it may make; where that limit is the exact length, as in a simulation, this
    is an oracle. `patience`: part of the TTFT objective, 0 <= patience < 1. `weights`: tenant -> weight
    > 0, 1 for those not named. `begun_lead_s`: a late one that has begun goes before one that came up to so
    much earlier and has not. `transfer_blocks` (B_xfer): None takes what the links hide, at most 15 % of
    HBM. `eager_sync`: copy full blocks to DRAM ahead of need.
    """

    step_share: float = 0.85
    prefill_tokens_min: int = 64
    ahead_min_s: float = 3.0
    guard_s: float = 0.5
    lost_s: float = 1.0
    min_stint_tokens: int = 16
    late_share: float = 0.02
    begun_lead_s: float = 60.0
    length_weight_ms: float = 5.0
    output_weight_ms: float = 0.0
    patience: float = 0.4
    weights: Mapping[str, float] = field(default_factory=dict)
    transfer_blocks: int | None = None
    eager_sync: bool = True

    def __post_init__(self) -> None:
        for name in ("step_share", "late_share", "patience"):
            fraction(name, getattr(self, name))
        if not fraction("step_share", self.step_share):
            raise ConfigError(f"step_share: {self.step_share!r} is not more than 0")
        for name in (
            "ahead_min_s",
            "guard_s",
            "lost_s",
            "begun_lead_s",
            "length_weight_ms",
            "output_weight_ms",
        ):
            thousandths(name, getattr(self, name), 0.0)
        if self.ahead_min_s <= self.guard_s:
            raise ConfigError(f"ahead_min_s: {self.ahead_min_s!r} is not more than guard_s {self.guard_s!r}")
        for name in ("prefill_tokens_min", "min_stint_tokens"):
            whole(name, getattr(self, name), 1)
        if self.transfer_blocks is not None:
            whole("transfer_blocks", self.transfer_blocks, 1)
        if not isinstance(self.eager_sync, bool):
            raise ConfigError(f"eager_sync: {self.eager_sync!r} is neither true nor false")
        if not isinstance(self.weights, Mapping):
            raise ConfigError(f"weights: {self.weights!r} is no mapping of tenants to weights")
        for tenant, weight in self.weights.items():
            thousandths(f"weights[{tenant!r}]", weight, 0.001)


class RotaSlack:
    """The policy; see the module."""

    name = "rota-slack"
    rotates = True

    def __init__(self, parameters: RotaSlackParameters | None = None) -> None:
        p = self.parameters = parameters or RotaSlackParameters()
        self._step_share = fraction("step_share", p.step_share)
        self._ahead_min = _nanos(p.ahead_min_s)
        self._guard = _nanos(p.guard_s)
        self._lost = _nanos(p.lost_s)
        self._begun_lead = _nanos(p.begun_lead_s)
        self._late_share = fraction("late_share", p.late_share)
        self._token_weight = _nanos(p.length_weight_ms) // THOUSAND
        self._output_weight = _nanos(p.output_weight_ms) // THOUSAND
        self._patience = fraction("patience", p.patience)
        self._weights = {tenant: thousandths("weights", weight) for tenant, weight in p.weights.items()}
        self.order = Order(
            waiting=self._turn_of,
            rotary=due,
            running=stay_began,
            waiting_late=_ttft_lost_from,
            rotary_late=self._stream_lost_from,
        )

    def _turn_of(self, candidate: Candidate) -> Nanos:
        output = candidate.remaining_tokens * self._output_weight
        return candidate.arrival + candidate.target_tokens * self._token_weight + output

    def _stream_lost_from(self, candidate: Candidate) -> Nanos:
        return candidate.arrival if ttft_lost(candidate) else due(candidate) + self._lost

    def __call__(self, view: View) -> Plan:
        eager = self.parameters.eager_sync
        budget = Budget(view, eager=eager)
        residents = self._residents(budget)
        self._cap(budget, residents)
        self._make_room_to_grow(budget, residents)
        budget.run()
        if view.waiting or view.rotary:
            self._let_in(budget, residents)
        if eager:
            budget.sync()
        return budget.plan()

    # --- the ones inside -------------------------------------------------------------------------

    def _residents(self, budget: Budget) -> _Residents:
        """One walk over all that run: sums in locals, half of what it took with attributes."""
        found = _Residents()
        stint, view = self.parameters.min_stint_tokens, budget.view
        late_until, ahead_from = view.now - self._lost, view.now + self._ahead_min
        late, ahead = found.late, found.ahead
        context_tokens = late_blocks = ahead_blocks = 0
        tightest = min([c.slo.tbt for c in (*budget.prefilling, *budget.ending)], default=found.tightest)
        for candidate in budget.residents:
            slo = candidate.slo
            tbt = slo.tbt
            if tbt < tightest:  # noqa: PLR1730 - min() is a call for each
                tightest = tbt
            context_tokens += candidate.computed_tokens
            first = candidate.first_token
            if first < 0:
                continue
            until = first + (candidate.produced_tokens - 1) * tbt  # due(), spelled out
            if until <= late_until or first - candidate.arrival > slo.ttft:
                late.append(candidate)
                late_blocks += candidate.device_blocks
            elif until > ahead_from and candidate.stint_tokens >= stint:
                ahead.append(candidate)
                ahead_blocks += candidate.device_blocks
        found.rows = len(budget.residents) + len(budget.ending)
        found.context_tokens = context_tokens + sum([c.computed_tokens for c in budget.ending])
        found.tightest = tightest
        found.late_blocks, found.ahead_blocks = late_blocks, ahead_blocks
        return found

    def _cap(self, budget: Budget, residents: _Residents) -> None:
        if not residents.rows:
            return
        within = residents.tightest * self._step_share // THOUSAND
        allowed = budget.view.forecast.prefill_tokens(within, residents.rows, residents.context_tokens)
        allowed = max(allowed, self.parameters.prefill_tokens_min)
        budget.tokens = min(budget.tokens, min(residents.rows, budget.seats) + allowed)

    def _make_room_to_grow(self, budget: Budget, residents: _Residents) -> None:
        if budget.shortage <= 0:
            return
        late = {candidate.id for candidate in residents.late}
        running = [c for c in budget.view.running if c.phase is Phase.DECODE and c.remaining_tokens > 0]
        # The late ones, youngest first; then the others, most ahead first.
        running.sort(key=lambda c: (0, -c.arrival, c.id) if c.id in late else (1, -due(c), c.id))
        stint = self.parameters.min_stint_tokens
        budget.rotate_out(budget.shortage, stint_tokens=stint, keep=1, among=running)
        if budget.shortage > 0:
            # Everybody has just come. The newest goes, so that the oldest makes its token.
            budget.rotate_out(budget.shortage, stint_tokens=0, keep=1, newest=True)

    # --- the ones outside ------------------------------------------------------------------------

    def _let_in(self, budget: Budget, residents: _Residents) -> None:
        view = budget.view
        now, limits = view.now, view.limits
        lanes = lanes_of(view, self.order)
        right = limits.device_blocks * self._late_share // THOUSAND
        spared, spare_blocks = residents.spared(right, self.parameters.min_stint_tokens)
        ahead = residents.ahead_blocks
        held = _held(view.running) if len(lanes) > 1 else {}  # one tenant is always first
        turn = _Turn(budget, held, self._weights, self._transfer_blocks(view))
        most = limits.device_blocks // 16
        turn.reserve = min(budget.runners // limits.block_tokens + 1, most)  # by which residents grow
        soon = now + self._guard

        def urgent(lane: Lane) -> Iterator[Candidate]:
            return takewhile(lambda c: due(c) <= soon, lane.rotary)

        def fair(part: str) -> Iterator[Candidate]:
            return turn.fairly({tenant: iter(getattr(lane, part)) for tenant, lane in lanes.items()})

        turn.resume(turn.fairly({t: urgent(lane) for t, lane in lanes.items()}), spare_blocks + ahead)
        if residents.late_blocks < right:
            left = right - residents.late_blocks
            late = fair("rotary_late"), fair("waiting_late")
            turn.let_late_in(*late, self._begun_lead, spare_blocks + ahead, most=left)

        def claim(candidate: Candidate) -> int:
            waited = (now - candidate.arrival) * THOUSAND
            return spare_blocks + (ahead if waited >= candidate.slo.ttft * self._patience else 0)

        pressed = turn.admit(fair("waiting"), claim)
        if turn.shortfall <= 0:  # What is left over.
            turn.reserve = min(2 * budget.runners // limits.block_tokens + 8, most)
        if not pressed:
            turn.resume(fair("rotary"), 0)
            turn.resume(fair("rotary_late"), 0)
            turn.admit(fair("waiting_late"), lambda _: 0)
        stint = self.parameters.min_stint_tokens
        if turn.shortfall > 0:
            ahead_first = sorted(residents.ahead, key=lambda c: (-due(c), c.id))
            budget.rotate_out(turn.shortfall, stint_tokens=stint, among=chain(spared, ahead_first))
        elif pressed:  # Late residents take time of every step that live prompts lack.
            budget.rotate_out(spare_blocks, stint_tokens=stint, among=spared, keep=1)

    def _transfer_blocks(self, view: View) -> int:
        if self.parameters.transfer_blocks is not None:
            return self.parameters.transfer_blocks
        share = view.limits.device_blocks * HBM_SHARE_THOUSANDTHS // THOUSAND
        return min(view.link_out_blocks, view.link_in_blocks, share)


class _Residents:
    """What one walk over the running ones found."""

    __slots__ = ("ahead", "ahead_blocks", "context_tokens", "late", "late_blocks", "rows", "tightest")

    def __init__(self) -> None:
        self.rows = 0  # decoding ones
        self.context_tokens = 0  # that they read
        self.tightest: Nanos = 1 << 62  # TBT objective
        self.late: list[Candidate] = []
        self.late_blocks = 0
        self.ahead: list[Candidate] = []  # who may leave because the reader would not notice
        self.ahead_blocks = 0

    def spared(self, right: int, stint: int) -> tuple[list[Candidate], int]:
        """The late ones beyond their right to HBM, youngest first, and their blocks."""
        self.late.sort(key=lambda c: (c.arrival, c.id))
        kept = blocks = 0
        leaving: list[Candidate] = []
        for candidate in self.late:
            if kept < right:
                kept += candidate.device_blocks
            elif candidate.stint_tokens >= stint:
                leaving.append(candidate)
                blocks += candidate.device_blocks
        leaving.reverse()
        return leaving, blocks


class _Turn:
    """Who comes in: the state of one pass over those outside."""

    __slots__ = ("_budget", "_held", "_left", "_named", "_owed", "_taken", "_weights", "blocked", "reserve")

    def __init__(
        self, budget: Budget, held: dict[str, int], weights: Mapping[str, int], transfer_blocks: int
    ) -> None:
        self._budget = budget
        self._held = held
        self._weights = weights
        self._left = budget.free + budget.coming + transfer_blocks
        self._owed = 0  # blocks of those who must wait for slots
        self._taken = 0
        self._named: set[RequestId] = set()
        self.blocked = False  # somebody does not fit and is waited for: nobody after it comes in
        self.reserve = 0

    @property
    def shortfall(self) -> int:
        """Blocks for which victims have to leave."""
        return self._owed + self.reserve - self._budget.free - self._budget.coming if self._owed else 0

    def fairly(self, heads: Mapping[str, Iterator[Candidate]]) -> Iterator[Candidate]:
        """All of them, each time from the tenant that holds least for its weight."""
        heap = [(self._share(tenant), tenant) for tenant in heads]
        heapq.heapify(heap)
        while heap:
            tenant = heap[0][1]
            candidate = next(heads[tenant], None)
            if candidate is None:
                heapq.heappop(heap)
                continue
            yield candidate
            heapq.heapreplace(heap, (self._share(tenant), tenant))

    def _share(self, tenant: str) -> int:
        return self._held.get(tenant, 0) * THOUSAND * THOUSAND // self._weights.get(tenant, THOUSAND)

    def resume(self, candidates: Iterable[Candidate], claim: int, most: int = 1 << 62) -> int:
        """Brings rotary ones back in this order; `claim`: blocks of residents that may leave for them.
        Stops at `most` blocks; returns how many were taken."""
        budget, before = self._budget, self._taken
        for candidate in candidates:
            if self.blocked or self._taken - before >= most:
                break
            if candidate.id in self._named:
                continue
            blocks = budget.blocks_back(candidate)
            goes_now = self._goes_now(blocks)
            if goes_now and not budget.resumption_open(candidate):
                break  # this gate is closed; the others are not
            if not self._may_take(blocks, claim, goes_now=goes_now):
                break
            if goes_now:
                budget.resume(candidate)
            self._take(candidate, blocks, goes_now=goes_now)
        return self._taken - before

    def admit(
        self, candidates: Iterable[Candidate], claim: Callable[[Candidate], int], most: int = 1 << 62
    ) -> bool:
        """Admits waiting ones in this order, as `resume` does with rotary ones; returns whether the
        step's tokens ran out."""
        budget, before = self._budget, self._taken
        for candidate in budget.waiting(candidates):
            if self.blocked or self._taken - before >= most:
                break
            if candidate.id in self._named:
                continue
            blocks = candidate.total_blocks
            goes_now = self._goes_now(blocks)
            seated = budget.seats > 0 or not goes_now
            if not (seated and budget.admission_open(candidate)):
                break
            if budget.tokens <= 0:
                return True
            if not self._may_take(blocks, claim(candidate), goes_now=goes_now):
                break
            if goes_now:
                budget.admit(candidate)
            else:
                budget.await_slots(candidate)
            self._take(candidate, blocks, goes_now=goes_now)
        return False

    def let_late_in(
        self, rotary: Iterator[Candidate], waiting: Iterator[Candidate], lead: Nanos, claim: int, most: int
    ) -> None:
        """Of the tenant that holds least whoever came first, those in DRAM as if `lead` earlier, until `most`
        blocks are taken. Under overload new ones land in DRAM all the time: if they always went first, those
        who wait would do so for ever."""
        before, heads = self._taken, [next(rotary, None), next(waiting, None)]

        def rank(candidate: Candidate) -> tuple[int, Nanos, RequestId]:
            came = candidate.arrival - (lead if candidate.phase is Phase.ROTARY else 0)
            return self._share(candidate.tenant), came, candidate.id

        while not self.blocked and self._taken - before < most:
            first = min(filter(None, heads), key=rank, default=None)
            if first is None:
                break
            taken = self._taken
            if first is heads[0]:
                self.resume((first,), claim)
            else:
                self.admit((first,), lambda _: claim)
            passed = self._taken > taken or first.id in self._named  # else its gate is closed
            source = rotary if first is heads[0] else waiting
            heads[heads.index(first)] = next(source, None) if passed else None

    def _goes_now(self, blocks: int) -> bool:
        return not self._owed and self._budget.fits(blocks, self.reserve)

    def _may_take(self, blocks: int, claim: int, *, goes_now: bool) -> bool:
        """Whether it comes in or slots are made free for it; if not, it is waited for."""
        budget = self._budget
        room = budget.free + budget.coming + claim - self._owed - self.reserve
        enough = goes_now or (claim > 0 and blocks <= room)
        if not enough or (blocks > self._left and self._taken):
            self.blocked = True
            return False
        return True

    def _take(self, candidate: Candidate, blocks: int, *, goes_now: bool) -> None:
        if not goes_now:
            self._owed += blocks
        self._left -= blocks
        self._taken += blocks
        self._named.add(candidate.id)
        self._held[candidate.tenant] = self._held.get(candidate.tenant, 0) + blocks


def _held(running: Iterable[Candidate]) -> dict[str, int]:
    """Device blocks by tenant."""
    held: dict[str, int] = {}
    for candidate in running:
        held[candidate.tenant] = held.get(candidate.tenant, 0) + candidate.device_blocks
    return held


def due(candidate: Candidate) -> Nanos:
    """When the reader has read all that it has: a token each S_B from the first one on. Of one without
    a first token: when that should come."""
    if candidate.first_token < 0:
        return candidate.arrival + candidate.slo.ttft
    return candidate.first_token + (candidate.produced_tokens - 1) * candidate.slo.tbt


def ttft_lost(candidate: Candidate) -> bool:
    """Whether its first token came too late."""
    return candidate.first_token >= 0 and candidate.first_token - candidate.arrival > candidate.slo.ttft


def _ttft_lost_from(candidate: Candidate) -> Nanos:
    """From when its first token, a step after admission, comes too late."""
    return candidate.arrival + candidate.slo.ttft - candidate.slo.tbt


def _nanos(seconds: float) -> Nanos:
    return thousandths("seconds", seconds) * MILLISECOND
