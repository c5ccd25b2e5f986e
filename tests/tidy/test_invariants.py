"""docs/invariants.md is alive: every rule is named by a test and by the code that keeps it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from superinfer_trt.core.phase import drawing
from tidy import source_tree

DOCUMENT = source_tree.ROOT / "docs" / "invariants.md"
RULES = re.findall(r"^\| ([LC]\d+) \|", DOCUMENT.read_text(), re.MULTILINE)
CODE = [
    *source_tree.files(".py", under="superinfer_trt/"),
    *source_tree.files(".cpp", ".hpp", ".h", under="plugins/"),
]
TESTS = [name for name in source_tree.files(".py", under="tests/") if not name.startswith("tests/tidy/")]

# Where a rule is kept, and where it is tested. A rule is excused only while nothing matches.
KEPT = {
    **dict.fromkeys(["L1", "L2", "L3", "L4", "L5", "L6", "C1", "C2", "C6"], "superinfer_trt/kv/ledger.py"),
    **dict.fromkeys(["C3", "C4", "C11"], "superinfer_trt/runtime/executor.py"),
    "C5": "superinfer_trt/engine/pattern.py",
    "C7": "superinfer_trt/core/check.py",
    "C8": "superinfer_trt/core/phase.py",
    **dict.fromkeys(["C9", "C10"], "superinfer_trt/sched/rotasched.py"),
    "C12": "superinfer_trt/engine/native.py",
}
TESTED = {
    **dict.fromkeys(
        ["L1", "L2", "L3", "L4", "L5", "L6", "C1", "C2", "C5", "C6"], "tests/props/test_ledger*.py"
    ),
    **dict.fromkeys(["C3", "C4"], "tests/unit/runtime/test_*.py"),
    "C7": "tests/unit/core/test_check*.py",
    "C8": "tests/unit/core/test_phase.py",
    **dict.fromkeys(["C9", "C10"], "tests/props/test_plan*.py"),
    "C11": "tests/equiv/test_determinism.py",
    "C12": "tests/equiv/test_rotation*.py",
}


def there(pattern: str) -> bool:
    return bool(fnmatch.filter(source_tree.tracked(), pattern))


def naming(rule: str, names: list[str]) -> list[str]:
    word = re.compile(rf"\b{rule}\b")
    return [name for name in names if word.search(source_tree.text(name))]


def test_the_list_is_whole() -> None:
    assert [f"L{n}" for n in range(1, 7)] + [f"C{n}" for n in range(1, 13)] == RULES
    assert set(KEPT) == set(TESTED) == set(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_rule_is_named_where_it_is_kept(rule: str) -> None:
    if not there(KEPT[rule]):
        pytest.skip(f"{KEPT[rule]} is not there yet")
    assert naming(rule, CODE), f"no source line names {rule}"


@pytest.mark.parametrize("rule", RULES)
def test_rule_is_named_where_it_is_tested(rule: str) -> None:
    if not there(TESTED[rule]):
        pytest.skip(f"{TESTED[rule]} is not there yet")
    assert naming(rule, TESTS), f"no test names {rule}"


def test_the_drawing_of_the_phases_is_fresh(golden: Callable[[Path, str], None]) -> None:
    head, fence, rest = DOCUMENT.read_text().partition("```phases\n")
    _, close, tail = rest.partition("```\n")
    golden(DOCUMENT, f"{head}{fence}{drawing()}\n{close}{tail}")
