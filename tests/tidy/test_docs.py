"""What the documents say exists: links, scripts, commands and their flags."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from superinfer_trt.cli.main import cli
from tidy import source_tree

DOCUMENTS = source_tree.files(".md")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(?:#[^)]*)?\)")
CONSOLE = re.compile(r"^\$ (.+?)(?:\s+#.*)?$", re.MULTILINE)


def told(name: str) -> list[list[str]]:
    """The commands a document shows, as words."""
    joined = source_tree.text(name).replace("\\\n", " ")
    return [shlex.split(line) for line in CONSOLE.findall(joined)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    folder = (source_tree.ROOT / name).parent
    broken = [link for link in LINK.findall(source_tree.text(name)) if not (folder / link).exists()]
    assert broken == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_scripts_that_are_shown_are_there(name: str) -> None:
    shown = {words[0] for words in told(name) if words[0].startswith("scripts/")}
    assert [script for script in sorted(shown) if not (source_tree.ROOT / script).is_file()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_that_are_shown_are_understood(name: str) -> None:
    """Parsed as they stand, not run."""
    for words in told(name):
        if words[0] == "superinfer-trt":
            parse(cli, words[1:])


def parse(command: click.Command, words: list[str]) -> None:
    """Raises click.UsageError for what the command line would refuse."""
    if isinstance(command, click.Group):
        child = command.get_command(click.Context(command), words[0])
        if child is None:
            raise click.UsageError(f"no command {words[0]}")
        parse(child, words[1:])
    else:
        command.make_context(command.name, words).close()


def test_a_wrong_flag_would_be_seen() -> None:
    with pytest.raises(click.UsageError):
        parse(cli, ["serve", "--hbm-blockz", "4"])
    with pytest.raises(click.UsageError):
        parse(cli, ["serf"])
