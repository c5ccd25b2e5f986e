"""What a policy may see of one moment: read-only, ordered, without copies.

The candidates are the live records themselves behind a read-only Protocol; copying them would cost
as much as planning. Knows no slot, no tensor and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from superinfer_trt.core.forecast import StepForecast
from superinfer_trt.core.phase import Phase
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import Nanos, RequestId


class Candidate(Protocol):
    """Read-only face of a live request: plain attributes, kept current by the roster and the ledger.

    Token counts include the batch in the air, as if it had ended without a stop id.
    """

    @property
    def id(self) -> RequestId: ...
    @property
    def phase(self) -> Phase: ...
    @property
    def slo(self) -> Slo: ...
    @property
    def tenant(self) -> str: ...
    @property
    def arrival(self) -> Nanos: ...
    @property
    def first_token(self) -> Nanos:
        """When the first token was emitted; -1 before."""
        ...

    @property
    def last_token(self) -> Nanos:
        """When the newest token was emitted; arrival before the first."""
        ...

    @property
    def run_start(self) -> Nanos:
        """When the present stay in HBM began (admission or landed rotate-in); -1 while outside."""
        ...

    @property
    def target_tokens(self) -> int:
        """Tokens to prefill: the prompt, and after an eviction also what had been produced."""
        ...

    @property
    def computed_tokens(self) -> int:
        """Tokens whose KV is written (or being written by the batch in the air)."""
        ...

    @property
    def produced_tokens(self) -> int: ...
    @property
    def remaining_tokens(self) -> int:
        """Output tokens that may still be planned; 0 means only collecting is left."""
        ...

    @property
    def stint_tokens(self) -> int:
        """Output tokens since the present stay in HBM began."""
        ...

    @property
    def device_blocks(self) -> int: ...
    @property
    def host_blocks(self) -> int: ...
    @property
    def synced_blocks(self) -> int:
        """Leading full blocks whose bytes are in DRAM or on their way there."""
        ...

    @property
    def full_blocks(self) -> int:
        """Leading blocks that are full *and collected*, so that they may be synced."""
        ...

    @property
    def total_blocks(self) -> int:
        """Blocks that hold its computed tokens: what a rotate-in takes; of a waiting one, what
        admission takes (its whole prefill target)."""
        ...

    @property
    def max_blocks(self) -> int:
        """Blocks if it runs to its last token."""
        ...


@dataclass(frozen=True, slots=True)
class CandidateValue:
    """A frozen candidate for tests and for policies outside an executor."""

    id: RequestId
    phase: Phase = Phase.WAITING
    slo: Slo = field(default_factory=Slo)
    tenant: str = ""
    arrival: Nanos = 0
    first_token: Nanos = -1
    last_token: Nanos = 0
    run_start: Nanos = -1
    target_tokens: int = 16
    computed_tokens: int = 0
    produced_tokens: int = 0
    remaining_tokens: int = 16
    stint_tokens: int = 0
    device_blocks: int = 0
    host_blocks: int = 0
    synced_blocks: int = 0
    full_blocks: int = 0
    total_blocks: int = 1
    max_blocks: int = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What never changes while an executor lives."""

    step_tokens: int  # tokens of one batch, prefill and decode together
    seats: int  # requests of one batch
    block_tokens: int
    device_blocks: int  # HBM pool
    host_blocks: int  # DRAM pool


@dataclass(frozen=True, slots=True)
class Lane:
    """What one tenant has outside HBM, each sequence in the policy's order. Late: past the moment that
    the policy's `Order` names."""

    waiting: Sequence[Candidate] = ()
    waiting_late: Sequence[Candidate] = ()
    rotary: Sequence[Candidate] = ()
    rotary_late: Sequence[Candidate] = ()


@dataclass(frozen=True, slots=True)
class View:
    """One moment. The three sequences are ordered by the policy's own static keys (`Order`).

    Every count of blocks already includes what earlier turns have reserved.
    """

    turn: int
    now: Nanos
    limits: Limits
    waiting: Sequence[Candidate]
    rotary: Sequence[Candidate]
    running: Sequence[Candidate]
    live: Mapping[RequestId, Candidate]
    device_free: int  # slots that this turn may take
    device_leaving: int  # slots that come free without a further decision (rotations out under way)
    host_free: int
    host_backing: int  # host slots that only back resident blocks: reclaimable
    promised_blocks: int  # sum of max_blocks over requests that hold any block
    promised_blocks_max: int  # the largest of them
    waiting_blocks: int  # sum of total_blocks over waiting
    rotary_blocks: int  # sum of total_blocks over rotary
    link_out_blocks: int  # D2H allowance of this turn
    link_in_blocks: int  # H2D allowance of this turn
    forecast: StepForecast = field(default_factory=StepForecast)
    lanes: Mapping[str, Lane] | None = None  # by tenant; None: nobody keeps them (see `lanes_of`)

    def decode_needs_block(self, candidate: Candidate) -> bool:
        """Whether its next token needs a block it does not hold."""
        return candidate.computed_tokens >= candidate.device_blocks * self.limits.block_tokens

    def admission_fits(self, max_blocks: int, promised: int, largest: int) -> bool:
        """The inequality that makes deadlock impossible, for one more request of `max_blocks`.

        sum of max_blocks <= HBM + DRAM - the largest (or <= HBM: then nobody ever has to leave).
        """
        device, host = self.limits.device_blocks, self.limits.host_blocks
        return promised + max_blocks <= max(device, device + host - max(largest, max_blocks))


OrderKey = Callable[[Candidate], int]


@dataclass(frozen=True, slots=True)
class Order:
    """Static order inside each class. A key may change only when the request changes class, so
    that queues are kept in order and never sorted again.

    `strict`: who waits is admitted in this order and never overtaken, so all prompts before one in the
    queue are prefilled before it. `waiting_late`, `rotary_late`: the moment (nanoseconds) from which a
    waiting / rotary request counts as late, static as well. A policy that names both gets `View.lanes`,
    kept in O(log n) a move.
    """

    waiting: OrderKey
    rotary: OrderKey
    running: OrderKey
    waiting_late: OrderKey | None = None
    rotary_late: OrderKey | None = None
    strict: bool = False


def lanes_of(view: View, order: Order) -> Mapping[str, Lane]:
    """The view's lanes; made from its queues where nobody keeps them, in O(waiting + rotary)."""
    if view.lanes is not None:
        return view.lanes
    split: dict[str, tuple[list[Candidate], list[Candidate], list[Candidate], list[Candidate]]] = {}
    for first, queue, late in ((0, view.waiting, order.waiting_late), (2, view.rotary, order.rotary_late)):
        for candidate in queue:
            parts = split.setdefault(candidate.tenant, ([], [], [], []))
            parts[first + (late is not None and late(candidate) <= view.now)].append(candidate)
    return {tenant: Lane(*parts) for tenant, parts in split.items()}
