"""The executor of a batch run: in this process, or a client of a running one; and what is known of it."""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from superinfer_trt.batch.answer import TokenText
from superinfer_trt.batch.runner import Executor
from superinfer_trt.build.service import server_options
from superinfer_trt.cli.client import call_failed
from superinfer_trt.config import Config
from superinfer_trt.core.errors import ModelError
from superinfer_trt.core.model import Tokenizer
from superinfer_trt.serve import stats
from superinfer_trt.serve.calls import Calls, Ended
from superinfer_trt.serve.executors import GrpcExecutor, LocalExecutor
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import trtllm_common_pb2 as common
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from superinfer_trt.serve.pb.trtllm_service_pb2_grpc import TrtllmServiceStub
from superinfer_trt.serve.security_client import open_aio_channel
from superinfer_trt.serve.server import GIL_SWITCH_S, bounds_of
from superinfer_trt.serve.service import Service
from superinfer_trt.serve.streams import StreamOutbox

WATCH_PERIOD_S = 0.25
CONNECT_TIMEOUT_S = 10.0
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_TOKENIZER_BYTES_MAX = 256 << 20


@dataclass(frozen=True, slots=True)
class Opened:
    """An executor that answers. `names`: what the served model is called; none for an engine without a model.
    `token_text`: None where tokens have no text."""

    executor: Executor
    info: pb.GetModelInfoResponse
    names: frozenset[str]
    token_text: TokenText | None


Opening = Callable[[], AbstractAsyncContextManager[Opened]]


def text_of(tokenizer: Tokenizer | None) -> TokenText | None:
    """The text of one token, special ones empty."""
    return None if tokenizer is None else lambda token: tokenizer.decode([token])


@asynccontextmanager
async def in_process(make_service: Callable[[StreamOutbox], Service], made: Config) -> AsyncIterator[Opened]:
    """A whole executor here, that nobody else can reach."""
    sys.setswitchinterval(GIL_SWITCH_S)
    outbox = StreamOutbox(asyncio.get_running_loop())
    service = make_service(outbox)
    options = server_options(made)
    calls = Calls(service, outbox, bounds_of(service, options), options.requests_max)
    watching = asyncio.create_task(_watch(calls))
    try:
        info = stats.model_info(service, calls.bounds, calls.requests_max)
        names = frozenset({info.model, made.model.name} if info.model else ())
        yield Opened(LocalExecutor(calls, _nothing), info, names, text_of(service.tokenizer))
    finally:
        calls.drain()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await asyncio.to_thread(service.close)


async def _nothing() -> None:
    pass


async def _watch(calls: Calls) -> None:
    """Tells those who wait when the engine loop has ended."""
    while calls.service.driver.alive:
        await asyncio.sleep(WATCH_PERIOD_S)
    calls.abandon("the engine loop has ended")


@asynccontextmanager
async def remote(target: str) -> AsyncIterator[Opened]:
    """A running executor. Raises CallFailed when it cannot be reached."""
    executor = GrpcExecutor(target)
    try:
        info = await _info(executor, target)
        async with open_aio_channel(target) as channel:
            stub: Any = TrtllmServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                names = frozenset({info.model, await _model_id(stub)} if info.model else ())
                tokenizer = await _tokenizer(stub) if info.has_tokenizer else None
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    raise call_failed(error, target) from None
                names, tokenizer = frozenset({info.model} if info.model else ()), None  # turned off there
        yield Opened(executor, info, names, text_of(tokenizer))
    finally:
        await executor.close()


async def _info(executor: GrpcExecutor, target: str) -> pb.GetModelInfoResponse:
    """Waits for one that is starting."""
    async with open_aio_channel(target) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), CONNECT_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise ModelError(f"{target}: no connection in {CONNECT_TIMEOUT_S:.0f} s") from None
    try:
        return await executor.model_info()
    except Ended as ended:
        raise ModelError(f"{target}: {ended.status.code.name}: {ended.status.message}") from None


async def _model_id(stub: Any) -> str:
    """What the executor was told to serve, as gateways see it."""
    info = await stub.GetModelInfo(trt.GetModelInfoRequest(), timeout=CONNECT_TIMEOUT_S)
    return str(info.model_id)


async def _tokenizer(stub: Any) -> Tokenizer:
    """The executor's tokenizer. Raises ModelError."""
    data = bytearray()
    async for piece in stub.GetTokenizer(common.GetTokenizerRequest()):
        data += piece.data
        if len(data) > _TOKENIZER_BYTES_MAX:
            raise ModelError(f"the executor's tokenizer has more than {_TOKENIZER_BYTES_MAX} bytes")
    return await asyncio.to_thread(_unpacked, bytes(data))


def _unpacked(data: bytes) -> Tokenizer:
    from superinfer_trt.model.folder import folder_tokenizer

    with (
        tempfile.TemporaryDirectory(prefix="superinfer-trt-") as folder,
        zipfile.ZipFile(io.BytesIO(data)) as archived,
    ):
        for name in _TOKENIZER_FILES:
            if name in archived.namelist():
                with archived.open(name) as file:
                    (Path(folder) / name).write_bytes(file.read(_TOKENIZER_BYTES_MAX))
        return folder_tokenizer(Path(folder))
