"""Turns rotation on in this process if SUPERINFER_TRTLLM names a settings file; else does nothing.

Importing it is all: by a `.pth` file in every process (`superinfer-trt trtllm enable` writes it), or by
TensorRT-LLM's `connector_module`. The variable is the one way that reaches workers however they are started
(MPI, Ray, a single process). It never imports tensorrt_llm: it waits until somebody else does.
"""

from __future__ import annotations

import os

VARIABLE = "SUPERINFER_TRTLLM"


def start() -> bool:
    """Whether rotation will be put into workers of this process."""
    path = os.environ.get(VARIABLE, "")
    if not path:
        return False
    from superinfer_trt.trtllm.compat import PYEXECUTOR
    from superinfer_trt.trtllm.hook import on_import, wrap_start_worker

    def rotate(executor: object) -> None:
        from superinfer_trt.build_trtllm import install_from_file

        install_from_file(executor, path)

    on_import(f"{PYEXECUTOR}.py_executor", lambda module: wrap_start_worker(module.PyExecutor, rotate))
    return True


start()
