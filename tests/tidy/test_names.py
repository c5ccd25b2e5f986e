"""Names that say nothing, clocks and dice in the wrong place, and what is left lying about."""

from __future__ import annotations

import ast
import re
from pathlib import PurePath

import pytest

from tidy import source_tree

HOLLOW = re.compile(r"Manager|Helper|Utils?(?![a-z])|Context(?![a-z])")
HOLLOW_FILE = re.compile(r"(^|_)(manager|helpers?|utils?|context)(_|$)")
THEIRS = frozenset({"DuplexKvResourceManager"})  # subclasses of another project's names keep them
CLOCKS = frozenset({"time", "random", "datetime"})
SIMULATION = "superinfer_trt/sim/"
WALL_CLOCKS = ("datetime.now", "datetime.utcnow", "datetime.today", "date.today")
CLOCKED = ("superinfer_trt/runtime/clock.py", "superinfer_trt/cli/")
OPEN_ENDS = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b")
PLACE_OF_ONE_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|work)/\w")
BY_ENVIRONMENT = "superinfer_trt/trtllm_startup.py"  # what reaches workers however they are started
PACKAGE = source_tree.files(".py", under="superinfer_trt/")
SOURCES = source_tree.files(".py", ".cpp", ".hpp", ".h", ".cu", ".proto")
WRITTEN = [
    *source_tree.files(".md", ".toml", ".txt", ".cmake", ".json", ".yaml", ".pyi"),
    *source_tree.files("", under="scripts/"),
    *SOURCES,
]


@pytest.mark.parametrize("name", SOURCES)
def test_no_hollow_names(name: str) -> None:
    assert not HOLLOW_FILE.search(PurePath(name).stem.lower()), f"{name}: say what it is"
    declared = re.findall(r"^\s*(?:class|struct)\s+(\w+)", source_tree.text(name), re.MULTILINE)
    assert [found for found in declared if HOLLOW.search(found) and found not in THEIRS] == []


@pytest.mark.parametrize("name", [n for n in PACKAGE if not n.startswith((*CLOCKED, SIMULATION))])
def test_time_and_chance_come_from_outside(name: str) -> None:
    tops = {(line, dotted.split(".")[0]) for line, dotted in source_tree.imports(source_tree.tree(name))}
    assert [f"line {line}: {top}" for line, top in sorted(tops) if top in CLOCKS] == []


@pytest.mark.parametrize("name", [n for n in PACKAGE if n.startswith(SIMULATION)])
def test_the_simulator_draws_from_seeds_and_knows_no_wall_clock(name: str) -> None:
    """It may read dates in traces and make a `random.Random(seed)`, and nothing else of those."""
    module = source_tree.tree(name)
    imported = {dotted for _, dotted in source_tree.imports(module)}
    assert not {dotted for dotted in imported if dotted.split(".")[0] == "time"}
    assert not {d for d in imported if d.startswith("random.") and d != "random.Random"}
    used = [
        (n.lineno, f"{n.value.id}.{n.attr}")
        for n in ast.walk(module)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
    ]
    wrong = [(line, name) for line, name in used if name.startswith("random.") and name != "random.Random"]
    wrong += [(line, name) for line, name in used if name in WALL_CLOCKS]
    assert wrong == []


@pytest.mark.parametrize("name", [n for n in PACKAGE if not n.startswith("superinfer_trt/cli/")])
def test_only_the_command_line_prints(name: str) -> None:
    calls = [n for n in ast.walk(source_tree.tree(name)) if isinstance(n, ast.Call)]
    printed = [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
    assert printed == []


@pytest.mark.parametrize("name", [n for n in PACKAGE if n != BY_ENVIRONMENT])
def test_no_environment_variables(name: str) -> None:
    assert not re.search(r"\bos\.(environ|getenv)", source_tree.text(name)), "configuration is explicit"


@pytest.mark.parametrize("name", sorted(set(WRITTEN)))
def test_nothing_left_open(name: str) -> None:
    lines = source_tree.text(name).splitlines()
    assert [f"line {at}" for at, line in enumerate(lines, 1) if OPEN_ENDS.search(line)] == []
    assert [f"line {at}" for at, line in enumerate(lines, 1) if PLACE_OF_ONE_MACHINE.search(line)] == []


@pytest.mark.parametrize("name", PACKAGE)
def test_every_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(source_tree.tree(name)), f"{name} has no docstring"
