"""Panels as PNG. matplotlib's Agg canvas only: no window, no global state, no date or version in the file.

Knows what to draw from `panel` and how from `style`. `head` stands over a plot, since a PNG travels without
its page. Any thread.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sim.report.metric import (
    JOINT,
    LONGEST_GAP,
    TBT,
    TBT_P99,
    TTFT,
    TTFT_P99,
    Metric,
)
from superinfer_trt.sim.report.panel import Ablation, Frontier, ParameterStudy, Point
from superinfer_trt.sim.report.study import Setting, Spread, Study, written
from superinfer_trt.sim.report.style import DASHED, DOTTED, SOLID, Theme, look_of
from superinfer_trt.sim.report.table import rate_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
UNFILLED = frozenset("1234+x|_")
"""Markers that are lines only, which have no edge."""
SHARE_LIMITS = (-3.0, 104.0)
_SHORT = {TTFT: "TTFT attainment", TBT: "TBT attainment per token", JOINT: "Joint: TTFT and mean TBT"}


def require_matplotlib() -> None:
    """Raises ConfigError with what to install where there is no matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401 - whether it is there is the question
    except ImportError:
        raise ConfigError('a report needs matplotlib: pip install "superinfer-trt[sim]"') from None


def rates_plot(study: Study, settings: Sequence[Setting], theme: Theme, head: str) -> bytes:
    """Fig. 16: attainment over requests a second, a line a setting, the band from worst to best seed."""
    rows_of_legend = (len(settings) + 3) // 4
    figure, axes = _figure(theme, head, 1, 3, (11.5, 3.9 + 0.24 * rows_of_legend))
    for axis, metric in zip(axes[0], (TTFT, TBT, JOINT), strict=True):
        _dress(axis, theme, _SHORT[metric], "requests/s")
        axis.set_ylim(*SHARE_LIMITS)
        for setting in reversed(settings):  # the first ones lie on top
            _rate_line(axis, study, setting, metric, theme)
        axis.set_xticks(_ticks(sorted({rate for s in settings for rate in study.rates_of(s)})))
    axes[0][0].set_ylabel("share, %")
    handles, labels = axes[0][0].get_legend_handles_labels()
    _legend(figure, handles[::-1], labels[::-1], theme, columns=4)
    return _png(figure)


def _rate_line(axis: Axes, study: Study, setting: Setting, metric: Metric, theme: Theme) -> None:
    look = look_of(setting.policy)
    points = [(rate, study.spread(setting, rate, metric)) for rate in study.rates_of(setting)]
    there = [(rate, spread) for rate, spread in points if spread]
    if not there:
        return
    rates = [rate for rate, _ in there]
    colour = look.colour(theme)
    low, high = [spread.low for _, spread in there], [spread.high for _, spread in there]
    axis.fill_between(rates, low, high, color=colour, alpha=0.18 if look.thick else 0.07, linewidth=0)
    axis.plot(
        rates,
        [spread.mean for _, spread in there],
        color=colour,
        linestyle=look.dash if setting.is_default else DOTTED,
        linewidth=look.width,
        marker=look.marker,
        markersize=6.5 if look.thick else 5,
        markerfacecolor=colour if setting.is_default else theme.ground,
        markeredgewidth=1.1,
        label=setting.label,
        zorder=4 if look.thick else 3,
    )


def _ticks(rates: Sequence[float]) -> list[float]:
    """Those that leave room for their labels."""
    apart = (rates[-1] - rates[0]) / 14 if rates else 0
    kept: list[float] = []
    for rate in rates:
        if not kept or rate - kept[-1] >= apart:
            kept.append(rate)
    return kept


def ablation_plot(study: Study, found: Ablation, theme: Theme, head: str) -> bytes:
    """Fig. 17: bars a setting, a column a metric; whiskers from worst to best seed."""
    metrics = (TTFT, TBT, JOINT, LONGEST_GAP)
    labels = [_wrapped(setting.label, 28) for setting in found.settings]
    row = 0.34 + 0.15 * max(label.count("\n") for label in labels)
    size = (11.5, 1.6 + row * len(labels))
    figure, axes = _figure(theme, f"{head}, {rate_label(found.rate)}", 1, len(metrics), size, sharey=True)
    places = range(len(found.settings))
    for axis, metric in zip(axes[0], metrics, strict=True):
        _dress(axis, theme, _SHORT.get(metric, metric.title), metric.unit, grid="x")
        top = 0.0
        for place, setting in zip(places, found.settings, strict=True):
            spread = study.spread(setting, found.rate, metric)
            if spread is None:
                continue
            look = look_of(setting.policy)
            whisker = [[spread.mean - spread.low], [spread.high - spread.mean]]
            axis.barh(
                place,
                spread.mean,
                height=0.62,
                color=look.colour(theme) if setting.is_default else look.pale(theme),
                xerr=whisker if spread.seeds > 1 else None,
                error_kw={"ecolor": theme.ink, "elinewidth": 1, "capsize": 2.5},
            )
            top = max(top, spread.high)
            axis.annotate(
                metric.written(spread.mean),
                (spread.high, place),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color=theme.ink,
            )
        axis.set_xlim(0, 125 if metric.share else max(top * 1.3, 1e-9))
        if metric.share:
            axis.set_xticks([0, 25, 50, 75, 100])
    axes[0][0].set_yticks(places, labels, fontsize=8.5)
    axes[0][0].invert_yaxis()
    return _png(figure)


def parameter_plot(study: Study, found: ParameterStudy, theme: Theme, head: str) -> bytes:
    """Figs. 18-21: shares above, the slowest hundredth below, a column a rate; values evenly spaced."""
    columns = len(found.rates)
    figure, axes = _figure(theme, head, 2, columns, (3.0 + 3.0 * columns, 6.2), sharex=True, sharey="row")
    own = study.value(Setting(found.policy), found.parameter)
    main = look_of(found.policy).colour(theme)
    lines = (
        (0, TTFT, main, SOLID, "o"),
        (0, TBT, theme.faint, DASHED, "s"),
        (0, JOINT, main, DOTTED, "D"),
        (1, TTFT_P99, main, SOLID, "o"),
        (1, TBT_P99, theme.faint, DASHED, "s"),
    )
    for column, rate in enumerate(found.rates):
        upper, lower = axes[0][column], axes[1][column]
        _dress(upper, theme, rate_label(rate))
        _dress(lower, theme, "", found.parameter)
        upper.set_ylim(*SHARE_LIMITS)
        lower.set_yscale("log")
        for row, metric, colour, dash, marker in lines:
            spreads = [study.spread(setting, rate, metric) for _, setting in found.values]
            there = [(at, s) for at, s in enumerate(spreads) if s and (row == 0 or s.mean > 0)]
            apart = [(at, s) for at, s in there if found.values[at][0] is None]
            label = _SHORT.get(metric, metric.title)
            look = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.8}
            look["markerfacecolor"] = theme.ground if dash is DOTTED else colour
            _parameter_line(
                axes[row][column], there[len(apart) :], look | {"linestyle": dash, "label": label}
            )
            _parameter_line(axes[row][column], apart, look)  # automatic is no value on the scale
        for at, (value, _) in enumerate(found.values):
            if value == own:
                for axis in (upper, lower):
                    axis.axvline(at, color=theme.ink, linewidth=0.9, linestyle=DASHED, alpha=0.55, zorder=1)
        lower.set_xticks(range(len(found.values)), [_value(v, own) for v, _ in found.values])
        _plain_log(lower)
    axes[0][0].set_ylabel("share, %")
    axes[1][0].set_ylabel("seconds")
    for row in (0, 1):
        axes[row][-1].legend(
            loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=9, labelcolor=theme.ink
        )
    return _png(figure)


def _parameter_line(axis: Axes, points: Sequence[tuple[int, Spread]], look: dict[str, Any]) -> None:
    if not points:
        return
    places = [at for at, _ in points]
    low, high = [spread.low for _, spread in points], [spread.high for _, spread in points]
    if len(points) > 1:
        axis.fill_between(places, low, high, color=look["color"], alpha=0.16, linewidth=0)
    else:
        axis.vlines(places, low, high, color=look["color"], alpha=0.5, linewidth=2.5)
    axis.plot(places, [spread.mean for _, spread in points], **look)


def _value(value: Any, own: Any) -> str:
    return f"{written(value)}\n(default)" if value == own else written(value)


def frontier_plot(found: Frontier, theme: Theme, head: str) -> bytes:
    """Joint attainment against TTFT attainment of the longest prompts; the defaults are outlined."""
    columns = len(found.rates)
    policies = list(dict.fromkeys(p.setting.policy for points in found.points for p in points))
    size = (max(7.5, 1.0 + 4.6 * columns), 4.6 + 0.24 * (len(policies) // 4 + 1))
    figure, axes = _figure(theme, head, 1, columns, size, sharey=True)
    for axis, rate, points in zip(axes[0], found.rates, found.points, strict=True):
        _dress(axis, theme, rate_label(rate), "TTFT attainment of the longest 10 % of prompts, %")
        axis.set_xlim(_least([p.x for one in found.points for p in one]) - 3, 107)
        axis.set_ylim(_least([p.y for one in found.points for p in one]) - 3, 107)
        front = {point.number: point for point in points if point.number}
        line = [front[number] for number in sorted(front)]
        axis.plot(
            [point.x for point in line],
            [point.y for point in line],
            color=theme.faint,
            linewidth=1.1,
            drawstyle="steps-pre",  # between two settings nothing is promised
            zorder=2,
        )
        for point in reversed(points):
            _point(axis, point, theme)
        for point in line:
            _beside(axis, str(point.number), point.x, point.y, theme)
    axes[0][0].set_ylabel("joint attainment, %")
    _frontier_legend(figure, policies, theme)
    return _png(figure)


def _least(values: Sequence[float]) -> float:
    """The ten below all of them."""
    return 10 * (min(values) // 10)


def _point(axis: Axes, point: Point, theme: Theme) -> None:
    look = look_of(point.setting.policy)
    own = point.setting.is_default
    axis.scatter(
        [point.x],
        [point.y],
        s=105 if own and look.thick else 62 if own else 34,
        marker=look.marker,
        color=look.colour(theme),
        edgecolors=None if look.marker in UNFILLED else theme.ink if own else theme.ground,
        linewidths=1.4 if own else 0.5,
        alpha=1.0 if own or point.number else 0.8,
        zorder=5 if own else 4,
    )


def _beside(axis: Axes, text: str, x: float, y: float, theme: Theme) -> None:
    axis.annotate(text, (x, y), (7, 6), textcoords="offset points", fontsize=9, color=theme.ink, zorder=6)


def _frontier_legend(figure: Figure, policies: Sequence[str], theme: Theme) -> None:
    from matplotlib.lines import Line2D

    def mark(colour: str, marker: str, label: str, edge: str) -> Line2D:
        return Line2D(
            [], [], color=colour, marker=marker, linestyle="", markersize=7, label=label, markeredgecolor=edge
        )

    handles = []
    for policy in policies:
        look = look_of(policy)
        handles.append(mark(look.colour(theme), look.marker, policy, look.colour(theme)))
    handles.append(mark(theme.ground, "o", "outlined: a policy's default", theme.ink))
    handles.append(Line2D([], [], color=theme.faint, linewidth=1.1, label="Pareto front, numbered"))
    _legend(figure, handles, [str(handle.get_label()) for handle in handles], theme, columns=4)


# --- what all plots share ---------------------------------------------------------------------------


def _figure(
    theme: Theme, head: str, rows: int, columns: int, size: tuple[float, float], **shared: Any
) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=size, dpi=DOTS_PER_INCH, facecolor=theme.ground, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{head}; simulated", x=0.006, ha="left", fontsize=9, color=theme.faint)
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    return figure, axes


def _dress(axis: Axes, theme: Theme, title: str, below: str = "", grid: Any = "both") -> None:
    axis.set_facecolor(theme.ground)
    axis.set_title(title, fontsize=10.5, color=theme.ink, loc="left", pad=8)
    axis.set_xlabel(below, fontsize=9.5)
    axis.grid(visible=True, axis=grid, color=theme.grid, linewidth=0.8)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(theme.faint)
    axis.tick_params(which="both", labelcolor=theme.ink, labelsize=9, color=theme.faint)
    axis.xaxis.label.set_color(theme.ink)
    axis.yaxis.label.set_color(theme.ink)


def _plain_log(axis: Axes) -> None:
    """0.1, 0.2, 0.5, 1 instead of powers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, handles: Any, labels: Sequence[str], theme: Theme, *, columns: int) -> None:
    figure.legend(
        handles,
        [_wrapped(label, 34) for label in labels],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=theme.ink,
        handlelength=3.2,
        columnspacing=1.6,
    )


def _wrapped(label: str, width: int) -> str:
    """At spaces only."""
    lines = [""]
    for word in label.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


def _png(figure: Figure) -> bytes:
    made = io.BytesIO()
    figure.savefig(made, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
    return made.getvalue()
