"""What the gRPC service needs of the rest of the house: one Protocol that the composition root satisfies.

Knows no gRPC and no implementation. Everything here may be called from the event loop's thread and
returns at once, but for `Service.close`, which may wait.
"""

from __future__ import annotations

from typing import Protocol

from superinfer_trt.core.model import ModelConfig, Tokenizer
from superinfer_trt.core.outcome import Totals
from superinfer_trt.core.ports import Clock, Observer
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.units import Nanos, RequestId
from superinfer_trt.core.view import Limits


class Door(Protocol):
    """The way in: the part of core.ports.Inbox that a client may use, and the counter of ids."""

    def next_id(self) -> RequestId:
        """A number never handed out before."""
        ...

    def submit(self, request: Request) -> None:
        """Raises Refused when full or draining, or beyond its tenant's quota."""
        ...

    def check(self, tenant: str) -> None:
        """Raises Refused if `tenant` may have no more live requests."""
        ...

    def retry_after(self, share: float = 1.0) -> Nanos:
        """When to try again for the place of one of `share` of all live requests; an estimate."""
        ...

    def cancel(self, id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ends a request early; an unknown or finished id is ignored."""
        ...


class Driver(Protocol):
    """The thread that turns the executor."""

    @property
    def alive(self) -> bool:
        """False once it has stopped, on purpose or by a bug."""
        ...


class Snapshot(Protocol):
    """Counts of one moment: requests by phase, free and all blocks of the two tiers."""

    @property
    def waiting(self) -> int: ...
    @property
    def prefill(self) -> int: ...
    @property
    def decode(self) -> int: ...
    @property
    def rotating_out(self) -> int: ...
    @property
    def rotary(self) -> int: ...
    @property
    def rotating_in(self) -> int: ...
    @property
    def device_free(self) -> int: ...
    @property
    def device_total(self) -> int: ...
    @property
    def host_free(self) -> int: ...
    @property
    def host_total(self) -> int: ...
    @property
    def waiting_age(self) -> Nanos:
        """The longest that a waiting request has waited; `rotary_age`: since its last token."""
        ...

    @property
    def rotary_age(self) -> Nanos: ...
    @property
    def waiting_urgency(self) -> float:
        """The largest share of its own objective that a waiting request has used up."""
        ...

    @property
    def rotary_urgency(self) -> float: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def link_out_bytes_per_s(self) -> float:
        """What the link HBM -> DRAM carries; infinite without a limit."""
        ...

    @property
    def link_in_bytes_per_s(self) -> float: ...


class Executor(Protocol):
    """The numbers of the turn loop; read from another thread than the driver's."""

    @property
    def totals(self) -> Totals: ...
    def snapshot(self) -> Snapshot: ...
    def observe(self, observer: Observer) -> None:
        """`observer` hears every turn from now on, in the driver's thread."""
        ...

    def unobserve(self, observer: Observer) -> None: ...


class Service(Protocol):
    """One served model. The driver is running when the server gets it."""

    @property
    def inbox(self) -> Door: ...
    @property
    def driver(self) -> Driver: ...
    @property
    def executor(self) -> Executor: ...
    @property
    def clock(self) -> Clock:
        """The clock of the executor: arrivals are read from it."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None: token ids only."""
        ...

    @property
    def model(self) -> ModelConfig | None:
        """None: an engine without a model."""
        ...

    @property
    def limits(self) -> Limits: ...
    @property
    def vocabulary(self) -> int:
        """Of the engine; token ids are below it."""
        ...

    @property
    def context_tokens_max(self) -> int:
        """Of the engine; prompt and output together."""
        ...

    @property
    def supports(self) -> frozenset[str]:
        """What of core.request.OPTIONAL_SAMPLING the engine can do."""
        ...

    @property
    def engine(self) -> str: ...
    @property
    def policy(self) -> str: ...
    def close(self) -> None:
        """Stops the driver and frees pools, lanes and engine. Idempotent."""
        ...
