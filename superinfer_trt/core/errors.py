"""Four families of trouble: refused (the caller's), failed (the machine's), busy, and bug.

Capacity on the normal path is never an exception: it is a value (`None`, `False`, an empty plan).
"""

from __future__ import annotations

from enum import Enum

from superinfer_trt.core.units import Nanos


class SuperInferError(Exception):
    """Root of every error this package raises on purpose."""


class RefusalCode(Enum):
    """Why something was refused; one table turns it into a gRPC status or an exit code."""

    INVALID = "invalid"  # the field can never be served as given
    TOO_LARGE = "too_large"  # larger than the model or the pools allow
    UNKNOWN = "unknown"  # names something that does not exist
    DUPLICATE = "duplicate"  # an id already in use
    UNSUPPORTED = "unsupported"  # valid, but this engine cannot do it
    QUEUE_FULL = "queue_full"  # try again later
    QUOTA = "quota"  # the tenant has as much in flight as it may; try again later
    DRAINING = "draining"  # the server is going away
    UNAUTHENTICATED = "unauthenticated"  # nobody knows who asks
    FORBIDDEN = "forbidden"  # who asks may not


class Refused(SuperInferError):
    """The caller's fault: names the field and the limit, so that the caller can mend it."""

    def __init__(self, code: RefusalCode, field: str, message: str, retry_after: Nanos | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.code = code
        self.field = field
        self.message = message
        self.retry_after = retry_after  # from now; None: trying again would not help, or nobody knows


class ConfigError(SuperInferError):
    """A configuration that cannot be started; the message names the field and what is expected."""


class ModelError(SuperInferError):
    """A model file or folder that cannot be used; the message names the file and the reason."""


class EngineFailed(SuperInferError):
    """The model engine could not run a batch. Its requests end with a status; the others go on."""


class TransferFailed(SuperInferError):
    """A transfer engine can copy no more (a poisoned lane)."""


class InvariantViolation(SuperInferError):
    """A bug in this package. Never caught below the driver."""
