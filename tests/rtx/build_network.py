"""Builds one small network with the plugins for GPUs that are not here; prints what happened as JSON.

    build_network.py LIBRARY MODE PLAN [--preview] [--capability SM89]...

A process of its own: the parser of TensorRT-RTX ends the process when it misses a library, and libraries
are looked for when a process starts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import tensorrt_rtx_bindings as trt
from onnx import TensorProto, helper

WIDTH = 64


class Log(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: Any, text: str) -> None:
        if int(severity) <= int(trt.ILogger.Severity.WARNING):
            self.lines.append(text)


def node(kind: str, inputs: Sequence[str], output: str, **fields: object) -> onnx.NodeProto:
    return helper.make_node(
        kind, list(inputs), [output], name=f"{kind}_{output}", domain="superinfer",
        plugin_version="1", plugin_namespace="superinfer", **fields,
    )  # fmt: skip


def token_mode() -> tuple[list[onnx.NodeProto], list[str], list[str]]:
    """Two layers; tokens carry the order, no tensor passes through a plugin."""
    return [
        node("SiKvWait", ["x"], "seen", engine_key="rtx-token", layers=2),
        helper.make_node("Relu", ["x"], ["h0"]),
        node("SiKvPublish", ["h0", "seen"], "done0", engine_key="rtx-token", layer=0, layers=2),
        helper.make_node("Tanh", ["h0"], ["y"]),
        node("SiKvPublish", ["y", "done0"], "done1", engine_key="rtx-token", layer=1, layers=2),
    ], ["x"], ["y", "done1"]  # fmt: skip


def ticket_mode() -> tuple[list[onnx.NodeProto], list[str], list[str]]:
    """The ticket comes as an input of the network."""
    return [
        node("SiKvWait", ["x", "ticket"], "seen", engine_key="rtx-ticket", required=0),
        helper.make_node("Relu", ["x"], ["y"]),
        node("SiKvPublish", ["y", "seen"], "done", engine_key="rtx-ticket", required=0),
    ], ["x", "ticket"], ["y", "done"]  # fmt: skip


def alias_mode() -> tuple[list[onnx.NodeProto], list[str], list[str]]:
    """The activation passes through, so that any consumer is ordered."""
    return [
        helper.make_node("Relu", ["x"], ["h"]),
        node("SiKvWait", ["h"], "h_seen", engine_key="rtx-alias", alias=1),
        helper.make_node("Tanh", ["h_seen"], ["a"]),
        node("SiKvPublish", ["a"], "y", engine_key="rtx-alias", alias=1),
    ], ["x"], ["y"]  # fmt: skip


def rotate_mode() -> tuple[list[onnx.NodeProto], list[str], list[str]]:
    """Copies that the device decides; the pool is the output."""
    return [
        node("SiKvRotate", ["pool", "plan", "count"], "pool_after", engine_key="rtx-rotate", direction=1,
             segments_max=48, sms_max=4),
        helper.make_node("Relu", ["pool_after"], ["y"]),
    ], ["pool", "plan", "count"], ["y"]  # fmt: skip


def wrong_field() -> tuple[list[onnx.NodeProto], list[str], list[str]]:
    """A layer that is not one of them."""
    return [
        node("SiKvPublish", ["x"], "y", engine_key="rtx-wrong", alias=1, layer=9, layers=2),
    ], ["x"], ["y"]  # fmt: skip


MODES = {f.__name__: f for f in (token_mode, ticket_mode, alias_mode, rotate_mode, wrong_field)}
SHAPES = {
    "x": (TensorProto.FLOAT16, ["n", WIDTH]),
    "y": (TensorProto.FLOAT16, ["n", WIDTH]),
    "pool": (TensorProto.FLOAT16, ["n", WIDTH]),
    "plan": (TensorProto.INT64, ["n", 3]),
    "ticket": (TensorProto.INT64, [1]),
    "count": (TensorProto.INT32, [1]),
}


def model(mode: str) -> bytes:
    nodes, inputs, outputs = MODES[mode]()
    values = {name: SHAPES.get(name, (TensorProto.INT32, [1])) for name in (*inputs, *outputs)}
    infos = {name: helper.make_tensor_value_info(name, *value) for name, value in values.items()}
    graph = helper.make_graph(nodes, mode, [infos[n] for n in inputs], [infos[n] for n in outputs])
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("superinfer", 1)]
    )
    made.ir_version = 9
    return bytes(made.SerializeToString())


def build(mode: str, *, preview: bool, capabilities: Sequence[str], log: Log) -> tuple[bool, bytes | None]:
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model(mode)):
        log.lines += [parser.get_error(index).desc() for index in range(parser.num_errors)]
        return False, None
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        entry = network.get_input(index)
        shape = tuple(entry.shape)
        if -1 in shape:
            sizes = [tuple(size if d == -1 else d for d in shape) for size in (1, 8, 64)]
            profile.set_shape(entry.name, *sizes)
    config.add_optimization_profile(profile)
    if preview:
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), index)
    plan = builder.build_serialized_network(network, config)
    return True, None if plan is None else bytes(plan)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--preview", action="store_true")
    parser.add_argument("--capability", action="append", default=[])
    options = parser.parse_args()
    log = Log()
    trt.init_libnvinfer_plugins(log, "")
    if trt.get_plugin_registry().load_library(options.library) is None:
        raise SystemExit("the registry did not load the library")
    parsed, plan = build(options.mode, preview=options.preview, capabilities=options.capability, log=log)
    if plan is not None:
        options.plan.write_bytes(plan)
    print(json.dumps({"parsed": parsed, "built": plan is not None, "log": log.lines}))  # noqa: T201


if __name__ == "__main__":
    main()
