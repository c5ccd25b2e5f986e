"""`superinfer-trt report` as a command: files, determinism, and one-line refusals."""

from __future__ import annotations

import html.parser
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from superinfer_trt.cli.main import cli, run
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sim.parquet import write_parquet
from superinfer_trt.sim.report.page import write_files
from support.sweeps import everything, line

PICTURES = {
    *("fig16-rates.png", "fig17-ablation.png", "frontier.png", "rota-slack-length_weight_ms.png"),
    *(f"rotasched-{name}.png" for name in ("alpha", "beta_ttft", "beta_tbt", "transfer_blocks")),
}
VOID = {"meta", "img", "source", "link", "br"}


class Page(html.parser.HTMLParser):
    """Tags are closed as they were opened, and what the page asks for from outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        assert tag != "script"
        for name, value in attrs:
            if name in {"src", "srcset", "href"} and not (value or "").startswith(("data:image/png", "#")):
                self.outside.append(value or "")
            if name == "href":
                self.anchors.append((value or "")[1:])
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of runs that fill every panel."""
    place = tmp_path_factory.mktemp("report")
    (place / "runs.jsonl").write_text("".join(text + "\n" for text in everything()))
    assert run(["report", str(place / "runs.jsonl"), "--output", str(place / "out")]) == 0
    return place


def test_every_panel_is_a_file_and_in_the_page(folder: Path) -> None:
    out = folder / "out"
    assert {path.name for path in out.iterdir()} == {"report.html", "report.md", *PICTURES}
    assert all((out / name).read_bytes().startswith(b"\x89PNG\r\n") for name in PICTURES)
    told = (out / "report.md").read_text()
    assert set(re.findall(r"\]\((.*?\.png)\)", told)) == PICTURES
    assert "nothing here was measured on a GPU" in told
    assert "Panels without runs" not in told


def test_the_page_is_well_formed_and_asks_nobody(folder: Path) -> None:
    text = (folder / "out" / "report.html").read_text()
    page = Page(text)
    assert page.outside == []
    assert set(page.anchors) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert text.count("data:image/png;base64,") == 2 * len(PICTURES)  # on light and on dark ground
    assert "prefers-color-scheme: dark" in text
    assert "nothing here was measured on a GPU" in text
    assert "url(" not in text
    assert "@import" not in text


def test_the_same_runs_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    parquet = tmp_path / "runs.parquet"
    write_parquet(parquet, everything())
    assert run(["report", str(parquet), "--output", str(tmp_path / "out")]) == 0
    for path in (folder / "out").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_pictures_carry_no_date_and_no_version(folder: Path) -> None:
    for name in PICTURES:
        content = (folder / "out" / name).read_bytes()
        assert b"tEXt" not in content
        assert b"tIME" not in content


def test_what_is_missing_comes_with_commands_that_are_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "some runs.jsonl"
    more = {"classes": ["fast:0.5:1:50"], "hardware_params": {"hbm_bytes": 1e11}, "drop_longer": True}
    runs.write_text(line("fcfs", 5, duration_s=30.0, **more) + "\n")
    assert (
        run(["report", str(runs), "--output", str(tmp_path / "out"), "--metrics", "joint_mean,ttft_ms.p99"])
        == 0
    )
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'report.html'}\n"
    told = (tmp_path / "out" / "report.md").read_text()
    assert re.findall(r"^### (.*)", told, re.MULTILINE) == [
        "Joint attainment (TTFT and mean TBT), % (more is better)",
        "TTFT, P99, s (less is better)",
    ]
    commands = re.findall(r"^    (superinfer-trt sweep .*)", told, re.MULTILINE)
    assert len(commands) == 8
    for command in commands:
        words = shlex.split(command)
        sweep = cli.get_command(None, "sweep")  # type: ignore[arg-type]
        assert sweep is not None
        values = sweep.make_context("sweep", words[2:]).params
        assert values["duration_s"] == 30
        assert values["classes"] == ("fast:0.5:1:50",)
        assert values["hardware_params"] == ("hbm_bytes=100000000000.0",)
        assert values["drop_longer"] is True
        assert values["output"] == runs


def test_text_of_others_is_escaped(tmp_path: Path) -> None:
    runs = tmp_path / "runs.jsonl"
    evil = "<script>alert(1)</script>|x"
    runs.write_text(line(evil, 5, model=evil, trace=evil, policy_params={evil: evil}) + "\n")
    assert run(["report", str(runs), "--output", str(tmp_path / "out")]) == 0
    Page((tmp_path / "out" / "report.html").read_text())


def test_two_worlds_are_two_sections(tmp_path: Path) -> None:
    runs = tmp_path / "runs.jsonl"
    lines = [line("fcfs", rps, model=model) for rps in (5, 10) for model in ("llama-3-8b", "qwen2.5-32b")]
    runs.write_text("\n".join(lines) + "\n")
    assert run(["report", str(runs), "--output", str(tmp_path / "out")]) == 0
    told = (tmp_path / "out" / "report.md").read_text()
    assert re.findall(r"^## (.*)", told, re.MULTILINE)[:2] == [
        "llama-3-8b on gh200-144gb, chat.csv",
        "qwen2.5-32b on gh200-144gb, chat.csv",
    ]
    assert (tmp_path / "out" / "study-2-fig16-rates.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["{bad}"], "bad.jsonl:1: is no run"),
        (["{empty}"], "no run in it"),
        (["{good}", "{bad}"], "bad.jsonl:1: is no run"),
        (["{good}", "--metrics", "colour"], "metrics: 'colour' is unknown; known: ttft_attainment"),
        (["{good}", "--metrics", ""], "metrics: '' is unknown"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("good", "bad", "empty")}
    paths["good"].write_text(line("fcfs", 5) + "\n")
    paths["bad"].write_text(json.dumps({"hello": 1}) + "\n")
    paths["empty"].touch()
    filled = [word.format(**paths) for word in arguments]
    assert run(["report", *filled, "--output", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert not (tmp_path / "out").exists()


def test_files_are_put_there_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "b.png").mkdir()
    (tmp_path / "b.png" / "full").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        write_files(tmp_path, {"b.png": b"2", "a.md": b"1"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.png"]
    taken = tmp_path / "file"
    taken.touch()
    with pytest.raises(ConfigError, match="cannot write"):
        write_files(taken, {"a.md": b"1"})


@pytest.mark.parametrize("gone", ["matplotlib", "pyarrow"])
def test_what_is_not_installed_is_named(gone: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs.jsonl"
    runs.write_text(line("fcfs", 5) + "\n")
    words = (
        ["report", str(runs), "--output", str(tmp_path / "out")]
        if gone == "matplotlib"
        else ["sweep", "--policies", "fcfs", "--rates", "5", "--output", str(tmp_path / "runs.parquet")]
    )
    program = f"import sys; sys.modules[{gone!r}] = None\n"
    program += f"from superinfer_trt.cli.main import run; sys.exit(run({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert f'needs {gone}: pip install "superinfer-trt[sim]"' in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [runs]
