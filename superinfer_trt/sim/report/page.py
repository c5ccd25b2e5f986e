"""The report itself: studies become one HTML page, one Markdown page and PNGs, written together.

The page needs nothing beside it: pictures are in it, once for light and once for dark ground. The same runs
give the same bytes. Knows no command line: who calls says how a wish becomes a command. Any thread.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sim.report import panel, plot
from superinfer_trt.sim.report.facts import world_facts, world_titles
from superinfer_trt.sim.report.metric import Metric
from superinfer_trt.sim.report.study import Study, main_settings
from superinfer_trt.sim.report.style import DARK, LIGHT, Theme, look_of
from superinfer_trt.sim.report.table import (
    Table,
    front_tables,
    markdown,
    metric_table,
    rate_label,
    settings_table,
)

if TYPE_CHECKING:
    from jinja2 import Template

TITLE = "Simulated serving: what each policy keeps"
WARNING = (
    "Simulated: nothing here was measured on a GPU. Scheduler, ledger and executor are those that serve; "
    "step times, copies and the link are models."
)
READING = (
    "Shares are means over seeds, ± the standard deviation of a sample of them; lines are means, bands and "
    "whiskers reach from the worst seed to the best. TTFT: time to first token. TBT: time between tokens."
)
PAPER_FIGURES = {
    "alpha": "Figs. 18-20",
    "beta_ttft": "Figs. 18-20",
    "beta_tbt": "Figs. 18-20",
    "transfer_blocks": "Fig. 21",
}
SYMBOLS = {"alpha": "alpha", "beta_ttft": "beta_F", "beta_tbt": "beta_B", "transfer_blocks": "B_xfer"}

NARROW_PIXELS = 10 * plot.DOTS_PER_INCH


@dataclass(frozen=True, slots=True)
class Picture:
    """A panel: its file's name, and the PNG on either ground."""

    title: str
    caption: str
    file: str
    light: bytes
    dark: bytes
    tables: Sequence[Table] = ()

    @property
    def narrow(self) -> bool:
        """Whether it would look blown up over a whole page."""
        return int.from_bytes(self.light[16:20], "big") < NARROW_PIXELS


@dataclass(frozen=True, slots=True)
class Section:
    """All that is told of one study."""

    title: str
    facts: Sequence[tuple[str, str]]
    pictures: Sequence[Picture]
    tables: Sequence[Table]
    others: Table | None


@dataclass(frozen=True, slots=True)
class Absent:
    """A panel without runs, and the commands that make them."""

    panel: str
    needs: str
    commands: Sequence[str]


def make_report(
    studies: Sequence[Study],
    metrics: Sequence[Metric],
    ordinary: Mapping[str, object],
    command: Callable[[Study, panel.Wish], str],
) -> dict[str, bytes]:
    """File name -> content. `ordinary`: the values of a job without flags. Raises ConfigError where there
    is no matplotlib."""
    plot.require_matplotlib()
    sections = []
    for number, (study, title) in enumerate(zip(studies, world_titles(studies), strict=True), 1):
        prefix = f"study-{number}-" if number > 1 else ""
        tables = [table for metric in metrics if (table := metric_table(study, metric))]
        facts = world_facts(study, ordinary)
        others = settings_table(study, metrics)
        sections.append(Section(title, facts, _pictures(study, prefix, title), tables, others))
    absent = [
        Absent(one.panel, one.needs, [command(studies[0], wish) for wish in one.wishes])
        for one in panel.missing(studies)
    ]
    files = {"report.md": report_markdown(sections, absent), "report.html": report_html(sections, absent)}
    pictures = {picture.file: picture.light for section in sections for picture in section.pictures}
    return {name: text.encode() for name, text in files.items()} | pictures


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """All written beside their places first, then all put there. Raises ConfigError."""
    parts = {folder / name: folder / f".{name}.part" for name in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for place, part in parts.items():
                if place.is_dir():
                    raise ConfigError(f"--output: cannot write {place} (it is a folder)")
                part.write_bytes(files[place.name])
            for place, part in parts.items():
                part.replace(place)
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"--output: cannot write {folder} ({error.strerror})") from None


# --- pictures ---------------------------------------------------------------------------------------


def _pictures(study: Study, prefix: str, head: str) -> list[Picture]:
    found = []

    def add(
        title: str, caption: str, name: str, draw: Callable[[Theme], bytes], tables: Sequence[Table] = ()
    ) -> None:
        found.append(Picture(title, caption, f"{prefix}{name}.png", draw(LIGHT), draw(DARK), tables))

    if lines := panel.curves(study):
        caption = "Attainment against the rate of arrivals; bands from worst to best seed."
        left = len(main_settings(study)) - len(lines)
        caption += f" {left} settings with one rate are in the tables only." if left else ""
        title = "Attainment over load (the paper's Fig. 16)"
        add(title, caption, "fig16-rates", lambda theme: plot.rates_plot(study, lines, theme, head))
    if cut := panel.ablation(study):
        caption = f"{rate_label(cut.rate)}. Pale bars lack a part of it; whiskers from worst to best seed."
        title = "What DuplexKV gives (the paper's Fig. 17)"
        add(title, caption, "fig17-ablation", lambda theme: plot.ablation_plot(study, cut, theme, head))
    for one in panel.parameter_studies(study):
        _add_parameter(study, one, head, add)
    if front := panel.frontier(study):
        caption = (
            "A point a setting; to the right and up is better. The line joins those that no other setting "
            "beats in both; the defaults are outlined."
        )
        title = "Frontier: everybody's objectives against those of long prompts"
        add(
            title,
            caption,
            "frontier",
            lambda theme: plot.frontier_plot(front, theme, head),
            front_tables(front),
        )
    return found


def _add_parameter(study: Study, one: panel.ParameterStudy, head: str, add: Callable[..., None]) -> None:
    symbol = SYMBOLS.get(one.parameter) if one.policy == "rotasched" else None
    figure = PAPER_FIGURES.get(one.parameter) if symbol else None
    title = f"{one.policy}: {one.parameter}"
    if symbol:
        title += f" ({'' if symbol == one.parameter else symbol + ', '}the paper's {figure})"
    base = " ".join(f"{name}={value}" for name, value in one.base.changes)
    caption = "Values are evenly spaced, the default is dashed; below, seconds on a logarithmic scale."
    caption += f" With {base}." if base else ""
    name = f"{one.policy}-{one.parameter}"
    add(title, caption, name, lambda theme: plot.parameter_plot(study, one, theme, f"{one.policy}, {head}"))


# --- pages ------------------------------------------------------------------------------------------


def report_markdown(sections: Sequence[Section], absent: Sequence[Absent]) -> str:
    """Tables and links to the PNGs."""
    lines = [f"# {TITLE}", "", f"> {WARNING}", "", READING, ""]
    for section in sections:
        lines += [f"## {section.title}", "", *(f"- {term}: {words}" for term, words in section.facts), ""]
        for picture in section.pictures:
            lines += [
                f"### {picture.title}",
                "",
                picture.caption,
                "",
                f"![{picture.title}]({picture.file})",
                "",
            ]
            for table in picture.tables:
                lines += [f"{table.title}:", "", markdown(table)]
        for table in [*section.tables, *([section.others] if section.others else [])]:
            note = f" ({table.note})" if table.note else ""
            lines += [f"### {table.title}{note}", "", markdown(table)]
    if absent:
        lines += ["## Panels without runs", ""]
    for one in absent:
        lines += [f"{one.panel} needs {one.needs}:", "", *(f"    {line}" for line in one.commands), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def report_html(sections: Sequence[Section], absent: Sequence[Absent]) -> str:
    """One page that asks nobody for anything."""
    return _template().render(
        title=TITLE,
        warning=WARNING,
        reading=READING,
        sections=sections,
        absent=absent,
        look=look_of,
        uri=_uri,
    )


def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    source = resources.files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(source)


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
