"""The links behind the adapter: real lanes in threads under a fake worker, and the order of a CUDA stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from superinfer_trt.build.trtllm import Link, RotationSettings, cuda_link, install
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.step import CopyDone
from superinfer_trt.core.units import Ticket
from superinfer_trt.transfer.cuda import CudaLink
from superinfer_trt.transfer.native import DuplexLink
from superinfer_trt.transfer.pools import allocate_pool
from superinfer_trt.transfer.wrap import WrappedLink
from superinfer_trt.trtllm.cuda_order import CudaOrder
from support.trtllm.gpu import Stream
from support.trtllm.package import open_fake_package
from support.trtllm.worker import WorkerShape, make_requests, make_worker
from support.trtllm.worlds import check_tokens


class StreamedLink(WrappedLink):
    """The host's lanes in order with the fake stream (a StreamOrder too): landings are seen early by whoever
    waits for one, and told by the next poll."""

    def __init__(self, inner: DuplexLink, stream: Stream) -> None:
        super().__init__(inner)
        self._lanes = inner
        self._stream = stream
        self._seen: list[CopyDone] = []

    def mark_behind(self, turn: int) -> bool:
        self._stream.enqueue(lambda: self.inner.mark(turn))
        return True

    def wait(self, ticket: Ticket) -> None:
        def run() -> None:
            while all(done.ticket != ticket for done in self._seen):
                self._lanes.wait(5.0)
                self._seen += self.inner.poll()

        if all(done.ticket != ticket for done in self._seen):
            self._stream.enqueue(run)

    def poll(self) -> Sequence[CopyDone]:
        told, self._seen = [*self._seen, *self.inner.poll()], []
        return told


class Order:
    def __init__(self, link: StreamedLink) -> None:
        self.mark = link.mark_behind
        self.wait = link.wait


@pytest.mark.parametrize("overlap", [False, True])
def test_rotation_over_the_native_lanes_is_invisible(overlap: bool) -> None:
    rotations = 0
    for seed in range(6):
        worker = make_worker(WorkerShape(blocks=24, overlap=overlap, seed=seed, eager=0.3))
        pool = worker.kv_cache_manager.impl.pool
        device = pool.reshape(pool.shape[0], -1).view(np.uint8)
        lanes = DuplexLink(
            device, allocate_pool(64, device.shape[1]), h2d_bytes_per_s=2e6, d2h_bytes_per_s=2e6
        )
        link = StreamedLink(lanes, worker.execution_stream)
        settings = RotationSettings(policy="rotasched", dram_bytes=64 * device.shape[1], spare_blocks=0)
        rotation = install(worker, open_fake_package(), settings, lambda *_, one=link: Link(one, Order(one)))
        requests = make_requests(16, seed)
        for number, request in enumerate(requests):
            worker.enqueue(request)
            worker.step()
            if number % 5 == 4:
                worker.cancel(requests[number // 2].py_request_id)
        steps = 0
        while not worker.idle or rotation.parts.ledger.in_flight:
            worker.step()
            steps += 1
            assert steps < 1_000_000
        check_tokens(requests)
        rotation.parts.ledger.audit()
        rotations += rotation.totals.rotations_in
        lanes.close()
    assert rotations > 5


class FakeStreamLink:
    """Refuses as told; notes what it was asked."""

    def __init__(self, busy_marks: int = 0, busy_waits: int = 0, *, failed: bool = False) -> None:
        self.busy_marks = busy_marks
        self.busy_waits = busy_waits
        self.failed = failed
        self.calls: list[tuple[str, int]] = []

    def mark_stream(self, turn: int, stream: int) -> bool:
        assert stream == 77
        self.calls.append(("mark", turn))
        self.busy_marks -= 1
        return self.busy_marks < 0

    def stream_wait(self, ticket: Ticket, stream: int) -> bool:
        assert stream == 77
        self.calls.append(("wait", ticket))
        if self.failed:
            raise ValueError("that ticket failed")
        self.busy_waits -= 1
        return self.busy_waits < 0

    def wait(self, timeout_s: float) -> bool:
        self.calls.append(("host", 0))
        return False


def test_a_mark_that_was_refused_is_asked_for_again() -> None:
    link = FakeStreamLink(busy_marks=1)
    order = CudaOrder(link, 77)
    assert [order.mark(3), order.mark(3)] == [False, True]


def test_the_stream_waits_as_soon_as_the_copy_is_in_line() -> None:
    link = FakeStreamLink(busy_marks=2, busy_waits=2)
    order = CudaOrder(link, 77)
    order.mark(3)
    order.wait(Ticket(9))
    wait, host, mark = ("wait", 9), ("host", 0), ("mark", 3)
    assert link.calls == [mark, wait, mark, host, wait, mark, host, wait]


def test_nobody_waits_for_a_copy_that_failed() -> None:
    link = FakeStreamLink(failed=True)
    CudaOrder(link, 77).wait(Ticket(9))
    assert link.calls == [("wait", 9)]


def test_without_a_gpu_the_link_is_refused_and_the_worker_left_as_it_was() -> None:
    worker = make_worker(WorkerShape(blocks=24))
    scheduler = worker.scheduler
    settings = RotationSettings(dram_bytes=1 << 16)
    choice = CudaLink(device=999)
    with pytest.raises(ConfigError):
        install(worker, open_fake_package(), settings, cuda_link(worker, choice))
    assert worker.scheduler is scheduler
