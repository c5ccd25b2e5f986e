"""A fake GPU: a stream that executes late, and a model whose tokens depend on every byte of its KV.

The stream runs what was put on it in order, but as late as the host lets it (or earlier, by a seed): what
a host does without waiting therefore really happens before the work in the air, and a missing wait shows as
a wrong token. The model writes one word a token, layer and side into the blocks it was given and folds all
words of the sequence into the next token. Source of the order of work: PyExecutor's loops, about 1.2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

import numpy as np
from numpy.typing import NDArray

LAYERS, SIDES = 2, 2
VOCABULARY = 61
_MIX = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Stream:
    """`execution_stream`: work in order, executed when somebody synchronises, or by chance before."""

    def __init__(self, seed: int = 0, *, eager: float = 0.0) -> None:
        self._work: deque[Callable[[], None]] = deque()
        self._random = Random(seed)
        self._eager = eager
        self._newest_batch = 0
        self._behind: dict[int, list[Callable[[], None]]] = {}
        self.done = 0
        self.put = 0

    def enqueue(self, work: Callable[[], None]) -> int:
        """Returns an event: a count for `synchronize`."""
        self._work.append(work)
        self.put += 1
        while self._work and self._random.random() < self._eager:
            self._run_one()
        return self.put

    def synchronize(self, event: int | None = None) -> None:
        """The host waits until everything up to `event` has run."""
        until = self.put if event is None else event
        while self.done < until:
            self._run_one()

    def launch(self, batch: Callable[[], None]) -> int:
        """As `enqueue`, for a batch of the model."""
        self._newest_batch = self.put + 1
        return self.enqueue(batch)

    def behind_batches(self, work: Callable[[], None]) -> None:
        """Runs right behind the batches launched so far, whatever else was put on the stream after them."""
        if self._newest_batch <= self.done:
            work()
        else:
            self._behind.setdefault(self._newest_batch, []).append(work)

    def advance(self) -> None:
        """Time passes: one piece of work is done, if there is one."""
        if self._work:
            self._run_one()

    def _run_one(self) -> None:
        work = self._work.popleft()
        work()
        self.done += 1
        for follower in self._behind.pop(self.done, ()):
            follower()


def words(token: int, position: int) -> NDArray[np.uint64]:
    """KV of one token: [LAYERS, SIDES], each word different."""
    base = ((token + 1) * 0xBF58476D1CE4E5B9 + (position + 1) * _MIX) & _MASK
    flat = [((base ^ (base >> 29)) * (2 * part + 3)) & _MASK for part in range(LAYERS * SIDES)]
    return np.array(flat, np.uint64).reshape(LAYERS, SIDES)


def next_token(kv: NDArray[np.uint64]) -> int:
    """The token that follows a sequence whose KV is [positions, LAYERS, SIDES]."""
    weights = np.arange(1, kv.size + 1, dtype=np.uint64) * np.uint64(_MIX)
    with np.errstate(over="ignore"):
        folded = int(np.bitwise_xor.reduce((kv.reshape(-1) ^ weights) * np.uint64(0x94D049BB133111EB)))
    return (folded ^ (folded >> 31) ^ (folded >> 47)) % VOCABULARY


def expected_output(prompt: list[int], max_new_tokens: int, end_id: int = -1) -> list[int]:
    """What the model says without any cache: the reference of all tests."""
    tokens = list(prompt)
    kv = [words(token, position) for position, token in enumerate(tokens)]
    while len(tokens) < len(prompt) + max_new_tokens:
        token = next_token(np.stack(kv))
        tokens.append(token)
        kv.append(words(token, len(tokens) - 1))
        if token == end_id:
            break
    return tokens[len(prompt) :]


class Tensor:
    """As much of a torch tensor as a contract check looks at."""

    def __init__(self, array: NDArray[np.uint64]) -> None:
        self.array = array
        self.shape = array.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def element_size(self) -> int:
        return self.array.itemsize

    def data_ptr(self) -> int:
        return self.array.ctypes.data
