"""Where the plugin library is: an option, since these tests do not build it."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--library", default=None, help="path of libsuperinfer_tensorrt.so")


@pytest.fixture(scope="session")
def library(pytestconfig: pytest.Config) -> str:
    path = pytestconfig.getoption("--library", default=None)
    if path is None:
        pytest.skip("no --library: `scripts/test --only tensorrt` builds it and runs these tests")
    return str(path)
