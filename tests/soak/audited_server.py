"""`superinfer-trt serve` with an auditor in the turn loop: a broken invariant ends the process with a trace.

python -m soak.audited_server CONFIG.yaml
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from superinfer_trt import config
from superinfer_trt.build.llm import service_maker
from superinfer_trt.build.service import Service, server_options
from superinfer_trt.cli.serve import _draining, _ready
from superinfer_trt.core.outcome import Totals
from superinfer_trt.core.ports import Ledger
from superinfer_trt.core.units import SECOND, Nanos
from superinfer_trt.serve import logs
from superinfer_trt.serve.server import GIL_SWITCH_S, run
from superinfer_trt.serve.streams import StreamOutbox

BROKEN = 70  # the exit code
LEDGER_EVERY_TURNS = 16
AGE_MAX_S = 300.0
"""Nobody is live for longer: behind a full house of late ones a request of a soak takes minutes at most."""


class Auditor:
    """core.ports.Observer: after each turn accepted = live + ended (C3), and nobody is older than AGE_MAX_S
    (C9); after every sixteenth `KvLedger.audit` (C1, C2, C5). Plans and moves are checked by the executor."""

    def __init__(self, totals: Totals, ledger: Ledger) -> None:
        self._totals, self._ledger = totals, ledger
        self._turns = 0

    def turned(self, live: Iterable[Any], now: Nanos) -> None:
        try:
            self._look(list(live), now)
        except BaseException:  # an observer must not raise; and nothing may go on after this
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(BROKEN)

    def _look(self, live: Sequence[Any], now: Nanos) -> None:
        self._turns += 1
        totals = self._totals
        ended = sum(totals.finished.values())
        if totals.accepted != len(live) + ended:
            raise AssertionError(f"C3: {totals.accepted} accepted, {len(live)} live, {ended} ended")
        oldest = min((one.arrival for one in live), default=now)
        if now - oldest > AGE_MAX_S * SECOND:
            raise AssertionError(f"C9: a request is live for {(now - oldest) / SECOND:.0f} s")
        if self._turns % LEDGER_EVERY_TURNS == 0:
            self._ledger.audit()

    def planned(self, *_: object) -> None: ...
    def stepped(self, *_: object) -> None: ...
    def submitted(self, *_: object) -> None: ...
    def landed(self, *_: object) -> None: ...


def main() -> int:
    made = config.load(Path(sys.argv[1]), {})
    sys.setswitchinterval(GIL_SWITCH_S)
    logs.configure(made.service.log_level, made.service.log_format, sys.stderr)
    with ExitStack() as stack:
        make = service_maker(made, stack, None)

        def audited(outbox: StreamOutbox) -> Service:
            service = make(outbox)
            assert isinstance(service, Service)
            executor = service.executor
            executor.observe(Auditor(executor.totals, executor._parts.ledger))
            return service

        return 0 if asyncio.run(run(audited, server_options(made), _ready, _draining)) else 1


if __name__ == "__main__":
    sys.exit(main())
