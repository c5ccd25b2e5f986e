"""A TensorRT plan from an ONNX network with our plugins, through the Python API of TensorRT or TensorRT-RTX.

Both have the names used here. Neither is a requirement of this package: they are proprietary, and large.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from superinfer_trt.core.errors import ConfigError, EngineFailed

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
_TOLD_MAX = 12


@dataclass(frozen=True, slots=True)
class Profile:
    """Shapes of one input with open dimensions."""

    name: str
    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Profile:
        """`x=1x64:8x64:64x64`. Raises ConfigError."""
        name, _, shapes = text.partition("=")
        try:
            sizes = [tuple(int(size) for size in shape.split("x")) for shape in shapes.split(":")]
            made = cls(name, *sizes)
        except (ValueError, TypeError):
            raise ConfigError(f"--shape: {text!r} is not NAME=MIN:OPT:MAX, as x=1x64:8x64:64x64") from None
        triples = list(zip(made.least, made.usual, made.most, strict=False))
        ranks = {len(shape) for shape in (made.least, made.usual, made.most)}
        if not name or len(ranks) != 1 or not all(1 <= a <= b <= c for a, b, c in triples):
            raise ConfigError(f"--shape: {text!r}: a name, and 1 <= MIN <= OPT <= MAX in each dimension")
        return made


def open_tensorrt() -> ModuleType:
    """TensorRT's Python module, or TensorRT-RTX's. Raises ConfigError."""
    reasons = []
    for name in MODULES:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reasons.append(f"{name}: {error}")
    raise ConfigError(
        "neither tensorrt nor tensorrt_rtx can be imported here"
        + (f" ({'; '.join(reasons)})" if reasons else "")
        + "; install TensorRT >= 10.3 (`pip install tensorrt`) or TensorRT-RTX (tests/rtx/requirements.txt), "
        "or use `trtexec --onnx=ONNX --saveEngine=PLAN --staticPlugins=LIBRARY`"
    )


def build_plan(
    trt: Any,
    network_file: Path,
    plugins: Path,
    profiles: Sequence[Profile],
    capabilities: Sequence[str],
    *,
    alias: bool,
) -> bytes:
    """The serialized plan. Raises ConfigError for what the caller can mend, EngineFailed for what not."""
    log = _log(trt)
    trt.init_libnvinfer_plugins(log, "")
    if trt.get_plugin_registry().load_library(str(plugins)) is None:
        raise ConfigError(f"--plugins: TensorRT does not load {plugins}{_told(log)}")
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(network_file)):
        log.lines.extend(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise ConfigError(f"{network_file}: TensorRT cannot read it{_told(log)}")
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network, profiles))
    if alias:
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    if capabilities:
        _set_capabilities(trt, config, capabilities)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineFailed(f"{network_file}: TensorRT builds no plan{_told(log)}")
    return bytes(plan)


def _profile(builder: Any, network: Any, given: Sequence[Profile]) -> Any:
    """One profile over all inputs with open dimensions."""
    by_name = {one.name: one for one in given}
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        entry = network.get_input(index)
        shape = tuple(entry.shape)
        one = by_name.pop(entry.name, None)
        if one is None:
            if -1 in shape:
                raise ConfigError(
                    f"--shape: the input {entry.name} {list(shape)} has open dimensions; give it one"
                )
            continue
        matches = len(one.least) == len(shape) and all(
            size in (-1, least) and size in (-1, most)
            for size, least, most in zip(shape, one.least, one.most, strict=True)
        )
        if not matches:
            raise ConfigError(f"--shape: {entry.name} is {list(shape)} in the network, not {list(one.usual)}")
        made.set_shape(entry.name, one.least, one.usual, one.most)
    if by_name:
        raise ConfigError(f"--shape: the network has no input {', '.join(by_name)}")
    return made


def _set_capabilities(trt: Any, config: Any, names: Sequence[str]) -> None:
    known = getattr(trt, "ComputeCapability", None)
    if known is None:
        raise ConfigError("--capability: only TensorRT-RTX builds for a GPU that is not here; leave it out")
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        capability = getattr(known, name, None)
        if capability is None:
            raise ConfigError(f"--capability: {name} is not known; as SM90")
        config.set_compute_capability(capability, index)


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps what TensorRT warns of."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.WARNING):
                self.lines.append(text)

    return Log()


def _told(log: Any) -> str:
    lines = [" ".join(str(line).split()) for line in log.lines[-_TOLD_MAX:]]
    return f": {'; '.join(lines)}" if lines else ""
