"""The operators in a traced model, over host memory: what they wait for, and that none moves."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from superinfer_trt.core.errors import TransferFailed
from superinfer_trt.core.step import Copy, CopyKind, Direction
from superinfer_trt.core.units import RequestId, Ticket
from superinfer_trt.transfer.native import DuplexLink
from superinfer_trt.transfer.pools import allocate_pool

torch = pytest.importorskip("torch", reason="torch is in the extra `equiv` (scripts/test --full)")
pytestmark = pytest.mark.reference

BLOCKS, BYTES = 8, 256
POOLS: dict[int, Any] = {}


def attend(x: Any, key: int) -> Any:
    kv = POOLS[key]
    seen = x + kv[0].to(torch.float32).sum()
    kv[1].copy_((seen % 251).to(torch.uint8))
    return seen


torch.library.custom_op(
    "superinfer_test::attend", attend, mutates_args=(), schema="(Tensor x, int key) -> Tensor"
).register_fake(lambda x, key: torch.empty_like(x))


class Model:
    """Its attention reads KV that the link brings, adds it, and writes KV that the link takes away."""

    def __init__(self) -> None:
        from superinfer_trt.transfer.torch_ops import TorchLink

        self.device = allocate_pool(BLOCKS, BYTES)
        self.host = allocate_pool(BLOCKS, BYTES)
        self.link = TorchLink(DuplexLink(self.device, self.host, h2d_bytes_per_s=0, d2h_bytes_per_s=0))
        POOLS[self.link.key] = torch.from_numpy(self.device)

    def step(self, x: Any) -> Any:
        key = self.link.key
        torch.ops.superinfer.kv_wait(x, key)
        seen = torch.ops.superinfer_test.attend(x, key)
        torch.ops.superinfer.kv_publish(seen, key)
        return seen * 2

    def bring(self, value: int) -> Ticket:
        self.host[3] = value
        tickets = self.link.submit(Direction.H2D, [copy(CopyKind.IN, 3, 0)])
        assert tickets is not None
        return tickets[0]


def copy(kind: CopyKind, source: int, target: int, after: int = -1) -> Copy:
    return Copy(RequestId(1), kind, array("i", [source]), array("i", [target]), after)


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()
    yield made
    made.link.close()


def compiled(model: Model, backend: str | None) -> Any:
    if backend is None:
        return model.step
    torch._dynamo.reset()
    return torch.compile(model.step, fullgraph=True, backend=backend)


@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
def test_a_step_reads_what_was_brought_and_gives_what_it_wrote(model: Model, backend: str | None) -> None:
    step = compiled(model, backend)
    for turn, value in enumerate((7, 31, 2)):
        out = model.link.submit(Direction.D2H, [copy(CopyKind.OUT, 1, 5, after=turn)])
        assert out is not None
        model.link.begin(turn, [model.bring(value)])
        x = torch.full((BYTES,), 1.0)
        result = step(x)
        want = 1.0 + value * BYTES
        assert torch.equal(result, torch.full((BYTES,), 2 * want))
        assert torch.equal(x, torch.full((BYTES,), 1.0))  # declared as written, not touched
        # The operator that wrote the turn's KV let its copy go; the one that waited told nobody else.
        model.link.begin(turn, [out[0]])
        torch.ops.superinfer.kv_wait(x, model.link.key)
        assert (model.host[5] == int(want) % 251).all()
        assert {done.ok for done in model.link.poll()} == {True}
        assert model.link.poll() == []


def test_one_graph_serves_all_steps(model: Model) -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    torch._dynamo.reset()
    step = torch.compile(model.step, fullgraph=True, backend=counter)
    for turn in range(5):
        model.link.begin(turn, [model.bring(turn)])
        step(torch.zeros(BYTES))
        model.link.poll()
    assert counter.frame_count == 1


def test_the_operators_pass_the_checks_of_torch(model: Model) -> None:
    model.link.begin(0, [])
    for operator in (torch.ops.superinfer.kv_wait, torch.ops.superinfer.kv_publish):
        torch.library.opcheck(
            operator.default,
            (torch.zeros(4), model.link.key),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


def test_tracing_copies_nothing_and_waits_for_nothing(model: Model) -> None:
    model.link.begin(9, [Ticket(12345)])
    with torch._subclasses.fake_tensor.FakeTensorMode():
        torch.ops.superinfer.kv_wait(torch.empty(4), model.link.key)
        torch.ops.superinfer.kv_publish(torch.empty(4), model.link.key)


def test_a_copy_that_failed_is_told_where_the_model_needs_it(model: Model) -> None:
    ticket = model.link.submit(Direction.H2D, [copy(CopyKind.IN, 3, 0, after=100)])
    assert ticket is not None
    model.link.begin(0, ticket)
    model.link._link.poison(Direction.H2D)
    with pytest.raises(TransferFailed, match="failed"):
        torch.ops.superinfer.kv_wait(torch.zeros(1), model.link.key)


def test_a_ticket_that_cannot_land_and_a_closed_link_are_told(model: Model) -> None:
    model.link.begin(0, [Ticket(999)])
    with pytest.raises(TransferFailed, match="ticket 999 has not landed"):
        torch.ops.superinfer.kv_wait(torch.zeros(1), model.link.key)
    model.link.close()
    with pytest.raises(TransferFailed, match="no link of key"):
        torch.ops.superinfer.kv_publish(torch.zeros(1), model.link.key)


def test_a_wait_inside_a_model_keeps_what_poll_tells(model: Model) -> None:
    first = model.bring(1)
    model.link.begin(0, [first])
    torch.ops.superinfer.kv_wait(torch.zeros(1), model.link.key)
    second = model.bring(2)
    model.link.begin(1, [second])
    torch.ops.superinfer.kv_wait(torch.zeros(1), model.link.key)
    assert [done.ticket for done in model.link.poll()] == [first, second]
    assert np.all(model.device[0] == 2)


def test_a_ticket_that_poll_has_told_is_not_waited_for(model: Model) -> None:
    ticket = model.bring(1)
    assert model.link._link.wait(60.0)
    assert [done.ticket for done in model.link.poll()] == [ticket]
    model.link.begin(0, [ticket])
    torch.ops.superinfer.kv_wait(torch.zeros(1), model.link.key)
    assert model.link.poll() == []
