"""What each tenant may have in flight: requests, tokens, KV blocks. Counted at the door, before allocation.

A request counts with all it may come to: prompt and max_tokens, and the blocks of both. Exact: what `take`
counts, `give` gives back, once. Only tenants with something in flight are kept, so any number of names may
come and go. Knows no lock, clock or queue. Not thread-safe: the inbox holds its lock around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.request import Request
from superinfer_trt.core.units import RequestId, div_ceil


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of one tenant; None: none. `tokens_max`: prompt and max_tokens of all its live requests;
    `blocks_max`: KV blocks of as many tokens, in either tier."""

    requests_max: int | None = None
    tokens_max: int | None = None
    blocks_max: int | None = None


@dataclass(slots=True)
class InFlight:
    """What a tenant has in flight."""

    requests: int = 0
    tokens: int = 0
    blocks: int = 0


class Quotas:
    """The accounts of all tenants; see the module. `default` is for each tenant not `named`."""

    def __init__(
        self, block_tokens: int, default: Quota | None = None, named: Mapping[str, Quota] | None = None
    ) -> None:
        self._block_tokens = block_tokens
        self._default = default or Quota()
        self._named = dict(named or {})
        self._in_flight: dict[str, InFlight] = {}
        self._taken: dict[RequestId, _Share] = {}

    def __len__(self) -> int:
        """Tenants with something in flight."""
        return len(self._in_flight)

    def in_flight(self, tenant: str) -> InFlight:
        """What it has; a copy."""
        has = self._in_flight.get(tenant, InFlight())
        return InFlight(has.requests, has.tokens, has.blocks)

    def full(self, tenant: str) -> Refused | None:
        """Why not even the smallest request of `tenant` is within its quota; None: one may be."""
        has, quota = self._in_flight.get(tenant), self._named.get(tenant, self._default)
        if has is None or quota.requests_max is None or has.requests < quota.requests_max:
            return None
        return self._refused(tenant, "requests", has.requests, 1, quota.requests_max)

    def refusal(self, request: Request) -> Refused | None:
        """Why `request` is not within its tenant's quota; None: it is.

        TOO_LARGE where it could not be served even alone, else QUOTA. Changes nothing.
        """
        share, has = self._share(request), self._in_flight.get(request.tenant, InFlight())
        quota = self._named.get(request.tenant, self._default)
        limits = (
            ("requests", has.requests, 1, quota.requests_max),
            ("tokens", has.tokens, share.tokens, quota.tokens_max),
            ("blocks", has.blocks, share.blocks, quota.blocks_max),
        )
        # First what waiting would not mend.
        for nothing_else in (True, False):
            for what, held, more, most in limits:
                if most is not None and (0 if nothing_else else held) + more > most:
                    return self._refused(request.tenant, what, held, more, most)
        return None

    def take(self, request: Request) -> None:
        """Counts an accepted request; its id must not be counted already."""
        share = self._taken[request.id] = self._share(request)
        has = self._in_flight.setdefault(share.tenant, InFlight())
        has.requests += 1
        has.tokens += share.tokens
        has.blocks += share.blocks

    def give(self, id: RequestId) -> None:
        """Gives back what `take` counted; an id that is not counted is ignored."""
        share = self._taken.pop(id, None)
        if share is None:
            return
        has = self._in_flight[share.tenant]
        has.requests -= 1
        has.tokens -= share.tokens
        has.blocks -= share.blocks
        if not has.requests:
            del self._in_flight[share.tenant]

    def _share(self, request: Request) -> _Share:
        tokens = len(request.prompt) + request.sampling.max_tokens
        # The KV of the last token made is never written.
        return _Share(request.tenant, tokens, div_ceil(tokens - 1, self._block_tokens))

    def _refused(self, tenant: str, what: str, held: int, more: int, most: int) -> Refused:
        whose = f"tenants.named.{tenant}" if tenant in self._named else "tenants.default"
        limit = f"{what}_max of {whose} is {most}"
        if more > most:
            return Refused(RefusalCode.TOO_LARGE, "tenant", f"the request needs {more} {what}; {limit}")
        who = f"tenant {tenant}" if tenant else "whoever names no tenant"
        return Refused(
            RefusalCode.QUOTA, "tenant", f"{who} has {held} {what} in flight, {more} more; {limit}"
        )


@dataclass(frozen=True, slots=True)
class _Share:
    """What one request counts."""

    tenant: str
    tokens: int
    blocks: int
