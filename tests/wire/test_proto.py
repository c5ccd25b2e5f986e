"""The generated files are those of the proto, and the wire keeps its numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from superinfer_trt.serve import pb as package
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import executor_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = Path(__file__).with_name("executor_fields.txt")
PROTO = ROOT / "proto" / "superinfer" / "v1" / "executor.proto"


def test_generated_files_are_fresh(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed (extra dev)")
    mine, theirs = version("grpcio-tools"), executor_pb2_grpc.GRPC_GENERATED_VERSION
    if mine != theirs:
        pytest.skip(f"grpcio-tools is {mine}; the files were made with {theirs}, which writes its version in")
    subprocess.run([sys.executable, ROOT / "scripts" / "gen_proto", "--out", tmp_path], check=True)
    committed = Path(package.__path__[0])
    for made in sorted(tmp_path.iterdir()):
        assert made.read_text() == (committed / made.name).read_text(), f"{made.name}: run scripts/gen_proto"


def described() -> str:
    """One line for each field, method and value: number, name, type, label."""
    lines: list[str] = []

    def kind(field: FieldDescriptor) -> str:
        if field.message_type is not None:
            return field.message_type.name
        if field.enum_type is not None:
            return field.enum_type.name
        return next(
            name.removeprefix("TYPE_").lower()
            for name in dir(FieldDescriptor)
            if name.startswith("TYPE_") and getattr(FieldDescriptor, name) == field.type
        )

    def describe(message: Descriptor) -> None:
        lines.append(f"message {message.name}")
        for field in message.fields:
            repeated = "repeated " if field.is_repeated else ""
            inside = field.containing_oneof
            group = f" in {inside.name}" if inside is not None and not inside.name.startswith("_") else ""
            optional = "optional " if inside is not None and inside.name.startswith("_") else ""
            lines.append(f"  {field.number} {repeated}{optional}{kind(field)} {field.name}{group}")

    for message in pb.DESCRIPTOR.message_types_by_name.values():
        describe(message)
    for enum in pb.DESCRIPTOR.enum_types_by_name.values():
        lines.append(f"enum {enum.name}")
        lines += [f"  {value.number} {value.name}" for value in enum.values]
    for service in pb.DESCRIPTOR.services_by_name.values():
        lines.append(f"service {service.full_name}")
        for method in service.methods:
            stream = "stream " if method.server_streaming else ""
            lines.append(f"  {method.name}({method.input_type.name}) -> {stream}{method.output_type.name}")
    return "\n".join(lines) + "\n"


def test_numbers_and_types_are_those_of_the_last_release(golden: Callable[[Path, str], None]) -> None:
    golden(SNAPSHOT, described())


def test_every_field_of_a_request_says_what_leaving_it_out_means() -> None:
    """REQUIRED, "Left out", or a limit: the comment above each field of a request is there."""
    text = PROTO.read_text()
    body = text[text.index("message GenerateRequest") : text.index("message GenerateResponse")]
    bare = []
    previous = ""
    for line in body.splitlines():
        if "=" in line and line.strip().endswith(";") and not previous.strip().startswith("//"):
            bare.append(line.strip())
        previous = line
    assert bare == ["string content = 2;"]
