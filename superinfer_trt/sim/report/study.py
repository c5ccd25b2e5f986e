"""Runs of one world, by setting and rate: what a report compares.

A *world* is all of a job but who schedules it, how fast requests come and the seed; only runs of one world
are compared. A *setting* is a policy with what differs from that policy's own defaults, the link and depth
of its engine among it. A *cell* is a setting at a rate, its runs the seeds. Pure, any thread.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from superinfer_trt.sim.report.metric import Metric
from superinfer_trt.sim.report.runs import Run, check_same

Knobs: TypeAlias = Mapping[str, Any]
"""Parameters of a policy by name, with `link`, `depth` and `unlimited_allowance` of its engine."""

ENGINE_KNOBS = ("link", "depth", "unlimited_allowance")
PRIVATE = frozenset({"rps", "seed", "policy", "policy_params", *ENGINE_KNOBS})
FIRST = ("rota-slack", "rotasched")
"""Listed before all others, and drawn thick."""

AUTOMATIC = "auto"


@dataclass(frozen=True, slots=True)
class Setting:
    """A policy and what differs from its defaults, sorted by name; values are numbers, words or None."""

    policy: str
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def is_default(self) -> bool:
        """Whether nothing differs."""
        return not self.changes

    @property
    def label(self) -> str:
        """`rotasched alpha=1`."""
        return " ".join([self.policy, *(f"{name}={written(value)}" for name, value in self.changes)])

    def without(self, names: Iterable[str]) -> Setting:
        """The same with the defaults of these."""
        kept = tuple(change for change in self.changes if change[0] not in names)
        return Setting(self.policy, kept)


def written(value: Any) -> str:
    """A value of a knob for people."""
    if value is None:
        return AUTOMATIC
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def rank(value: Any) -> tuple[int, float, str]:
    """Orders values of a knob: automatic, then numbers, then words."""
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, (int, float)):
        return 1, float(value), ""
    return 2, 0.0, str(value)


def setting_of(job: Mapping[str, Any], defaults: Knobs) -> Setting:
    """`defaults`: of the job's policy; a knob they lack has none."""
    given = dict(job["policy_params"])
    given |= {name: job[name] for name in ENGINE_KNOBS if job.get(name) is not None}
    changes = []
    for name, value in sorted(given.items()):
        if name not in defaults and name in ENGINE_KNOBS and not value:
            continue
        plain, own = _plain(value), _plain(defaults.get(name))
        if name not in defaults or isinstance(plain, bool) != isinstance(own, bool) or plain != own:
            changes.append((name, plain))
    return Setting(job["policy"], tuple(changes))


def _plain(value: Any) -> Any:
    """Something that can be compared and hashed."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric over the seeds of a cell. `deviation`: of the sample; None for one seed."""

    mean: float
    low: float
    high: float
    deviation: float | None
    seeds: int


@dataclass(frozen=True, slots=True)
class Study:
    """All runs of one world. `settings` in the order of a report, `rates` ascending, None first.

    `defaults`: policy -> its knobs.
    """

    world: Mapping[str, Any]
    cells: Mapping[tuple[Setting, float | None], Sequence[Run]]
    settings: Sequence[Setting]
    rates: Sequence[float | None]
    defaults: Mapping[str, Knobs]

    @property
    def runs(self) -> list[Run]:
        """Of all cells."""
        return [run for cell in self.cells.values() for run in cell]

    @property
    def seeds(self) -> list[int]:
        """All that occur, ascending."""
        return sorted({run.job["seed"] for run in self.runs})

    def rates_of(self, setting: Setting) -> list[float]:
        """The rates it was run at, ascending; the trace's own times are no rate."""
        return [rate for rate in self.rates if rate is not None and (setting, rate) in self.cells]

    def value(self, setting: Setting, knob: str) -> Any:
        """Of a knob, whether changed or not."""
        return dict(setting.changes).get(knob, self.defaults.get(setting.policy, {}).get(knob))

    def spread(self, setting: Setting, rate: float | None, metric: Metric) -> Spread | None:
        """Over the seeds; None without a run that measured it."""
        values = [metric.value(run.figures) for run in self.cells.get((setting, rate), ())]
        there = [value for value in values if value is not None]
        if not there:
            return None
        deviation = statistics.stdev(there) if len(there) > 1 else None
        return Spread(statistics.fmean(there), min(there), max(there), deviation, len(there))


def studies(runs: Sequence[Run], defaults: Mapping[str, Knobs]) -> list[Study]:
    """One for each world, that of the most runs first. `defaults`: policy -> knobs, in registry order.

    Raises ConfigError where one simulation has two outcomes.
    """
    worlds: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        worlds[_text({name: value for name, value in run.job.items() if name not in PRIVATE})].append(run)
    return [
        _study(json.loads(world), mine, defaults)
        for world, mine in sorted(worlds.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def _study(world: Mapping[str, Any], runs: Sequence[Run], defaults: Mapping[str, Knobs]) -> Study:
    found: dict[tuple[Setting, float | None], dict[int, Run]] = defaultdict(dict)
    for run in runs:
        setting = setting_of(run.job, defaults.get(run.job["policy"], {}))
        # `alpha=3` and no alpha are one simulation, and count once.
        check_same(found[setting, run.rate].setdefault(run.job["seed"], run), run)
    cells = {key: [cell[seed] for seed in sorted(cell)] for key, cell in found.items()}
    names = [*FIRST, *(name for name in defaults if name not in FIRST)]
    places = {name: at for at, name in enumerate(names)}

    def order(setting: Setting) -> tuple[Any, ...]:
        changes = tuple((name, rank(value)) for name, value in setting.changes)
        return places.get(setting.policy, len(places)), setting.policy, changes

    settings = sorted({setting for setting, _ in cells}, key=order)
    rates = sorted({rate for _, rate in cells}, key=lambda rate: -1.0 if rate is None else rate)
    return Study(world, cells, settings, rates, defaults)


def main_settings(study: Study) -> list[Setting]:
    """Who is compared over rates: of each policy the setting with the most rates (the default where there
    is a choice), and its others with several rates while they are few."""
    chosen = []
    for policy in dict.fromkeys(setting.policy for setting in study.settings):
        mine = [setting for setting in study.settings if setting.policy == policy]
        first = max(mine, key=lambda s: (sum((s, r) in study.cells for r in study.rates), s.is_default))
        several = [s for s in mine if s != first and len(study.rates_of(s)) > 1]
        kept = {first, *(several if len(several) < 3 else ())}
        chosen += [setting for setting in mine if setting in kept]
    return chosen
