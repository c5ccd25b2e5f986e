"""The only loop that waits: one thread that turns an executor. Knows no policy, slot or engine."""

from __future__ import annotations

import logging
import threading

from superinfer_trt.core.errors import SuperInferError
from superinfer_trt.core.ports import Clock
from superinfer_trt.core.units import MILLISECOND, SECOND
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Executor

log = logging.getLogger(__name__)

LANDING_POLL_NS = MILLISECOND // 5
"""How often landings are looked for when there is no batch to run meanwhile."""


class Driver:
    """Turns `executor` until stopped. When a turn raises, every live request ends as failed, the
    inbox closes, and `failure` says why: nothing is lost, and health can notice."""

    def __init__(self, executor: Executor, inbox: BoundedInbox, clock: Clock) -> None:
        self._executor = executor
        self._inbox = inbox
        self._clock = clock
        self._stopping = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="superinfer-driver", daemon=True)
        self.failure: str = ""

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the executor is being turned."""
        return self._thread.is_alive() and not self.failure

    def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits until the live ones have ended; False if time ran out."""
        self._inbox.close("the server is draining")
        deadline = self._clock.now() + int(timeout_s * SECOND)
        while self.alive and self._inbox.live:
            left_s = (deadline - self._clock.now()) / SECOND
            if left_s <= 0:
                return False
            self._idle.wait(min(left_s, 0.05))
            self._idle.clear()
        return not self._inbox.live

    def stop(self) -> None:
        """Stops after the present turn and ends what is still live as failed. Idempotent."""
        self._inbox.close("the server has stopped")
        self._stopping.set()
        self._clock.wake()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if not self._executor.turn():
                    self._wait()
        except (SuperInferError, ValueError, RuntimeError) as error:
            self.failure = f"{type(error).__name__}: {error}"
            log.exception(
                "the executor stopped; newest plans:\n%s", "\n".join(self._executor.trace.tail()[-8:])
            )
        finally:
            self._end()

    def _wait(self) -> None:
        if self._executor.idle:
            self._idle.set()
            self._clock.park(None)
        else:
            self._clock.park(self._clock.now() + LANDING_POLL_NS)

    def _end(self) -> None:
        """Ends every accepted request exactly once, also those still at the door."""
        message = self.failure or "the server stopped before this request had ended"
        self._inbox.close(message)
        self._executor.abandon(message)
        self._idle.set()
