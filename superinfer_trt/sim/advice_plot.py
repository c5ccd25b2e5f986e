"""Attainment over the rate as a picture, the advised rates marked. Needs matplotlib; draws on no screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from superinfer_trt.core.errors import ConfigError


def require_matplotlib() -> None:
    """Raises ConfigError with what to install where there is none."""
    if find_spec("matplotlib") is None:
        raise ConfigError('a plot needs matplotlib: pip install "superinfer-trt[sim]"')


def draw(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    targets: Sequence[float],
    marks: Sequence[tuple[float, float]],
    title: str,
) -> None:
    """A PNG of curves of (requests a second, joint attainment 0..1) by label; `marks` are points to ring."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, points in curves.items():
        axes.plot([rps for rps, _ in points], [100 * share for _, share in points], marker=".", label=label)
    for target in targets:
        axes.axhline(100 * target, color="grey", linewidth=0.8, linestyle=":")
    axes.plot(
        [rps for rps, _ in marks],
        [100 * share for _, share in marks],
        linestyle="",
        marker="o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor="black",
        label="advised",
    )
    axes.set_xlabel("requests a second")
    axes.set_ylabel("first token and mean gap in time, % of requests")
    axes.set_title(title, fontsize=10)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", metadata={"Software": None})
