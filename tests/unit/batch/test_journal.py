"""The output file: what is found in it again, what is cut, refused; and the books of lines and ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt.batch import lines
from superinfer_trt.batch.journal import Identity, Journal
from superinfer_trt.batch.report import Report
from superinfer_trt.core.attainment import RequestTimes, attainment
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.units import MILLISECOND

IDENTITY = Identity("0" * 64, {"seed": 1, "model": "m"})


def entry(number: int, error: Any = None) -> bytes:
    return json.dumps({"line": number, "error": error}).encode() + b"\n"


def written(output: Path, *numbers: int) -> None:
    journal = Journal(output, IDENTITY)
    for number in numbers:
        journal.append(entry(number, {"code": "x"} if number == 2 else None))
    journal.close()


def test_what_is_written_is_found(tmp_path: Path) -> None:
    output = tmp_path / "out"
    written(output, 3, 2, 70_000)
    journal = Journal(output, IDENTITY)
    assert [n for n in (1, 2, 3, 4, 70_000, 10**9) if n in journal.found.done] == [2, 3, 70_000]
    assert (len(journal.found.done), journal.found.failed, journal.found.cut_bytes) == (3, 1, 0)
    journal.close()
    journal.close()


@given(st.integers(0, 200), st.sampled_from([b"", b"\x00" * 40, b"\x00\n\x00\x00", b'{"line":9']))
def test_any_end_of_the_machine_leaves_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, cut: int, rubbish: bytes
) -> None:
    """Cut anywhere, with rubbish behind: what was whole stays, the rest goes."""
    output = tmp_path_factory.mktemp("journal") / "out"
    written(output, *range(1, 9))
    data = output.read_bytes()[:cut]
    output.write_bytes(data + rubbish)
    whole = data[: data.rfind(b"\n") + 1]
    journal = Journal(output, IDENTITY)
    assert len(journal.found.done) == whole.count(b"\n")
    assert output.read_bytes() == whole
    journal.append(entry(99))
    journal.close()
    assert output.read_bytes() == whole + entry(99)


def test_a_bad_line_in_the_middle_is_not_cut(tmp_path: Path) -> None:
    output = tmp_path / "out"
    written(output, 1)
    output.write_bytes(output.read_bytes() + b"rubbish\n" + entry(2))
    with pytest.raises(ConfigError, match="no run has written"):
        Journal(output, IDENTITY)
    assert output.read_bytes().endswith(entry(2))


def test_a_line_twice_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out"
    written(output, 1)
    output.write_bytes(output.read_bytes() * 2)
    with pytest.raises(ConfigError, match="line 1 of the input is in it twice"):
        Journal(output, IDENTITY)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Identity("1" * 64, IDENTITY.settings), "of another input"),
        (Identity(IDENTITY.input_sha256, {"seed": 2, "model": "m"}), "begun with seed 1, now it is 2"),
        (Identity(IDENTITY.input_sha256, {"seed": 1}), "begun with model 'm', now it is None"),
    ],
)
def test_another_input_or_other_settings_are_refused(tmp_path: Path, other: Identity, words: str) -> None:
    output = tmp_path / "out"
    written(output, 1)
    before = output.read_bytes()
    with pytest.raises(ConfigError, match=words):
        Journal(output, other)
    assert output.read_bytes() == before
    Journal(output, other, restart=True).close()
    assert output.read_bytes() == b""
    Journal(output, other).close()


@pytest.mark.parametrize("restart", [False, True])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, restart: bool) -> None:
    output = tmp_path / "out"
    output.write_bytes(b"a diary\n")
    with pytest.raises(ConfigError, match=r"no out\.state\.json says"):
        Journal(output, IDENTITY, restart=restart)
    assert output.read_bytes() == b"a diary\n"


def test_two_runs_never_write_one_output(tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = Journal(output, IDENTITY)
    with pytest.raises(ConfigError, match="another run"):
        Journal(output, IDENTITY, restart=True)
    first.close()
    Journal(output, IDENTITY).close()


def test_a_state_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    output = tmp_path / "out"
    written(output, 1)
    (tmp_path / "out.state.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be understood"):
        Journal(output, IDENTITY)


def test_lines_keep_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES_MAX", 10)
    path = tmp_path / "in"
    path.write_bytes(b"\xef\xbb\xbfone\n\n  \r\n" + b"x" * 50 + b"\nfive\n" + b"y" * 10)
    assert list(lines.numbered(path)) == [(1, b"one\n"), (4, None), (5, b"five\n"), (6, b"y" * 10)]
    found = lines.survey(path)
    assert found.requests == 4
    assert found.unchanged()
    path.write_bytes(b"")
    assert not found.unchanged()
    assert lines.survey(path).requests == 0


def test_an_input_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        lines.survey(tmp_path / "absent")
    with pytest.raises(ConfigError, match="not a regular file"):
        lines.survey(tmp_path)


@given(st.lists(st.integers(0, 3000), max_size=200))
def test_a_set_of_lines_is_a_set(numbers: list[int]) -> None:
    made, model = lines.LineSet(), set[int]()
    for number in numbers:
        assert made.add(number) == (number not in model)
        model.add(number)
    assert len(made) == len(model)
    assert [number for number in range(3002) if number in made] == sorted(model)


def test_ids_remember_their_first_line() -> None:
    ids = lines.FirstLines()
    assert [ids.enter(f"id-{number}", number) for number in range(1, 5001)] == list(range(1, 5001))
    assert [ids.enter(f"id-{number}", 9999) for number in range(1, 5001)] == list(range(1, 5001))


def times(at: int) -> RequestTimes:
    first = at * 7 * MILLISECOND
    tokens = [first + gap * (at % 13) * 20 * MILLISECOND for gap in range(1, 6)]
    return RequestTimes(first, tokens, completed=at % 5 != 0)


def test_a_report_is_the_metrics_while_it_fits() -> None:
    report, runs = Report(), [times(at) for at in range(100)]
    for one in runs:
        report.measured(one)
        report.answer(3, 5)
    figures = report.figures()
    for name, value in attainment(runs).as_dict().items():
        assert figures[name] == value, name


def test_a_long_report_keeps_bounded_times_and_exact_shares() -> None:
    report, runs = Report(times_max=500), [times(at) for at in range(5000)]
    for one in runs:
        report.measured(one)
    figures, exact = report.figures(), attainment(runs)
    assert figures["sampled"] in range(25, 101)
    for name in (
        "requests",
        "completed",
        "joint_mean",
        "joint_p99",
        "joint_stall",
        "ttft_attainment",
        "wall_s",
    ):
        assert figures[name] == getattr(exact, name), name
