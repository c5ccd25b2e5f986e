"""Each rule that TensorRT-LLM's loop asks of the adapter, taken out, is missed by a test.

One table: the rule, how it is taken out, and the scenes that must notice. Scenes raise when something is
wrong; with the rules in place all of them are silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random

import pytest

from superinfer_trt.core.errors import InvariantViolation
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.step import CopyKind
from superinfer_trt.sched.registry import make_policy
from superinfer_trt.trtllm.agreement import AmongRanks
from superinfer_trt.trtllm.crossing import Crossing
from superinfer_trt.trtllm.rotation import Rotation
from superinfer_trt.trtllm.scheduler import RotaCapacityScheduler
from superinfer_trt.trtllm.slo import ServiceTerms, Terms
from support.trtllm.gpu import Stream
from support.trtllm.lockstep import adapted, embedded, random_scene
from support.trtllm.request import LlmRequest, LlmRequestState
from support.trtllm.rotating import FakeOrder, RotatingWorker
from support.trtllm.scheduling import StockMicroBatchScheduler
from support.trtllm.worlds import run_world
from trtllm.test_ranks import run_two

Patch = pytest.MonkeyPatch
COMPLETING = LlmRequestState.GENERATION_TO_COMPLETE.value


# -- the scenes: each raises when it sees something wrong --------------------------------------------


def crowded() -> None:
    """Small pools, cancels, a late link: tokens are those of the model, nothing leaks."""
    for seed in range(60):
        run_world(seed, cancels=0.25, blocks=20)


class Stingy(StockMicroBatchScheduler):
    """Takes less than it is offered: now and then a decode less, now and then nothing at all."""

    def __init__(self, stock: StockMicroBatchScheduler, seed: int) -> None:
        super().__init__(stock.max_batch_size, stock.max_num_tokens, stock.ctx_chunk_config)
        self._random = Random(seed)
        self.nothing = 0.1
        self.less = 0.3

    def schedule(
        self, active_requests: list[LlmRequest], inflight_request_ids: set[int]
    ) -> tuple[list[LlmRequest], list[LlmRequest]]:
        context, generation = super().schedule(active_requests, inflight_request_ids)
        if self._random.random() < self.nothing:
            return [], []
        if generation and self._random.random() < self.less:
            generation.remove(self._random.choice(generation))
        return context, generation


def stingy(seed: int, *, less: float, nothing: float) -> Callable[[RotatingWorker], None]:
    def change(worker: RotatingWorker) -> None:
        scheduler = worker.executor.scheduler
        scheduler.micro_batch_scheduler = made = Stingy(scheduler.micro_batch_scheduler, seed)
        made.less, made.nothing = less, nothing

    return change


def fewer_than_planned() -> None:
    """Upstream leaves decodes out that were planned."""
    for seed in range(12):
        run_world(seed, change=stingy(seed, less=0.4, nothing=0.0))


def planned_and_not_launched() -> None:
    """Upstream makes no batch at all of some plans."""
    for seed in range(12):
        run_world(seed, change=stingy(seed, less=0.0, nothing=0.2))


@contextmanager
def watched(check: Callable[[Rotation, Sequence[LlmRequest], list[LlmRequest]], None]) -> Iterator[None]:
    """Looks at each turn's active and fitting requests."""
    schedule = RotaCapacityScheduler.schedule_request

    def looked_at(self, active_requests):  # type: ignore[no-untyped-def]
        result = schedule(self, active_requests)
        check(self._rotation, active_requests, result[0])
        return result

    with Patch.context() as patch:
        patch.setattr(RotaCapacityScheduler, "schedule_request", looked_at)
        yield


def last_tokens_on_their_way() -> None:
    """Who is completing stays in upstream's hands, and nobody's blocks leave under it."""

    def check(rotation: Rotation, active: Sequence[LlmRequest], fitting: list[LlmRequest]) -> None:
        completing = {request.py_request_id for request in active if request.state_value == COMPLETING}
        assert completing <= {request.py_request_id for request in fitting}
        groups = rotation._crossing._groups.values()
        leaving = {group.copy.id for group in groups if group.copy.kind is CopyKind.OUT}
        assert not leaving & completing

    class Short(LlmRequest):
        """Completes two tokens before the limit that was asked for."""

        def will_complete_next_iteration(self) -> bool:
            return len(self._tokens) + 3 >= self.prompt_len + self.max_new_tokens

        def add_new_token(self, token: int) -> None:
            super().add_new_token(token)
            if len(self._tokens) + 2 >= self.prompt_len + self.max_new_tokens:
                self.state = LlmRequestState.GENERATION_COMPLETE

    with Patch.context() as patch, watched(check):
        patch.setattr("support.trtllm.worlds.check_tokens", lambda requests: None)
        patch.setattr("support.trtllm.worker.LlmRequest", Short)
        for seed in range(30):
            run_world(seed, policy="rotasched", blocks=20)


def steps_are_full() -> None:
    """Who was planned to decode does, however long the prompts beside it are."""
    launch = Rotation._launch

    def looked_at(self, actual, decodes, batch):  # type: ignore[no-untyped-def]
        assert actual.decode == self._plan.decode
        launch(self, actual, decodes, batch)

    with Patch.context() as patch:
        patch.setattr(Rotation, "_launch", looked_at)
        for seed in range(8):
            run_world(seed, chunk_unit=0, step_tokens=48, count=32, blocks=60)


def blocks_taken_by_somebody_else() -> None:
    """Upstream takes blocks that are counted as free here."""

    def change(worker: RotatingWorker) -> None:
        worker.executor.kv_cache_manager.impl.add_sequence(999, 8, 1)

    with pytest.raises(InvariantViolation, match="somebody else takes blocks; raise spare_blocks"):
        run_world(0, change=change)


def conforming() -> None:
    """Plans are those of the embedded executor."""
    for seed in range(4):
        for policy in ("rotasched", "rota-slack"):
            for depth in (1, 2):
                scene = random_scene(policy, depth, seed)
                assert embedded(scene) == adapted(scene)


def ranks_apart() -> None:
    """Two ranks with other clocks and links plan alike."""
    here, there = run_two(300, (make_policy("rotasched"), make_policy("rotasched")))
    assert here == there


def never_waiting() -> None:
    """Nothing of ours makes the host wait for the device, in any turn or ending."""
    inside: list[str] = []

    def marked(name: str) -> Callable[..., object]:
        call = getattr(Rotation, name)

        def run(self, *arguments):  # type: ignore[no-untyped-def]
            inside.append(name)
            try:
                return call(self, *arguments)
            finally:
                inside.pop()

        return run

    synchronize = Stream.synchronize

    def refused(self: Stream, event: int | None = None) -> None:
        assert not inside, f"{inside[-1]} waits for the device"
        synchronize(self, event)

    with Patch.context() as patch:
        for name in ("schedule", "batched", "collected", "freed"):
            patch.setattr(Rotation, name, marked(name))
        patch.setattr(Stream, "synchronize", refused)
        for seed in range(10):
            run_world(seed, cancels=0.25, blocks=20, busy=0.2)


# -- what is taken out -------------------------------------------------------------------------------


def nothing(*_: object, **__: object) -> None:
    return None


def pauses(patch: Patch) -> None:
    def schedule_request(self, active):  # type: ignore[no-untyped-def]
        fitting = self._rotation.schedule(active)
        leaving = self._rotation._plan.rotate_out
        return fitting, [], [request for request in active if request.py_request_id in leaving]

    patch.setattr(RotaCapacityScheduler, "schedule_request", schedule_request)


def omits_nobody(patch: Patch) -> None:
    schedule = Rotation.schedule

    def everybody(self, active):  # type: ignore[no-untyped-def]
        schedule(self, active)
        return list(active)

    patch.setattr(Rotation, "schedule", everybody)


def keeps_the_batch_index(patch: Patch) -> None:
    patch.setattr(Rotation, "_leave_out", nothing)


def keeps_it_where_upstream_takes_less(patch: Patch) -> None:
    decoding = Rotation._decoding

    def kept(self, generation):  # type: ignore[no-untyped-def]
        with Patch.context() as inner:
            inner.setattr(Rotation, "_leave_out", nothing)
            return decoding(self, generation)

    patch.setattr(Rotation, "_decoding", kept)


def keeps_it_where_nothing_is_launched(patch: Patch) -> None:
    schedule = Rotation.schedule

    def launched(self, active):  # type: ignore[no-untyped-def]
        self._launched = self._turn
        return schedule(self, active)

    patch.setattr(Rotation, "schedule", launched)


def omits_who_completes(patch: Patch) -> None:
    fitting = Rotation._fitting
    patch.setattr(
        Rotation,
        "_fitting",
        lambda self, plan: [one for one in fitting(self, plan) if one.state_value < COMPLETING],
    )


def rotates_who_completes(patch: Patch) -> None:
    move = Rotation._move

    def blind(self, plan):  # type: ignore[no-untyped-def]
        parts = self.parts
        self.parts = replace(parts, states=replace(parts.states, generation_to_complete=99))
        move(self, plan)
        self.parts = parts

    patch.setattr(Rotation, "_move", blind)


def prompts_before_decodes(patch: Patch) -> None:
    fitting = Rotation._fitting
    patch.setattr(Rotation, "_fitting", lambda self, plan: fitting(self, plan)[::-1])


def blocks_back_before_the_landing(patch: Patch) -> None:
    move = Rotation._move

    def early(self: Rotation, plan: Plan) -> None:
        move(self, plan)
        for id in plan.rotate_out:
            self.parts.cache.remove_sequence(id)

    patch.setattr(Rotation, "_move", early)


def blocks_back_with_their_request(patch: Patch) -> None:
    land = Rotation._land

    def with_request(self: Rotation) -> None:
        cache = self.parts.cache
        remove = cache.remove_sequence
        with Patch.context() as inner:
            inner.setattr(cache, "remove_sequence", lambda one: remove(one, self._requests[one]))
            land(self)

    patch.setattr(Rotation, "_land", with_request)


def copies_in_beside_the_batch(patch: Patch) -> None:
    hand_over = Crossing.hand_over
    patch.setattr(
        Crossing, "hand_over", lambda self, copies, blocks, launched: hand_over(self, copies, blocks, -1)
    )


def copies_out_beside_the_batch(patch: Patch) -> None:
    patch.setattr(FakeOrder, "mark", lambda self, turn: self._link.mark(turn) or True)


def a_copy_that_was_sent_has_landed(patch: Patch) -> None:
    def landed(self: Crossing) -> tuple[tuple[int, bool], ...]:
        self._transfers.poll()
        self._landed.update((number, True) for number in self._sent)
        self._sent.clear()
        return tuple(sorted(self._landed.items()))

    patch.setattr(Crossing, "landed", property(landed))


def counts_the_newest_token(patch: Patch) -> None:
    def returned(self: Rotation, id: int) -> None:
        self.parts.cache.add_sequence(id, self._requests[id].get_num_tokens(0), 1)

    patch.setattr(Rotation, "_return_to_cache", returned)


def forgets_the_orphans(patch: Patch) -> None:
    patch.setattr(Crossing, "_ready", lambda self, unsent: list(unsent))


def does_not_wait_behind_an_orphan(patch: Patch) -> None:
    patch.setattr(FakeOrder, "wait", nothing)


def does_not_hear_of_endings(patch: Patch) -> None:
    patch.setattr(Rotation, "freed", nothing)


def does_not_hear_of_tokens(patch: Patch) -> None:
    patch.setattr(Rotation, "collected", nothing)


def does_not_compare_the_books(patch: Patch) -> None:
    view = Rotation._view

    def trusting(self: Rotation) -> object:
        with Patch.context() as inner:
            stats = type("Stats", (), {"free_num_blocks": 1 << 30})
            inner.setattr(self.parts.cache, "get_kv_cache_stats", lambda: stats)
            return view(self)

    patch.setattr(Rotation, "_view", trusting)


def ignores_the_terms_of_a_request(patch: Patch) -> None:
    patch.setattr(ServiceTerms, "of", lambda self, request, now: Terms(self.slo, self.tenant, now))


def of_its_own(field: str) -> Callable[[Patch], None]:
    """Each rank uses what it sees itself of `field`."""

    def apply(patch: Patch) -> None:
        agreed = AmongRanks.__call__
        patch.setattr(
            AmongRanks,
            "__call__",
            lambda self, sample: replace(agreed(self, sample), **{field: getattr(sample, field)}),
        )

    apply.__name__ = f"{field}_of_its_own"
    return apply


def waits_on_the_host(patch: Patch) -> None:
    wait = FakeOrder.wait

    def host(self, ticket):  # type: ignore[no-untyped-def]
        wait(self, ticket)
        self._stream.synchronize()

    patch.setattr(FakeOrder, "wait", host)


@dataclass(frozen=True)
class Rule:
    """What upstream's loop asks for, how it is taken out, and who notices."""

    text: str
    removal: Callable[[Patch], None]
    scene: Callable[[], None]


RULES = (
    Rule("who rotates is left out, never paused: that drops the KV", pauses, crowded),
    Rule("who is away is not batched", omits_nobody, crowded),
    Rule("who is left out by the plan reads its next token from the host", keeps_the_batch_index, crowded),
    Rule("and who is left out by upstream", keeps_it_where_upstream_takes_less, fewer_than_planned),
    Rule(
        "and all, when a plan came to nothing", keeps_it_where_nothing_is_launched, planned_and_not_launched
    ),
    Rule("who is completing stays in the list", omits_who_completes, last_tokens_on_their_way),
    Rule("who is completing does not leave", rotates_who_completes, last_tokens_on_their_way),
    Rule("the list's order is the order of the step's tokens", prompts_before_decodes, steps_are_full),
    Rule("blocks go back once they are in DRAM, not before", blocks_back_before_the_landing, crowded),
    Rule("and without their request: nobody may reuse them", blocks_back_with_their_request, crowded),
    Rule("a copy out waits for the batch that writes", copies_out_beside_the_batch, crowded),
    Rule("a copy in waits for the newest batch, that may write there", copies_in_beside_the_batch, crowded),
    Rule("nothing is read before it has landed", a_copy_that_was_sent_has_landed, crowded),
    Rule("a sequence comes back with the tokens that have KV", counts_the_newest_token, crowded),
    Rule("copies keep off blocks that an ended request's copy uses", forgets_the_orphans, crowded),
    Rule("and the stream waits behind one that still writes", does_not_wait_behind_an_orphan, crowded),
    Rule("endings are heard of, whatever the phase", does_not_hear_of_endings, crowded),
    Rule("tokens count when they are on the host", does_not_hear_of_tokens, crowded),
    Rule("the books agree each turn", does_not_compare_the_books, blocks_taken_by_somebody_else),
    Rule("objectives come with their request", ignores_the_terms_of_a_request, conforming),
    Rule("one clock for all ranks", of_its_own("now"), ranks_apart),
    Rule("a copy has landed when it has on all ranks", of_its_own("landed"), ranks_apart),
    Rule("a lane is busy when it is on one rank", of_its_own("out_busy"), ranks_apart),
    Rule("the host does not wait for the device", waits_on_the_host, never_waiting),
)
MISSED = (AssertionError, InvariantViolation, RuntimeError, KeyError, ValueError, pytest.fail.Exception)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.removal.__name__)
def test_a_rule_taken_out_is_missed(rule: Rule, monkeypatch: Patch) -> None:
    rule.removal(monkeypatch)
    with pytest.raises(MISSED):
        rule.scene()


@pytest.mark.parametrize("scene", sorted({rule.scene for rule in RULES}, key=lambda scene: scene.__name__))
def test_with_all_rules_nothing_is_wrong(scene: Callable[[], None]) -> None:
    scene()
