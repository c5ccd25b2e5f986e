"""One table: what went wrong -> the gRPC status that ends the call. Knows no servicer.

Texts of errors that are not the caller's fault stay in the server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc

from superinfer_trt.core.errors import EngineFailed, RefusalCode, Refused, TransferFailed
from superinfer_trt.core.request import FinishReason
from superinfer_trt.core.units import MILLISECOND, Nanos, div_ceil

FIELD_TRAILER = "superinfer-field"
CODE_TRAILER = "superinfer-code"
RETRY_TRAILER = "superinfer-retry-after-ms"
REQUEST_ID_HEADER = "superinfer-request-id"

STATUS_OF_REFUSAL: dict[RefusalCode, grpc.StatusCode] = {
    RefusalCode.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    RefusalCode.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    RefusalCode.UNKNOWN: grpc.StatusCode.NOT_FOUND,
    RefusalCode.DUPLICATE: grpc.StatusCode.ALREADY_EXISTS,
    RefusalCode.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    RefusalCode.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RefusalCode.QUOTA: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RefusalCode.DRAINING: grpc.StatusCode.UNAVAILABLE,
    RefusalCode.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    RefusalCode.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
}

STATUS_OF_ENDING: dict[FinishReason, grpc.StatusCode] = {
    FinishReason.STOP: grpc.StatusCode.OK,
    FinishReason.LENGTH: grpc.StatusCode.OK,
    FinishReason.CANCELLED: grpc.StatusCode.OK,
    FinishReason.REJECTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FinishReason.FAILED: grpc.StatusCode.INTERNAL,
}


@dataclass(frozen=True, slots=True)
class WireStatus:
    """A status with its message and trailing metadata."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str], ...] = ()


def status_of(error: BaseException) -> WireStatus:
    """The status of any exception; what is neither the caller's nor a known failure is INTERNAL."""
    if isinstance(error, Refused):
        trailers = [(CODE_TRAILER, error.code.value)]
        if error.field:
            trailers.append((FIELD_TRAILER, _ascii(error.field)))
        if error.retry_after is not None:
            trailers.append(retry_trailer(error.retry_after))
        return WireStatus(STATUS_OF_REFUSAL[error.code], str(error), tuple(trailers))
    if isinstance(error, EngineFailed):
        return WireStatus(grpc.StatusCode.INTERNAL, "the model engine failed")
    if isinstance(error, TransferFailed):
        return WireStatus(grpc.StatusCode.INTERNAL, "the link between HBM and DRAM failed")
    return WireStatus(grpc.StatusCode.INTERNAL, "internal error")


async def end_call(context: grpc.aio.ServicerContext[Any, Any], status: WireStatus) -> NoReturn:
    """Ends the call with `status`; raises grpc's own exception."""
    await context.abort(status.code, status.message, status.trailers)
    raise AssertionError("abort raises")


def retry_trailer(retry_after: Nanos) -> tuple[str, str]:
    """Whole milliseconds, at least 1."""
    return RETRY_TRAILER, str(max(1, div_ceil(retry_after, MILLISECOND)))


def _ascii(text: str) -> str:
    """What metadata may carry: printable ASCII."""
    return re.sub(r"[^\x20-\x7e]", "?", text)
