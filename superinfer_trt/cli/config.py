"""`superinfer-trt config`: what a configuration amounts to, and whether it is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from superinfer_trt import config
from superinfer_trt.cli.options import config_options, flags_of


@click.group("config")
def config_group() -> None:
    """Show or check a configuration."""


@config_group.command("show")
@config_options
@click.option("--json", "as_json", is_flag=True, help="JSON instead of YAML.")
@click.option("--fields", is_flag=True, help="Describe every field instead.")
def show(
    *,
    config_file: Path | None,
    as_json: bool,
    fields: bool,
    assignments: tuple[str, ...],
    policy_parameters: tuple[str, ...],
    **values: Any,
) -> None:
    """Print what file and flags amount to; it can be used as a file again."""
    if fields:
        _print_fields()
        return
    made = config.load(config_file, flags_of(values, assignments, policy_parameters))
    click.echo(json.dumps(made.model_dump(mode="json")) if as_json else config.dump(made), nl=as_json)


@config_group.command("check")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check(*, file: Path, as_json: bool) -> None:
    """Check a YAML file; exit 2 and the reason if it cannot be used."""
    made = config.load(file)
    if as_json:
        click.echo(json.dumps({"ok": True, "file": str(file), "config": made.model_dump(mode="json")}))
    else:
        click.secho(f"{file}: fine", fg="green")


def _print_fields() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("field", "default", "limits", "meaning", title="Configuration", title_justify="left")
    for row in config.describe():
        table.add_row(*row)
    Console().print(table)
