"""`superinfer-trt build tensorrt` over a real TensorRT: the function behind the command, for GPUs not here.

In a process of its own, as `build_network.py`, for the same reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

trt = pytest.importorskip(
    "tensorrt_rtx_bindings", reason="TensorRT-RTX is installed by `scripts/test --only tensorrt` alone"
)

ROOT = Path(__file__).resolve().parents[2]
BUILD = """
import sys
from pathlib import Path

from superinfer_trt.cli.build_plan import Profile, build_plan, open_tensorrt
from superinfer_trt.core.errors import SuperInferError

network, library, plan, capability, *shapes = sys.argv[1:]
profiles = [Profile.parse(shape) for shape in shapes]
try:
    made = build_plan(open_tensorrt(), Path(network), Path(library), profiles, [capability], alias=False)
except SuperInferError as error:
    sys.exit(str(error))
Path(plan).write_bytes(made)
"""
MODEL = "import sys, build_network; open(sys.argv[2], 'wb').write(build_network.model(sys.argv[1]))"


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the parser finds its library, and Python the sources."""
    import tensorrt_rtx_libs

    folder = tmp_path_factory.mktemp("links")
    for versioned in Path(tensorrt_rtx_libs.__file__).parent.glob("lib*.so.1"):
        (folder / versioned.name.removesuffix(".1")).symlink_to(versioned)
    path = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": path}


def python(environment: dict[str, str], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip


def test_a_plan_is_built_ahead_of_time(library: str, libraries: dict[str, str], tmp_path: Path) -> None:
    network, plan = tmp_path / "n.onnx", tmp_path / "n.plan"
    made = python(libraries, MODEL, "token_mode", str(network))
    assert made.returncode == 0, made.stderr
    arguments = [str(network), library, str(plan), "SM89", "x=1x64:8x64:64x64"]
    built = python(libraries, BUILD, *arguments)
    assert built.returncode == 0, built.stderr
    assert plan.stat().st_size > 1000
    assert b"SiKvWait" in plan.read_bytes()


@pytest.mark.parametrize(
    ("mode", "capability", "shapes", "words"),
    [
        ("token_mode", "SM89", [], "--shape: the input x [-1, 64] has open dimensions"),
        ("token_mode", "SM89", ["x=1x65:1x65:1x65"], "--shape: x is [-1, 64] in the network"),
        ("token_mode", "SM89", ["x=1x64:1x64:1x64", "y=1:1:1"], "the network has no input y"),
        ("token_mode", "SM1", ["x=1x64:1x64:1x64"], "--capability: SM1 is not known"),
        ("wrong_field", "SM89", ["x=1x64:1x64:1x64"], "TensorRT cannot read it"),
    ],
)
def test_what_cannot_be_built_is_said(
    library: str, libraries: dict[str, str], tmp_path: Path, mode: str, capability: str, shapes: list[str],
    words: str,
) -> None:  # fmt: skip
    network, plan = tmp_path / "n.onnx", tmp_path / "n.plan"
    assert python(libraries, MODEL, mode, str(network)).returncode == 0
    built = python(libraries, BUILD, str(network), library, str(plan), capability, *shapes)
    assert built.returncode == 1
    assert words in built.stderr
    assert not plan.exists()
