"""Which panels the runs of a study can fill, and for the others the sweeps that would.

Found in the runs themselves: rates make Fig. 16, links and fixed budgets Fig. 17, a parameter at three
values Figs. 18-21, several settings of a policy the frontier. Pure, any thread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from superinfer_trt.sim.report.metric import FAIRNESS, JOINT
from superinfer_trt.sim.report.study import ENGINE_KNOBS, Setting, Study, main_settings, rank

T = TypeVar("T")
H = TypeVar("H", bound=Hashable)

ABLATED = frozenset({"link", "unlimited_allowance", "eager_sync", "transfer_blocks"})
"""What makes DuplexKV; runs without it differ in these."""

VALUES_MIN = 3
"""A parameter is swept when it was run at so many values."""

RATES_MAX = 3
"""Columns of a plot: more would not be read."""

BASELINE = "fcfs"
PAPER_RATES = (5.0, 10.0, 13.0, 15.0, 18.0, 20.0)
PAPER_SWEEPS = {
    "alpha": (0.3, 1, 3, 10),
    "beta_ttft": (0, 0.25, 0.5, 1),
    "beta_tbt": (-10, -5, 0, 5),
    "transfer_blocks": (300, 600, 1200, 2400, 4800),
}
"""Of the paper's policy: Figs. 18-20 (alpha, beta_F, beta_B) and 21 (B_xfer)."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """Fig. 17: settings that differ in `ABLATED`, a baseline first, the policy's default last."""

    settings: Sequence[Setting]
    rate: float | None


@dataclass(frozen=True, slots=True)
class ParameterStudy:
    """One parameter of one policy: (value, setting), values ascending; rates ascending."""

    policy: str
    parameter: str
    base: Setting
    values: Sequence[tuple[Any, Setting]]
    rates: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Point:
    """A setting on the plane of two metrics; `number` > 0 on the front, from the left, one a place."""

    setting: Setting
    x: float
    y: float
    number: int = 0


@dataclass(frozen=True, slots=True)
class Frontier:
    """Points at each rate, in the order of settings."""

    rates: Sequence[float | None]
    points: Sequence[Sequence[Point]]


@dataclass(frozen=True, slots=True)
class Wish:
    """A sweep to run: policies with their parameters, rates, flags beside those of the world."""

    policies: Sequence[str]
    rates: Sequence[float]
    flags: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Missing:
    """A panel without runs: what it needs, and the sweeps that make them."""

    panel: str
    needs: str
    wishes: Sequence[Wish]


def curves(study: Study) -> list[Setting]:
    """Fig. 16: settings with two rates at least."""
    return [setting for setting in main_settings(study) if len(study.rates_of(setting)) > 1]


def ablation(study: Study) -> Ablation | None:
    """The largest group that differs in the link or the bound of what moves, at its best filled rate."""
    best: tuple[int, float, Ablation] | None = None
    for base, group in _grouped(study.settings, lambda setting: setting.without(ABLATED)).items():
        cut = [s for s in group if {"link", "unlimited_allowance"} & dict(s.changes).keys()]
        if not cut or cut == [base]:
            continue
        budgets = {dict(s.changes).get("transfer_blocks") for s in cut}
        kept = [s for s in group if s in cut or s == base or _only_budget(s, base) in budgets]
        for rate in study.rates:
            there = [s for s in kept if (s, rate) in study.cells]
            if len(there) < 2 or not set(cut) & set(there):
                continue
            there.sort(key=lambda s: s == base)
            first = Setting(BASELINE)
            if (first, rate) in study.cells and base.policy != BASELINE:
                there.insert(0, first)
            found = Ablation(there, rate)
            key = (len(there), -1.0 if rate is None else rate)
            if best is None or key > best[:2]:
                best = (*key, found)
    return best[2] if best else None


def _only_budget(setting: Setting, base: Setting) -> Any:
    """Its transfer_blocks where nothing else sets it apart from the base; else what equals nothing."""
    alone = setting.without(["transfer_blocks"]) == base and setting != base
    return dict(setting.changes)["transfer_blocks"] if alone else object()


def parameter_studies(study: Study) -> list[ParameterStudy]:
    """One for each swept parameter of each policy, at up to three rates."""
    found: dict[tuple[str, str], ParameterStudy] = {}
    for policy, settings in _grouped(study.settings, lambda setting: setting.policy).items():
        names = sorted({name for s in settings for name, _ in s.changes if name not in ENGINE_KNOBS})
        for name in names:
            groups = _grouped(settings, partial(Setting.without, names=[name]))
            for base, group in groups.items():
                one = _parameter_study(study, base, name, group)
                known = found.get((policy, name))
                if one and (known is None or _weight(one) > _weight(known)):
                    found[policy, name] = one
    return list(found.values())


def _parameter_study(
    study: Study, base: Setting, name: str, group: Sequence[Setting]
) -> ParameterStudy | None:
    values = sorted(
        ((study.value(setting, name), setting) for setting in group), key=lambda one: rank(one[0])
    )
    counts = {rate: sum((s, rate) in study.cells for _, s in values) for rate in study.rates}
    rates = [rate for rate, count in counts.items() if count >= VALUES_MIN]
    if not rates:
        return None
    rates = _most(rates, counts)
    kept = [(v, s) for v, s in values if any((s, rate) in study.cells for rate in rates)]
    return ParameterStudy(base.policy, name, base, kept, rates)


def _weight(one: ParameterStudy) -> tuple[int, int]:
    return len(one.values), -len(one.base.changes)


def _most(rates: Sequence[float | None], counts: dict[float | None, int]) -> list[float | None]:
    """The rates with the most runs, the higher ones where equal, ascending."""
    chosen = sorted(rates, key=lambda rate: (counts[rate], -1.0 if rate is None else rate))[-RATES_MAX:]
    return sorted(chosen, key=lambda rate: -1.0 if rate is None else rate)


def frontier(study: Study) -> Frontier | None:
    """Joint attainment against that of the longest prompts, at rates where one policy has three settings."""
    found: dict[float | None, list[Point]] = {}
    for rate in study.rates:
        points = []
        for setting in study.settings:
            x, y = study.spread(setting, rate, FAIRNESS), study.spread(setting, rate, JOINT)
            if x and y:
                points.append(Point(setting, x.mean, y.mean))
        policies = [point.setting.policy for point in points]
        if any(policies.count(policy) >= VALUES_MIN for policy in set(policies)):
            found[rate] = points
    if not found:
        return None
    rates = _most(list(found), {rate: len(points) for rate, points in found.items()})
    return Frontier(rates, [numbered(found[rate]) for rate in rates])


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of those that no other beats in one and equals at least in the other, x ascending.

    More is better in both. Of equal points all are on the front.
    """
    order = sorted(range(len(points)), key=lambda at: (-points[at][0], -points[at][1], at))
    front: list[int] = []
    for at in order:
        if not front or points[at][1] > points[front[-1]][1] or points[at] == points[front[-1]]:
            front.append(at)
    return sorted(front, key=lambda at: (points[at][0], -points[at][1], at))


def numbered(points: Sequence[Point]) -> list[Point]:
    """With their numbers on the front; settings in one place share one."""
    places = [(p.x, p.y) for p in points]
    on_front = dict.fromkeys(places[at] for at in pareto_front(places))
    numbers = {place: number for number, place in enumerate(on_front, 1)}
    return [Point(p.setting, p.x, p.y, numbers.get((p.x, p.y), 0)) for p in points]


def missing(all_studies: Sequence[Study]) -> list[Missing]:
    """Panels that no study fills; the sweeps are for the first one."""
    study = all_studies[0]
    policies = list(dict.fromkeys(s.policy for s in study.settings))
    rate = max((rate for rate in study.rates if rate is not None), default=18.0)
    found = []
    if not any(map(curves, all_studies)):
        wished = list(dict.fromkeys([*policies, "rota-slack", "rotasched", "fcfs", "fcfs-async"]))
        found.append(Missing("Fig. 16", "runs at two rates at least", [Wish(wished, PAPER_RATES)]))
    if not any(map(ablation, all_studies)):
        naive = ("--link", "naive-blocking", "--unlimited-allowance")
        cut = [f"rotasched:transfer_blocks={blocks}:eager_sync=false" for blocks in (300, 2400)]
        wishes = [Wish(["fcfs", "rotasched"], [rate]), Wish(cut, [rate], naive)]
        found.append(Missing("Fig. 17", "runs that differ in --link or --unlimited-allowance", wishes))
    swept = {(one.policy, one.parameter) for study in all_studies for one in parameter_studies(study)}
    for name, values in PAPER_SWEEPS.items():
        if ("rotasched", name) not in swept:
            title = "Fig. 21" if name == "transfer_blocks" else "Figs. 18-20"
            wish = Wish([f"rotasched:{name}={value}" for value in values], [rate])
            found.append(Missing(f"{title}: {name}", f"rotasched at {VALUES_MIN} values of {name}", [wish]))
    if not any(map(frontier, all_studies)):
        wish = Wish([f"rota-slack:length_weight_ms={value}" for value in (0, 1, 2, 5, 10, 20)], [rate])
        found.append(Missing("Frontier", f"{VALUES_MIN} settings of one policy at one rate", [wish]))
    return found


def _grouped(items: Iterable[T], key: Callable[[T], H]) -> dict[H, list[T]]:
    groups: dict[H, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
