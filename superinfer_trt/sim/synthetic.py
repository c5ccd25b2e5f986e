"""Lengths of requests without a trace: mixtures of lognormals fitted to public ones, by name.

Fitted by expectation maximisation to the logarithms of each trace's lengths; prompt and output are drawn
independently. tests/unit/sim compares the quantiles. Knows no file. Any thread.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sim.lengths import Lengths


@dataclass(frozen=True, slots=True)
class Mixture:
    """Lognormals as (weight, mean of the logarithm, deviation of it); draws are kept inside low..high."""

    parts: tuple[tuple[float, float, float], ...]
    low: int
    high: int

    def draw(self, source: random.Random) -> int:
        """One length."""
        (part,) = source.choices(self.parts, [weight for weight, _, _ in self.parts])
        _, mean, deviation = part
        value = math.exp(min(source.gauss(mean, deviation), 40.0))
        return min(max(round(value), self.low), self.high)


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A named pair of mixtures."""

    prompt: Mixture
    output: Mixture


SYNTHETIC: Mapping[str, Synthetic] = MappingProxyType(
    {
        # ShareGPT prompts with the replies of Llama-3-8B-Instruct, as the paper replays them.
        "sharegpt": Synthetic(
            Mixture(((0.306, 3.148, 0.366), (0.286, 4.509, 0.781), (0.408, 6.112, 0.418)), 11, 1009),
            Mixture(((0.164, 4.444, 1.291), (0.405, 5.693, 0.37), (0.431, 6.329, 0.353)), 4, 6335),
        ),
        # Azure's conversation service, 2023: prompts crowd at 400, 1,050 and 4,100 tokens.
        "azure-conversation": Synthetic(
            Mixture(
                (
                    *((0.04, 4.471, 1.358), (0.368, 5.81, 0.351), (0.114, 7.616, 0.35)),
                    *((0.007, 8.522, 0.179), (0.074, 8.316, 0.005), (0.397, 6.991, 0.098)),
                ),
                2,
                14050,
            ),
            Mixture(((0.435, 4.573, 0.364), (0.284, 4.727, 1.021), (0.281, 6.006, 0.05)), 7, 1000),
        ),
        # Summaries of papers: long prompts, short outputs.
        "arxiv": Synthetic(
            Mixture(((0.087, 6.05, 1.558), (0.522, 7.69, 0.306), (0.391, 8.122, 0.105)), 1, 4054),
            Mixture(((0.309, 5.033, 0.821), (0.653, 5.1, 0.446), (0.038, 7.893, 0.26)), 5, 4056),
        ),
        # Mooncake's conversations: very long prompts.
        "mooncake": Synthetic(
            Mixture(((0.082, 6.804, 0.01), (0.117, 7.156, 0.237), (0.801, 9.165, 0.927)), 891, 126195),
            Mixture(((0.24, 3.442, 1.487), (0.293, 5.739, 0.658), (0.466, 6.06, 0.269)), 1, 2000),
        ),
    }
)


def synthetic_lengths(name: str, count: int, seed: int) -> list[Lengths]:
    """`count` rows of the mixture called `name`. Raises ConfigError, which lists what is known."""
    if name not in SYNTHETIC:
        raise ConfigError(
            f"trace: {name!r} is neither a file nor a synthetic workload ({', '.join(SYNTHETIC)})"
        )
    source = random.Random(seed)
    made = SYNTHETIC[name]
    return [Lengths(made.prompt.draw(source), made.output.draw(source)) for _ in range(count)]
