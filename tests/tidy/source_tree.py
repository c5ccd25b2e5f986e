"""The tree the tidy tests read: the sources git knows or would know, not the installed package."""

from __future__ import annotations

import ast
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "superinfer_trt"
GENERATED = "superinfer_trt/serve/pb/"


@functools.cache
def tracked() -> tuple[str, ...]:
    """Paths relative to the root, sorted; generated files left out."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return tuple(
        sorted(name for name in listed if (ROOT / name).is_file() and not name.startswith(GENERATED))
    )


def files(*suffixes: str, under: str = "") -> list[str]:
    """Tracked files that end in one of `suffixes`, below a folder."""
    return [name for name in tracked() if name.endswith(suffixes) and name.startswith(under)]


@functools.cache
def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(text(name), filename=name)


def imports(module: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, also those inside functions; `from a.b import c` gives a.b.c."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
