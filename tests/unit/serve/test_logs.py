"""Lines for machines and people; who may write into them; repeats."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from superinfer_trt.core.errors import RefusalCode, Refused
from superinfer_trt.core.outcome import Ending
from superinfer_trt.core.request import FinishReason
from superinfer_trt.core.slo import Slo
from superinfer_trt.core.units import MILLISECOND
from superinfer_trt.serve import logs
from superinfer_trt.serve.tally import Open, Series

ONE = Open("job-1", "acme", Slo(), Series("acme", "default"), arrival=0, late=2, stall=7 * MILLISECOND)
ENDING = Ending(
    FinishReason.LENGTH,
    "",
    prompt_tokens=3,
    output_tokens=10,
    rotations=1,
    evictions=0,
    arrival=0,
    admitted=2 * MILLISECOND,
    first_token=5 * MILLISECOND,
    last_token=105 * MILLISECOND,
    away=40 * MILLISECOND,
)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = before
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_ending_is_one_json_line_with_its_times(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream)
    logs.log_ending(ONE, ENDING, 110 * MILLISECOND)
    (line,) = lines(stream)
    assert line.pop("time") > 1e9  # type: ignore[operator]
    assert line == {
        "level": "info",
        "logger": "superinfer_trt.requests",
        "message": "ended",
        "request_id": "job-1",
        "tenant": "acme",
        "reason": "length",
        "prompt_tokens": 3,
        "output_tokens": 10,
        "queue_ms": 2.0,
        "ttft_ms": 5.0,
        "decode_ms": 100.0,
        "away_ms": 40.0,
        "total_ms": 110.0,
        "late_gaps": 2,
        "stall_ms": 7.0,
        "ttft_slo_ms": 5000.0,
        "tbt_slo_ms": 100.0,
        "rotations": 1,
        "evictions": 0,
    }


def test_what_never_happened_is_null(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream)
    early = Ending(FinishReason.FAILED, "the engine broke", 3, 0, 0, 0, 0, -1, -1, -1)
    logs.log_ending(ONE, early, MILLISECOND)
    (line,) = lines(stream)
    assert (line["queue_ms"], line["ttft_ms"], line["decode_ms"]) == (None, None, None)
    assert (line["reason"], line["why"]) == ("failed", "the engine broke")


def test_text_is_one_line_too(stream: io.StringIO) -> None:
    logs.configure("info", "text", stream)
    logs.log_ending(ONE, ENDING, 110 * MILLISECOND)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("INFO superinfer_trt.requests: ended request_id=job-1 tenant=acme reason=length")


def test_a_warning_level_tells_nothing_of_requests(stream: io.StringIO) -> None:
    logs.configure("warning", "json", stream)
    logs.log_ending(ONE, ENDING, 1)
    logs.log_refusal("a", "b", Refused(RefusalCode.INVALID, "prompt", "is empty"))
    assert stream.getvalue() == ""


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_caller_cannot_write_lines_of_its_own(stream: io.StringIO, form: logs.LogFormat) -> None:
    logs.configure("info", form, stream)
    evil = 'x\nINFO superinfer_trt: "hacked"\x1b[2J\u2028' + "y" * 10_000
    logs.log_refusal(evil, evil, Refused(RefusalCode.INVALID, "request_id", "only the characters ..."))
    (line,) = stream.getvalue().split("\n")[:-1]
    assert "\x1b" not in line
    assert len(line) < 2_000
    assert "request_id" in line


def test_repeated_errors_are_held_back_and_counted() -> None:
    repeats = logs.Repeats(repeats_max=3, period_s=10)

    def record(at_s: float, level: int = logging.ERROR, line: int = 1) -> logging.LogRecord:
        made = logging.LogRecord("a", level, "f.py", line, "broke", (), None)
        made.created = at_s
        return made

    assert [repeats.filter(record(at)) for at in (0, 1, 2, 3, 4)] == [True, True, True, False, False]
    assert repeats.filter(record(4, line=2))  # another place
    assert all(repeats.filter(record(4, logging.INFO)) for _ in range(20))
    later = record(10)
    assert repeats.filter(later)
    assert later.fields == {"suppressed": 2}  # type: ignore[attr-defined]
    again = record(11)
    assert repeats.filter(again)
    assert not hasattr(again, "fields")


def test_an_exception_is_part_of_its_line(stream: io.StringIO) -> None:
    logs.configure("warning", "json", stream)
    try:
        int("broken")
    except ValueError:
        logging.getLogger("x").exception("a call failed")
    (line,) = lines(stream)
    assert (line["level"], line["message"]) == ("error", "a call failed")
    assert "ValueError: invalid literal" in str(line["exception"])
