"""The server around the servicer: port, limits, health, reflection, draining, signals.

Knows no configuration file and no engine; the composition root hands it a Service. Lives on one
event loop; `run` is the whole life of a server process.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from superinfer_trt.core.errors import ConfigError, Refused
from superinfer_trt.core.slo import Slo
from superinfer_trt.serve.calls import Calls
from superinfer_trt.serve.errors import WireStatus
from superinfer_trt.serve.facade import Facade
from superinfer_trt.serve.mapping import Bounds
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from superinfer_trt.serve.pb.executor_pb2_grpc import add_ExecutorServiceServicer_to_server
from superinfer_trt.serve.pb.trtllm_service_pb2_grpc import add_TrtllmServiceServicer_to_server
from superinfer_trt.serve.profiling import MakeRecording
from superinfer_trt.serve.security import Certificates, Guard, SecurityFiles, TokenInterceptor
from superinfer_trt.serve.service import Service
from superinfer_trt.serve.servicer import Servicer
from superinfer_trt.serve.streams import StreamOutbox

if TYPE_CHECKING:
    from superinfer_trt.serve.metrics_http import MetricsEndpoint

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ExecutorService"].full_name
FACADE_NAME = trt.DESCRIPTOR.services_by_name["TrtllmService"].full_name
GIL_SWITCH_S = 0.001
"""While the event loop is busy, each return of the driver from native code waits up to this long for
the interpreter lock. Python's own 5 ms would be paid several times a turn."""
WATCH_PERIOD_S = 0.25
YOUNG_OBJECTS = 20_000  # made since the last look of the collector of cycles; Python's own is 700
CUT_GRACE_S = 5.0  # for the executor to end what was cut off
PENDING_CALLS_MAX = 1 << 16
"""Calls that wait for the servicer's attention. gRPC's own limits (1,000 to 3,000) answer a burst with
CANCELLED, before the servicer can say RESOURCE_EXHAUSTED and why."""
PENDING_CALL_S = 600
"""How long such a call may wait. gRPC's own limit, 30 s, answers CANCELLED as well; a client's deadline ends
it sooner."""


HANDSHAKE_TIMEOUT_MS = 20_000
"""A connection that does not get through TLS and HTTP/2's greeting by then is closed; gRPC's own is 120 s."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to listen, and how much to take at once.

    `port` 0: any free one. `requests_max`: live requests; the next is refused with RESOURCE_EXHAUSTED.
    `metrics_port` 0: any free one; None: no metrics endpoint. `make_recording` None: no Profile.
    `tenants`: those with a label of their own in the metrics, whoever comes first.
    `reader_timeout_s`: a call whose reader takes nothing for so long is ended. `facade`: the service of
    gateways for TensorRT-LLM is there too; it shows them `model_name` (empty: the model's own).
    `slo_classes`: objectives by the class in front of its ids. `security`: of this port and of the metrics'.
    """

    host: str = "127.0.0.1"
    port: int = 0
    requests_max: int = 4096
    message_bytes_max: int = 4 << 20
    drain_timeout_s: float = 30.0
    reader_timeout_s: float = 120.0
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    make_recording: MakeRecording | None = None
    tenants: tuple[str, ...] = ()
    reflection: bool = False
    security: SecurityFiles = field(default_factory=SecurityFiles)
    facade: bool = True
    model_name: str = ""
    default_max_tokens: int = 128
    default_slo: Slo = field(default_factory=Slo)
    slo_classes: Mapping[str, Slo] = field(default_factory=dict)
    seed: int = 0


class Server:
    """One listening service. `start`, then `drain` or `stop`."""

    def __init__(self, service: Service, outbox: StreamOutbox, options: ServerOptions) -> None:
        self._service = service
        self._options = options
        self.calls = Calls(service, outbox, bounds_of(service, options), options.requests_max)
        self.calls.tally.expect(options.tenants, options.slo_classes)
        self._certificates = _certificates(options.security)
        self._guard = Guard(options.security.auth_file)
        self._servicer = Servicer(self.calls, options.make_recording, self._guard)
        self._facade: Facade | None = None
        if options.facade:
            self._facade = Facade(self.calls, options.model_name, options.slo_classes, self._guard)
        self._names = (SERVICE_NAME, FACADE_NAME) if options.facade else (SERVICE_NAME,)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # made by a condition
        interceptors = [TokenInterceptor(self._guard, self._refuse)] if self._guard.asks else None
        self._server = grpc.aio.server(options=_channel_options(options), interceptors=interceptors)
        self._watch: asyncio.Task[None] | None = None
        self._stopping = asyncio.Lock()
        self._stopped = False
        self._metrics: MetricsEndpoint | None = None
        self.port = 0

    @property
    def target(self) -> str:
        """`host:port` that a client can use."""
        host = self._options.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def metrics_url(self) -> str:
        """Where to scrape; empty without an endpoint."""
        return self._metrics.url if self._metrics is not None else ""

    async def start(self) -> None:
        """Listens and answers. Raises ConfigError when the port is taken."""
        methods = _Methods(self._server)
        add_ExecutorServiceServicer_to_server(self._servicer, methods)  # type: ignore[no-untyped-call]
        if self._facade is not None:
            add_TrtllmServiceServicer_to_server(self._facade, methods)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, methods)
        if self._options.reflection:
            names = (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self._metrics = self._metrics_endpoint()
        self.port = self._bind()
        await self._server.start()
        await self._set_health(serving=True)
        self._watch = asyncio.create_task(self._watch_driver())

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests, lets live ones finish for `timeout_s`, cuts the rest, stops.

        Returns whether all live requests finished by themselves.
        """
        self.calls.drain()
        await self._set_health(serving=False)
        finished = await self._idle_within(timeout_s)
        await self.stop()
        return finished

    async def stop(self) -> None:
        """Ends all calls with their endings, then the listener. Idempotent; leaves the service open."""
        async with self._stopping:
            if not self._stopped:
                await self._stop()
                self._stopped = True

    async def _stop(self) -> None:
        self.calls.drain()
        await self._set_health(serving=False)
        if self.calls.live:
            self.calls.cut()
            if not await self._idle_within(CUT_GRACE_S):
                self.calls.abandon("the server went away")
        self._servicer.close()
        if self._facade is not None:
            self._facade.close()
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        await self._server.stop(grace=1.0)
        if self._metrics is not None:  # last, so that a drain can be watched
            await asyncio.to_thread(self._metrics.close)

    def _metrics_endpoint(self) -> MetricsEndpoint | None:
        if self._options.metrics_port is None:
            return None
        from superinfer_trt.serve.metrics_http import MetricsEndpoint

        host, port = self._options.metrics_host, self._options.metrics_port
        tls = self._certificates.context() if self._certificates is not None else None
        allows = self._guard.knows_operator if self._guard.asks else None
        return MetricsEndpoint(self.calls, host, port, tls=tls, allows=allows)

    def _refuse(self, refusal: Refused) -> WireStatus:
        """For what does not even come to be a request."""
        return self.calls.refuse(pb.GenerateRequest(), refusal).status

    def _bind(self) -> int:
        host, port = self._options.host, self._options.port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        _check_address(host, port)
        try:
            if self._certificates is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, self._certificates.credentials())
        except RuntimeError as error:  # taken since the check
            raise ConfigError(f"service.port: cannot listen on {address}") from error

    def _refresh(self) -> None:
        """Certificates and tokens that have changed."""
        self._guard.refresh()
        if self._certificates is not None and self._certificates.refresh() and self._metrics is not None:
            self._metrics.renew(self._certificates.context())

    async def _idle_within(self, timeout_s: float) -> bool:
        try:
            await asyncio.wait_for(self.calls.wait_idle(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    async def _set_health(self, *, serving: bool) -> None:
        kind = health_pb2.HealthCheckResponse
        status = kind.SERVING if serving else kind.NOT_SERVING
        for name in (health.OVERALL_HEALTH, *self._names):
            await self._health.set(name, status)

    async def _watch_driver(self) -> None:
        """Tells readers and health when the driver's thread has died; ends stalled readers."""
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            self.calls.end_stalled(self._options.reader_timeout_s)
            self._refresh()
            if not self._service.driver.alive:
                await self._set_health(serving=False)
                self.calls.abandon("the engine loop has ended")


def _certificates(files: SecurityFiles) -> Certificates | None:
    if files.tls_cert is None or files.tls_key is None:
        return None
    return Certificates(files.tls_cert, files.tls_key, files.tls_client_ca)


def bounds_of(service: Service, options: ServerOptions) -> Bounds:
    """The limits of a request at this service."""
    limits = service.limits
    return Bounds(
        vocabulary=service.vocabulary,
        context_tokens_max=service.context_tokens_max,
        pool_tokens_max=limits.device_blocks * limits.block_tokens,
        default_max_tokens=options.default_max_tokens,
        default_slo=options.default_slo,
        model_stop_ids=service.model.stop_ids if service.model is not None else frozenset(),
        seed=options.seed,
        supports=service.supports,
    )


def settle() -> None:
    """Everything is in its place: what is there now stays, and only what comes is looked at for cycles.

    A token makes half a dozen objects and a message a dozen, none of them in a cycle; looking for cycles
    among them and through all modules took about a sixth of what a message costs (benchmarks/fanout.py).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)


async def run(
    make_service: Callable[[StreamOutbox], Service],
    options: ServerOptions,
    on_ready: Callable[[Server, Service], None],
    on_drain: Callable[[int], None] = lambda _: None,
) -> bool:
    """Serves until SIGTERM or SIGINT, then drains (a second signal cuts). Returns whether all went well.

    `on_ready` is told once the port is open; `on_drain` how many requests are live when draining
    starts. Raises ConfigError (port in use) and whatever `make_service` raises.
    """
    loop = asyncio.get_running_loop()
    outbox = StreamOutbox(loop)
    service = make_service(outbox)
    server = Server(service, outbox, options)
    try:
        await server.start()
        signals = _Signals(loop)
        settle()
        on_ready(server, service)
        died = await _signal_or_death(signals, service)
        on_drain(server.calls.live)
        drain = asyncio.create_task(server.drain(0.0 if died else options.drain_timeout_s))
        again = asyncio.create_task(signals.second.wait())
        await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if not drain.done():
            drain.cancel()
            await asyncio.gather(drain, return_exceptions=True)
            return False
        return drain.result() and not died
    finally:
        await server.stop()
        await asyncio.to_thread(service.close)


class _Methods:
    """The server as generated code sees it: methods are found by their names when a call comes.

    That code would register each one as well. grpc.aio then waits for the next call of each of them, and goes
    through all that it waits for, 17 with the facade, at every call: 7 us, and more where the cache is cold.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """They are among the generic ones."""


class _Signals:
    """The first SIGTERM or SIGINT, and the second."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._arrived)

    def _arrived(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


async def _signal_or_death(signals: _Signals, service: Service) -> bool:
    """Returns whether the driver died before a signal came."""
    while service.driver.alive:
        try:
            await asyncio.wait_for(signals.first.wait(), WATCH_PERIOD_S)
        except asyncio.TimeoutError:
            continue
        return False
    return True


def _check_address(host: str, port: int) -> None:
    """Raises ConfigError with the system's own reason; gRPC would write it to stderr and hide it."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"service.host: {host} is no address of this machine ({error.strerror})") from None
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            raise ConfigError(
                f"service.port: cannot listen on {host}:{port} ({error.strerror}); 0 takes any free port"
            ) from None


def _channel_options(options: ServerOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # or a second server would silently share the port
        ("grpc.max_receive_message_length", options.message_bytes_max),
        ("grpc.max_send_message_length", -1),
        ("grpc.server.max_pending_requests", PENDING_CALLS_MAX),
        ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_MAX),
        ("grpc.server_max_unrequested_time_in_server", PENDING_CALL_S),
        # a client that vanished without a word is found by pings
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.ping_timeout_ms", 20_000),  # without it such a ping is waited for 60 s all the same
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ]
