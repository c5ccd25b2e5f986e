"""The port where a Prometheus scrapes. Threads of its own: one to listen, one for each scrape.

`prometheus_client` is imported when this module is: a service that is not asked for metrics does not load it.
No secrets here, but tenants' names and amounts: loopback unless told otherwise.
"""

from __future__ import annotations

import threading
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.serve.calls import Calls
from superinfer_trt.serve.metrics import Metrics
from superinfer_trt.serve.turn_times import TurnTimes


class MetricsEndpoint:
    """Listens from its making until `close`. Raises ConfigError when the port cannot be had.

    `port` 0: any free one. Observes the executor's turns meanwhile.
    """

    def __init__(self, calls: Calls, host: str, port: int) -> None:
        self._executor = calls.service.executor
        self._turn_times = TurnTimes()
        registry = CollectorRegistry()
        registry.register(Metrics(calls, self._turn_times))
        ProcessCollector(registry=registry)
        self._server: WSGIServer
        self._thread: threading.Thread
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigError(
                f"service.metrics_port: cannot listen on {host}:{port} ({error.strerror})"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"
        self._executor.observe(self._turn_times)

    def close(self) -> None:
        """Stops listening; waits for it."""
        self._executor.unobserve(self._turn_times)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
