"""Objectives that come beside a request: in the metadata of its call, or as a class in front of its id.

For callers whose message has no field for them, or has one and leaves it out. What they say is written into
the message before it is validated, so its limits are those of every request. Pure; no thread promise needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.serve.pb import executor_pb2 as pb

TTFT_METADATA = "superinfer-ttft-slo-ms"
TBT_METADATA = "superinfer-tbt-slo-ms"
TENANT_METADATA = "superinfer-tenant"
_PREFIX = "superinfer-"

Metadata = Iterable[tuple[str, str | bytes]]


def fill_from_metadata(message: pb.GenerateRequest, metadata: Metadata | None) -> None:
    """Writes what `metadata` says where `message` says nothing.

    Other keys are not looked at, `openengine-priority` included: urgency comes from objectives here, and a
    second order would contradict them. Raises Refused for a value that is no number.
    """
    told = {key: value for key, value in metadata or () if key.startswith(_PREFIX)}
    if not told:
        return
    if TTFT_METADATA in told and not message.slo.HasField("ttft_ms"):
        message.slo.ttft_ms = _milliseconds(TTFT_METADATA, told[TTFT_METADATA])
    if TBT_METADATA in told and not message.slo.HasField("tbt_ms"):
        message.slo.tbt_ms = _milliseconds(TBT_METADATA, told[TBT_METADATA])
    if TENANT_METADATA in told and not message.tenant:
        message.tenant = _text(told[TENANT_METADATA])


def fill_from_class(message: pb.GenerateRequest, request_id: str, classes: Mapping[str, Slo]) -> None:
    """Writes the objectives of the class in front of `request_id` (`gold.anything`) where `message` has none.

    An id without a dot, or with no known class before its first one, says nothing.
    """
    name, dot, _ = request_id.partition(".")
    slo = classes.get(name) if dot else None
    if slo is None:
        return
    if not message.slo.HasField("ttft_ms"):
        message.slo.ttft_ms = slo.ttft / MILLISECOND
    if not message.slo.HasField("tbt_ms"):
        message.slo.tbt_ms = slo.tbt / MILLISECOND


def _milliseconds(name: str, value: str | bytes) -> float:
    text = _text(value)
    try:
        return float(text)
    except ValueError:
        raise Refused(RefusalCode.INVALID, name, f"must be a number of ms, not {text[:32]!r}") from None


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("ascii", "replace")
