"""The gateway's environment is an option; replicas are made once for all tests of a module."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.gateway import COMMAND, PATIENCE_S, tiny_file


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gateway", default=None, help="environment with tests/gateway/requirements.txt")


@pytest.fixture(scope="session")
def venv(pytestconfig: pytest.Config) -> Path:
    path = pytestconfig.getoption("--gateway", default=None)
    if path is None:
        pytest.skip("no --gateway: `scripts/test --only gateway` installs one and runs these tests")
    return pytestconfig.invocation_params.dir / path


@pytest.fixture(scope="session")
def program(venv: Path) -> Path:
    return venv / "bin" / "smg"


@pytest.fixture(scope="session")
def model(venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    del venv  # nothing is made for tests that are skipped
    return tiny_file(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> Path:
    """The model's tokenizer as a folder, as docs/gateway.md has it made."""
    folder = model.parent / "tokenizer"
    subprocess.run([*COMMAND, "model", "tokenizer", str(model), str(folder)], check=True, timeout=PATIENCE_S)
    return folder
