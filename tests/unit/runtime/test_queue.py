"""The ordered queue against a sorted list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.core.request import Request
from superinfer_trt.core.units import RequestId
from superinfer_trt.runtime.queue import OrderedQueue
from superinfer_trt.runtime.sequence import Sequence


def member(id: int, key: int) -> Sequence:
    return Sequence.of(Request(RequestId(id), (1,), arrival=key), 16)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)), max_size=200))
def test_order_is_that_of_a_sorted_list(actions: list[tuple[int, int]]) -> None:
    """Adds an id when it is absent, takes it out when it is there; ids come back with other keys."""
    queue = OrderedQueue(lambda c: c.arrival)
    twin: dict[int, Sequence] = {}
    for id, key in actions:
        if id in twin:
            queue.remove(twin.pop(id))
        else:
            twin[id] = member(id, key)
            queue.add(twin[id])
        expected = sorted(twin.values(), key=lambda m: (m.arrival, m.id))
        assert list(queue) == expected
        assert len(queue) == len(expected)
    for index, found in enumerate(sorted(twin.values(), key=lambda m: (m.arrival, m.id))):
        assert queue[index] is found


def test_a_long_backlog_is_swept() -> None:
    queue = OrderedQueue(lambda c: c.arrival)
    members = [member(id, id) for id in range(1_000)]
    for one in members:
        queue.add(one)
    for one in members[:990]:
        queue.remove(one)
    assert [m.id for m in queue] == list(range(990, 1_000))
    assert len(queue._members) < 200
    queue.add(member(5, 5))
    assert queue[0].id == 5
