"""The native module itself: what it refuses, that it never holds the GIL while it waits, its end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from array import array

import numpy as np
import pytest
from numpy.typing import NDArray

from superinfer_trt import _duplexkv

BLOCK_BYTES = 4096


def pool(blocks: int, block_bytes: int = BLOCK_BYTES) -> NDArray[np.uint8]:
    return _duplexkv.allocate(blocks, block_bytes)


def engine(
    device: object = None, host: object = None, *, rate: float = 0.0, queue_groups_max: int = 0
) -> _duplexkv.Engine:
    return _duplexkv.Engine(
        pool(16) if device is None else device,  # type: ignore[arg-type]
        pool(32) if host is None else host,  # type: ignore[arg-type]
        d2h_bytes_per_s=rate,
        h2d_bytes_per_s=rate,
        queue_groups_max=queue_groups_max,
        queue_bytes_max=0,
        slice_bytes_max=0,
    )


def ints(*values: int) -> array[int]:
    return array("i", values)


def longs(*values: int) -> array[int]:
    return array("q", values)


@pytest.fixture
def held() -> _duplexkv.Engine:
    """An engine with one group that waits for turn 1."""
    made = engine()
    assert made.submit(_duplexkv.D2H, ints(0), ints(0), longs(0, 1), longs(1)) == 1
    return made


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((16, BLOCK_BYTES), np.int8),
        np.zeros((16, BLOCK_BYTES // 4), np.float32),
        np.zeros(16 * BLOCK_BYTES, np.uint8),
        np.zeros((16, BLOCK_BYTES, 1), np.uint8),
        np.zeros((32, BLOCK_BYTES), np.uint8)[::2],
        np.asfortranarray(np.zeros((16, BLOCK_BYTES), np.uint8)),
        [[0] * 8] * 8,
        None.__class__,
    ],
    ids=["int8", "float32", "1-D", "3-D", "strided", "column-major", "list", "class"],
)
def test_a_pool_of_another_kind_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError):
        engine(device=wrong)
    with pytest.raises(TypeError):
        engine(host=wrong)


def test_a_read_only_pool_is_refused() -> None:
    frozen = np.zeros((16, BLOCK_BYTES), np.uint8)
    frozen.flags.writeable = False
    with pytest.raises(TypeError):
        engine(host=frozen)


def test_pools_of_two_block_sizes_or_of_one_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="block_bytes"):
        engine(host=pool(32, BLOCK_BYTES * 2))
    both = pool(32)
    with pytest.raises(ValueError, match="share memory"):
        engine(device=both[:20], host=both[19:])


@pytest.mark.parametrize(
    "ids",
    [
        np.zeros(2, np.int64),
        np.zeros(2, np.uint32),
        np.zeros(2, np.float32),
        np.zeros((2, 1), np.int32),
        np.zeros(4, np.int32)[::2],
        array("q", (0, 1)),
        [0, 1],
        (0, 1),
        None,
    ],
    ids=["int64", "uint32", "float32", "2-D", "strided", "array q", "list", "tuple", "None"],
)
def test_ids_are_int32_and_never_converted(ids: object) -> None:
    link = engine()
    good = ints(2, 3)
    with pytest.raises(TypeError):
        link.submit(_duplexkv.D2H, ids, good, longs(0, 2), longs(-1))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        link.submit(_duplexkv.D2H, good, ids, longs(0, 2), longs(-1))  # type: ignore[arg-type]


def test_offsets_must_cut_the_ids_into_groups() -> None:
    link = engine()
    pair = ints(0, 1)
    for offsets in (longs(0, 1), longs(1, 2), longs(0, 3), longs(0)):
        with pytest.raises(ValueError, match="offsets"):
            link.submit(_duplexkv.D2H, pair, pair, offsets, longs(-1))
    with pytest.raises(ValueError, match="offsets"):
        link.submit(_duplexkv.D2H, ints(0, 1, 2), ints(0, 1, 2), longs(0, 2, 1, 3), longs(-1, -1, -1))
    with pytest.raises(ValueError, match="length"):
        link.submit(_duplexkv.D2H, pair, ints(0), longs(0, 2), longs(-1))
    with pytest.raises(ValueError, match="direction"):
        link.submit(2, pair, pair, longs(0, 2), longs(-1))
    with pytest.raises(TypeError):
        link.submit(-1, pair, pair, longs(0, 2), longs(-1))
    assert link.stats(_duplexkv.D2H)["queued_groups"] == 0


@pytest.mark.parametrize(
    ("tickets", "outcomes"),
    [
        (np.zeros(4, np.int32), np.zeros(4, np.uint8)),
        (np.zeros(4, np.int64), np.zeros(4, np.int64)),
        (np.zeros((4, 1), np.int64), np.zeros(4, np.uint8)),
    ],
)
def test_poll_wants_arrays_it_can_fill(tickets: NDArray[np.int64], outcomes: NDArray[np.uint8]) -> None:
    with pytest.raises(TypeError):
        engine().poll(tickets, outcomes)
    with pytest.raises(ValueError, match="length"):
        engine().poll(np.zeros(4, np.int64), np.zeros(3, np.uint8))


def test_poll_fills_no_more_than_there_is_room_for() -> None:
    link = engine()
    slots = ints(*range(5))
    link.submit(_duplexkv.D2H, slots, slots, longs(*range(6)), longs(*[-1] * 5))
    while link.stats(_duplexkv.D2H)["queued_groups"]:
        link.wait(1.0)
    tickets, outcomes = np.full(3, -7, np.int64), np.full(3, 99, np.uint8)
    assert link.poll(tickets[:2], outcomes[:2]) == 2
    assert tickets.tolist() == [1, 2, -7]
    assert outcomes.tolist() == [_duplexkv.DONE, _duplexkv.DONE, 99]
    assert link.poll(tickets, outcomes) == 3
    assert link.poll(tickets, outcomes) == 0


def test_wait_lets_other_threads_run(held: _duplexkv.Engine) -> None:
    """The waiting thread would hold the GIL for ever, if it held it: only the other one can mark."""
    landed: list[bool] = []
    waiter = threading.Thread(target=lambda: landed.append(held.wait(60.0)))
    waiter.start()
    held.mark(1)
    waiter.join(60.0)
    assert landed == [True]


def test_close_lets_other_threads_run_and_ends_their_wait(held: _duplexkv.Engine) -> None:
    landed: list[bool] = []
    waiter = threading.Thread(target=lambda: landed.append(held.wait(60.0)))
    waiter.start()
    held.close()
    waiter.join(60.0)
    assert landed == [True]  # the cancelled group is news
    tickets, outcomes = np.zeros(4, np.int64), np.zeros(4, np.uint8)
    assert held.poll(tickets, outcomes) == 1
    assert outcomes[0] == _duplexkv.CANCELLED
    assert not held.wait(60.0)


def test_poll_answers_at_once_while_a_group_is_held(held: _duplexkv.Engine) -> None:
    tickets, outcomes = np.zeros(1, np.int64), np.zeros(1, np.uint8)
    for _ in range(1000):
        assert held.poll(tickets, outcomes) == 0
    assert held.stats(_duplexkv.D2H)["unpolled_groups"] == 1


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_wait_refuses_what_is_no_time(held: _duplexkv.Engine, seconds: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        held.wait(seconds)


def test_the_engine_keeps_its_pools_alive() -> None:
    device, host = pool(4), pool(4)
    device[:] = 7
    link = engine(device, host)
    view = host[1:2]
    del device, host
    link.submit(_duplexkv.D2H, ints(2), ints(1), longs(0, 1), longs(-1))
    assert link.wait(60.0)
    del link
    assert (view == 7).all()


def test_a_poisoned_lane_fails_its_groups_and_refuses(held: _duplexkv.Engine) -> None:
    held.poison(_duplexkv.D2H)
    assert held.wait(60.0)
    tickets, outcomes = np.zeros(4, np.int64), np.zeros(4, np.uint8)
    assert held.poll(tickets, outcomes) == 1
    assert outcomes[0] == _duplexkv.FAILED
    with pytest.raises(_duplexkv.LinkError, match="poisoned"):
        held.submit(_duplexkv.D2H, ints(1), ints(1), longs(0, 1), longs(-1))
    assert held.submit(_duplexkv.H2D, ints(1), ints(1), longs(0, 1), longs(-1)) is not None


def run_alone(code: str) -> subprocess.CompletedProcess[str]:
    prelude = "from array import array\nimport os, numpy as np\nfrom superinfer_trt import _duplexkv as d\n"
    prelude += (
        "def engine(rate=0.0):\n"
        "    return d.Engine(d.allocate(64, 65536), d.allocate(64, 65536), d2h_bytes_per_s=rate,\n"
        "        h2d_bytes_per_s=rate, queue_groups_max=0, queue_bytes_max=0, slice_bytes_max=0)\n"
        "ids = array('i', range(64))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


@pytest.mark.parametrize(
    "ending",
    [
        "pass",
        "link.close()",
        "import gc; link = None; gc.collect()",
        "import sys; sys.exit(0)",
        "start(lambda: link.wait(0.2))",
        "start(lambda: link.wait(60.0))",
        "start(lambda: [link.wait(1e-4) for _ in forever])",
        "start(lambda: [(link.mark(1), link.stats(0), link.wait(0.0)) for _ in forever])",
        "start(lambda: [d.measure_copy() for _ in forever])",
        "start(lambda: link.wait(60.0)); start(link.close)",
    ],
)
def test_the_interpreter_ends_cleanly_while_copies_run(ending: str) -> None:
    """4 MiB at 1 MB/s are on their way; nobody waits for them, nothing crashes, nothing is printed.

    A daemon thread that is without the GIL when it ends would end the process.
    """
    done = run_alone(
        f"""
        import itertools, threading
        forever = itertools.count()
        start = lambda work: threading.Thread(target=work, daemon=True).start()
        link = engine(1e6)
        link.submit(d.D2H, ids, ids, array('q', (0, 64)), array('q', (-1,)))
        {ending}
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_child_of_a_fork_is_refused_and_ends_cleanly() -> None:
    done = run_alone(
        """
        link = engine(1e7)
        link.submit(d.D2H, ids, ids, array('q', (0, 64)), array('q', (-1,)))
        child = os.fork()
        if child == 0:
            calls = (lambda: link.submit(d.D2H, ids, ids, array('q', (0, 64)), array('q', (-1,))),
                     lambda: link.mark(1), lambda: link.wait(9.0), lambda: link.stats(0), link.close,
                     lambda: link.poll(np.zeros(1, np.int64), np.zeros(1, np.uint8)))
            refused = 0
            for call in calls:
                try:
                    call()
                except d.LinkError as error:
                    refused += 'fork' in str(error)
            del link
            raise SystemExit(0 if refused == len(calls) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        assert link.wait(60.0)
        """
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr


def test_a_child_does_not_wait_for_the_threads_of_its_parent() -> None:
    """A thread of the parent was in a wait when it forked; the child has none, and ends."""
    done = run_alone(
        """
        import threading
        link = engine()
        link.submit(d.D2H, ids, ids, array('q', (0, 64)), array('q', (1,)))
        waiter = threading.Thread(target=lambda: link.wait(60.0))
        waiter.start()
        child = os.fork()
        if child == 0:
            raise SystemExit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        link.mark(1)
        waiter.join()
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_group_alone_needs_no_arrays_around_it(held: _duplexkv.Engine) -> None:
    assert held.submit_group(_duplexkv.D2H, ints(1, 2), ints(3, 4), 1, 0) == 2
    assert held.submit_group(_duplexkv.H2D, ints(9), ints(9), -1, _duplexkv.EAGER) == 3
    with pytest.raises(ValueError, match="length"):
        held.submit_group(_duplexkv.D2H, ints(1, 2), ints(3), 1, 0)
    with pytest.raises(ValueError, match="without blocks"):
        held.submit_group(_duplexkv.D2H, ints(), ints(), 1, 0)
    with pytest.raises(TypeError):
        held.submit_group(_duplexkv.D2H, longs(1), ints(3), 1, 0)  # type: ignore[arg-type]
    held.mark(1)
    tickets, outcomes = np.zeros(4, np.int64), np.zeros(4, np.uint8)
    told: list[int] = []
    while len(told) < 3:
        assert held.wait(60.0)
        told += tickets[: held.poll(tickets, outcomes)].tolist()
    assert sorted(told) == [1, 2, 3]


def test_arrays_of_the_machine_s_own_integers_are_taken_in_place() -> None:
    """numpy and array.array, read-only too; bytes in the other order are another kind."""
    link = engine()
    frozen = np.array([5], np.int32)
    frozen.flags.writeable = False
    assert link.submit_group(_duplexkv.D2H, frozen, memoryview(ints(5)), -1, 0) == 1  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        link.submit_group(_duplexkv.D2H, np.array([6], ">i4"), ints(6), -1, 0)
    with pytest.raises(TypeError):
        link.poll(np.zeros(1, np.int64)[:], bytes(1))  # type: ignore[arg-type]


def test_the_module_says_its_version() -> None:
    assert _duplexkv.version() >> 16 == 0
