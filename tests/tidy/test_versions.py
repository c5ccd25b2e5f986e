"""One version everywhere, a changelog in one form, and what each release promised kept beside the tests."""

from __future__ import annotations

import re

import pytest

from tidy import source_tree

KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
HEADING = re.compile(r"^## \[(?:Unreleased\]|(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d)$")


def version() -> str:
    """The version of pyproject.toml."""
    found = re.search(r'^version = "(\d+\.\d+\.\d+)"$', source_tree.text("pyproject.toml"), re.MULTILINE)
    assert found is not None
    return found[1]


def faults(text: str) -> list[str]:
    """Where a changelog leaves the form of Keep a Changelog."""
    found, releases, kinds, line_number = [], [], [], 0
    for line_number, line in enumerate(text.splitlines(), 1):
        at = f"line {line_number}: "
        if line.startswith("## "):
            heading = HEADING.match(line)
            if heading is None:
                found.append(f"{at}{line} is neither [Unreleased] nor [x.y.z] - yyyy-mm-dd")
                continue
            if (heading[1] is None) != (not releases):
                found.append(f"{at}[Unreleased] stands first, and once")
            releases.append(tuple(map(int, (heading[1] or "999.0.0").split("."))))
            kinds = []
        elif line.startswith("### "):
            kind = line.removeprefix("### ")
            if kind not in KINDS or [KINDS.index(k) for k in kinds] >= [KINDS.index(kind)]:
                found.append(f"{at}{kind} is not the next of {', '.join(KINDS)}")
            else:
                kinds = [kind]
        elif line.startswith("- ") and not kinds:
            found.append(f"{at}an entry below no kind")
    if releases != sorted(releases, reverse=True) or not releases:
        found.append("releases stand newest first, below [Unreleased]")
    return found


def test_the_changelog_is_in_form() -> None:
    assert faults(source_tree.text("CHANGELOG.md")) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "newest first"),
        ("## [0.1.0] - 2026-01-01\n", "[Unreleased] stands first"),
        ("## [Unreleased]\n## [Unreleased]\n", "and once"),
        ("## [Unreleased]\n## 0.1.0\n", "is neither"),
        ("## [Unreleased]\n## [0.1.0] - 2026-01-01\n## [0.2.0] - 2026-01-01\n", "newest first"),
        ("## [Unreleased]\n### Fixed\n### Added\n", "Added is not the next"),
        ("## [Unreleased]\n### Fixed\n### Fixed\n", "Fixed is not the next"),
        ("## [Unreleased]\n### News\n", "News is not the next"),
        ("## [Unreleased]\n- something\n", "below no kind"),
    ],
)
def test_a_changelog_out_of_form_is_seen(text: str, words: str) -> None:
    assert any(words in fault for fault in faults(text)), faults(text)


def test_the_version_is_the_same_everywhere() -> None:
    one = re.escape(version())
    assert re.search(rf"^project\(superinfer_trt VERSION {one} ", source_tree.text("CMakeLists.txt"), re.M)
    assert re.search(rf"^Version {one}\b", source_tree.text("docs/status.md"), re.M)
    assert re.search(rf"\b{one}\b", source_tree.text("README.md")), "README.md: the line of the version"


def test_every_minor_release_left_a_configuration_behind() -> None:
    """tests/unit/config reads them all."""
    released = re.findall(r"^## \[(\d+\.\d+)\.\d+\]", source_tree.text("CHANGELOG.md"), re.MULTILINE)
    kept = {
        name.rsplit("/", 1)[1] for name in source_tree.files(".yaml", under="tests/unit/config/released/")
    }
    assert {f"{one}.yaml" for one in (*released, "0.1")} <= kept
