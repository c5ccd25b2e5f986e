"""The port where a Prometheus scrapes. Threads of its own: one to listen, one for each scrape.

`prometheus_client` is imported when this module is: a service that is not asked for metrics does not load it.
No secrets here, but tenants' names and amounts: by TLS and for operators' tokens alone where the service has
these, and on loopback unless told otherwise.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.serve.calls import Calls
from superinfer_trt.serve.metrics import Metrics
from superinfer_trt.serve.turn_times import TurnTimes

SCRAPE_TIMEOUT_S = 10.0  # for each read of a connection, TLS's handshake included
Allows = Callable[[str], bool]


class MetricsEndpoint:
    """Listens from its making until `close`. Raises ConfigError when the port cannot be had.

    `port` 0: any free one. `tls` None: in clear. `allows`: whether an `authorization` header of that value
    may see it; None: everybody may. Observes the executor's turns meanwhile.
    """

    def __init__(
        self,
        calls: Calls,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        allows: Allows | None = None,
    ) -> None:
        self._executor = calls.service.executor
        self._turn_times = TurnTimes()
        registry = CollectorRegistry()
        registry.register(Metrics(calls, self._turn_times))
        ProcessCollector(registry=registry)
        try:
            self._server = _listener(host, port)
        except OSError as error:
            raise ConfigError(
                f"service.metrics_port: cannot listen on {host}:{port} ({error.strerror})"
            ) from None
        self._server.tls = tls
        app = make_wsgi_app(registry)
        self._server.set_app(app if allows is None else _guarded(app, allows))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'http' if tls is None else 'https'}://{shown}:{self._server.server_port}/metrics"
        self._executor.observe(self._turn_times)

    def renew(self, tls: ssl.SSLContext) -> None:
        """For connections from now on."""
        self._server.tls = tls

    def close(self) -> None:
        """Stops listening; waits for it."""
        self._executor.unobserve(self._turn_times)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Listener(ThreadingMixIn, WSGIServer):
    """A thread a connection. The handshake is in it too, so that nobody who says nothing holds up others."""

    daemon_threads = True
    tls: ssl.SSLContext | None = None

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self.tls is not None:
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or spoke no TLS, is nobody's trouble."""


class _Handler(WSGIRequestHandler):
    timeout = SCRAPE_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not logged."""


def _listener(host: str, port: int) -> _Listener:
    """Raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    kind = type("_Listener", (_Listener,), {"address_family": family})
    made: _Listener = kind(address[:2], _Handler)
    return made


def _guarded(app: Any, allows: Allows) -> Any:
    def guarded(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if allows(environ.get("HTTP_AUTHORIZATION", "")):
            answer: Iterable[bytes] = app(environ, start_response)
            return answer
        challenge = [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain; charset=utf-8")]
        start_response("401 Unauthorized", challenge)
        return [b"the token of an operator is required\n"]

    return guarded
