"""Waits and marks of a link inside a PyTorch model, also one that `torch.compile` traces.

Two operators, `superinfer::kv_wait(x, key)` in front of what reads KV and `superinfer::kv_publish(x,
key)` behind what has written it. `x` is the activation that passes there: it is declared as written
(its bytes are not touched), so that no compiler moves the attention across.

The KV pool must not be in the graph, neither here nor as an argument of the attention: a compiler
makes copies of what a graph writes and puts them back at its end, behind `kv_publish`, over what the
link has brought. The attention is an operator of its own that takes activations and knows its pool.

The graph knows a key only; which turn runs and which tickets it needs is said outside, by `begin`, so
that one graph serves all steps. torch is imported when the first TorchLink is made. `begin` and the
model run on one thread; `poll` and `submit` may come from another.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from superinfer_trt.core.errors import TransferFailed
from superinfer_trt.core.step import Copy, CopyDone, Direction
from superinfer_trt.core.units import Ticket
from superinfer_trt.transfer.native import DuplexLink

if TYPE_CHECKING:
    import torch

_ENDED_MAX = 1 << 16  # tickets whose end is remembered: more than queues hold

_keys = itertools.count(1)
_links: weakref.WeakValueDictionary[int, TorchLink] = weakref.WeakValueDictionary()
_registering = threading.Lock()
_registered = False


class TorchLink:
    """A DuplexLink whose waits and marks are operators of a model (a TransferEngine).

    Over a GPU both are put into the current stream of the activation's device and the host goes on;
    over host memory `kv_wait` waits for the tickets and `kv_publish` marks the turn. `timeout_s`
    bounds a wait on the host. Raises as DuplexLink does.
    """

    def __init__(self, link: DuplexLink, *, timeout_s: float = 60.0) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._untold: list[CopyDone] = []  # landed while a wait looked, for the next poll
        self._ended: dict[Ticket, bool] = {}  # the newest: whether they landed well
        self._turn = -1
        self._tickets: tuple[Ticket, ...] = ()
        self.key = next(_keys)
        register()
        _links[self.key] = self

    def begin(self, turn: int, tickets: Sequence[Ticket] = ()) -> None:
        """The next run of the model is the batch of `turn` and reads what `tickets` bring."""
        self._turn, self._tickets = turn, tuple(tickets)

    def submit(self, direction: Direction, copies: Sequence[Copy]) -> Sequence[Ticket] | None:
        return self._link.submit(direction, copies)

    def mark(self, turn: int) -> None:
        self._link.mark(turn)

    def poll(self) -> Sequence[CopyDone]:
        with self._lock:
            self._look()
            done, self._untold = self._untold, []
            return done

    def link_bytes_per_s(self, direction: Direction) -> float:
        return self._link.link_bytes_per_s(direction)

    def close(self) -> None:
        _links.pop(self.key, None)
        self._link.close()

    def wait_here(self, x: torch.Tensor) -> None:
        """What `kv_wait` does: all tickets of this step before anything after it."""
        stream = self._stream(x)
        if stream is None:
            self._wait_on_host(self._tickets)
            return
        if _capturing():
            self._link.stream_wait(Ticket(0), stream, external=True)
            return
        late = [ticket for ticket in self._tickets if not self._link.stream_wait(ticket, stream)]
        if late:  # not all in the lane's stream: behind compute that the GPU has not reached
            self._wait_on_host(late)

    def publish_here(self, x: torch.Tensor) -> None:
        """What `kv_publish` does: the KV of this turn is written, its copies may start."""
        stream = self._stream(x)
        if stream is None:
            self._link.mark(self._turn)
        else:
            self._link.mark_stream(self._turn, stream)

    def _stream(self, x: torch.Tensor) -> int | None:
        """The stream to order; None where the host is to wait."""
        if self._link.cuda is None:
            return None
        import torch

        if not x.is_cuda:
            raise TransferFailed(f"torch: a link over a GPU, and an activation on {x.device}")
        return int(torch.cuda.current_stream(x.device).cuda_stream)

    def _wait_on_host(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            while not self._told(ticket):
                if not self._link.wait(self._timeout_s) and not self._told(ticket):
                    raise TransferFailed(f"torch: ticket {ticket} has not landed within {self._timeout_s} s")
            with self._lock:
                if not self._ended[ticket]:
                    raise TransferFailed(f"torch: the copies of ticket {ticket} failed")

    def _told(self, ticket: Ticket) -> bool:
        with self._lock:
            if ticket not in self._ended:
                self._look()
            return ticket in self._ended

    def _look(self) -> None:
        fresh = self._link.poll()
        self._untold += fresh
        self._ended.update((done.ticket, done.ok) for done in fresh)
        while len(self._ended) > _ENDED_MAX:
            del self._ended[next(iter(self._ended))]


def register() -> None:
    """Makes the operators known to torch, once a process. Raises ImportError without torch."""
    global _registered  # noqa: PLW0603 - what torch knows is of the process
    with _registering:
        if _registered:
            return
        import torch

        def kv_wait(x: torch.Tensor, key: int) -> None:
            _link(key).wait_here(x)

        def kv_publish(x: torch.Tensor, key: int) -> None:
            _link(key).publish_here(x)

        for operator in (kv_wait, kv_publish):
            # Annotations are strings here, so the schema is said in words.
            made = torch.library.custom_op(
                f"superinfer::{operator.__name__}",
                operator,
                mutates_args=("x",),
                schema="(Tensor(a!) x, int key) -> ()",
            )
            made.register_fake(_nothing)
        _registered = True


def _nothing(x: torch.Tensor, key: int) -> None:
    """What tracing sees: an activation that passes."""
    del x, key


def _link(key: int) -> TorchLink:
    link = _links.get(key)
    if link is None:
        raise TransferFailed(f"torch: no link of key {key}; it is closed or was never made")
    return link


def _capturing() -> bool:
    import torch

    return bool(torch.cuda.is_current_stream_capturing())
