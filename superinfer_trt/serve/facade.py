"""trtllm.TrtllmService on grpc.aio: what gateways for TensorRT-LLM speak, on the executor's port.

A front of `calls.Calls`, so that limits, draining and endings are those of every front. Knows no port, signal
or health service. Everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import grpc

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.slo import Slo
from superinfer_trt.serve import facade_info
from superinfer_trt.serve.calls import Calls, Ended
from superinfer_trt.serve.errors import WireStatus, end_call, status_of
from superinfer_trt.serve.facade_mapping import name_of, refusal_of, translate
from superinfer_trt.serve.facade_output import FacadeOutput
from superinfer_trt.serve.objectives import fill_from_class, fill_from_metadata
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import trtllm_common_pb2 as common
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from superinfer_trt.serve.pb.trtllm_service_pb2_grpc import TrtllmServiceServicer
from superinfer_trt.serve.security import Guard

log = logging.getLogger(__name__)

LOAD_PERIOD_S = 0.5
SUBSCRIBERS_MAX = 256

Call = grpc.aio.ServicerContext[Any, Any]


class Facade(TrtllmServiceServicer):
    """The calls of TrtllmService.

    `model_name`: what gateways call the model; empty: its own name. `slo_classes`: objectives by the class in
    front of a request's id. `guard`: whose requests they are; None: everybody may name any tenant.
    """

    def __init__(
        self, calls: Calls, model_name: str, slo_classes: Mapping[str, Slo], guard: Guard | None = None
    ) -> None:
        self._calls = calls
        self._guard = guard or Guard()
        self._model_name = model_name
        self._slo_classes = slo_classes
        self._closing = asyncio.Event()
        self._subscribers = 0
        self._tokenizer_archive: bytes | None = None

    async def Generate(  # noqa: N802  # the names are the proto's
        self, request: trt.GenerateRequest, context: Call
    ) -> None:
        """One request; the context's cancellation ends it in the executor too."""
        try:
            message = translate(request, self._calls.bounds)
            metadata = context.invocation_metadata()
            caller = self._guard.caller(metadata)
            fill_from_metadata(message, metadata)
            message.tenant = caller.tenant_of(message.tenant)
            fill_from_class(message, request.request_id, self._slo_classes)
            await self._calls.generate(message, _Front(self._calls, request, context), caller.tenant)
        except Refused as refusal:
            told = pb.GenerateRequest(request_id=name_of(request.request_id))
            await end_call(context, self._calls.refuse(told, refusal_of(refusal)).status)
        except Ended as end:
            await end_call(context, _status(end))
        except Exception as error:
            if not context.done():  # a client that went away makes a write fail: nobody is left to tell
                log.exception("a call to Generate failed")
                await end_call(context, status_of(error))

    async def Embed(  # noqa: N802
        self, request: trt.EmbedRequest, context: Call
    ) -> trt.EmbedResponse:
        del request
        await end_call(context, WireStatus(grpc.StatusCode.UNIMPLEMENTED, "this server makes no embeddings"))

    async def HealthCheck(  # noqa: N802
        self, request: trt.HealthCheckRequest, context: Call
    ) -> trt.HealthCheckResponse:
        del request, context
        if self._calls.serving:
            return trt.HealthCheckResponse(status="OK")
        alive = self._calls.service.driver.alive
        return trt.HealthCheckResponse(
            status="the server is draining and takes no new requests"
            if alive
            else "the engine loop has ended"
        )

    async def Abort(  # noqa: N802
        self, request: trt.AbortRequest, context: Call
    ) -> trt.AbortResponse:
        """Ends a request; its own stream tells how it ended."""
        if not request.request_id:
            await end_call(context, status_of(Refused(RefusalCode.INVALID, "request_id", "is required")))
        owner = self._guard.caller(context.invocation_metadata()).tenant
        found = self._calls.abort(name_of(request.request_id), owner)
        return trt.AbortResponse(
            success=found, message="the request is being ended" if found else "no live request has this id"
        )

    async def GetModelInfo(  # noqa: N802
        self, request: trt.GetModelInfoRequest, context: Call
    ) -> trt.GetModelInfoResponse:
        del request, context
        return facade_info.model_info(self._calls.service, self._calls.bounds, self._model_name)

    async def GetServerInfo(  # noqa: N802
        self, request: trt.GetServerInfoRequest, context: Call
    ) -> trt.GetServerInfoResponse:
        del request, context
        return facade_info.server_info(self._calls.service)

    async def GetTokenizer(  # noqa: N802
        self, request: common.GetTokenizerRequest, context: Call
    ) -> None:
        """The archive is made once, off the loop."""
        del request
        tokenizer = self._calls.service.tokenizer
        files = tokenizer.files() if tokenizer is not None else {}
        if not files:
            await end_call(context, WireStatus(grpc.StatusCode.UNIMPLEMENTED, "this engine has no tokenizer"))
        if self._tokenizer_archive is None:
            self._tokenizer_archive = await asyncio.to_thread(facade_info.archive, files)
        for piece in facade_info.pieces(self._tokenizer_archive):
            await context.write(piece)

    async def SubscribeKvEvents(  # noqa: N802
        self, request: common.SubscribeKvEventsRequest, context: Call
    ) -> None:
        """Load at once, then each LOAD_PERIOD_S; ends with the server."""
        del request
        if self._subscribers >= SUBSCRIBERS_MAX:
            why = f"{SUBSCRIBERS_MAX} callers subscribe already"
            await end_call(context, status_of(Refused(RefusalCode.QUEUE_FULL, "", why)))
        self._subscribers += 1
        reader = facade_info.LoadReader(self._calls.service)
        try:
            while not self._closing.is_set():
                await context.write(reader.next())
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), LOAD_PERIOD_S)
        finally:
            self._subscribers -= 1

    def close(self) -> None:
        """Ends the subscriptions."""
        self._closing.set()


class _Front:
    """calls.Front over one call of the facade."""

    def __init__(self, calls: Calls, request: trt.GenerateRequest, context: Call) -> None:
        self._calls = calls
        self._context = context
        service = calls.service
        self._output = FacadeOutput(request, calls.bounds.model_stop_ids, service.tokenizer)

    async def accepted(self, name: str) -> None:
        """Nothing is sent: once it has heard anything, a gateway no longer tries another server."""

    async def write(self, response: pb.GenerateResponse) -> None:
        ending = response.ending.finish_reason
        if ending == pb.FINISH_REASON_CANCELLED and self._calls.was_cut:
            return  # the status says it: a `complete` would look like the whole answer
        for message in self._output.feed(response):
            await self._context.write(message)


def _status(end: Ended) -> WireStatus:
    refusal = end.__cause__
    return status_of(refusal_of(refusal)) if isinstance(refusal, Refused) else end.status
