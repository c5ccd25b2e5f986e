"""Throughput under forced rotation against no rotation, on the same batches, on a rate-limited link.

In the first run of a pair HBM holds a part of the requests, so that they rotate all the time. In the second
it holds everybody and the batches of the first are run again, row by row and turn by turn, so that the two
differ by nothing but rotation: its copies, its planning, its bookkeeping. The ratio is taken pair by pair,
over the stretch in which all are under way, from the last first token to the first last one. Physical limit:
the link moves at most its rate each way; the copies steal cycles from the compute threads, since HBM and
DRAM are the same memory here.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from random import Random
from statistics import median

from harness import Recorded, Replayed, Setting, report, run

from superinfer_trt.core.request import Request, Sampling
from superinfer_trt.core.units import RequestId
from superinfer_trt.model.open import open_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=192)
    parser.add_argument("--stint", type=int, default=16, help="min_stint_tokens of the rotating run")
    parser.add_argument("--resident", type=int, default=9, help="requests that HBM holds when rotating")
    parser.add_argument("--link-bytes-per-s", type=float, default=2e9)
    parser.add_argument("--pairs", type=int, default=11)
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
    wide = replace(tight, hbm_blocks=everybody, dram_blocks=0)
    ratios, unrotated_rates, rotated_rates = [], [], []
    for _ in range(options.pairs):
        recorded = Recorded(tight)
        rotating = run(weights, tight, requests, recorded)
        resting = run(weights, wide, requests, Replayed(recorded))
        assert resting.tokens == rotating.tokens, "rotation has changed a token"
        assert resting.totals.batches == rotating.totals.batches
        rotated, batch = rotating.decode()
        unrotated, same_batch = resting.decode()
        assert same_batch == batch
        unrotated_rates.append(unrotated)
        rotated_rates.append(rotated)
        ratios.append(rotated / unrotated)
    blocks = rotating.totals.link_out_blocks + rotating.totals.link_in_blocks
    block_bytes = weights.config.geometry(16, 2).block_bytes
    report(
        {
            "benchmark": "rotation",
            "clients": options.clients,
            "stint_tokens": options.stint,
            "link_bytes_per_s": options.link_bytes_per_s,
            "unrotated_tokens_per_s": median(unrotated_rates),
            "rotated_tokens_per_s": median(rotated_rates),
            "ratio": median(ratios),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "rotations": rotating.totals.rotations_out,
            "mean_batch": batch,
            "link_gbytes": blocks * block_bytes / 1e9,
            "link_gbytes_per_s": blocks * block_bytes / 1e9 / rotating.wall_s,
        },
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
