"""What clients of the last release were promised, the protos of today keep: without any tool, field by field.

`proto/released.binpb` holds the descriptors of the last release; `buf breaking` reads the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from superinfer_trt.serve.pb import executor_pb2, trtllm_common_pb2, trtllm_service_pb2

RELEASED = Path(__file__).resolve().parents[2] / "proto" / "released.binpb"
TODAY = (executor_pb2, trtllm_common_pb2, trtllm_service_pb2)


def released() -> dict[str, FileDescriptorProto]:
    """By the names of their files; the folders depend on where the compiler stood."""
    files = FileDescriptorSet.FromString(RELEASED.read_bytes()).file
    return {Path(one.name).name: one for one in files}


def today() -> dict[str, FileDescriptorProto]:
    made = {}
    for module in TODAY:
        proto = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(proto)
        made[Path(proto.name).name] = proto
    return made


def broken(old: FileDescriptorProto, new: FileDescriptorProto) -> list[str]:
    """Every promise of `old` that `new` does not keep; names in generated code and in JSON count too."""
    found = [] if old.package == new.package else [f"package {old.package} is {new.package}"]
    found += _broken_types("", old.message_type, old.enum_type, new.message_type, new.enum_type)
    services = {one.name: one for one in new.service}
    for service in old.service:
        if service.name not in services:
            found.append(f"service {service.name} is gone")
        else:
            found += _broken_service(service, services[service.name])
    return found


def _broken_types(
    at: str,
    messages: Iterable[DescriptorProto],
    enums: Iterable[EnumDescriptorProto],
    messages_now: Iterable[DescriptorProto],
    enums_now: Iterable[EnumDescriptorProto],
) -> Iterator[str]:
    messages_by_name = {one.name: one for one in messages_now}
    for message in messages:
        if message.name not in messages_by_name:
            yield f"message {at}{message.name} is gone"
        else:
            yield from _broken_message(f"{at}{message.name}", message, messages_by_name[message.name])
    enums_by_name = {one.name: one for one in enums_now}
    for enum in enums:
        if enum.name not in enums_by_name:
            yield f"enum {at}{enum.name} is gone"
        else:
            yield from _broken_enum(f"{at}{enum.name}", enum, enums_by_name[enum.name])


def _broken_message(name: str, old: DescriptorProto, new: DescriptorProto) -> Iterator[str]:
    fields = {field.number: field for field in new.field}
    for field in old.field:
        if field.number not in fields:
            kept = any(one.start <= field.number < one.end for one in new.reserved_range)
            yield f"{name}.{field.name} is gone" + ("" if kept else f", and {field.number} is not reserved")
        elif _shape(old, field) != _shape(new, fields[field.number]):
            before, after = _shape(old, field), _shape(new, fields[field.number])
            yield f"{name}.{field.name}, number {field.number}: {before} is {after}"
    for reserved in old.reserved_range:
        for number in set(fields) & set(range(reserved.start, reserved.end)):
            yield f"{name}.{fields[number].name} has the reserved number {number}"
    yield from _broken_types(f"{name}.", old.nested_type, old.enum_type, new.nested_type, new.enum_type)


def _shape(message: DescriptorProto, field: FieldDescriptorProto) -> tuple[object, ...]:
    group = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    return field.name, field.type, field.type_name, field.label, field.proto3_optional, group


def _broken_enum(name: str, old: EnumDescriptorProto, new: EnumDescriptorProto) -> Iterator[str]:
    values = {value.name: value.number for value in new.value}
    for value in old.value:
        if values.get(value.name) != value.number:
            yield f"{name}.{value.name} was {value.number}, is {values.get(value.name)}"


def _broken_service(old: ServiceDescriptorProto, new: ServiceDescriptorProto) -> Iterator[str]:
    methods = {one.name: one for one in new.method}
    for method in old.method:
        now = methods.get(method.name)
        parts = ("input_type", "output_type", "client_streaming", "server_streaming")
        for part in parts if now is not None else ():
            if getattr(method, part) != getattr(now, part):
                yield f"{old.name}.{method.name}: {part} changed"
        if now is None:
            yield f"{old.name}.{method.name} is gone"


def test_every_promise_of_the_last_release_is_kept() -> None:
    now = today()
    promised = {name: one for name, one in released().items() if not one.package.startswith("google.")}
    assert set(promised) <= set(now)
    assert sum(len(one.service) for one in promised.values()) == 2
    assert [line for name, one in promised.items() for line in broken(one, now[name])] == []


def _field(proto: FileDescriptorProto, message: str, name: str) -> FieldDescriptorProto:
    found = next(one for one in proto.message_type if one.name == message)
    return next(one for one in found.field if one.name == name)


def _renumber(proto: FileDescriptorProto) -> None:
    _field(proto, "Sampling", "top_k").number = 99


def _rename(proto: FileDescriptorProto) -> None:
    _field(proto, "Sampling", "top_k").name = "top"


def _retype(proto: FileDescriptorProto) -> None:
    _field(proto, "Sampling", "top_k").type = FieldDescriptorProto.TYPE_SINT32


def _repeat(proto: FileDescriptorProto) -> None:
    _field(proto, "Sampling", "top_k").label = FieldDescriptorProto.LABEL_REPEATED


def _require(proto: FileDescriptorProto) -> None:
    _field(proto, "Sampling", "top_p").proto3_optional = False


def _out_of_oneof(proto: FileDescriptorProto) -> None:
    _field(proto, "GenerateRequest", "text").ClearField("oneof_index")


def _drop_message(proto: FileDescriptorProto) -> None:
    del proto.message_type[0]


def _drop_method(proto: FileDescriptorProto) -> None:
    del proto.service[0].method[0]


def _unstream(proto: FileDescriptorProto) -> None:
    proto.service[0].method[0].server_streaming = False


def _drop_service(proto: FileDescriptorProto) -> None:
    del proto.service[:]


def _move_value(proto: FileDescriptorProto) -> None:
    proto.enum_type[0].value[1].number = 77


def _repackage(proto: FileDescriptorProto) -> None:
    proto.package = "superinfer.v2"


@pytest.mark.parametrize(
    ("breach", "words"),
    [
        (_renumber, "Sampling.top_k is gone, and 3 is not reserved"),
        (_rename, "Sampling.top_k, number 3"),
        (_retype, "Sampling.top_k, number 3"),
        (_repeat, "Sampling.top_k, number 3"),
        (_require, "Sampling.top_p, number 4"),
        (_out_of_oneof, "GenerateRequest.text, number 2"),
        (_drop_message, "is gone"),
        (_drop_method, "ExecutorService.Generate is gone"),
        (_unstream, "ExecutorService.Generate: server_streaming changed"),
        (_drop_service, "service ExecutorService is gone"),
        (_move_value, "is 77"),
        (_repackage, "package superinfer.v1 is superinfer.v2"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_breach_is_seen(breach: Callable[[FileDescriptorProto], None], words: str) -> None:
    old = today()["executor.proto"]
    new = FileDescriptorProto.FromString(old.SerializeToString())
    breach(new)
    assert any(words in line for line in broken(old, new)), broken(old, new)


def test_additions_break_nothing_and_a_reserved_number_stays_so() -> None:
    old = today()["executor.proto"]
    new = FileDescriptorProto.FromString(old.SerializeToString())
    sampling = next(one for one in new.message_type if one.name == "Sampling")
    sampling.field.add(
        name="later",
        number=1000,
        type=FieldDescriptorProto.TYPE_BOOL,
        label=FieldDescriptorProto.LABEL_OPTIONAL,
    )
    new.message_type.add(name="Later")
    new.enum_type[0].value.add(name="LATER", number=1000)
    new.service[0].method.add(
        name="Later", input_type=".superinfer.v1.Later", output_type=".superinfer.v1.Later"
    )
    assert broken(old, new) == []
    gone = FileDescriptorProto.FromString(new.SerializeToString())
    fields = next(one for one in gone.message_type if one.name == "Sampling")
    fields.field.remove(fields.field[-1])
    fields.reserved_range.add(start=1000, end=1001)
    assert broken(new, gone) == ["Sampling.later is gone"]
    assert broken(gone, new) == ["Sampling.later has the reserved number 1000"]
