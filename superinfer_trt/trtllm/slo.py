"""How a request's objectives reach its worker: in its scheduling parameters, else the server's defaults.

`LLM.generate_async(scheduling_params=...)` takes an object that upstream broadcasts to every rank; the fields
read from it are `ttft_slo_s`, `tbt_slo_s` (seconds) and `tenant`. Knows no clock but the moment it is told.
Immutable, any thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import SECOND, Nanos
from superinfer_trt.trtllm.upstream import UpstreamRequest


@dataclass(frozen=True, slots=True)
class Terms:
    """What was asked for one request."""

    slo: Slo
    tenant: str
    arrival: Nanos


@dataclass(frozen=True, slots=True)
class ServiceTerms:
    """The server's defaults."""

    slo: Slo = field(default_factory=Slo)
    tenant: str = ""

    def of(self, request: UpstreamRequest, now: Nanos) -> Terms:
        """The request's own terms where it brings them. It arrives when its worker first sees it. An
        objective that is none is passed over: the loop of all requests does not end for one."""
        asked = getattr(request, "py_scheduling_params", None)
        if asked is None:
            return Terms(self.slo, self.tenant, now)
        ttft = _nanos(getattr(asked, "ttft_slo_s", None), self.slo.ttft)
        tbt = _nanos(getattr(asked, "tbt_slo_s", None), self.slo.tbt)
        tenant = getattr(asked, "tenant", None)
        return Terms(Slo(ttft, tbt), self.tenant if tenant is None else str(tenant), now)


def _nanos(seconds: object, default: Nanos) -> Nanos:
    if isinstance(seconds, (int, float)) and math.isfinite(seconds) and seconds > 0:
        return round(seconds * SECOND)
    return default
