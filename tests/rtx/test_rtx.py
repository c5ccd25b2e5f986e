"""The plugins under a real TensorRT, without a GPU: the registry, the parser, the ahead-of-time builder.

What needs a GPU is not here: loading a plan and running it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

trt = pytest.importorskip(
    "tensorrt_rtx_bindings", reason="TensorRT-RTX is installed by `scripts/test --only tensorrt` alone"
)

NAMES = ("SiKvWait", "SiKvPublish", "SiKvRotate")
CAPABILITIES = ("SM89", "SM120")


@pytest.fixture(scope="session")
def links(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The name under which the parser looks for a library that the wheel has with a version only."""
    import tensorrt_rtx_libs

    folder = tmp_path_factory.mktemp("links")
    for versioned in Path(tensorrt_rtx_libs.__file__).parent.glob("lib*.so.1"):
        (folder / versioned.name.removesuffix(".1")).symlink_to(versioned)
    return folder


class Builds:
    """Builds networks in processes of their own."""

    def __init__(self, library: str, links: Path, folder: Path) -> None:
        self.library, self.links, self.folder = library, links, folder

    def __call__(self, mode: str, *, preview: bool = False) -> tuple[dict[str, Any], bytes]:
        plan = self.folder / f"{mode}.plan"
        command = [sys.executable, str(Path(__file__).with_name("build_network.py"))]
        command += [self.library, mode, str(plan), *(["--preview"] if preview else [])]
        for capability in CAPABILITIES:
            command += ["--capability", capability]
        done = subprocess.run(
            command, env={**os.environ, "LD_LIBRARY_PATH": str(self.links)}, capture_output=True,
            text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1]), plan.read_bytes() if plan.exists() else b""


@pytest.fixture
def builds(library: str, links: Path, tmp_path: Path) -> Builds:
    return Builds(library, links, tmp_path)


def collection(**numbers: int) -> Any:
    import numpy as np

    fields = [trt.PluginField("engine_key", np.frombuffer(b"rtx", np.uint8), trt.PluginFieldType.CHAR)]
    fields += [
        trt.PluginField(name, np.array([value], np.int32), trt.PluginFieldType.INT32)
        for name, value in numbers.items()
    ]
    return trt.PluginFieldCollection(fields)


def test_registry_loads_the_library_once_and_makes_plugins(library: str) -> None:
    registry = trt.get_plugin_registry()
    handle = registry.load_library(library)
    assert handle is not None
    assert registry.load_library(library) is None, "a second load of one library is refused"
    phase = trt.TensorRTPhase.RUNTIME
    for name in NAMES:
        creator = registry.get_creator(name, "1", "superinfer")
        assert creator is not None, name
        assert creator.field_names[0].name == "engine_key"
        assert creator.create_plugin("node", collection(required=0), phase) is not None
    publish = registry.get_creator("SiKvPublish", "1", "superinfer")
    assert publish.create_plugin("node", collection(layer=2, layers=2), phase) is None
    assert publish.create_plugin("node", trt.PluginFieldCollection([]), phase) is None
    registry.deregister_library(handle)
    assert registry.get_creator("SiKvWait", "1", "superinfer") is None


@pytest.mark.parametrize(
    ("mode", "kinds", "key"),
    [
        ("token_mode", ("SiKvWait", "SiKvPublish"), b"rtx-token"),
        ("ticket_mode", ("SiKvWait", "SiKvPublish"), b"rtx-ticket"),
    ],
)
def test_tokens_order_a_network_without_aliases(
    builds: Builds, mode: str, kinds: tuple[str, ...], key: bytes
) -> None:
    told, plan = builds(mode)
    assert told["parsed"], told["log"]
    assert told["built"], told["log"]
    for word in (*(kind.encode() for kind in kinds), key, b"engine_key", b"layers"):
        assert word in plan, word


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("alias_mode", (b"SiKvWait", b"SiKvPublish", b"rtx-alias", b"alias")),
        ("rotate_mode", (b"SiKvRotate", b"rtx-rotate", b"segments_max", b"direction")),
    ],
)
def test_an_alias_needs_the_preview_feature(builds: Builds, mode: str, words: tuple[bytes, ...]) -> None:
    told, plan = builds(mode)
    assert told["parsed"]
    assert not told["built"]
    assert any("ALIASED_PLUGIN_IO" in line for line in told["log"])
    told, plan = builds(mode, preview=True)
    assert told["built"], told["log"]
    for word in words:
        assert word in plan, word


def test_a_wrong_field_ends_the_import_and_not_the_process(builds: Builds) -> None:
    told, plan = builds("wrong_field")
    assert not told["parsed"]
    assert not plan
    assert any("SiKvPublish" in line for line in told["log"])
