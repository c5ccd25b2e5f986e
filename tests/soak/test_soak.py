"""Some seconds of the soak (docs/reliability.md has the hour), and that it would notice what it looks for."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Any

import pytest

from soak import __main__ as command
from soak import audited_server, virtual, watch
from soak.load import LEAVERS, Clients, Counts, Job
from superinfer_trt.core.outcome import Totals
from superinfer_trt.serve.pb import executor_pb2 as pb
from support.wire import request, run, serving

SECONDS = ["--minutes", "0.1", "--jobs", "16", "--growth-mib-max", "64"]


def test_some_seconds_beyond_capacity() -> None:
    """Memory is the hour's business, here it is still warming up; and so are rotations, which a machine that
    is busy otherwise may not get to in so short a time."""
    figures = command.soak(command.parse(SECONDS))
    assert [line for line in figures["wrong"] if "rotated" not in line] == []
    assert figures["accepted"] == sum(figures["ended"].values()) + figures["left"] > 20
    assert {"invalid"} <= figures["refused"].keys() <= {"invalid", "queue_full"}
    assert figures["stuck"] == 0


def test_some_thousand_requests_in_simulated_time() -> None:
    figures = virtual.soak(2_000, 1.5, "rota-slack", seed=2)
    assert figures["wrong"] == []
    assert figures["refused"] > 100  # type: ignore[operator]
    assert figures["ended"]["cancelled"] > 20  # type: ignore[index]


# ---- what it must notice ---------------------------------------------------------------------------


def test_a_slope_is_found_behind_peaks() -> None:
    flat = [(float(at), 100.0 + (500.0 if at % 7 == 0 else 0.0)) for at in range(100)]
    assert watch.slope(flat) == 0
    assert watch.slope([(x, y + 3 * x) for x, y in flat]) == pytest.approx(3, abs=0.5)


def met(counts: Counts) -> watch.Metrics:
    """What a server would tell to these clients."""
    found: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
    for tenant, number in counts.accepted.items():
        found["superinfer_tenant_accepted_total", (("tenant", tenant),)] += number
        found["superinfer_requests_accepted_total", ()] += number
    names = {name: reason for reason, name in watch.REASONS.items()}
    for (tenant, reason), number in counts.ended.items():
        found["superinfer_tenant_ended_total", (("reason", names[reason]), ("tenant", tenant))] += number
        found["superinfer_requests_finished_total", (("reason", names[reason]),)] += number
    found["superinfer_tenant_ended_total", (("reason", "cancelled"), ("tenant", LEAVERS))] += counts.left
    found["superinfer_requests_finished_total", (("reason", "cancelled"),)] += counts.left
    for tenant, number in counts.tokens.items():
        found["superinfer_tenant_output_tokens_total", (("tenant", tenant),)] += number
        found["superinfer_output_tokens_total", ()] += number
    for code, number in counts.refused.items():
        found["superinfer_refusals_total", (("code", code),)] += number
    return {key: float(number) for key, number in found.items()}


def some() -> Counts:
    counts = Counts()
    counts.accepted |= {"red": 5, LEAVERS: 3}
    counts.ended |= {("red", "FINISH_REASON_LENGTH"): 4, ("red", "FINISH_REASON_CANCELLED"): 1}
    counts.ended |= {(LEAVERS, "FINISH_REASON_LENGTH"): 1}
    counts.left = 2
    counts.refused |= {"queue_full": 7}
    counts.tokens |= {"red": 40, LEAVERS: 9}
    return counts


def test_every_count_that_differs_is_told() -> None:
    right = met(some())
    assert watch.compare(some(), right) == []
    for key in right:
        assert watch.compare(some(), {**right, key: right[key] - 1}) != [], key
    lost = some()
    lost.ended["red", "FINISH_REASON_LENGTH"] -= 1  # a client that heard no ending
    (told,) = watch.compare(lost, right)
    assert "('red', 'FINISH_REASON_LENGTH'): 4" in told
    assert "('red', 'FINISH_REASON_LENGTH'): 3" in told


def test_clients_notice_wrong_tokens_and_refusals_nobody_should_get() -> None:
    async def scenario() -> Counts:
        async with serving() as wire:
            right, wrong = Job(request(3, max_tokens=4), [3] * 4), Job(request(3, max_tokens=4), [3, 3, 4, 3])
            clients = Clients([wire.stub], [right], seed=1)
            await clients._one("whole", right, "red")
            assert clients.counts.wrong == []
            await clients._one("whole", wrong, "red")
            await clients._one("whole", Job(pb.GenerateRequest()), "red")
            return clients.counts

    counts = run(scenario())
    tokens, refusal = counts.wrong
    assert tokens == "r2: tokens [3, 3, 3, 3], alone [3, 3, 4, 3]"
    assert refusal.startswith("r3: INVALID_ARGUMENT")
    assert counts.refused == {"invalid": 1}


def test_a_request_that_does_not_end_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soak.load.PATIENCE_S", 0.2)

    async def scenario() -> Counts:
        async with serving() as wire:
            wire.service.driver.hold()
            clients = Clients([wire.stub], [], seed=1)
            await asyncio.wait_for(clients._one("whole", Job(request(3)), "red"), 10)
            return clients.counts

    counts = run(scenario())
    assert (counts.stuck, counts.wrong) == (1, ["r1: no end in 0.2 s"])


class Broken:
    """A ledger that has lost a block."""

    def audit(self) -> None:
        raise AssertionError("a block is lost")


@pytest.mark.parametrize(
    ("accepted", "ledger", "turns", "words"),
    [(1, None, 1, "C3: 1 accepted"), (0, Broken(), 16, "a block is lost")],
)
def test_the_auditor_ends_the_process(
    accepted: int,
    ledger: Any,
    turns: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    auditor = audited_server.Auditor(Totals(accepted=accepted), ledger)
    for _ in range(turns):
        auditor.turned([], 0)
    assert ended == [audited_server.BROKEN]
    assert words in capsys.readouterr().err
