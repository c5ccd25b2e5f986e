"""How a Triton model is put together: which face, and which executor behind it.

Triton imports this through the `model.py` of a repository that `superinfer-trt triton repo` has written.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.serve.executors import Executor, GrpcExecutor, LocalExecutor
from superinfer_trt.serve.security_client import Target, read_access
from superinfer_trt.triton.backend import Backend, settings_of
from superinfer_trt.triton.repository import EXECUTOR_FILE
from superinfer_trt.triton.tensors import FACES

FACE, MODE, TARGET = "superinfer_face", "superinfer_mode", "superinfer_target"
TLS_CA, TOKEN_FILE = "superinfer_tls_ca", "superinfer_token_file"
PROXY, IN_PROCESS = "proxy", "in-process"


class TritonPythonModel:
    """What Triton's Python backend looks for."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Raises ConfigError, and Triton does not load the model, when something is not as it must be."""
        pb_utils = importlib.import_module("triton_python_backend_utils")
        remark_on_numpy(pb_utils)
        face = FACES[parameter(args, FACE, tuple(FACES))]
        settings, parameters = settings_of(face, args)
        folder = Path(args["model_repository"]) / args["model_version"]
        self._backend = Backend(pb_utils, settings, executor_maker(parameters, folder))
        self._backend.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Answers come through the requests' senders."""
        self._backend.execute(requests)

    def finalize(self) -> None:
        self._backend.stop()


def parameter(args: Mapping[str, str], name: str, allowed: Sequence[str]) -> str:
    """A parameter of config.pbtxt. Raises ConfigError."""
    given = json.loads(args["model_config"]).get("parameters", {}).get(name, {}).get("string_value", "")
    if given not in allowed:
        raise ConfigError(
            f"config.pbtxt: parameters.{name} must be one of {', '.join(allowed)}, not {given!r}"
        )
    return str(given)


def executor_maker(parameters: Mapping[str, str], folder: Path) -> Callable[[], Awaitable[Executor]]:
    """Makes the executor of a model on its loop. Raises ConfigError."""
    mode = parameters.get(MODE, PROXY)
    if mode == IN_PROCESS:
        return lambda: _local(folder / EXECUTOR_FILE)
    target = parameters.get(TARGET, "")
    if mode != PROXY or not target:
        raise ConfigError(f"config.pbtxt: parameters.{MODE} is {mode!r} and {TARGET} is {target!r}")
    ca, token = parameters.get(TLS_CA), parameters.get(TOKEN_FILE)
    access = read_access(ca=Path(ca) if ca else None, token_file=Path(token) if token else None)
    reached = Target(target, access)

    async def proxy() -> Executor:
        return GrpcExecutor(reached)

    return proxy


async def _local(file: Path) -> Executor:
    """A whole executor in this process, which listens too: the text model beside it, `superinfer-trt bench`
    and health checks reach it there."""
    from superinfer_trt import config
    from superinfer_trt.build.llm import build_any_service
    from superinfer_trt.build.service import server_options
    from superinfer_trt.serve.server import GIL_SWITCH_S, Server
    from superinfer_trt.serve.streams import StreamOutbox

    made = config.load(file)
    if made.engine.tp > 1 and made.engine.name != "trtllm":
        raise ConfigError(f"engine.tp: {made.engine.tp}; a Triton model is one process: use --mode {PROXY}")
    sys.setswitchinterval(GIL_SWITCH_S)
    outbox = StreamOutbox(asyncio.get_running_loop())
    service = await asyncio.to_thread(build_any_service, made, outbox)
    server = Server(service, outbox, server_options(made))

    async def close() -> None:
        try:
            await server.stop()
        finally:
            await asyncio.to_thread(service.close)

    try:
        await server.start()
    except BaseException:
        await close()
        raise
    return LocalExecutor(server.calls, close)


def remark_on_numpy(pb_utils: Any) -> None:
    """Says in Triton's log what may be wrong: a stub built before numpy 2 sends outputs of no bytes, without
    an error, and nothing that it offers to a model tells whether it is such a one."""
    import numpy as np

    if int(np.__version__.partition(".")[0]) >= 2:
        pb_utils.Logger.log_warn(
            f"numpy {np.__version__}: if answers come empty, this Triton's Python stub needs 'numpy<2'"
        )
