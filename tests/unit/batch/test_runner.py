"""A run over an executor that answers, fails and comes back as it is told; time is virtual."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from superinfer_trt.batch import lines
from superinfer_trt.batch.answer import Naming
from superinfer_trt.batch.body import Rules
from superinfer_trt.batch.journal import Identity, Journal, OutputFailed
from superinfer_trt.batch.runner import InputChanged, Options, Run, Unreachable
from superinfer_trt.core.units import MILLISECOND, SECOND
from superinfer_trt.serve.calls import Ended
from superinfer_trt.serve.errors import WireStatus
from superinfer_trt.serve.pb import executor_pb2 as pb

Write = Callable[[pb.GenerateResponse], None]
UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED


class Clock:
    """Stands still but for sleeps."""

    def __init__(self) -> None:
        self.time = 0
        self.slept: list[float] = []

    def now(self) -> int:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += round(seconds * SECOND)
        await asyncio.sleep(0)

    def park(self, until: int | None) -> None:
        raise AssertionError("nobody parks")

    def wake(self) -> None:
        raise AssertionError("nobody parks")


@dataclass
class Fake:
    """Answers a prompt of n ids by n tokens; `troubles` come first, by the prompt's first id."""

    troubles: dict[int, list[Any]] = field(default_factory=dict)
    live: int = 0
    most: int = 0
    asked: list[int] = field(default_factory=list)
    gate: asyncio.Event | None = None

    async def generate(self, request: pb.GenerateRequest, write: Write) -> None:
        first = request.token_ids.ids[0]
        self.asked.append(first)
        self.live += 1
        self.most = max(self.most, self.live)
        try:
            if first == 1 and self.gate is not None:
                await self.gate.wait()
            for _ in range(8 + first % 3):
                await asyncio.sleep(0)
            write(pb.GenerateResponse(delta=pb.Delta(token_ids=[5])))
            if self.troubles.get(first):
                trouble = self.troubles[first].pop(0)
                if isinstance(trouble, pb.Ending):
                    write(pb.GenerateResponse(ending=trouble))
                    return
                raise Ended(trouble)
            write(pb.GenerateResponse(delta=pb.Delta(first_index=1, token_ids=[6])))
            usage = pb.Usage(prompt_tokens=len(request.token_ids.ids), output_tokens=2)
            write(pb.GenerateResponse(ending=pb.Ending(finish_reason=pb.FINISH_REASON_LENGTH, usage=usage)))
        finally:
            self.live -= 1


def source(folder: Path, count: int) -> lines.Input:
    path = folder / "requests.jsonl"
    with path.open("w") as file:
        for number in range(1, count + 1):
            body = {"prompt": [number, 2, 3]}
            line = {"custom_id": f"id-{number}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return lines.survey(path)


@dataclass
class Outcome:
    answers: list[dict[str, Any]]
    run: Run
    clock: Clock

    @property
    def codes(self) -> dict[int, int]:
        return {one["line"]: one["response"]["status_code"] for one in self.answers}


def go(executor: Fake, given: lines.Input, **options: Any) -> Outcome:
    clock, output = Clock(), given.path.with_name("answers.jsonl")
    journal = Journal(output, Identity(given.sha256, {}))
    made = replace(Options(in_flight=4, sync_s=0), **options)

    def progress(*, output_tokens: int, failed: bool) -> None:
        assert (output_tokens == 0) == failed

    run = Run(
        executor,
        journal,
        Rules("m"),
        Naming(given.sha256, has_text=False),
        clock,
        made,
        progress,
        clock.sleep,
    )
    try:
        asyncio.run(asyncio.wait_for(run.run(given), 60))
    finally:
        journal.close()
    return Outcome([json.loads(line) for line in output.read_bytes().splitlines()], run, clock)


def test_each_line_is_answered_within_the_window(tmp_path: Path) -> None:
    executor = Fake()
    made = go(executor, source(tmp_path, 50))
    assert made.codes == dict.fromkeys(range(1, 51), 200)
    assert executor.most == 4
    assert made.run.report.figures()["answered"] == 50
    body = made.answers[0]["response"]["body"]
    assert body["choices"][0]["token_ids"] == [5, 6]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_in_order_lines_wait_for_the_first_in_bounded_memory(tmp_path: Path) -> None:
    async def opened() -> None:
        executor.gate = gate = asyncio.Event()
        running = asyncio.create_task(run.run(given))
        for _ in range(500):
            await asyncio.sleep(0)
        stood.append(len(executor.asked))
        gate.set()
        await running

    stood: list[int] = []
    given = source(tmp_path, 50)
    output, executor = tmp_path / "answers.jsonl", Fake()
    journal = Journal(output, Identity(given.sha256, {}))
    options = Options(in_flight=4, sync_s=0, ordered=True)
    run = Run(executor, journal, Rules("m"), Naming(""), Clock(), options, lambda **_: None)
    asyncio.run(asyncio.wait_for(opened(), 60))
    journal.close()
    assert stood == [16], "four windows"
    assert [json.loads(line)["line"] for line in output.read_bytes().splitlines()] == list(range(1, 51))


def test_what_is_busy_is_tried_again_when_it_says(tmp_path: Path) -> None:
    busy = WireStatus(EXHAUSTED, "full", (("superinfer-retry-after-ms", "3000"),))
    made = go(Fake({2: [busy, busy], 3: [WireStatus(UNAVAILABLE, "gone")]}), source(tmp_path, 3))
    assert made.codes == {1: 200, 2: 200, 3: 200}
    assert made.run.report.retries == 3
    assert sorted(made.clock.slept)[1] >= 3.0
    assert max(made.clock.slept) <= 3.0 * 1.25
    assert min(made.clock.slept) >= 0.1
    assert made.answers[1]["response"]["body"]["choices"][0]["token_ids"] == [5, 6], "nothing of a try stays"


def test_what_stays_busy_is_a_line_and_the_others_go_on(tmp_path: Path) -> None:
    busy = [WireStatus(EXHAUSTED, "full", (("superinfer-code", "queue_full"),))] * 1000
    made = go(Fake({2: busy}), source(tmp_path, 4), patience=5 * SECOND)
    assert made.codes == {1: 200, 2: 429, 3: 200, 4: 200}
    failed = next(one for one in made.answers if one["line"] == 2)
    assert failed["error"] == {"code": "queue_full", "message": "full"}
    assert failed["custom_id"] == "id-2"
    figures = made.run.report.figures()
    assert (figures["requests"], figures["completed"], figures["joint_mean"]) == (4, 3, 0.75)


def test_what_stays_away_ends_the_run_and_another_goes_on(tmp_path: Path) -> None:
    given = source(tmp_path, 9)
    with pytest.raises(Unreachable, match="gone"):
        go(Fake({5: [WireStatus(UNAVAILABLE, "gone")] * 9}), given, away_patience=0)
    before = (tmp_path / "answers.jsonl").read_bytes()
    made = go(Fake(), given)
    assert sorted(made.codes) == list(range(1, 10))
    assert (tmp_path / "answers.jsonl").read_bytes().startswith(before)


@pytest.mark.parametrize(
    ("trouble", "status", "code", "param"),
    [
        (
            WireStatus(
                grpc.StatusCode.INVALID_ARGUMENT,
                "sampling.top_p: must be above 0",
                (("superinfer-code", "invalid"), ("superinfer-field", "sampling.top_p")),
            ),
            400,
            "invalid",
            "body.top_p",
        ),
        (WireStatus(grpc.StatusCode.INTERNAL, "the model engine failed"), 500, "internal", None),
        (pb.Ending(finish_reason=pb.FINISH_REASON_CANCELLED), 499, "cancelled", None),
    ],
)
def test_what_ends_badly_is_a_line(
    tmp_path: Path, trouble: Any, status: int, code: str, param: str | None
) -> None:
    made = go(Fake({2: [trouble]}), source(tmp_path, 3))
    assert made.codes == {1: 200, 2: status, 3: 200}
    failed = next(one for one in made.answers if one["line"] == 2)
    told = failed["response"]["body"]["error"]
    assert (told["code"], told["param"], failed["error"]["code"]) == (code, param, code)
    assert "sampling" not in told["message"]
    assert made.run.report.retries == 0


def test_an_input_that_grows_meanwhile_is_told(tmp_path: Path) -> None:
    given = source(tmp_path, 3)
    with given.path.open("a") as file:
        file.write("\n")
    with pytest.raises(InputChanged):
        go(Fake(), given)


def test_a_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def append(self: Journal, line: bytes) -> None:
        written.append(line)
        if len(written) > 3:
            raise OutputFailed("no space")

    monkeypatch.setattr(Journal, "append", append)
    executor = Fake()
    with pytest.raises(OutputFailed):
        go(executor, source(tmp_path, 200))
    assert executor.live == 0
    assert len(executor.asked) < 20


def test_times_are_the_readers_from_the_first_try_on(tmp_path: Path) -> None:
    slow = WireStatus(EXHAUSTED, "full", (("superinfer-retry-after-ms", "8000"),))
    made = go(Fake({1: [slow]}), source(tmp_path, 1))
    figures: Any = made.run.report.figures()
    assert figures["ttft_attainment"] == 0
    assert figures["ttft_ms"]["p50"] >= 8000
    assert made.clock.time >= 8000 * MILLISECOND
