"""One tritonserver for all tests: models in front of three executors, in both modes and all three faces."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TOKEN_MS = 100
"""Of the slow executor: long enough that what happens within a token can be told apart."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tritonserver", default=None, help="folder that nvidia-pytriton was unpacked into")


@pytest.fixture(scope="session")
def home(pytestconfig: pytest.Config) -> Path:
    given = pytestconfig.getoption("--tritonserver", default=None)
    if given is None or importlib.util.find_spec("tritonclient") is None:
        pytest.skip("no --tritonserver: `scripts/test --only triton` fetches one and runs these tests")
    return Path(given).absolute()


@dataclass
class Stage:
    """Everything that runs. `slow`: a modelled engine with steps of TOKEN_MS; `whole`: the one inside the
    model `tensorrt_llm`, with the embedded model where that is in the cache."""

    triton: object
    slow: object
    whole: object
    has_text: bool
    away: str  # where nobody listens yet


def repository(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "superinfer_trt", "triton", "repo", "--out", str(folder), *words]
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent)


@pytest.fixture(scope="session")
def stage(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    from processes import Executor, executor, free_port, triton

    from superinfer_trt.model.cache import KNOWN_MODELS, ModelCache

    folder = tmp_path_factory.mktemp("triton")
    has_text = ModelCache().find(KNOWN_MODELS["smollm2"]) is not None
    engine = ("--engine=native", "--threads=1") if has_text else ("--engine=pattern",)
    away, port = f"127.0.0.1:{free_port()}", free_port()
    models = folder / "models"
    with executor(
        "--engine=sim", "--policy=rotasched", "--hbm-blocks=8", "--dram-blocks=64", "--block-tokens=16",
        f"--set=engine.step_cost.base_ns={TOKEN_MS}e6", "--policy-param=min_stint_tokens=4",
    ) as slow:  # fmt: skip
        repository(models, "--mode=in-process", f"--port={port}", *engine, "--hbm-blocks=256",
                   "--stats-period-ms=50")  # fmt: skip
        repository(models, f"--target=127.0.0.1:{port}", "--name=tensorrt_llm=ids", "--name=ensemble=text",
                   "--stats-period-ms=0")  # fmt: skip
        repository(models, f"--target=127.0.0.1:{port}", "--layout=llmapi", "--name=tensorrt_llm=llmapi",
                   "--stats-period-ms=0")  # fmt: skip
        repository(models, f"--target={slow.target}", "--name=tensorrt_llm=slow", "--name=ensemble=slow_text",
                   "--max-queue-size=100", "--stats-period-ms=50")  # fmt: skip
        repository(models, f"--target={away}", "--name=tensorrt_llm=away", "--name=ensemble=away_text",
                   "--stats-period-ms=50")  # fmt: skip
        names = ["tensorrt_llm", "ensemble", "ids", "text", "llmapi", "slow", "away"]
        with triton(home, models, names, folder) as server:
            yield Stage(server, slow, Executor(f"127.0.0.1:{port}"), has_text, away)


@pytest.fixture
def text_stage(stage: Stage) -> Stage:
    if not stage.has_text:
        pytest.skip("no embedded model: `superinfer-trt model get smollm2`")
    return stage


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """What tritonserver said, with the test that failed."""
    outcome = yield
    report = outcome.get_result()
    stage = getattr(item, "funcargs", {}).get("stage")
    if report.failed and stage is not None:
        report.sections.append(("tritonserver", stage.triton.log.read_text()[-3000:]))
