"""A service and all messages it can reach as text: one line a field, method and value.

Needs protobuf and nothing of this project, since it also runs where a gateway's own stubs are installed:
`python described.py MODULE SERVICE`.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

KINDS = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in dir(FieldDescriptor)
    if name.startswith("TYPE_")
}


def described(file: Any, service_name: str) -> str:
    """`file` is the descriptor of the service's .proto. Messages come by name, fields by number."""
    service = file.services_by_name[service_name]
    lines = [f"service {service.full_name}"]
    reached: dict[str, Any] = {}
    for method in service.methods:
        came, went = "stream " * method.client_streaming, "stream " * method.server_streaming
        lines.append(
            f"  {method.name}({came}{method.input_type.full_name}) -> {went}{method.output_type.full_name}"
        )
        _reach(method.input_type, reached)
        _reach(method.output_type, reached)
    for name in sorted(reached):
        lines += _lines(reached[name])
    return "\n".join(lines) + "\n"


def _reach(kind: Any, reached: dict[str, Any]) -> None:
    if kind.full_name in reached:
        return
    reached[kind.full_name] = kind
    for field in getattr(kind, "fields", ()):
        below = field.message_type or field.enum_type
        if below is not None:
            _reach(below, reached)


def _lines(kind: Any) -> list[str]:
    if hasattr(kind, "values"):
        return [f"enum {kind.full_name}", *(f"  {value.number} {value.name}" for value in kind.values)]
    lines = [f"message {kind.full_name}"]
    for field in sorted(kind.fields, key=lambda one: one.number):
        below = field.message_type or field.enum_type
        label = "repeated " if field.is_repeated else ""
        inside = field.containing_oneof
        group = ""
        if inside is not None and inside.name.startswith("_"):
            label = "optional "
        elif inside is not None:
            group = f" in {inside.name}"
        name = KINDS[field.type] if below is None else below.full_name
        lines.append(f"  {field.number} {label}{name} {field.name}{group}")
    return lines


if __name__ == "__main__":
    sys.stdout.write(described(importlib.import_module(sys.argv[1]).DESCRIPTOR, sys.argv[2]))
