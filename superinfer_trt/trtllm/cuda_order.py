"""Order between TensorRT-LLM's execution stream and a link over CUDA, and the pool as bytes.

All of it is events on the GPU; the host waits only for a copy of an ended request that is not in line yet,
and only until it is. Knows no request. One thread.
"""

from __future__ import annotations

from typing import Any, Protocol

from superinfer_trt.core.units import Ticket

IN_LINE_WAIT_S = 0.0005


class StreamLink(Protocol):
    """The part of a link over CUDA that orders (transfer.native.DuplexLink)."""

    def mark_stream(self, turn: int, stream: int) -> bool: ...
    def stream_wait(self, ticket: Ticket, stream: int) -> bool: ...
    def wait(self, timeout_s: float) -> bool: ...


class CudaOrder:
    """upstream.StreamOrder for one stream, given as the number of its CUstream."""

    def __init__(self, link: StreamLink, stream: int) -> None:
        self._link = link
        self._stream = stream
        self._owed = -1  # a mark that the link was too busy for

    def mark(self, turn: int) -> bool:
        """Records an event behind the batch of `turn`; False when there are too many: ask again."""
        marked = self._link.mark_stream(turn, self._stream)
        self._owed = -1 if marked else turn
        return marked

    def wait(self, ticket: Ticket) -> None:
        """What is launched from now on starts behind the copy."""
        while True:
            try:
                if self._link.stream_wait(ticket, self._stream):
                    return
            except ValueError:
                return  # it failed: it writes no more
            # Not in line yet: behind others in its lane, or behind a mark that was not recorded.
            if self._owed >= 0:
                self.mark(self._owed)
            self._link.wait(IN_LINE_WAIT_S)


def pool_bytes(pool: Any, blocks: int, block_bytes: int) -> Any:
    """The primary pool as uint8 [blocks, block_bytes], the same memory."""
    import torch

    return pool.view(torch.uint8).view(blocks, block_bytes)


def stream_handle(stream: Any) -> int:
    """The CUstream of a torch stream."""
    return int(stream.cuda_stream)
