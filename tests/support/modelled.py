"""A listening server over a modelled engine and link, from the composition root: no model, no native code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from superinfer_trt import config
from superinfer_trt.build.service import Service, build_service
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.server import Server, ServerOptions
from superinfer_trt.serve.streams import StreamOutbox

FLAGS: Mapping[str, object] = {
    "engine.name": "sim",
    "engine.step_cost": {"base_ns": 1e6, "row_ns": 1e4, "prefill_token_ns": 1e3, "context_token_ns": 0.0},
    "scheduling.policy": "rotasched",
    "scheduling.seats": 8,
    "scheduling.step_tokens": 64,
    "pools.hbm_blocks": 12,
    "pools.dram_blocks": 400,
    "pools.d2h_bytes_per_s": 20e9,
    "pools.h2d_bytes_per_s": 40e9,
}
"""In real time, with HBM for a few requests."""


@dataclass
class Modelled:
    """A server, what it serves, and a client."""

    server: Server
    service: Service
    stub: Any


@asynccontextmanager
async def modelled(flags: Mapping[str, object] | None = None, **options: Any) -> AsyncIterator[Modelled]:
    """On a free port, until the end of the block. `options`: of ServerOptions."""
    outbox = StreamOutbox(asyncio.get_running_loop())
    service = build_service(config.load(None, {**FLAGS, **(flags or {})}), outbox)
    server = Server(service, outbox, ServerOptions(**options))
    try:
        await server.start()
        async with grpc.aio.insecure_channel(server.target) as channel:
            yield Modelled(server, service, ExecutorServiceStub(channel))
    finally:
        await server.stop()
        await asyncio.to_thread(service.close)
