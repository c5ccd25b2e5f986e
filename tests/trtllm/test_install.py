"""How rotation comes into a worker: one import, one variable, one settings file."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from superinfer_trt.build.trtllm import Link, RotationSettings, install_from_file, read_settings
from superinfer_trt.cli import main as command
from superinfer_trt.core.errors import ConfigError, Refused
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, SECOND
from superinfer_trt.trtllm.compat import PYEXECUTOR
from superinfer_trt.trtllm.hook import keep_scheduling_parameters, on_import, wrap_start_worker
from superinfer_trt.trtllm.resources import RESOURCE_KEY
from superinfer_trt.trtllm.slo import ServiceTerms, Terms
from support.trtllm.link import LateLink
from support.trtllm.package import fake_modules
from support.trtllm.request import LlmRequest
from support.trtllm.rotating import FakeOrder
from support.trtllm.worker import WorkerShape, make_worker


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The fake package as if installed and imported."""
    modules = fake_modules()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield modules
    sys.modules.pop("superinfer_trt.trtllm.params", None)


# -- the moment --------------------------------------------------------------------------------------


class Worker:
    is_warmup = False

    def __init__(self) -> None:
        self.log: list[str] = []

    def start_worker(self) -> str:
        self.log.append("loop")
        return "started"


def test_the_start_is_wrapped_once_and_not_for_warm_ups() -> None:
    kind = type("Kind", (Worker,), {"start_worker": Worker.start_worker})
    for _ in range(2):
        wrap_start_worker(kind, lambda worker: worker.log.append("rotate"))
    worker, warmup = kind(), kind()
    warmup.is_warmup = True
    assert worker.start_worker() == "started"
    warmup.start_worker()
    assert worker.log == ["rotate", "loop"]
    assert warmup.log == ["loop"]


def test_what_cannot_rotate_does_not_start() -> None:
    kind = type("Kind", (Worker,), {"start_worker": Worker.start_worker})

    def refuse(worker: object) -> None:
        raise ConfigError("no")

    wrap_start_worker(kind, refuse)
    worker = kind()
    with pytest.raises(ConfigError):
        worker.start_worker()
    assert worker.log == []


def test_a_module_is_met_right_after_it_was_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "superinfer_probe_module.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    met: list[int] = []
    on_import("superinfer_probe_module", lambda module: met.append(module.VALUE))
    assert met == []
    module = importlib.import_module("superinfer_probe_module")
    assert met == [3]
    assert module.__spec__ is not None
    on_import("superinfer_probe_module", lambda module: met.append(-module.VALUE))
    assert met == [3, -3], "at once, if it is there already"
    del sys.modules["superinfer_probe_module"]


def test_a_fresh_process_is_reached_by_the_variable_alone(tmp_path: Path) -> None:
    """The import hook in a process of its own, over a package of files."""
    package = tmp_path / "tensorrt_llm" / "_torch" / "pyexecutor"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").write_text("")
    (package / "py_executor.py").write_text(
        "class PyExecutor:\n    def start_worker(self):\n        print('loop')\n"
    )
    settings = tmp_path / "settings.yaml"
    settings.write_text("policy: nobody\n")
    program = (
        "import superinfer_trt.trtllm_startup, sys\n"
        "assert 'tensorrt_llm' not in sys.modules and 'numpy' not in sys.modules\n"
        "from tensorrt_llm._torch.pyexecutor.py_executor import PyExecutor\n"
        "from types import SimpleNamespace\n"
        "worker = PyExecutor()\n"
        "worker.resource_manager = SimpleNamespace(resource_managers={})\n"
        "worker.execution_stream = None\n"
        "try:\n    worker.start_worker()\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )

    def run(environment: dict[str, str]) -> str:
        root = str(Path(command.__file__).parents[2])
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": f"{root}:{tmp_path}", **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run({}) == "loop\n"
    told = run({"SUPERINFER_TRTLLM": str(settings)})
    assert told.startswith("ConfigError ")
    assert "loop" not in told


# -- the settings ------------------------------------------------------------------------------------


def test_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "policy: rotasched\nparameters: {alpha: 2}\ndram_gib: 0.5\nseats: 3\nspare_blocks: 0\n"
        "ttft_slo_s: 1\ntbt_slo_s: 0.05\ntenant: gold\n"
    )
    terms = ServiceTerms(Slo(SECOND, 50 * MILLISECOND), "gold")
    assert read_settings(path) == RotationSettings("rotasched", {"alpha": 2}, 1 << 29, 3, 0, terms)
    path.write_text("")
    assert read_settings(path) == RotationSettings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1", "not a mapping"),
        ("polisy: x", "'polisy' is unknown; known: policy, parameters"),
        ("seats: many", "seats: 'many' is of the wrong kind"),
        ("seats: true", "seats: True is of the wrong kind"),
        ("dram_gib: -1", "dram_gib: -1 must be >= 0"),
        ("a: [", "cannot be read"),
    ],
)
def test_wrong_settings_are_told_with_file_and_field(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        read_settings(path)
    assert words in str(refusal.value)
    assert str(path) in str(refusal.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path / "none.yaml")


def test_a_worker_is_made_to_rotate_once(upstream: dict[str, ModuleType], tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("spare_blocks: 0\ndram_gib: 0.00001\n")
    worker = make_worker(WorkerShape(blocks=24))
    pool = worker.kv_cache_manager.impl.pool
    link = LateLink(pool, np.zeros((200, *pool.shape[1:]), np.uint64), 0)
    made: list[int] = []

    def make_link(facts: Any, host_blocks: int) -> Link:
        made.append(host_blocks)
        return Link(link, FakeOrder(worker.execution_stream, link))

    for _ in range(2):
        install_from_file(worker, str(path), make_link)
    assert made == [10737 // pool[0].nbytes]
    assert RESOURCE_KEY in worker.resource_manager.resource_managers
    converted: Any = upstream[f"{PYEXECUTOR}.executor_request_queue"]
    asked = SimpleNamespace(py_scheduling_params=SimpleNamespace(tenant="gold"))
    assert converted.executor_request_to_llm_request(5, asked).py_scheduling_params.tenant == "gold"


# -- a request's terms -------------------------------------------------------------------------------


def test_the_conversion_hands_parameters_on_to_children_too() -> None:
    child, parent = LlmRequest(2, [1], 1), LlmRequest(1, [1], 1)
    parent.child_requests = [child]  # type: ignore[attr-defined]
    module = ModuleType("m")
    conversion = module.convert = lambda req_id, executor_request: parent  # type: ignore[attr-defined]
    for _ in range(2):
        keep_scheduling_parameters(module.convert, [module])
    module.convert(1, SimpleNamespace(py_scheduling_params="p"))
    assert (parent.py_scheduling_params, child.py_scheduling_params) == ("p", "p")
    module.convert(1, executor_request=SimpleNamespace(py_scheduling_params="q"))
    module.convert(1, SimpleNamespace())
    assert parent.py_scheduling_params == "q"
    assert module.convert.__wrapped__ is conversion


def test_objectives_travel_by_pickle(upstream: dict[str, ModuleType]) -> None:
    params = importlib.import_module("superinfer_trt.trtllm.params")
    made = params.SloSchedulingParams(ttft_slo_s=1.5, tenant="gold", attention_dp_rank=0)
    back = pickle.loads(pickle.dumps(made))
    assert type(back) is params.SloSchedulingParams
    assert isinstance(back, upstream["tensorrt_llm.scheduling_params"].SchedulingParams)
    assert (back.ttft_slo_s, back.tbt_slo_s, back.tenant, back.attention_dp_rank) == (1.5, None, "gold", 0)
    for wrong in (0, -1.0, float("nan"), "1"):
        with pytest.raises(Refused, match="tbt_slo_s"):
            params.SloSchedulingParams(tbt_slo_s=wrong)
    with pytest.raises(AttributeError):
        params.Nothing  # noqa: B018


def test_terms_are_the_requests_or_the_servers() -> None:
    defaults = ServiceTerms(Slo(7, 8), "house")
    request = LlmRequest(1, [1], 1)
    assert defaults.of(request, 3) == Terms(Slo(7, 8), "house", 3)
    request.py_scheduling_params = SimpleNamespace(ttft_slo_s=2, tbt_slo_s=float("nan"), tenant="gold")
    assert defaults.of(request, 3) == Terms(Slo(2 * SECOND, 8), "gold", 3)


# -- the command -------------------------------------------------------------------------------------


def test_enable_and_disable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    settings = tmp_path / "s.yaml"
    settings.write_text("policy: fcfs\n")
    assert command.run(["trtllm", "enable", str(settings)]) == 2
    assert "recomputes instead of rotating" in capsys.readouterr().err
    settings.write_text("policy: rota-slack\n")
    assert command.run(["trtllm", "enable", str(settings)]) == 0
    assert f"SUPERINFER_TRTLLM={settings}" in capsys.readouterr().out
    (written,) = tmp_path.glob("*.pth")
    assert written.read_text() == "import superinfer_trt.trtllm_startup\n"
    assert command.run(["trtllm", "disable"]) == 0
    assert not written.exists()
    assert command.run(["trtllm", "disable"]) == 0
    assert "nothing to remove" in capsys.readouterr().out
