"""Tables of a study: policies x rates for each metric, and every other setting in one.

The best of a column is marked, and all that are written alike with it; where all are, nobody is best.
Pure, any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from superinfer_trt.sim.report.metric import FAIRNESS, JOINT, Metric
from superinfer_trt.sim.report.panel import Frontier
from superinfer_trt.sim.report.study import Setting, Spread, Study, main_settings

NOTHING = "-"
TRACE_TIMES = "trace's times"


@dataclass(frozen=True, slots=True)
class Cell:
    """Mean and spread as text; `few`: number of seeds where others of the table have more, else 0.

    `percent`: of a share, for a bar behind the text.
    """

    text: str = NOTHING
    spread: str = ""
    best: bool = False
    few: int = 0
    percent: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One setting (at one rate, where the columns are metrics)."""

    setting: Setting
    label: str
    cells: Sequence[Cell]


@dataclass(frozen=True, slots=True)
class Table:
    """`corner` heads the labels; one heading for each column of cells."""

    title: str
    corner: str
    headings: Sequence[str]
    rows: Sequence[Row]
    note: str = ""


def rate_label(rate: float | None) -> str:
    """`18 RPS`."""
    return TRACE_TIMES if rate is None else f"{rate:g} RPS"


def metric_table(study: Study, metric: Metric) -> Table | None:
    """Policies x rates of one metric; None where nobody measured it."""
    settings = main_settings(study)
    columns = [[study.spread(setting, rate, metric) for setting in settings] for rate in study.rates]
    if not any(spread for column in columns for spread in column):
        return None
    marked = [_cells(column, metric, _most_seeds(columns)) for column in columns]
    rows = [
        Row(setting, setting.label, [column[at] for column in marked])
        for at, setting in enumerate(settings)
        if any(column[at] for column in columns)
    ]
    note = {1: "more is better", -1: "less is better", 0: ""}[metric.better]
    return Table(metric.heading, "policy", [rate_label(rate) for rate in study.rates], rows, note)


def settings_table(study: Study, metrics: Sequence[Metric]) -> Table | None:
    """Every setting that the other tables leave out, a row for each rate; None without one."""
    shown = set(main_settings(study))
    pairs = [
        (setting, rate)
        for rate in study.rates
        for setting in study.settings
        if setting not in shown and (setting, rate) in study.cells
    ]
    if not pairs:
        return None
    columns = [[study.spread(setting, rate, metric) for setting, rate in pairs] for metric in metrics]
    most = _most_seeds(columns)
    marked = [
        _cells(column, metric, most, mark=False) for metric, column in zip(metrics, columns, strict=True)
    ]
    rows = [
        Row(setting, f"{setting.label}, {rate_label(rate)}", [column[at] for column in marked])
        for at, (setting, rate) in enumerate(pairs)
    ]
    return Table("Other settings", "setting", [metric.heading for metric in metrics], rows)


def front_tables(found: Frontier) -> list[Table]:
    """What the numbers of a frontier stand for: a table for each rate."""
    tables = []
    for rate, points in zip(found.rates, found.points, strict=True):
        front = sorted((point for point in points if point.number), key=lambda point: point.number)
        rows = [
            Row(
                point.setting,
                f"{point.number}: {point.setting.label}{' (default)' if point.setting.is_default else ''}",
                [Cell(metric.written(value)) for metric, value in ((JOINT, point.y), (FAIRNESS, point.x))],
            )
            for point in front
        ]
        headings = [JOINT.heading, FAIRNESS.heading]
        tables.append(Table(f"On the front at {rate_label(rate)}", "setting", headings, rows))
    return tables


def _most_seeds(columns: Sequence[Sequence[Spread | None]]) -> int:
    return max((spread.seeds for column in columns for spread in column if spread), default=0)


def _cells(column: Sequence[Spread | None], metric: Metric, seeds: int, *, mark: bool = True) -> list[Cell]:
    means = [spread.mean for spread in column if spread]
    best = ""
    if mark and metric.better and len({metric.written(mean) for mean in means}) > 1:
        best = metric.written(max(means) if metric.better > 0 else min(means))
    cells = []
    for spread in column:
        if spread is None:
            cells.append(Cell())
            continue
        text = metric.written(spread.mean)
        deviation = "" if spread.deviation is None else metric.written(spread.deviation)
        few = spread.seeds if spread.seeds < seeds else 0
        cells.append(
            Cell(text, deviation, text == best, few, round(spread.mean, 1) if metric.share else None)
        )
    return cells


def markdown(table: Table) -> str:
    """With bold marks; ends in a newline."""
    lines = [f"| {table.corner} | {' | '.join(table.headings)} |", "|---|" + "---:|" * len(table.headings)]
    for row in table.rows:
        cells = [_markdown_cell(cell) for cell in row.cells]
        lines.append(f"| {_escaped(row.label)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    text += f" ± {cell.spread}" if cell.spread else ""
    return text + (f" (n={cell.few})" if cell.few else "")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
