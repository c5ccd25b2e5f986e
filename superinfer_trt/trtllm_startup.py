"""Turns rotation on in this process if SUPERINFER_TRTLLM names a settings file; else does nothing.

Importing it is all: by a `.pth` file in every process (`superinfer-trt trtllm enable` writes it), or by
TensorRT-LLM's `connector_module`. The variable is the one way that reaches workers however they are started
(MPI, Ray, a single process). It never imports tensorrt_llm: it waits until somebody else does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

VARIABLE = "SUPERINFER_TRTLLM"
SINGLE_PROCESS_VARIABLE = "TLLM_WORKER_USE_SINGLE_PROCESS"
"""Upstream's: the worker of one GPU lives in the process that makes the LLM."""


def start() -> bool:
    """Whether rotation will be put into workers of this process."""
    path = os.environ.get(VARIABLE, "")
    if not path:
        return False
    from superinfer_trt.trtllm.compat import PYEXECUTOR
    from superinfer_trt.trtllm.hook import on_import, wrap_start_worker

    def rotate(executor: object) -> None:
        from superinfer_trt.build.trtllm import install_from_file

        install_from_file(executor, path)

    on_import(f"{PYEXECUTOR}.py_executor", lambda module: wrap_start_worker(module.PyExecutor, rotate))
    return True


def startup_file() -> Path:
    """What `superinfer-trt trtllm enable` writes, so that every process of this environment imports this."""
    import sysconfig
    from pathlib import Path

    return Path(sysconfig.get_path("purelib")) / "superinfer_trt_startup.pth"


def turn_on(settings: Path, *, single_process: bool) -> None:
    """Makes this process and the workers it will start rotate; before anybody imports tensorrt_llm, whose
    MPI takes over the environment as it finds it. Raises ConfigError when another file has been named."""
    named = os.environ.get(VARIABLE, "")
    if named and named != str(settings):
        from superinfer_trt.core.errors import ConfigError

        raise ConfigError(
            f"{VARIABLE} names {named}, but `serve` makes the settings of its workers itself: unset it"
        )
    os.environ[VARIABLE] = str(settings)
    if single_process:
        os.environ[SINGLE_PROCESS_VARIABLE] = "1"
    start()


def turn_off() -> None:
    """Workers started from now on do not rotate."""
    os.environ.pop(VARIABLE, None)


start()
