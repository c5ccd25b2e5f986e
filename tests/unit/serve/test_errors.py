"""The table of statuses is whole, and says nothing of the server's insides."""

from __future__ import annotations

import grpc
import pytest

from superinfer_trt.core.errors import EngineFailed, InvariantViolation, RefusalCode, Refused, TransferFailed
from superinfer_trt.core.request import FinishReason
from superinfer_trt.serve.errors import STATUS_OF_ENDING, STATUS_OF_REFUSAL, status_of


def test_every_refusal_and_every_ending_has_a_status() -> None:
    assert set(STATUS_OF_REFUSAL) == set(RefusalCode)
    assert set(STATUS_OF_ENDING) == set(FinishReason)
    assert grpc.StatusCode.OK not in STATUS_OF_REFUSAL.values()


@pytest.mark.parametrize("make", [EngineFailed, TransferFailed, InvariantViolation, KeyError])
def test_other_errors_are_internal_and_silent(make: type[Exception]) -> None:
    status = status_of(make("a path of this machine"))
    assert status.code is grpc.StatusCode.INTERNAL
    assert "path" not in status.message
    assert status.trailers == ()


def test_metadata_stays_ascii() -> None:
    status = status_of(Refused(RefusalCode.INVALID, "f\né", "x"))
    assert dict(status.trailers)["superinfer-field"] == "f??"
