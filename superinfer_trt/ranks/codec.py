"""A turn as flat 64-bit words, and back, exactly. Pure.

What goes out is a buffer that MPI sends as it is: a pickle of the same plan takes many times as long
(benchmarks/ranks.py), and what comes from another machine is not unpickled.

    plan     turn, now, a count for each of the eight fields, then their numbers in core.plan.Plan's order;
             a rejection is its id, the bytes of its reason and the reason, padded to words
    request  tokens of the prompt, stop ids, bytes of the tenant; id, arrival, objectives; _INTEGERS of its
             sampling, _REALS as the bits of doubles; then prompt, stop ids and tenant, padded to words
    message  kind, words of the plan, cancels, requests; then these three
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import cast

from superinfer_trt.core.plan import Chunk, Plan, Rejection, SyncRun
from superinfer_trt.core.request import FinishReason, Request, Sampling
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import RequestId

WORD_BYTES = 8
_TURN, _STOP = 1, 2
_REASONS = tuple(FinishReason)
_HEAD = 10  # words of a plan before its numbers
_INTEGERS = ("max_tokens", "top_k", "seed", "logprobs", "min_tokens")
_REALS = (
    *("temperature", "top_p", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
_integers, _reals = attrgetter(*_INTEGERS), attrgetter(*_REALS)
_SIGN = 1 << 63  # a seed is unsigned, a word is not


@dataclass(frozen=True, slots=True)
class Turn:
    """What rank 0 tells of a turn: who came, who is to end, and what is done. `plan.now` is the time."""

    plan: Plan
    requests: Sequence[Request] = ()
    cancels: Sequence[tuple[RequestId, FinishReason]] = ()


@dataclass(frozen=True, slots=True)
class Stop:
    """The last message: no turn follows."""


def plan_words(plan: Plan) -> array[int]:
    """The plan as 64-bit words. Raises OverflowError for a number that does not fit."""
    words = array(
        "q",
        (
            *(plan.turn, plan.now, len(plan.admit), len(plan.prefill), len(plan.decode)),
            *(len(plan.rotate_out), len(plan.rotate_in), len(plan.sync), len(plan.evict), len(plan.reject)),
        ),
    )
    words.extend(plan.admit)
    words.extend(chain.from_iterable((c.id, c.start, c.length) for c in plan.prefill))
    words.extend(plan.decode)
    words.extend(plan.rotate_out)
    words.extend(plan.rotate_in)
    words.extend(chain.from_iterable((s.id, s.first, s.count) for s in plan.sync))
    words.extend(plan.evict)
    for rejection in plan.reject:
        reason = rejection.reason.encode("utf-8", "surrogatepass")
        words.extend((rejection.id, len(reason)))
        words.extend(_words(reason))
    return words


def plan_of(words: array[int]) -> Plan:
    """The plan of `plan_words`, exactly. Raises ValueError for anything else."""
    if len(words) < _HEAD:
        raise ValueError(f"{len(words)} words are no plan")
    turn, now, *counts = words[:_HEAD]
    if min(counts) < 0 or max(counts) > len(words):
        raise ValueError("a count of the plan does not fit its length")
    admit, prefill, decode, out, back, sync, evict, reject = counts
    reader = _Reader(words, _HEAD)
    plan = Plan(
        turn=turn,
        now=now,
        admit=reader.ids(admit),
        prefill=tuple(Chunk(RequestId(id), start, length) for id, start, length in reader.triples(prefill)),
        decode=reader.ids(decode),
        rotate_out=reader.ids(out),
        rotate_in=reader.ids(back),
        sync=tuple(SyncRun(RequestId(id), first, count) for id, first, count in reader.triples(sync)),
        evict=reader.ids(evict),
        reject=tuple(reader.rejection() for _ in range(reject)),
    )
    reader.end()
    return plan


def message_words(message: Turn | Stop) -> array[int]:
    """A message as 64-bit words."""
    if isinstance(message, Stop):
        return array("q", (_STOP, 0, 0, 0))
    plan = plan_words(message.plan)
    words = array("q", (_TURN, len(plan), len(message.cancels), len(message.requests)))
    words += plan
    words.extend(chain.from_iterable((id, _REASONS.index(reason)) for id, reason in message.cancels))
    for request in message.requests:
        _append(words, request)
    return words


def _append(words: array[int], request: Request) -> None:
    sampling, tenant = request.sampling, request.tenant.encode("utf-8", "surrogatepass")
    words.extend((len(request.prompt), len(sampling.stop_ids), len(tenant)))
    words.extend((request.id, request.arrival, request.slo.ttft, request.slo.tbt))
    words.extend(number - 2 * _SIGN if number >= _SIGN else number for number in _integers(sampling))
    words.frombytes(array("d", _reals(sampling)).tobytes())
    words.extend(request.prompt)
    words.extend(sorted(sampling.stop_ids))
    words.extend(_words(tenant))


def message_of(words: array[int]) -> Turn | Stop:
    """The message of `message_words`. Raises ValueError for anything else."""
    if len(words) < 4 or min(words[1:4]) < 0 or words[0] not in (_TURN, _STOP):
        raise ValueError("not a message of rank 0")
    kind, plan_length, cancel_count, request_count = words[:4]
    reader = _Reader(words, 4)
    if kind == _STOP:
        reader.end()
        return Stop()
    plan = plan_of(reader.take(plan_length))
    flat = reader.take(2 * cancel_count)
    if any(not 0 <= reason < len(_REASONS) for reason in flat[1::2]):
        raise ValueError("a cancel has no known reason")
    cancels = [(RequestId(id), _REASONS[reason]) for id, reason in zip(flat[::2], flat[1::2], strict=True)]
    if request_count > len(words):
        raise ValueError(f"{request_count} requests in {len(words)} words")
    requests = tuple(reader.request() for _ in range(request_count))
    reader.end()
    return Turn(plan, requests, cancels)


def _words(data: bytes) -> array[int]:
    """Bytes as words, padded with zeros."""
    words = array("q")
    words.frombytes(data + bytes(-len(data) % WORD_BYTES))
    return words


class _Reader:
    """Takes words from the front; ValueError where there are none."""

    __slots__ = ("_at", "_words")

    def __init__(self, words: array[int], at: int) -> None:
        self._words = words
        self._at = at

    def take(self, count: int) -> array[int]:
        at = self._at
        if not 0 <= count <= len(self._words) - at:
            raise ValueError(f"{count} words wanted, {len(self._words) - at} left")
        self._at = at + count
        return self._words[at : at + count]

    def ids(self, count: int) -> tuple[RequestId, ...]:
        return cast("tuple[RequestId, ...]", tuple(self.take(count)))  # a call an id would be most of it

    def triples(self, count: int) -> zip[tuple[int, int, int]]:
        flat = self.take(3 * count)
        return zip(flat[::3], flat[1::3], flat[2::3], strict=True)

    def bytes(self, count: int) -> bytes:
        if count < 0:
            raise ValueError(f"{count} bytes")
        return self.take(-(-count // WORD_BYTES)).tobytes()[:count]

    def text(self, length: int) -> str:
        try:
            return self.bytes(length).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise ValueError(f"{length} bytes are no text ({error.reason})") from error

    def rejection(self) -> Rejection:
        id, length = self.take(2)
        return Rejection(RequestId(id), self.text(length))

    def request(self) -> Request:
        prompt, stop_ids, tenant_bytes = self.take(3)
        id, arrival, ttft, tbt = self.take(4)
        max_tokens, top_k, seed, logprobs, min_tokens = self.take(len(_INTEGERS))
        reals = array("d", self.take(len(_REALS)).tobytes())
        return Request(
            id=RequestId(id),
            prompt=tuple(self.take(prompt)),
            sampling=Sampling(
                max_tokens=max_tokens,
                top_k=top_k,
                seed=seed % (2 * _SIGN),
                stop_ids=frozenset(self.take(stop_ids)),
                logprobs=logprobs,
                min_tokens=min_tokens,
                **dict(zip(_REALS, reals, strict=True)),
            ),
            slo=Slo(ttft, tbt),
            arrival=arrival,
            tenant=self.text(tenant_bytes),
        )

    def end(self) -> None:
        if self._at != len(self._words):
            raise ValueError(f"{len(self._words) - self._at} words too many")
