"""The public face of the package, name by name; a change shows in review.

`pytest --rewrite tests/tidy/test_public_api.py` writes public_api.txt anew.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType

from tidy import source_tree

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def signature(thing: object) -> str:
    return str(inspect.signature(thing)).replace("'", "")  # type: ignore[arg-type]


def described_class(name: str, kind: type) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in kind.__bases__ if base is not object)
    yield f"class {name}({bases})" if bases else f"class {name}"
    if issubclass(kind, Enum):
        yield from (f"  {member.name} = {member.value!r}" for member in kind)
        return
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            missing = field.default is dataclasses.MISSING
            default = "" if missing else f" = {field.default!r}"
            yield f"  {field.name}: {field.type}{default}"
    for key, value in sorted(vars(kind).items()):
        if key.startswith("_") and key not in {"__init__", "__call__"}:
            continue
        if key == "__init__" and (dataclasses.is_dataclass(kind) or getattr(kind, "_is_protocol", False)):
            continue
        if isinstance(value, property):
            returned = inspect.signature(value.fget).return_annotation if value.fget else ""
            yield f"  {key} -> {returned}"
        elif callable(value):
            yield f"  {key}{signature(value)}"


def assigned(module: ModuleType) -> set[str]:
    """Names a module gives a value to itself: constants and types."""
    statements = source_tree.tree(module.__name__.replace(".", "/") + ".py").body
    targets = [s.target for s in statements if isinstance(s, ast.AnnAssign)]
    targets += [target for s in statements if isinstance(s, ast.Assign) for target in s.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def described(module: ModuleType) -> Iterator[str]:
    own = assigned(module)
    yield f"# {module.__name__}"
    for name, thing in sorted(vars(module).items()):
        if name.startswith("_"):
            continue
        if inspect.isclass(thing) and thing.__module__ == module.__name__:
            yield from described_class(name, thing)
        elif inspect.isfunction(thing) and thing.__module__ == module.__name__:
            yield f"def {name}{signature(thing)}"
        elif name in own:
            yield f"{name} = {thing!r}" if isinstance(thing, int | str | tuple) else name


def test_public_api_is_as_reviewed(golden: Callable[[Path, str], None]) -> None:
    names = [
        name.removesuffix(".py").replace("/", ".")
        for name in source_tree.files(".py", under="superinfer_trt/core/")
        if not name.endswith("__init__.py")
    ]
    root = importlib.import_module("superinfer_trt")
    lines = [f"# superinfer_trt: {', '.join(root.__all__)}"]
    for name in names:
        lines += ["", *described(importlib.import_module(name))]
    golden(SNAPSHOT, "\n".join(lines) + "\n")
