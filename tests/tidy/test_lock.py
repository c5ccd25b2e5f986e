"""What the quickstart installs: each package by version and hash, and all that pyproject.toml asks for."""

from __future__ import annotations

import re
from collections import defaultdict

from packaging.requirements import Requirement
from packaging.version import Version

from tidy import source_tree

LOCK = "requirements/quickstart.txt"
OWN = "requirements/quickstart.in"
ENTRY = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?: ; (?P<marker>.+?))? \\$")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?$")
DEPENDENCY = re.compile(r'^  "([^"]+)",', re.MULTILINE)


def pinned() -> dict[str, list[Version]]:
    """Versions by name; looks at every line on the way."""
    found: dict[str, list[Version]] = defaultdict(list)
    hashes = 1
    for line in source_tree.text(LOCK).splitlines():
        entry = ENTRY.match(line)
        if entry is not None:
            assert hashes, f"the package before {line} has no hash"
            hashes = 0
            found[entry["name"]].append(Version(entry["version"]))
        elif not line.startswith("#"):
            assert HASH.match(line), f"neither a package nor a hash: {line}"
            hashes += 1
    assert hashes
    return found


def asked_for() -> list[Requirement]:
    """By pyproject.toml for a service, and for its build."""
    project = source_tree.text("pyproject.toml")
    start = project.index("\ndependencies = [")
    lines = DEPENDENCY.findall(project[start : project.index("\n]", start)])
    build = re.search(r"^\[build-system\]\nrequires = \[(.+)\]$", project, re.MULTILINE)
    assert build is not None
    lines += re.findall(r'"([^"]+)"', build[1])
    lines += [line for line in source_tree.text(OWN).splitlines() if line and not line.startswith("#")]
    assert len(lines) > 10
    return [Requirement(line) for line in lines]


def test_every_package_is_pinned_by_hash_and_fits_what_is_asked_for() -> None:
    versions = pinned()
    for wanted in asked_for():
        assert versions[wanted.name.lower()], f"{wanted.name} is not in {LOCK}: run scripts/lock"
        for version in versions[wanted.name.lower()]:
            assert version in wanted.specifier, f"{wanted} and {version} in {LOCK}: run scripts/lock"


def test_the_quickstart_installs_nothing_else() -> None:
    script = source_tree.text("scripts/quickstart")
    installs = [line for line in script.splitlines() if '"${pip[@]}"' in line]
    assert (len(installs), script.count('pip" install')) == (2, 1)
    assert f"--require-hashes --only-binary :all: -r {LOCK}" in installs[0]
    assert "--no-deps --no-build-isolation ." in installs[1]
