"""The bounded door in. Thread-safe: any thread may submit and cancel, the driver drains."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.ports import Clock
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.units import MILLISECOND, SECOND, Nanos, RequestId
from superinfer_trt.runtime.quotas import Quotas

RETRY_AFTER_MIN: Nanos = MILLISECOND
RETRY_AFTER_MAX: Nanos = 60 * SECOND


class BoundedInbox:
    """core.ports.Inbox. `requests_max` bounds all accepted requests that have not ended, `quotas` those of
    each tenant."""

    def __init__(self, clock: Clock, requests_max: int, quotas: Quotas | None = None) -> None:
        self._clock = clock
        self._requests_max = requests_max
        self._quotas = quotas
        self._gap: Nanos = SECOND  # between two endings, an exponential average
        self._last_ended: Nanos = -1
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._arrived: list[Request] = []
        self._cancels: list[tuple[RequestId, FinishReason]] = []
        self._live = 0
        self._closed = ""

    def next_id(self) -> RequestId:
        """An id for the next request; never reused."""
        return RequestId(next(self._ids))

    @property
    def live(self) -> int:
        """Accepted requests that have not ended."""
        return self._live

    def submit(self, request: Request) -> None:
        """Accepts a request; raises Refused (queue full, quota, draining)."""
        with self._lock:
            if self._closed:
                raise Refused(RefusalCode.DRAINING, "", self._closed)
            if self._live >= self._requests_max:
                raise Refused(
                    RefusalCode.QUEUE_FULL,
                    "",
                    f"{self._live} requests are live, the limit is {self._requests_max}",
                    self.retry_after(),
                )
            if self._quotas is not None:
                self._pass(request.tenant, self._quotas.refusal(request))
                self._quotas.take(request)
            self._live += 1
            self._arrived.append(request)
        self._clock.wake()

    def check(self, tenant: str) -> None:
        """Raises Refused if `tenant` may have no more live requests: before anything is computed for one."""
        if self._quotas is not None:
            with self._lock:
                self._pass(tenant, self._quotas.full(tenant))

    def cancel(self, id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ends a request early; unknown and finished ids are ignored."""
        with self._lock:
            self._cancels.append((id, reason))
        self._clock.wake()

    def drain(self) -> tuple[Sequence[Request], Sequence[tuple[RequestId, FinishReason]]]:
        """All that arrived since the last call."""
        if not self._arrived and not self._cancels:  # the usual turn takes no lock
            return (), ()
        with self._lock:
            arrived, self._arrived = self._arrived, []
            cancels, self._cancels = self._cancels, []
        return arrived, cancels

    def ended(self, ids: Sequence[RequestId]) -> None:
        """These accepted requests have ended: their places and their tenants' quotas are free again."""
        if not ids:
            return
        now = self._clock.now()
        with self._lock:
            self._live -= len(ids)
            if self._last_ended >= 0:
                self._gap += ((now - self._last_ended) // len(ids) - self._gap) // 8
            self._last_ended = now
            if self._quotas is not None:
                for id in ids:
                    self._quotas.give(id)

    def retry_after(self, share: float = 1.0) -> Nanos:
        """When to try again for the place of one of `share` of all live requests: the mean time until one
        of them ends, by how they ended of late; 1 s before any did. An estimate; 1 ms .. 60 s."""
        return max(RETRY_AFTER_MIN, min(RETRY_AFTER_MAX, int(self._gap / share)))

    def _pass(self, tenant: str, refusal: Refused | None) -> None:
        """Raises `refusal`, if there is one, with a guess of when to come again."""
        if refusal is None:
            return
        if refusal.code is RefusalCode.QUOTA and self._quotas is not None:
            refusal.retry_after = self.retry_after(self._quotas.in_flight(tenant).requests / self._live)
        raise refusal

    def close(self, reason: str) -> None:
        """Refuses everything from now on, with `reason`."""
        with self._lock:
            self._closed = self._closed or reason
        self._clock.wake()
