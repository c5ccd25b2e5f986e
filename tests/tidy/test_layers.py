"""The layers of docs/map.md, held by a walk over every import, the lazy ones included.

A star around `core`: nobody imports a neighbour, only `build` and the command line know everybody.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass

import pytest

from tidy import source_tree

NAME = "superinfer_trt"
IMPURE = frozenset(
    {"asyncio", "logging", "multiprocessing", "os", "random", "socket", "subprocess", "threading", "time"}
)


@dataclass(frozen=True)
class Layer:
    """What one package may import beside itself: `own`, packages or one module of one; `foreign`, third-party
    top-level modules."""

    own: frozenset[str] = frozenset({"core"})
    foreign: frozenset[str] = frozenset()
    impure: bool = True  # whether clocks, threads, files and logs are allowed


def layer(*foreign: str, own: str = "core", impure: bool = True) -> Layer:
    return Layer(frozenset(own.split()), frozenset(foreign), impure)


EVERYTHING = layer(
    *("click", "grpc", "grpc_health", "grpc_reflection", "google", "numpy", "pydantic", "rich", "yaml"),
    own="core sched kv runtime transfer engine model sim serve trtllm ranks triton batch "
    "build trtllm_startup config config_versions cli",
)
LAYERS = {
    "core": layer(own="", impure=False),
    "sched": layer(impure=False),
    "kv": layer(impure=False),
    "runtime": layer(),
    "transfer": layer("numpy", "torch", f"{NAME}._duplexkv"),
    "engine": layer("numpy", "torch", f"{NAME}._cpu_engine"),
    "model": layer("numpy", "safetensors", "tokenizers", "jinja2", "huggingface_hub"),
    "sim": layer("numpy", "jinja2", "matplotlib", "pyarrow", own="core runtime"),
    "serve": layer("grpc", "grpc_health", "grpc_reflection", "google", "prometheus_client"),
    "trtllm": layer("tensorrt_llm", "torch", "numpy", own="core runtime"),
    "ranks": layer("numpy", "mpi4py", own="core runtime"),
    "triton": layer("triton_python_backend_utils", "numpy", "grpc", own="core serve"),
    "batch": layer("grpc", own="core serve"),
    "config": layer("pydantic", "pydantic_core", "yaml", own="core config_versions"),
    "config_versions": layer(),
    "build": EVERYTHING,
    "trtllm_startup": layer(own="core trtllm build.trtllm"),
    "cli": EVERYTHING,
    "__init__": layer(),
    "__main__": EVERYTHING,
}
MODULES = source_tree.files(".py", under=f"{NAME}/")


def faults(owner: str, module: ast.Module) -> list[str]:
    """What `module`, of package `owner`, imports although its layer does not allow it."""
    rules = LAYERS[owner]
    found = []
    for line, dotted in source_tree.imports(module):
        top, *rest = dotted.split(".")
        if top == NAME and rest in ([], ["__version__"]) and rules.impure:
            continue
        if top == NAME and rest and rest[0].startswith("_"):
            allowed = f"{top}.{rest[0]}" in rules.foreign
        elif top == NAME:
            allowed = rest[:1] == [owner] or any(".".join(rest[:depth]) in rules.own for depth in (1, 2))
        elif top in sys.stdlib_module_names:
            allowed = rules.impure or top not in IMPURE
        else:
            allowed = top in rules.foreign
        if not allowed:
            found.append(f"line {line}: {owner} may not import {dotted}")
    return found


def owner_of(name: str) -> str:
    return name.split("/")[1].removesuffix(".py")


@pytest.mark.parametrize("name", MODULES)
def test_imports_keep_to_the_layers(name: str) -> None:
    owner = owner_of(name)
    assert owner in LAYERS, f"{name}: a new package needs its row in LAYERS and in docs/map.md"
    assert faults(owner, source_tree.tree(name)) == []


def test_every_package_is_on_the_map() -> None:
    drawn = (source_tree.ROOT / "docs" / "map.md").read_text()
    packages = {owner_of(name) for name in MODULES} - {"__init__", "__main__"}
    assert [p for p in sorted(packages) if f"`{p}" not in drawn] == []


@pytest.mark.parametrize(
    ("owner", "line"),
    [
        ("core", "import time"),
        ("core", "from os import path"),
        ("core", "import numpy"),
        ("core", "from superinfer_trt.kv.ledger import Ledger"),
        ("sched", "from superinfer_trt.kv import slots"),
        ("sched", "import random"),
        ("kv", "import numpy as np"),
        ("runtime", "from superinfer_trt.sched.fcfs import Fcfs"),
        ("engine", "from superinfer_trt.transfer.pools import allocate_pool"),
        ("engine", "from superinfer_trt import _duplexkv"),
        ("serve", "from superinfer_trt.build.service import build_service"),
        ("transfer", "def f():\n    import grpc"),
        ("model", "from superinfer_trt import cli"),
        ("trtllm_startup", "from superinfer_trt.build.service import build_service"),
    ],
)
def test_the_walk_sees_a_breach(owner: str, line: str) -> None:
    assert faults(owner, ast.parse(line))
