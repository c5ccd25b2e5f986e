"""`superinfer-trt trtllm`: whether this machine's TensorRT-LLM is one that rotation can be put into."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path

import click

import superinfer_trt
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.trtllm.compat import Finding, Package, open_package
from superinfer_trt.trtllm.llm_compat import open_llm_names

STARTUP_LINE = "import superinfer_trt.trtllm_startup"


@click.group("trtllm")
def trtllm_group() -> None:
    """Rotation inside TensorRT-LLM."""


@trtllm_group.command("probe")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the report, JSON.")
def probe(*, as_json: bool, output: Path | None) -> int:
    """Check the installed TensorRT-LLM against what rotation needs; exit 2 if it is not that.

    Reads names and signatures, starts nothing; what `serve --engine trtllm` needs besides is told, and does
    not count. Attach the report to an issue when something is missing.
    """
    package = open_package()
    service = open_llm_names().findings
    report = _report(package, service)
    if output is not None:
        try:
            output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--output: cannot write {output} ({error.strerror})") from None
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print_table(package, service)
    return 0 if report["ok"] else 2


@trtllm_group.command("enable")
@click.argument("settings", type=click.Path(dir_okay=False, path_type=Path))
def enable(*, settings: Path) -> None:
    """Let every Python process of this environment rotate when told to by SETTINGS, a YAML file.

    Writes one line into the environment's site-packages; it does nothing unless the variable it names is set.
    """
    from superinfer_trt.build.trtllm import read_settings, rotating_policy
    from superinfer_trt.trtllm_startup import VARIABLE, startup_file

    rotating_policy(read_settings(settings))
    path = startup_file()
    try:
        path.write_text(f"{STARTUP_LINE}\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None
    click.echo(f"wrote {path}")
    click.echo(f"now start TensorRT-LLM with {VARIABLE}={settings.resolve()}")


@trtllm_group.command("disable")
def disable() -> None:
    """Take back what enable wrote."""
    from superinfer_trt.trtllm_startup import startup_file

    path = startup_file()
    if path.is_file():
        path.unlink()
        click.echo(f"removed {path}")
    else:
        click.echo("nothing to remove")


def _report(package: Package, service: tuple[Finding, ...]) -> dict[str, object]:
    return {
        "superinfer_trt": superinfer_trt.__version__,
        "tensorrt_llm": package.version,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "ok": all(finding.ok is not False for finding in package.findings),
        "findings": [asdict(finding) for finding in package.findings],
        "service": [asdict(finding) for finding in service],
    }


def _print_table(package: Package, service: tuple[Finding, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "", "what", "found", "expected", title=f"tensorrt_llm {package.version}", title_justify="left"
    )
    for finding in (*package.findings, *service):
        mark = {True: "ok", False: "[red]NO[/red]", None: "-"}[finding.ok]
        table.add_row(mark, finding.what, finding.found, finding.expected)
    console = Console()
    console.print(table)
    for finding in (*package.findings, *service):
        if finding.ok is False:
            console.print(f"{finding.what}: {finding.remedy}")
