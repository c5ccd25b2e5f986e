"""The outbox: one wake-up a turn, order kept, a slow reader's events in one piece."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from superinfer_trt.core.outcome import Sampled, TokenEvent
from superinfer_trt.core.units import RequestId
from superinfer_trt.serve.streams import Abandoned, StreamOutbox


def event(id: int, index: int) -> TokenEvent:
    return TokenEvent(RequestId(id), 0, index, Sampled(index))


class CountingLoop:
    """An event loop's face that counts the wake-ups."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.calls = 0

    def call_soon_threadsafe(self, function: Any, *arguments: Any) -> None:
        self.calls += 1
        self._loop.call_soon_threadsafe(function, *arguments)

    def create_future(self) -> asyncio.Future[None]:
        return self._loop.create_future()

    def is_closed(self) -> bool:
        return self._loop.is_closed()


def test_a_turn_costs_one_wake_up_however_many_readers() -> None:
    async def scenario() -> None:
        loop = CountingLoop(asyncio.get_running_loop())
        outbox = StreamOutbox(loop)  # type: ignore[arg-type]
        streams = [outbox.open(RequestId(id)) for id in range(100)]
        thread = threading.Thread(target=outbox.emit, args=([event(id, 0) for id in range(100)],))
        thread.start()
        for id, stream in enumerate(streams):
            assert await stream.take() == [event(id, 0)]
        thread.join()
        assert loop.calls == 1
        outbox.emit([])
        assert loop.calls == 1

    asyncio.run(scenario())


def test_a_slow_reader_takes_all_at_once_and_in_order() -> None:
    async def scenario() -> None:
        outbox = StreamOutbox(asyncio.get_running_loop())
        slow, fast = outbox.open(RequestId(1)), outbox.open(RequestId(2))
        for index in range(5):
            outbox.emit([event(1, index), event(2, index)])
            assert await fast.take() == [event(2, index)]
        assert await slow.take() == [event(1, index) for index in range(5)]

    asyncio.run(scenario())


def test_the_turns_list_may_be_used_again_by_its_owner() -> None:
    async def scenario() -> None:
        outbox = StreamOutbox(asyncio.get_running_loop())
        stream = outbox.open(RequestId(1))
        events = [event(1, 0)]
        outbox.emit(events)
        events.clear()
        assert await stream.take() == [event(1, 0)]

    asyncio.run(scenario())


def test_an_abandoned_reader_gets_the_rest_first() -> None:
    async def scenario() -> None:
        outbox = StreamOutbox(asyncio.get_running_loop())
        stream = outbox.open(RequestId(1))
        outbox.emit([event(1, 0)])
        await asyncio.sleep(0)
        outbox.abandon("the loop ended")
        assert await stream.take() == [event(1, 0)]
        with pytest.raises(Abandoned, match="the loop ended"):
            await stream.take()
        waiting = asyncio.create_task(outbox.open(RequestId(2)).take())
        await asyncio.sleep(0)
        outbox.abandon("again")
        with pytest.raises(Abandoned, match="again"):
            await waiting

    asyncio.run(scenario())


def test_nobody_listens_any_more() -> None:
    async def scenario() -> StreamOutbox:
        outbox = StreamOutbox(asyncio.get_running_loop())
        outbox.open(RequestId(1))
        outbox.close(RequestId(1))
        outbox.close(RequestId(1))
        outbox.emit([event(1, 0)])
        await asyncio.sleep(0)
        assert len(outbox) == 0
        return outbox

    asyncio.run(scenario()).emit([event(1, 1)])  # the loop has closed: nothing to do, and no error
