"""C12 as clients see it: the embedded engine under each policy, with everything a client may ask for.

A crowd is 100 requests of random prompts: greedy and sampled, min_p, penalties and forbidden ids; some
clients stop at a stop string in their text, some go away after a few tokens. HBM from 1.2 x the largest
request upward, prompts in chunks, both depths and dtypes. What each client reads equals what it reads when
nobody ever leaves HBM. `--crowds 10` compares 1,000 requests under each policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from random import Random

import numpy as np
import pytest

from ranks.test_rank_world import UNEVEN, run_native
from superinfer_trt.core.request import FinishReason, Request
from superinfer_trt.core.units import MILLISECOND, RequestId
from superinfer_trt.core.view import Limits
from superinfer_trt.engine.native import NativeEngine, element_bytes_for
from superinfer_trt.sched.registry import POLICIES, make_policy
from superinfer_trt.serve.text import StopMatcher
from superinfer_trt.transfer.native import DuplexLink
from superinfer_trt.transfer.pools import allocate_pool
from support.random_weights import RandomWeights
from support.requests import random_requests
from support.world import RESERVING, Box, BoxClock, HashingEngine, Result

BLOCK = 16
COUNT = 100
VOCABULARY = 200
FACTORS = (1.2, 1.5, 2.0, 3.0)
NEVER = 1_000_000


def text_of(token: int) -> str:
    """Two letters a token, so that stop strings begin and end anywhere in it."""
    return "abcd"[token % 4] + "xyz"[token // 4 % 3]


@dataclass
class Client:
    """Reads one request, as the service does for it: stops at a stop string, or leaves after some tokens."""

    stops: tuple[str, ...] = ()
    leaves_after: int = NEVER
    read: int = 0
    text: str = ""
    gone: bool = False
    matcher: StopMatcher = field(init=False)

    def __post_init__(self) -> None:
        self.matcher = StopMatcher(self.stops)

    def hear(self, tokens: list[int]) -> FinishReason | None:
        """Reads on; why it wants to end, if it does."""
        while self.read < len(tokens) and self.matcher.matched is None and not self.gone:
            self.text += self.matcher.push(text_of(tokens[self.read]))
            self.read += 1
            self.gone = self.read >= self.leaves_after
        if self.matcher.matched is not None:
            return FinishReason.STOP
        return FinishReason.CANCELLED if self.gone else None


@cache
def requests_of(crowd: int) -> list[Request]:
    random = Random(crowd)

    def asked(request: Request) -> Request:
        if random.random() < 0.4:
            return request
        return replace(
            request,
            sampling=replace(
                request.sampling,
                min_p=random.choice((0.0, 0.05)),
                repetition_penalty=random.choice((1.0, 1.3)),
                presence_penalty=random.choice((0.0, 0.2)),
                frequency_penalty=random.choice((0.0, 0.1)),
                stop_ids=frozenset(random.sample(range(VOCABULARY), 4)),
                min_tokens=request.sampling.max_tokens // 3,
            ),
        )

    return [asked(r) for r in random_requests(1_000 + crowd, COUNT, vocabulary=VOCABULARY, span_ms=400)]


def clients_of(crowd: int) -> dict[RequestId, Client]:
    random = Random(-1 - crowd)
    clients = {}
    for request in requests_of(crowd):
        kind = random.random()
        stops = tuple("".join(random.choice("abcdxyz") for _ in range(n)) for n in (2, 3, 5))
        clients[request.id] = (
            Client(stops=stops)
            if kind < 0.2
            else Client(leaves_after=random.randint(1, 12))
            if kind < 0.35
            else Client()
        )
    return clients


def largest_blocks(requests: list[Request]) -> int:
    return max(-(-(len(r.prompt) + r.sampling.max_tokens) // BLOCK) for r in requests)


def run(
    crowd: int, policy: str, limits: Limits, depth: int, dtype: str
) -> tuple[Result, dict[RequestId, Client]]:
    """One world over real bytes; and what its clients read."""
    model = RandomWeights()
    geometry = model.config.geometry(BLOCK, element_bytes_for(dtype))
    device = allocate_pool(limits.device_blocks, geometry.block_bytes)
    host = allocate_pool(max(1, limits.host_blocks), geometry.block_bytes)
    link = DuplexLink(device, host, h2d_bytes_per_s=0, d2h_bytes_per_s=0)
    clock = BoxClock()
    inner = NativeEngine(model, device, block_tokens=BLOCK, dtype=dtype, threads=1)
    engine = HashingEngine(inner, device, clock, step_ns=8 * MILLISECOND)
    clients = clients_of(crowd)
    done: set[RequestId] = set()

    def listen(box: Box) -> None:
        for id, tokens in box.streams.tokens.items():
            if id in done:
                continue
            wish = clients[id].hear(tokens)
            if wish is not None:
                box.inbox.cancel(id, wish)
            if wish is not None or id in box.streams.endings:
                done.add(id)

    try:
        box = Box(make_policy(policy), engine, link, limits, depth=depth, clock=clock)
        return box.run(requests_of(crowd), each_turn=listen), clients
    finally:
        link.close()
        engine.close()


@cache
def unrotated(crowd: int, dtype: str) -> tuple[Result, dict[RequestId, Client]]:
    """Everybody fits, nobody leaves HBM, and prompts are not cut: what is right."""
    limits = Limits(100_000, COUNT, BLOCK, COUNT * largest_blocks(requests_of(crowd)), 0)
    result, clients = run(crowd, "fcfs", limits, 1, dtype)
    assert not result.rotations + result.evictions
    return result, clients


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_client_reads_the_same(policy: str, crowd: int) -> None:
    which = sorted(POLICIES).index(policy) + crowd
    dtype, depth, factor = ("bf16", "fp32")[which % 2], 1 + which // 2 % 2, FACTORS[which % len(FACTORS)]
    hbm_blocks = int(np.ceil(factor * largest_blocks(requests_of(crowd))))
    rotates = make_policy(policy).rotates
    limits = Limits((24, 64)[which % 2], 16, BLOCK, hbm_blocks, 12 * hbm_blocks if rotates else 0)
    expected, wanted = unrotated(crowd, dtype)
    result, clients = run(crowd, policy, limits, depth, dtype)
    assert len(result.endings) == COUNT
    for id, client in clients.items():
        told, right = result.tokens[id], expected.tokens[id]
        shorter = min(len(told), len(right))
        assert told[:shorter] == right[:shorter], f"request {id} went another way"
        assert client.text == wanted[id].text
        assert client.read == wanted[id].read
        assert client.matcher.matched == wanted[id].matcher.matched
        if not client.gone and client.matcher.matched is None:
            assert told == right
            assert result.endings[id].reason is expected.endings[id].reason
    assert sum(client.gone for client in clients.values()) > 3
    assert sum(client.matcher.matched is not None for client in clients.values()) > 3
    left = result.rotations + result.evictions
    assert left == 0 if policy in RESERVING else left > 0, "the pressure was too low to show anything"


@pytest.mark.parametrize("policy", ["rota-slack", "rotasched", "swapped-first"])
def test_two_ranks_read_the_same(policy: str, crowd: int) -> None:
    """TP = 2: every request of a quarter of a crowd, greedy, sampled and penalised, on two ranks of unequal
    shares, is told the same with HBM for a few as with HBM for all; and the KV of each rank is the same."""
    requests = [within(UNEVEN.vocabulary, request) for request in requests_of(crowd)[:25]]
    hbm_blocks = int(np.ceil(1.2 * largest_blocks(requests)))
    dtype = ("bf16", "fp32")[crowd % 2]
    left, hashes = run_native(UNEVEN, 2, requests, policy=policy, hbm_blocks=hbm_blocks, dtype=dtype)
    stayed, expected = ranks_unrotated(crowd, dtype, tuple(requests))
    assert left.totals[0].rotations_out > 0
    assert left.streams.tokens == stayed
    assert hashes == expected
    assert all(e.reason is not FinishReason.FAILED for e in left.streams.endings.values())


def within(vocabulary: int, request: Request) -> Request:
    """The same for a smaller vocabulary, and at once."""
    stop_ids = frozenset(token % vocabulary for token in request.sampling.stop_ids)
    prompt = tuple(token % vocabulary for token in request.prompt)
    return replace(request, prompt=prompt, arrival=0, sampling=replace(request.sampling, stop_ids=stop_ids))


@cache
def ranks_unrotated(crowd: int, dtype: str, requests: tuple[Request, ...]):
    world, hashes = run_native(UNEVEN, 2, list(requests), policy="fcfs", hbm_blocks=400, dtype=dtype)
    assert not world.totals[0].rotations_out + world.totals[0].evictions
    return world.streams.tokens, hashes
