"""About 500 lines a file and 70 a function are the size of a good room."""

from __future__ import annotations

import ast

import pytest

from tidy import source_tree

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
PYTHON = [*source_tree.files(".py"), "scripts/test"]
NATIVE = source_tree.files(".cpp", ".hpp", ".h", ".cu", ".cuh")


@pytest.mark.parametrize("name", [*PYTHON, *NATIVE, *source_tree.files(".proto")])
def test_file_is_no_longer_than_a_room(name: str) -> None:
    lines = source_tree.text(name).count("\n")
    assert lines <= FILE_LINES_MAX, f"{name} has {lines} lines; split it by what it knows"


@pytest.mark.parametrize("name", PYTHON)
def test_functions_fit_a_screen(name: str) -> None:
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(source_tree.tree(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []
