"""Throughput under forced rotation against no rotation, at equal batch, on a rate-limited link.

Both runs decode requests of the same lengths. In the first, HBM holds a part of them, so that everybody
rotates all the time; in the second it holds everybody, and its seats are the mean batch of the first,
rounded up, so that the steps are of the same size or larger. Runs alternate, and the ratio is taken pair
by pair. Physical limit: the link moves at most its rate each way; the copies steal cycles from the compute
threads, since HBM and DRAM are the same memory here.
"""

from __future__ import annotations

import argparse
from math import ceil
from random import Random
from statistics import median

from harness import Ran, Setting, report, run

from superinfer_trt.core.request import Request, Sampling
from superinfer_trt.core.units import RequestId
from superinfer_trt.model.open import open_model


def mean_batch(ran: Ran) -> float:
    """Rows of a step, on average; a prefill chunk counts as the one token it may yield."""
    return ran.output_tokens / ran.totals.batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--stint", type=int, default=16, help="min_stint_tokens of the rotating run")
    parser.add_argument("--resident", type=int, default=9, help="requests that HBM holds when rotating")
    parser.add_argument("--link-bytes-per-s", type=float, default=2e9)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    weights = open_model(options.model).weights
    random = Random(1)
    requests = [
        Request(
            RequestId(index),
            tuple(random.randrange(256, weights.config.vocabulary) for _ in range(options.prompt)),
            Sampling(max_tokens=options.tokens),
        )
        for index in range(options.clients)
    ]
    each = -(-(options.prompt + options.tokens) // 16)
    everybody = options.clients * each
    tight = Setting(
        "rotasched",
        {"min_stint_tokens": options.stint},
        hbm_blocks=options.resident * each,
        dram_blocks=2 * everybody,
        link_bytes_per_s=options.link_bytes_per_s,
        depth=options.depth,
    )
    pairs: list[tuple[Ran, Ran]] = []
    for _ in range(options.pairs):
        rotated = run(weights, tight, requests)
        seats = ceil(mean_batch(rotated))
        roomy = Setting("fcfs", hbm_blocks=everybody, seats=seats, depth=options.depth)
        full = len(requests) // seats * seats  # whole rounds, so that no round is half empty
        unrotated = run(weights, roomy, requests[:full])
        assert all(rotated.tokens[id] == tokens for id, tokens in unrotated.tokens.items())
        pairs.append((unrotated, rotated))
    rotating = pairs[-1][1]
    blocks = rotating.totals.link_out_blocks + rotating.totals.link_in_blocks
    block_bytes = weights.config.geometry(16, 2).block_bytes
    report(
        {
            "benchmark": "rotation",
            "clients": options.clients,
            "stint_tokens": options.stint,
            "link_bytes_per_s": options.link_bytes_per_s,
            "unrotated_tokens_per_s": median(a.tokens_per_s for a, _ in pairs),
            "rotated_tokens_per_s": median(b.tokens_per_s for _, b in pairs),
            "ratio": median(b.tokens_per_s / a.tokens_per_s for a, b in pairs),
            "ratios": [round(b.tokens_per_s / a.tokens_per_s, 3) for a, b in pairs],
            "rotations": rotating.totals.rotations_out,
            "mean_batch_unrotated": mean_batch(pairs[-1][0]),
            "mean_batch_rotated": mean_batch(rotating),
            "link_gbytes": blocks * block_bytes / 1e9,
            "link_gbytes_per_s": blocks * block_bytes / 1e9 / rotating.wall_s,
        },
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
