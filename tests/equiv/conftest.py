"""How much of the equivalence of rotated and unrotated runs is looked at."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--crowds", type=int, default=1, help="crowds of 100 requests to rotate; 10 are 1,000")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`crowd`: the seeds of so many crowds. The option is unknown where another folder was named first."""
    if "crowd" in metafunc.fixturenames:
        metafunc.parametrize("crowd", range(metafunc.config.getoption("--crowds", 1)))
