"""trtllm.TrtllmService over a real socket, through stubs of our own text of the proto."""

from __future__ import annotations

from pathlib import Path

from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from support.described import described

FIELDS = Path(__file__).with_name("trtllm_fields.txt")
"""What gateways know; tests/gateway compares it with their own stubs."""


def test_names_numbers_and_types_are_those_that_gateways_know() -> None:
    assert described(trt.DESCRIPTOR, "TrtllmService") == FIELDS.read_text()
