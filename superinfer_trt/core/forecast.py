"""How long the next step will take, as a straight line in what it carries. Data in a View.

Linear in rows, prefill tokens and context tokens: near the working point every engine is. Who fits it is
no concern of the core (runtime.step_fit does). Immutable, any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from superinfer_trt.core.units import Nanos


@dataclass(frozen=True, slots=True)
class StepForecast:
    """Nanoseconds of a step = base + row * rows + token * prefill tokens + context * context tokens.

    All four terms are >= 0, `token_ns` is > 0. The defaults stand until something was measured: 10 ms and
    a prefill of 5,000 tokens/s, slow enough for an unknown engine. `steps`: how many steps it was fitted
    to. `fastest_token_ns`: of a prefill token in the fastest step with many of them; 0: none was seen.
    """

    base_ns: float = 10_000_000.0
    row_ns: float = 50_000.0  # a request in the batch, decoding or in prefill
    token_ns: float = 200_000.0  # a token of a prefill chunk
    context_ns: float = 10.0  # a token of KV that a row finds already written
    steps: int = 0
    fastest_token_ns: float = 0.0

    def step_ns(self, rows: int, prefill_tokens: int, context_tokens: int) -> Nanos:
        """How long such a step takes."""
        work = self.row_ns * rows + self.token_ns * prefill_tokens + self.context_ns * context_tokens
        return int(self.base_ns + work)

    def prefill_ns_least(self, tokens: int) -> Nanos:
        """What prefilling `tokens` takes at least: the less of what the line says and of what the fastest
        step says. 0 where too little was measured to say anything."""
        if not self.fastest_token_ns:
            return 0
        return int(min(self.base_ns + self.token_ns * tokens, self.fastest_token_ns * tokens))

    def prefill_tokens(self, within_ns: Nanos, rows: int, context_tokens: int) -> int:
        """Prefill tokens that a step of `rows` rows may carry and still end within `within_ns`; >= 0."""
        left = within_ns - (self.base_ns + self.row_ns * rows + self.context_ns * context_tokens)
        return max(0, int(left / self.token_ns))
