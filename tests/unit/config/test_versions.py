"""Files of older versions load, or say what to change; nothing a release knew is lost without a word."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from superinfer_trt import config
from superinfer_trt.config import Config, load
from superinfer_trt.config_versions import CHANGES, VERSION, Change, Removed, Renamed, told, upgraded
from superinfer_trt.core.errors import ConfigError

RELEASED = sorted(Path(__file__).with_name("released").glob("*.yaml"))
CHANGED: tuple[Change, ...] = (
    Renamed(2, "pools.gpu_blocks", "pools.hbm_blocks"),
    Removed(2, "engine.speed", "there is one speed"),
    Renamed(3, "pools", "tiers"),
    Renamed(3, "service.shed", "admission.shed"),
)


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize("path", RELEASED, ids=[path.stem for path in RELEASED])
def test_files_of_every_release_load_and_mean_what_they_meant(path: Path) -> None:
    """They give every field of their release a value that is not its default."""
    asked = upgraded(yaml.safe_load(path.read_text()))
    read, default = load(path).model_dump(mode="json"), Config().model_dump(mode="json")
    known, plain = leaves(read), leaves(default)
    for name, value in leaves(asked).items():
        assert known[name] == value, name
        if name in plain:
            assert plain[name] != value, f"{name}: its default in a file that is to differ everywhere"


def test_the_newest_file_gives_every_field() -> None:
    """A field that came after a release belongs in the file of the next one (docs/upgrades.md)."""
    newest = max(RELEASED, key=lambda path: [int(part) for part in path.stem.split(".")])
    given = set(leaves(yaml.safe_load(newest.read_text())))
    given |= {name.rsplit(".", depth)[0] for name in given for depth in (1, 2)}  # a field may be a mapping
    assert [name for name, *_ in config.describe() if name not in given] == []


def test_a_dump_tells_its_version_and_loads(tmp_path: Path) -> None:
    text = config.dump(Config())
    assert text.startswith(f"version: {VERSION}\n")
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert load(path) == Config()


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (VERSION + 1, f"version: {VERSION + 1} is newer than {VERSION}, the newest this release reads"),
        (0, "version: must be a whole number from 1"),
        (True, "not True"),
        ("0.1", "not '0.1'"),
        (None, "not None"),
        ({"a": 1}, "version: must be"),
    ],
)
def test_versions_that_are_none_of_ours(tmp_path: Path, version: object, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"version": version, "pools": {"hbm_blocks": 7}}))
    with pytest.raises(ConfigError, match=words):
        load(path)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"pools": {"gpu_blocks": 4, "dram_blocks": 5}}, {"tiers": {"hbm_blocks": 4, "dram_blocks": 5}}),
        ({"version": 2, "pools": {"hbm_blocks": 4}}, {"tiers": {"hbm_blocks": 4}}),
        ({"version": 3, "tiers": {"hbm_blocks": 4}}, {"tiers": {"hbm_blocks": 4}}),
        ({"tiers": {"hbm_blocks": 4}}, {"tiers": {"hbm_blocks": 4}}),
        (
            {"service": {"shed": "off", "port": 1}, "admission": {"a": 1}},
            {"service": {"port": 1}, "admission": {"a": 1, "shed": "off"}},
        ),
        ({"version": 3, "service": {"shed": "off"}}, {"service": {"shed": "off"}}),
        ({"pools": 3}, {"tiers": 3}),
    ],
)
def test_old_names_are_carried_over(tree: dict[str, Any], expected: dict[str, Any]) -> None:
    before = copy.deepcopy(tree)
    assert upgraded(tree, CHANGED, 3) == expected
    assert tree == before


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (
            {"pools": {"gpu_blocks": 4, "hbm_blocks": 5}},
            "pools.gpu_blocks: is called pools.hbm_blocks since version 2, and both are given",
        ),
        ({"engine": {"speed": 1}}, "engine.speed: is gone since version 2; there is one speed"),
        (
            {"service": {"shed": 1}, "admission": 3},
            "service.shed: is called admission.shed since version 3, but admission is not a section",
        ),
        ({"version": 2, "pools": {}, "tiers": {}}, "pools: is called tiers since version 3, and both"),
    ],
)
def test_what_cannot_be_carried_over_says_what_to_change(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        upgraded(tree, CHANGED, 3)
    assert words in str(caught.value)


def test_an_old_name_in_a_new_place_is_told_its_new_one() -> None:
    """In a flag, or in a file that says it is of today's version."""
    assert told("pools.gpu_blocks", CHANGED) == "pools.gpu_blocks: is called pools.hbm_blocks since version 2"
    assert told("engine.speed", CHANGED) == "engine.speed: is gone since version 2; there is one speed"
    assert told("pools.blocks", CHANGED) is None


def test_the_table_of_changes_leads_to_names_there_are() -> None:
    """In order, none later than the newest version, each new name a section or field of today."""
    known = {name for name, *_ in config.describe()}
    names = known | {name.rsplit(".", 1)[0] for name in known}
    later = {change.old for change in CHANGES}
    assert [change.since for change in CHANGES] == sorted(change.since for change in CHANGES)
    assert max((change.since for change in CHANGES), default=1) == VERSION
    for change in CHANGES:
        assert change.old not in names
        if isinstance(change, Renamed):
            assert change.new in names | later


SECTIONS = ["pools", "tiers", "engine", "service", "admission", "version"]
NAMES = [*SECTIONS, "gpu_blocks", "hbm_blocks", "speed", "shed", "x"]
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda below: st.dictionaries(st.sampled_from(NAMES), below, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["pools", "tiers", "engine", "service", "admission", "version"]), TREES)
)
def test_any_tree_comes_out_in_new_names_or_is_refused(tree: dict[str, Any]) -> None:
    """What comes out holds every value that went in, and is its own upgrade."""
    before = copy.deepcopy(tree)
    try:
        made = upgraded(tree, CHANGED, 3)
    except ConfigError:
        return
    assert tree == before
    old = {name: value for name, value in tree.items() if name != "version"}
    assert sorted(map(repr, leaves(made).values())) == sorted(map(repr, leaves(old).values()))
    assert upgraded({"version": 3, **made}, CHANGED, 3) == made
