"""How a chaotic world is put together: production executor, ledger, policies, doors and link wrappers; a cell
engine and a modelled link under them (sim.cells).

Tests hand in a policy or a ledger that is broken on purpose. Knows no command line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from superinfer_trt.core.ports import Policy
from superinfer_trt.core.view import Limits
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.runtime.doors import BoundedInbox
from superinfer_trt.runtime.executor import Executor, Parts
from superinfer_trt.runtime.quotas import Quota, Quotas
from superinfer_trt.sched.registry import POLICIES, make_policy
from superinfer_trt.sched.shedding import Shedding
from superinfer_trt.serve.streams import StreamOutbox
from superinfer_trt.sim.any_plan import AnyPlan
from superinfer_trt.sim.cells import CellEngine, CellLink, Cells, expected_tokens
from superinfer_trt.sim.chaos import (
    VOCABULARY,
    ChaosFigures,
    ChaosOptions,
    ChaosParts,
    ChaosWorld,
    dice_of,
    draw_options,
    geometry_of,
    replay_twice,
)
from superinfer_trt.sim.chaos_check import Checker, Notes, PurePolicy
from superinfer_trt.sim.faults import FlakyEngine, UnsteadyClock
from superinfer_trt.sim.readers import LateLoop
from superinfer_trt.transfer.modelled import ModelledLink
from superinfer_trt.transfer.wrap import BusyLink, DelayedLink, FailingLink

ROTATES = MappingProxyType(
    {AnyPlan.name: AnyPlan.rotates, **{name: entry.policy.rotates for name, entry in POLICIES.items()}}
)
TWICE_EVERY = 16
"""One seed in so many is run twice (C11)."""

# Parameters that change what a policy does in a small world; one of each is drawn.
PARAMETERS: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "rotasched": {
        "alpha": (0.3, 1, 3, 10),
        "beta_ttft": (0, 0.5, 1),
        "beta_tbt": (-10, 0, 1.5),
        "transfer_blocks": (None, 1, 4, 2400),
        "min_stint_tokens": (1, 1, 4),
        "eager_sync": (False, True),
    },
    "rota-slack": {
        "step_share": (0.3, 0.85),
        "ahead_min_s": (0.05, 3),
        "guard_s": (0, 0.04),
        "lost_s": (0, 0.1, 1),
        "min_stint_tokens": (1, 1, 4),
        "late_share": (0, 0.02, 0.5),
        "length_weight_ms": (0, 20),
        "patience": (0, 0.4),
        "transfer_blocks": (None, 1, 4, 2400),
        "eager_sync": (False, True),
    },
    "artifact": {"transfer_blocks": (1, 4, 2400)},
    "waiting-first": {"watermark": (0, 0.01, 0.2)},
    "swapped-first": {"watermark": (0, 0.01, 0.2)},
}

MakePolicy = Callable[[ChaosOptions], Policy]
MakeLedger = Callable[[Limits], KvLedger]


@dataclass(frozen=True, slots=True)
class ChaosReport:
    """One seed: its figures, or what was broken and the newest lines before it."""

    options: ChaosOptions
    figures: ChaosFigures | None
    failure: str
    tail: list[str]


def drawn_policy(options: ChaosOptions) -> Policy:
    """The policy of a world, with parameters from its seed."""
    random = dice_of(options, "policy")
    if options.policy == AnyPlan.name:
        return AnyPlan(options.seed, random.choice((1, 4, 10)))
    table = PARAMETERS.get(options.policy, {})
    parameters = {name: random.choice(values) for name, values in table.items()}
    policy: Policy = make_policy(options.policy, **parameters)
    return Shedding(policy) if options.shed else policy


def options_of(seed: int) -> ChaosOptions:
    """What `seed` decides."""
    return draw_options(seed, ROTATES)


def run_seed(
    seed: int, *, policy: MakePolicy = drawn_policy, ledger: MakeLedger = KvLedger, twice: bool | None = None
) -> ChaosReport:
    """Runs one world, some of them twice; never raises for what the world does."""
    options = options_of(seed)
    notes = Notes(lines_max=400)

    def run(seed: int) -> ChaosFigures:
        del seed
        return build_chaos(options, notes, policy, ledger).run()

    try:
        repeated = seed % TWICE_EVERY == 0 if twice is None else twice
        figures = replay_twice(run, seed) if repeated else run(seed)
    except Exception as error:  # a broken world may break in any way
        return ChaosReport(options, None, f"{type(error).__name__}: {error}", notes.tail())
    return ChaosReport(options, figures, "", [])


def build_chaos(
    options: ChaosOptions, notes: Notes, policy: MakePolicy = drawn_policy, ledger: MakeLedger = KvLedger
) -> ChaosWorld:
    """The world of `options`, before its first turn."""
    limits, faults, seed = options.limits, options.faults, options.seed
    clock = UnsteadyClock(options.look_ns)
    geometry = geometry_of(limits)
    cells = Cells(limits)
    rate = options.link_bytes_per_s
    modelled = ModelledLink(
        clock,
        geometry.block_bytes,
        rate,
        rate,
        device_blocks=limits.device_blocks,
        host_blocks=limits.host_blocks,
        queue_bytes_max=options.queue_bytes_max,
    )
    failing = FailingLink(modelled, probability=faults.copy_fails, seed=seed)
    late = DelayedLink(failing, polls_max=faults.copy_late_polls, seed=seed, sync_apart=faults.sync_apart)
    whims = BusyLink(late, probability=faults.lane_busy, seed=seed)
    engine = FlakyEngine(
        CellEngine(cells, geometry, VOCABULARY),
        clock,
        options.step_ns,
        faults,
        dice_of(options, "engine"),
        notes,
    )
    loop = LateLoop()
    outbox = StreamOutbox(cast("asyncio.AbstractEventLoop", loop))
    checker = Checker(
        limits,
        outbox,
        lambda request: expected_tokens(request, VOCABULARY),
        notes,
        rejected_tokens_max=1_000 if options.policy == AnyPlan.name else 0 if options.shed else -1,
    )
    quota = Quotas(limits.block_tokens, Quota(requests_max=options.tenant_requests_max))
    inbox = BoundedInbox(clock, options.requests_max, quota)
    pure = PurePolicy(policy(options), every=1 + seed % 7)
    kept = ledger(limits)
    executor = Executor(
        Parts(clock, pure, kept, CellLink(cells, whims), engine, inbox, checker, limits), options.depth
    )
    executor.observe(checker)
    parts = ChaosParts(executor, clock, kept, whims, engine, inbox, outbox, loop, checker, notes)
    return ChaosWorld(options, parts)
