"""Importing the package, or asking the command line for help, loads nothing heavy."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

HEAVY = (
    "numpy",
    "grpc",
    "torch",
    "transformers",
    "pydantic",
    "tokenizers",
    "safetensors",
    "matplotlib",
    "yaml",
    "importlib.metadata",  # was all but a millisecond of importing the package
)
CASES = {
    "the package": "import superinfer_trt",
    "the core": "import superinfer_trt.core.ports, superinfer_trt.core.check, superinfer_trt.core.model",
    "the command line": "import superinfer_trt.cli.main",
}


@pytest.mark.parametrize("what", CASES)
def test_import_loads_nothing_heavy(what: str) -> None:
    statement = CASES[what]
    if "cli.main" in statement and importlib.util.find_spec("superinfer_trt.cli.main") is None:
        pytest.skip("no command line in this build")
    program = f"{statement}; import sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert loaded == []
