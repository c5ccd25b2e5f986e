"""Chance from a seed and a request id: the same draw for the same request, whoever asks and when.

Policies are pure, so predictors cannot keep a generator. Integer arithmetic (splitmix64), equal on every
machine. Stateless, any thread.
"""

from __future__ import annotations

from functools import lru_cache

_MASK = (1 << 64) - 1
RANGE = 1 << 32
"""Draws of `uniform` are below it."""


def _mixed(word: int) -> int:
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)


def uniform(seed: int, id: int, draw: int) -> int:
    """Number `draw` of request `id`: evenly in 0 .. RANGE - 1."""
    word = seed & _MASK
    for part in (id, draw):
        word = _mixed((word + 0x9E3779B97F4A7C15 * (part + 1)) & _MASK)
    return word >> 32


@lru_cache(maxsize=1 << 16)
def normal(seed: int, id: int) -> float:
    """Of mean 0 and standard deviation 1: the sum of twelve even draws, so never beyond 6. Remembered, for
    a policy that ranks by it asks every turn (two thirds of a simulated run of `ltr`)."""
    return sum(uniform(seed, id, draw) for draw in range(12)) / RANGE - 6.0
