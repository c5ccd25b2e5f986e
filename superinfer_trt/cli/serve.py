"""`superinfer-trt serve`: configuration -> service -> server, until a signal comes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

import superinfer_trt
from superinfer_trt import config
from superinfer_trt.build.service import server_options
from superinfer_trt.cli.options import config_options, flags_of
from superinfer_trt.config import Config
from superinfer_trt.ranks.comm import Comm
from superinfer_trt.serve import logs
from superinfer_trt.serve.server import GIL_SWITCH_S, Server, run
from superinfer_trt.serve.service import Service


@click.command("serve")
@config_options
def serve(
    *,
    config_file: Path | None,
    assignments: tuple[str, ...],
    policy_parameters: tuple[str, ...],
    **values: Any,
) -> int:
    """Serve a model over gRPC until SIGTERM or SIGINT, then drain.

    Prints one line of JSON on stdout when it is ready: {"ready": true, "target": "127.0.0.1:50051", ...}.
    Everything else goes to stderr. With --tp N it is started N times, by `mpiexec -n N superinfer-trt serve`.
    """
    made = config.load(config_file, flags_of(values, assignments, policy_parameters))
    sys.setswitchinterval(GIL_SWITCH_S)
    logs.configure(made.service.log_level, made.service.log_format, sys.stderr)
    if made.engine.tp == 1 or made.engine.name == "trtllm":
        return _serve(made, None)
    from superinfer_trt.build.ranks import follow, open_ranks

    with open_ranks(made) as comm:
        if comm.rank == 0:
            return _serve(made, comm)
        for number in (signal.SIGTERM, signal.SIGINT):  # mpiexec hands them to all; rank 0 drains
            signal.signal(number, signal.SIG_IGN)
        return follow(made, comm)


def _serve(made: Config, comm: Comm | None) -> int:
    """One service, of this process or led from here."""
    from superinfer_trt.build.llm import service_maker

    with ExitStack() as stack:
        make_service = service_maker(made, stack, comm)
        fine = asyncio.run(run(make_service, server_options(made), _ready, _draining))
    click.echo("stopped" if fine else "stopped before all requests had finished", err=True)
    return 0 if fine else 1


def _ready(server: Server, service: Service) -> None:
    line = {
        "ready": True,
        "target": server.target,
        "pid": os.getpid(),
        "engine": service.engine,
        "model": service.model.name if service.model is not None else "",
        "policy": service.policy,
        "hbm_blocks": service.limits.device_blocks,
        "dram_blocks": service.limits.host_blocks,
        "block_tokens": service.limits.block_tokens,
        "metrics": server.metrics_url,
        "version": superinfer_trt.__version__,
    }
    click.echo(json.dumps(line))


def _draining(live: int) -> None:
    click.echo(f"draining {live} live requests; a second signal cuts them off", err=True)
