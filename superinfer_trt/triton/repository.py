"""Writes a Triton model repository whose models are ours. Knows no Triton and no executor.

A folder that this did not write is never touched; a file appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.triton.tensors import Face, Input, Output

MARK = "# Written by `superinfer-trt triton repo`; written again, changes here are lost."
EXECUTOR_FILE = "executor.yaml"

_MODEL = f'''{MARK}
"""The model is in the package; what it is set to is in config.pbtxt."""

from superinfer_trt.build.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True, slots=True)
class Model:
    """One model folder. `parameters`: of config.pbtxt. `executor_yaml`: the configuration of the executor
    that this model is to run in its own process; empty: it does not."""

    face: Face
    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    max_batch_size: int = 64
    max_queue_size: int = 0
    executor_yaml: str = ""


def write_repository(folder: Path, models: Sequence[Model]) -> list[Path]:
    """Writes the models; returns the files. Raises ConfigError, before anything is written, when a folder
    there is not one of ours."""
    for model in models:
        config = folder / model.name / "config.pbtxt"
        if config.parent.exists() and not _ours(config):
            raise ConfigError(f"--out: {config.parent} is there and was not written by this command")
    written = []
    for model in models:
        for path, text in _files(model):
            written.append(_write(folder / model.name / path, text))
        if not model.executor_yaml:
            (folder / model.name / "1" / EXECUTOR_FILE).unlink(missing_ok=True)
    return written


def config_text(model: Model) -> str:
    """config.pbtxt."""
    face = model.face
    lines = [
        MARK,
        f'name: "{model.name}"',
        'backend: "python"',
        f"max_batch_size: {model.max_batch_size if face.batched else 0}",
        "model_transaction_policy { decoupled: true }",
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
    ]
    if face.batched and model.max_queue_size:
        policy = f"default_queue_policy {{ max_queue_size: {model.max_queue_size} }}"
        lines.append(f"dynamic_batching {{ {policy} }}")
    lines.append("input [")
    lines.append(",\n".join(_input(one, batched=face.batched) for one in face.inputs))
    lines.append("]\noutput [")
    lines.append(",\n".join(_output(one) for one in face.outputs))
    lines.append("]")
    for name, value in model.parameters.items():
        lines.append(f'parameters {{ key: "{name}" value: {{ string_value: {_quoted(value)} }} }}')
    return "\n".join(lines) + "\n"


def _files(model: Model) -> Iterator[tuple[str, str]]:
    """config.pbtxt comes last: a server that polls finds a whole model."""
    yield "1/model.py", _MODEL
    if model.executor_yaml:
        yield f"1/{EXECUTOR_FILE}", f"{MARK}\n{model.executor_yaml}"
    yield "config.pbtxt", config_text(model)


def _ours(config: Path) -> bool:
    try:
        return config.read_text(encoding="utf-8").startswith(MARK)
    except (OSError, UnicodeDecodeError):
        return False


def _write(path: Path, text: str) -> Path:
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"--out: cannot write {path} ({error.strerror})") from None
    return path


def _input(one: Input, *, batched: bool) -> str:
    dims = ", ".join(map(str, one.dims))
    reshape = " reshape { shape: [ ] }" if one.scalar and batched else ""
    optional = "" if one.required else " optional: true"
    ragged = " allow_ragged_batch: true" if batched and -1 in one.dims else ""
    head = f'name: "{one.name}" data_type: TYPE_{one.data_type} dims: [ {dims} ]'
    return f"  {{ {head}{reshape}{optional}{ragged} }}"


def _output(one: Output) -> str:
    dims = ", ".join(map(str, one.dims))
    return f'  {{ name: "{one.name}" data_type: TYPE_{one.data_type} dims: [ {dims} ] }}'


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
