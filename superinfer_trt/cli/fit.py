"""`superinfer-trt fit`: measured step times become a profile that `simulate --config` reads."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from superinfer_trt.core.errors import ConfigError


@click.command("fit")
@click.argument("steps", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--hardware", default="gh200-144gb", show_default=True, help="Whose other figures are kept.")
@click.option("--model", default="qwen2.5-32b", show_default=True, help="The model that ran the steps.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="YAML file; else stdout.")
def fit(*, steps: Path, hardware: str, model: str, output: Path | None) -> int:
    """Fit the step-time model to a CSV of measured steps.

    Columns: rows, tokens, decode_context_tokens (context that decodes read), chunk_pair_tokens (sum of
    x * (y + x / 2) over prefill chunks of x tokens on y cached ones), chunk_context_tokens (sum of y),
    step_s. The result is YAML for `simulate --config`.
    """
    from superinfer_trt.sim.fit import fit as fitted
    from superinfer_trt.sim.fit import read_steps
    from superinfer_trt.sim.model_file import find_model
    from superinfer_trt.sim.profiles import efficiencies, find_hardware, step_model

    machine, shape = find_hardware(hardware), find_model(model)
    found = fitted(read_steps(steps), step_model(machine, shape))
    click.echo(
        f"{found.steps} steps, median error {found.median_error:.1%}, worst {found.worst_error:.1%}", err=True
    )
    profile = {
        "hardware": hardware,
        "model": model,
        "hardware_params": efficiencies(machine, shape, found.model),
    }
    text: str = yaml.safe_dump(profile, sort_keys=False)
    if output is None:
        click.echo(text, nl=False)
        return 0
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output: cannot write {output} ({error.strerror})") from None
    return 0
