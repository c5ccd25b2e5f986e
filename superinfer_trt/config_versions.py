"""What files of older versions call things: a parsed file in today's names, or what to change in it.

The version is that of the form of the file (`version: 1` at its top), raised when a field is renamed or
removed, not with every release. A file without one is of version 1, the form of release 0.1; new names are
understood in it too. Knows no field's meaning or limits. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from superinfer_trt.core.errors import ConfigError

VERSION: Final = 1
"""The form that this release writes, and the newest that it reads."""


@dataclass(frozen=True, slots=True)
class Renamed:
    """From version `since` on, `old` is called `new`; its values mean what they meant. Dotted names."""

    since: int
    old: str
    new: str

    def told(self) -> str:
        """For who uses the old name."""
        return f"{self.old}: is called {self.new} since version {self.since}"


@dataclass(frozen=True, slots=True)
class Removed:
    """From version `since` on, there is no `old`, or it means something else: `instead` says what to do."""

    since: int
    old: str
    instead: str

    def told(self) -> str:
        """For who uses it."""
        return f"{self.old}: is gone since version {self.since}; {self.instead}"


Change = Renamed | Removed
CHANGES: Final[tuple[Change, ...]] = ()
"""Every change of a released form, oldest first."""


def upgraded(
    tree: Mapping[str, Any], changes: Sequence[Change] = CHANGES, newest: int = VERSION
) -> dict[str, Any]:
    """The sections of a parsed file in today's names, without `version`; `tree` itself is left alone.

    Raises ConfigError for a version this release does not read, for a field that is gone, and for one
    that is given under both names.
    """
    made = _copied(tree)
    version = made.pop("version", 1)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ConfigError(f"version: must be a whole number from 1 to {newest}, not {version!r:.40}")
    if version > newest:
        raise ConfigError(
            f"version: {version} is newer than {newest}, the newest this release reads; upgrade "
            "superinfer-trt, or write the file for this release"
        )
    for change in changes:
        if change.since > version and _has(made, change.old):
            if isinstance(change, Removed):
                raise ConfigError(change.told())
            _move(made, change)
    return made


def told(name: str, changes: Sequence[Change] = CHANGES) -> str | None:
    """What to say to who uses `name`, an unknown field; None: no version has known it."""
    return next((change.told() for change in changes if change.old == name), None)


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copied(value) if isinstance(value, dict) else value for name, value in tree.items()}


def _has(tree: Mapping[str, Any], name: str) -> bool:
    at: Any = tree
    for part in name.split("."):
        if not isinstance(at, dict) or part not in at:
            return False
        at = at[part]
    return True


def _move(tree: dict[str, Any], change: Renamed) -> None:
    if _has(tree, change.new):
        raise ConfigError(f"{change.told()}, and both are given")
    *parents, last = change.old.split(".")
    at = tree
    for part in parents:
        at = at[part]
    value = at.pop(last)
    *parents, last = change.new.split(".")
    at = tree
    for part in parents:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise ConfigError(f"{change.told()}, but {part} is not a section")
    at[last] = value
