"""What all tests share: golden files, Hypothesis profiles, and a word on what is under test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import superinfer_trt

# The gate draws the same examples every time, so that a change is judged by what it changed; `thorough`
# draws new ones, more of them, and prints the blob that replays a failure. No deadline: machines are shared.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile(
    "thorough",
    parent=settings.get_profile("ci"),
    derandomize=False,
    max_examples=2_000,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci")  # pytest --hypothesis-profile=thorough for a longer look

Golden = Callable[[Path, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write golden files anew instead of comparing")


def pytest_report_header(config: pytest.Config) -> str:
    return f"superinfer_trt {superinfer_trt.__version__} from {Path(superinfer_trt.__file__).parent}"


@pytest.fixture(scope="session", autouse=True)
def away_from_the_sources() -> Iterator[None]:
    """A test's child process must meet the installed package, not the sources beside it: `python -c`
    puts its working directory on the path, so that must not be the repository's root."""
    before = Path.cwd()
    os.chdir(Path(__file__).parent)
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def rewrite(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written anew (`--rewrite`)."""
    return bool(request.config.getoption("--rewrite"))


@pytest.fixture(scope="session")
def golden(rewrite: bool) -> Golden:
    """`golden(path, text)`: the file at `path` holds exactly `text`; with `--rewrite` it is made to."""

    def compare(path: Path, text: str) -> None:
        if rewrite:
            path.write_text(text)
            return
        assert path.is_file(), f"{path} is missing; write it with: pytest --rewrite"
        assert path.read_text() == text, f"{path.name} is stale; review, then: pytest --rewrite"

    return compare
