"""How tensor parallel ranks are put together: rank 0 is a service (`build.service`), the others follow it."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack

from superinfer_trt.build.service import limits_of, open_world, policy_of
from superinfer_trt.config import Config, dump
from superinfer_trt.core.errors import SuperInferError
from superinfer_trt.kv.ledger import KvLedger
from superinfer_trt.ranks.comm import Comm
from superinfer_trt.ranks.follower import Follower, Script
from superinfer_trt.ranks.mpi import MpiComm, mpi_ranks
from superinfer_trt.ranks.start import NotStarted, together
from superinfer_trt.runtime.clock import SystemClock
from superinfer_trt.runtime.executor import Parts

log = logging.getLogger(__name__)


def open_ranks(config: Config) -> AbstractContextManager[MpiComm]:
    """The ranks of `mpiexec`, while the block runs. Raises ConfigError when they are not config.engine.tp."""
    return mpi_ranks(config.engine.tp, config.engine.rank_timeout_s)


def follow(config: Config, comm: Comm) -> int:
    """The whole life of a rank above 0; returns the exit code of its process. Raises RankLost."""
    with ExitStack() as stack:
        try:
            parts = together(comm, lambda: _parts(config, comm, stack), dump(config))
        except NotStarted:
            return 2
        try:
            Follower(parts, comm, config.scheduling.depth).run()
        except SuperInferError as error:
            log.error("rank %d: %s", comm.rank, error)  # noqa: TRY400  # rank 0 tells the rest
            raise
    return 0


def _parts(config: Config, comm: Comm, stack: ExitStack) -> Parts:
    policy = policy_of(config)
    limits = limits_of(config, policy)
    world = open_world(config, limits, SystemClock(), stack, comm)
    script = Script()
    return Parts(
        clock=script,
        policy=script,
        ledger=KvLedger(limits),
        transfers=world.transfers,
        engine=world.engine,
        inbox=script,
        outbox=script,
        limits=limits,
    )
