"""The environment with the programs is an option."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clients", default=None, help="environment with tests/clients/requirements.txt")


@pytest.fixture(scope="session")
def programs(pytestconfig: pytest.Config) -> Path:
    """The folder of `k6` and `buf`."""
    path = pytestconfig.getoption("--clients", default=None)
    if path is None:
        pytest.skip("no --clients: `scripts/test --only clients` installs one and runs these tests")
    return pytestconfig.invocation_params.dir / path / "bin"
