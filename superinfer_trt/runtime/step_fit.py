"""Learns how long a step takes from the steps that were run; makes the forecast of a view.

Least squares over exponentially forgotten sums: a step counts 0.98 of the next one, so about 50 steps are
remembered, enough to follow the working point of an engine that is no straight line. A weak pull towards
`StepForecast`'s defaults decides what the data leave open (rows and context grow together). Coefficients
below 0 make no sense and are left out one by one. Plain floats in a fixed order: the same samples give the
same forecast. O(1) a step. Knows no clock, batch or policy. Not thread-safe.
"""

from __future__ import annotations

from superinfer_trt.core.forecast import StepForecast
from superinfer_trt.core.units import MILLISECOND, Nanos

FORGETTING = 0.98
PULL = 1e-3
"""Weight of the defaults, in samples of a typical step."""

MANY_TOKENS = 64
"""Prefill tokens of a step that shows how fast prefill can be."""

MANY_STEPS = 8
"""Such steps before it is believed."""

_SCALES = (1.0, 256.0, 512.0, 131_072.0)  # of a typical step: 1, rows, prefill tokens, context tokens
_TOKEN_NS_MIN = 1.0
_SIZE = len(_SCALES)


class StepFit:
    """Feed it every step; `forecast` is what a view shows."""

    __slots__ = ("_fastest", "_many", "_moments", "_prior", "_products", "_steps", "forecast")

    def __init__(self) -> None:
        self.forecast = StepForecast()
        first = self.forecast
        natural = (first.base_ns, first.row_ns, first.token_ns, first.context_ns)
        self._prior = [c * scale / MILLISECOND for c, scale in zip(natural, _SCALES, strict=True)]
        self._products = [[0.0] * _SIZE for _ in range(_SIZE)]  # sum of x x'
        self._moments = [0.0] * _SIZE  # sum of x y, y in milliseconds
        self._steps = 0
        self._many = 0
        self._fastest = 0.0  # nanoseconds of a prefill token, of the fastest step of many; never forgotten

    def add(self, rows: int, prefill_tokens: int, context_tokens: int, took: Nanos) -> None:
        """A step of that work took `took` nanoseconds."""
        sample = (1.0, rows / _SCALES[1], prefill_tokens / _SCALES[2], context_tokens / _SCALES[3])
        milliseconds = took / MILLISECOND
        for i, x in enumerate(sample):
            row = self._products[i]
            for j, y in enumerate(sample):
                row[j] = FORGETTING * row[j] + x * y
            self._moments[i] = FORGETTING * self._moments[i] + x * milliseconds
        self._steps += 1
        if prefill_tokens >= MANY_TOKENS and took > 0:
            self._many += 1
            token_ns = took / prefill_tokens
            self._fastest = min(self._fastest, token_ns) if self._fastest else token_ns
        fitted = self._solve()
        natural = [c * MILLISECOND / scale for c, scale in zip(fitted, _SCALES, strict=True)]
        base_ns, row_ns, token_ns, context_ns = natural
        token_ns = max(token_ns, _TOKEN_NS_MIN)
        fastest = self._fastest if self._many >= MANY_STEPS else 0.0
        self.forecast = StepForecast(base_ns, row_ns, token_ns, context_ns, self._steps, fastest)

    def _solve(self) -> list[float]:
        """Coefficients >= 0: the most negative one is left out until none is."""
        kept = list(range(_SIZE))
        while kept:
            found = _gauss(
                [[self._products[i][j] + (PULL if i == j else 0.0) for j in kept] for i in kept],
                [self._moments[i] + PULL * self._prior[i] for i in kept],
            )
            least = min(found)
            if least >= 0.0:
                break
            del kept[found.index(least)]
        else:
            found = []
        result = [0.0] * _SIZE
        for index, value in zip(kept, found, strict=True):
            result[index] = value
        return result


def _gauss(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solves a positive definite system; no pivots are needed then. Destroys what it is given."""
    size = len(right)
    for i in range(size):
        top, pivot = matrix[i], matrix[i][i]
        for k in range(i + 1, size):
            factor = matrix[k][i] / pivot
            row = matrix[k]
            for j in range(i, size):
                row[j] -= factor * top[j]
            right[k] -= factor * right[i]
    result = [0.0] * size
    for i in range(size - 1, -1, -1):
        known = sum(matrix[i][j] * result[j] for j in range(i + 1, size))
        result[i] = (right[i] - known) / matrix[i][i]
    return result
