"""`rotasched`: the paper's policy, Largest-VLT-First rotation.

Source: SuperInfer, Algorithm 1. Once a turn:

1. if free HBM covers every waiting and rotary request, plain first come, first served;
2. else order waiting and rotary by Virtual Lag Time (`lag.py`), largest first;
3. take them while their blocks fit into free HBM + B_xfer (all have VLT >= 0 by definition);
4. rotate out the running ones of most negative VLT until the shortfall is covered.

A slot that is given up can be used only once its copy has landed, hence in a later turn. So those who
fit the free slots go now; for the others victims leave now, and the slots on their way are counted as
theirs, so that nobody leaves twice for one. From the first that must wait for slots on, nobody of less
lag takes the free ones, or small requests would starve a large one.

A pure function (C10). Mechanics beyond the paper, so that everything ends (C9), each found by trying:
a stay in HBM lasts at least one token before a proactive rotation (or two requests could swap places
for ever); admission and resumption are two gates, and a closed one never blocks the other; a decode
that finds no block rotates somebody out whatever their stay, but never the last; a request in prefill
never leaves; the most urgent one may exceed B_xfer alone, or it would never come. Eager rotation copies
full blocks ahead of need.

Cost: O(running + moved), however long the backlog. Knows no slot and no clock. Stateless, any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.plan import Plan
from superinfer_trt.core.view import View
from superinfer_trt.sched.budget import Budget
from superinfer_trt.sched.lag import THOUSAND, VirtualLag, thousandths, whole

HBM_SHARE_THOUSANDTHS = 150
"""Part of HBM that may change hands in one turn when B_xfer is found automatically: the paper's 2400
blocks of the about 15,800 that 66 GB of KV are. On a small pool a fast link would empty it each turn."""


@dataclass(frozen=True, slots=True)
class RotaSchedParameters:
    """The paper's parameters. Raises ConfigError for values that make no sense.

    `alpha`: weight of rotary requests against waiting ones, > 0. `beta_ttft` (beta_F), `beta_tbt`
    (beta_B): the part of the TTFT / TBT objective that passes before lag counts; any sign. All three
    are rounded to thousandths. `transfer_blocks` (B_xfer): blocks that may be given up in one turn;
    None: the smaller of the turn's two link allowances, and at most 15 % of HBM. `min_stint_tokens`:
    tokens a stay lasts at least. 1 is Algorithm 1 to the letter and right for pools of hundreds of
    requests; where HBM holds a handful, 8 to 16 keep more of it computing instead of on the link.
    `eager_sync`: copy full blocks to DRAM ahead of need.
    """

    alpha: float = 3.0
    beta_ttft: float = 0.5
    beta_tbt: float = 0.0
    transfer_blocks: int | None = None
    min_stint_tokens: int = 1
    eager_sync: bool = True

    def __post_init__(self) -> None:
        self.lag()
        if self.transfer_blocks is not None:
            whole("transfer_blocks", self.transfer_blocks, 1)
        whole("min_stint_tokens", self.min_stint_tokens, 1)
        if not isinstance(self.eager_sync, bool):
            raise ConfigError(f"eager_sync: {self.eager_sync!r} is neither true nor false")

    def lag(self) -> VirtualLag:
        """The lag formulas with these factors."""
        return VirtualLag(
            alpha_thousandths=thousandths("alpha", self.alpha, 0.001),
            beta_ttft_thousandths=thousandths("beta_ttft", self.beta_ttft),
            beta_tbt_thousandths=thousandths("beta_tbt", self.beta_tbt),
        )


class RotaSched:
    """The policy; see the module."""

    name = "rotasched"
    rotates = True

    def __init__(self, parameters: RotaSchedParameters | None = None) -> None:
        self.parameters = parameters or RotaSchedParameters()
        self._lag = self.parameters.lag()
        self.order = self._lag.order()

    def __call__(self, view: View) -> Plan:
        eager = self.parameters.eager_sync
        budget = Budget(view, eager=eager)
        self._make_room_to_grow(budget)
        budget.run()
        if budget.free >= view.waiting_blocks + view.rotary_blocks:
            _first_come_first_served(budget)
        else:
            self._largest_lag_first(budget)
        if eager:
            budget.sync()
        return budget.plan()

    def _make_room_to_grow(self, budget: Budget) -> None:
        if budget.shortage > 0:
            stint = self.parameters.min_stint_tokens
            budget.rotate_out(budget.shortage, stint_tokens=stint, keep=1)
        if budget.shortage > 0:
            # Everybody has just come. The newest goes, so that the oldest makes its token.
            budget.rotate_out(budget.shortage, stint_tokens=0, keep=1, newest=True)

    def _largest_lag_first(self, budget: Budget) -> None:
        view, lag = budget.view, self._lag
        now = view.now
        transfer_blocks = self.parameters.transfer_blocks
        if transfer_blocks is None:
            share = view.limits.device_blocks * HBM_SHARE_THOUSANDTHS // THOUSAND
            transfer_blocks = min(view.link_out_blocks, view.link_in_blocks, share)
        left = budget.free + budget.coming + transfer_blocks
        owed = taken = 0  # blocks of those who must wait for slots; blocks of all that were taken
        waiting, rotary = budget.waiting(), budget.rotary()
        fresh, back = next(waiting, None), next(rotary, None)
        while fresh is not None or back is not None:
            if back is not None and (fresh is None or lag.rotary(back, now) >= lag.waiting(fresh, now)):
                blocks = budget.blocks_back(back)
                goes_now = not owed and blocks <= budget.free
                if goes_now and not budget.resumption_open(back):
                    back = None  # this gate is closed; the other one is not
                    continue
                if blocks > left and taken:
                    break
                if goes_now:
                    budget.resume(back)
                else:
                    owed += blocks
                back = next(rotary, None)
            elif fresh is not None:
                blocks = fresh.total_blocks
                goes_now = not owed and blocks <= budget.free
                seated = budget.seats > 0 or not goes_now
                if not (seated and budget.tokens > 0 and budget.admission_open(fresh)):
                    fresh = None
                    continue
                if blocks > left and taken:
                    break
                if goes_now:
                    budget.admit(fresh)
                else:
                    owed += blocks
                    budget.await_slots(fresh)
                fresh = next(waiting, None)
            left -= blocks
            taken += blocks
        shortfall = owed - budget.free - budget.coming
        if shortfall > 0:
            budget.rotate_out(shortfall, stint_tokens=self.parameters.min_stint_tokens)


def _first_come_first_served(budget: Budget) -> None:
    """There is room for all: the rotary ones, then the waiting ones, each in their order."""
    for candidate in budget.rotary():
        if budget.blocks_back(candidate) > budget.free or not budget.resumption_open(candidate):
            break
        budget.resume(candidate)
    for candidate in budget.waiting():
        if not budget.may_admit(candidate) or candidate.total_blocks > budget.free:
            break
        budget.admit(candidate)
