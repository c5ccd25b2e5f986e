"""Random requests from a seed."""

from __future__ import annotations

from random import Random

from superinfer_trt.core.request import Request, Sampling
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND, RequestId


def random_requests(
    seed: int,
    count: int,
    *,
    vocabulary: int,
    prompt_max: int = 120,
    output_max: int = 60,
    span_ms: int = 2_000,
    sampled: bool = True,
) -> list[Request]:
    """`count` requests with lengths skewed to the short side, arriving over `span_ms`."""
    random = Random(seed)
    requests = []
    for index in range(count):
        prompt = 1 + int(prompt_max * random.random() ** 2)
        hot = sampled and random.random() < 0.5
        sampling = Sampling(
            max_tokens=1 + int(output_max * random.random() ** 2),
            temperature=0.8 if hot else 0.0,
            top_k=random.choice((0, 40)) if hot else 0,
            top_p=random.choice((1.0, 0.9)) if hot else 1.0,
            seed=random.getrandbits(64),
        )
        requests.append(
            Request(
                RequestId(index),
                tuple(random.randrange(vocabulary) for _ in range(prompt)),
                sampling,
                Slo(random.choice((50, 400, 5_000)) * MILLISECOND, random.choice((5, 30, 100)) * MILLISECOND),
                arrival=random.randrange(span_ms) * MILLISECOND,
                tenant=random.choice(("a", "b")),
            )
        )
    return requests
