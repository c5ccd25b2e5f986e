"""What `superinfer-trt advise` says: in words and tables, as JSON, as a configuration, as a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import yaml

from superinfer_trt.cli.advise import TARGETS, Advice
from superinfer_trt.cli.advise_runs import Row, Setting
from superinfer_trt.cli.simulation import Job
from superinfer_trt.core.errors import ConfigError
from superinfer_trt.sim.advice import Found

GIB = 1 << 30


def label(setting: Setting) -> str:
    """`rota-slack`, or `rota-slack patience=0.7`."""
    return " ".join([setting.policy, *(f"{name}={value}" for name, value in setting.params.items())])


# --- the configuration ---------------------------------------------------------------------------


def configuration(advice: Advice) -> dict[str, Any] | None:
    """Pools and scheduling for `superinfer-trt serve --config`; None where none can be advised. Checked by
    the service's own rules. Raises ConfigError."""
    if not advice.pools:
        return None
    from superinfer_trt.sim.profiles import find_hardware

    job, pools = advice.job, advice.pools
    hardware = find_hardware(job.hardware, job.hardware_params)
    tree = {
        "pools": {
            "hbm_blocks": pools["hbm_blocks"],
            "dram_blocks": pools["dram_blocks"],
            "block_tokens": job.block_tokens,
            "d2h_bytes_per_s": float(hardware.d2h_bytes_per_s),
            "h2d_bytes_per_s": float(hardware.h2d_bytes_per_s),
        },
        "scheduling": {
            "policy": advice.setting.policy,
            "parameters": dict(advice.setting.params),
            "depth": _depth(advice),
            "step_tokens": pools["step_tokens"],
            "seats": pools["seats"],
            "ttft_slo_ms": job.ttft_slo_s * 1000,
            "tbt_slo_ms": float(job.tbt_slo_ms),
        },
    }
    _check(tree)
    return tree


def _depth(advice: Advice) -> int:
    from superinfer_trt.build.sim import SYNCHRONOUS

    if advice.job.depth is not None:
        return advice.job.depth
    return 1 if advice.setting.policy in SYNCHRONOUS else 2


def _check(tree: dict[str, Any]) -> None:
    from pydantic import ValidationError

    from superinfer_trt.config import Config

    try:
        Config.model_validate(tree)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"the advised configuration is beyond what a service takes: {said}") from None


def as_yaml(advice: Advice) -> str:
    """The configuration as a file for `serve --config`; empty where there is none."""
    tree = configuration(advice)
    if tree is None:
        return ""
    job = advice.job
    load = f"{Path(job.trace).name}, up to {advice.pools['rps']:g} requests a second"
    head = (
        f"# {job.model} on {job.hardware}, {load};\n"
        "# advised by simulation. Model and engine are yours to add.\n"
    )
    text: str = yaml.safe_dump(tree, sort_keys=False)
    return head + text


# --- JSON and files ------------------------------------------------------------------------------


def as_dict(advice: Advice) -> dict[str, Any]:
    """Plain values, ready for JSON."""
    job = advice.job
    return {
        "hardware": job.hardware,
        "model": job.model,
        "trace": Path(job.trace).name,
        "ttft_slo_s": job.ttft_slo_s,
        "tbt_slo_ms": job.tbt_slo_ms,
        "duration_s": job.duration_s,
        "seeds": list(advice.seeds),
        "held_out_seeds": list(advice.held_out_seeds),
        "policy": advice.setting.policy,
        "parameters": dict(advice.setting.params),
        "beside": advice.beside.policy,
        "targets": [
            {
                "target": ours.target,
                **_end(ours),
                "beside": _end(theirs),
                "held_out": _confirmed(advice, ours),
            }
            for ours, theirs in _ends(advice)
        ],
        "given": {policy: asdict(row) for policy, row in advice.given.items()},
        "curves": {label(one): [asdict(row) for row in rows] for one, rows in advice.curves.items()},
        "tuning": advice.tuning,
        "pools": advice.pools,
        "config": configuration(advice),
        "notes": advice.notes,
        "left_out": advice.left_out,
        "runs": advice.runs,
        "elapsed_s": round(advice.elapsed_s, 1),
    }


def _end(found: Found) -> dict[str, Any]:
    return {"rps": found.rps, "fails_rps": found.fails_rps, "exact": found.exact}


def _ends(advice: Advice) -> Iterator[tuple[Found, Found]]:
    return zip(advice.found[advice.setting], advice.found[advice.beside], strict=True)


def _confirmed(advice: Advice, found: Found) -> float | None:
    return next((row.joint_mean for row in advice.confirmed if row.rps == found.rps), None)


def check_output(folder: Path) -> None:
    """Makes the folder; nothing is run for a picture that cannot be drawn. Raises ConfigError."""
    from superinfer_trt.sim.advice_plot import require_matplotlib

    require_matplotlib()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output: cannot make {folder} ({error.strerror})") from None


def write(advice: Advice, folder: Path) -> None:
    """advice.json, curve.png and serve.yaml, each whole or not at all. Raises ConfigError."""
    from superinfer_trt.sim.advice_plot import draw

    job = advice.job
    curves = {label(s): [(row.rps, row.joint_mean) for row in rows] for s, rows in advice.curves.items()}
    kept = {found.rps for found in advice.found[advice.setting]}
    marks = [(row.rps, row.joint_mean) for row in advice.curves[advice.setting] if row.rps in kept]
    title = f"{job.model} on {job.hardware}, {Path(job.trace).name}, {len(advice.seeds)} seeds"
    texts = {"advice.json": json.dumps(as_dict(advice), indent=1) + "\n", "serve.yaml": as_yaml(advice)}
    try:
        for name, text in texts.items():
            if text:
                (folder / f"{name}.part").write_text(text, encoding="utf-8")
                (folder / f"{name}.part").replace(folder / name)
        draw(folder / "curve.png.part", curves, TARGETS, marks, title)
        (folder / "curve.png.part").replace(folder / "curve.png")
    except OSError as error:
        raise ConfigError(f"--output: cannot write to {folder} ({error.strerror})") from None


# --- for people ----------------------------------------------------------------------------------


def show(advice: Advice, *, as_json: bool) -> None:
    """On stdout."""
    if as_json:
        click.echo(json.dumps(as_dict(advice)))
        return
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)
    for part in (_rates_table(advice), *_words(advice)):
        console.print(part)
    for setting, rows in advice.curves.items():
        console.print(_curve_table(label(setting), rows))
    text = as_yaml(advice)
    if text:
        click.echo(f"\n{text}", nl=False)


def _rates_table(advice: Advice) -> Any:
    from rich.table import Table

    job = advice.job
    title = (
        f"{job.model} on {job.hardware}, {Path(job.trace).name}: the highest rate at which so many requests "
        f"have their first token within {job.ttft_slo_s:g} s and a mean gap within {job.tbt_slo_ms:g} ms"
    )
    table = Table("requests", label(advice.setting), label(advice.beside), "gain", "on held-out seeds")
    table.title, table.title_justify = title, "left"
    for ours, theirs in _ends(advice):
        both = ours.rps and theirs.rps and ours.fails_rps and theirs.fails_rps
        gain = f"{ours.rps / theirs.rps - 1:+.0%}" if both and ours.rps and theirs.rps else "-"
        share = _confirmed(advice, ours)
        held = "-" if share is None else f"{share:.2%}{'' if share >= ours.target else ', missed'}"
        table.add_row(f"{ours.target:.0%}", _rate(ours), _rate(theirs), gain, held)
    return table


def _rate(found: Found) -> str:
    if found.rps is None:
        never = f"not even at {found.fails_rps:g} RPS"
        return never if found.exact else f"{never}; lower ones were not tried"
    if found.fails_rps is None:
        return f"at least {found.rps:g} RPS"
    return f"{found.rps:g} RPS" if found.exact else f"{found.rps:g} to {found.fails_rps:g} RPS"


def _words(advice: Advice) -> Iterator[str]:
    """What the tables do not say."""
    for policy, row in advice.given.items():
        yield f"At {row.rps:g} RPS {policy} keeps {row.joint_mean:.2%} (worst seed {row.joint_lowest:.2%})."
    yield from _tuning_words(advice)
    if advice.pools:
        yield from _pool_words(advice.pools, advice.job)
    for note in advice.notes:
        yield f"Note: {note}."
    for left_out in advice.left_out:
        yield f"Left out for lack of time (--budget-s): {left_out}."
    yield f"{advice.runs} runs of {advice.job.duration_s:g} s of arrivals in {advice.elapsed_s:.0f} s."


def _tuning_words(advice: Advice) -> Iterator[str]:
    tuning = advice.tuning
    if not tuning:
        return
    at = f"{tuning['tried']} changes of its parameters tried at {tuning['rps']:g} RPS"
    if tuning["change"]:
        yield (
            f"Parameters: {label(advice.setting)}. {at}; on held-out seeds this one keeps "
            f"{tuning['held_out_best']:.2%} against {tuning['held_out_default']:.2%}."
        )
    elif "best" in tuning:
        best = ", ".join(f"{name}={value}" for name, value in tuning["best"].items())
        yield (
            f"Parameters: as they are. {at}; the best one, {best}, keeps {tuning['held_out_best']:.2%} on "
            f"held-out seeds against {tuning['held_out_default']:.2%}: noise, or no gain at both targets."
        )
    elif tuning["tried"]:
        none = "none was better" if tuning["complete"] else "time ran out before one was judged"
        yield f"Parameters: as they are. {at}; {none}."


def _pool_words(pools: dict[str, Any], job: Job) -> Iterator[str]:
    def size(blocks: int) -> str:
        return f"{blocks:,} blocks ({blocks * pools['block_bytes'] / GIB:.1f} GiB)"

    left = "what the hardware leaves" if job.hbm_blocks is None else "as given"
    yield f"HBM pool: {size(pools['hbm_blocks'])}, {left}."
    ample = pools["dram_blocks_ample"]
    if ample:
        whole = f"{size(ample)}, {'all that the hardware has' if job.dram_blocks is None else 'as given'}"
        smaller = f"{size(pools['dram_blocks'])}, which lose nothing at {pools['rps']:g} RPS against {whole}"
        yield f"DRAM pool: {smaller if pools['dram_blocks'] < ample else whole}."
        yield (
            f"With it all, rotated requests held {size(pools['dram_blocks_peak'])} at most; admission "
            f"promises room for all tokens asked for, and wanted {size(pools['dram_blocks_promised'])}: "
            "clients that ask for more tokens than they use need more than this."
        )
    yield (
        f"A batch had {pools['seats_peak']} rows and {pools['step_tokens_peak']:,} tokens at most: "
        f"seats {pools['seats']}, step_tokens {pools['step_tokens']:,}."
    )


def _curve_table(title: str, rows: list[Row]) -> Any:
    from rich.table import Table

    # Without lines, and with words that break into columns of eight, so that 80 columns hold it.
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    names = ("RPS", "requests", "joint %", "worst seed %", "TTFT %", "TBT %", "longest prompts TTFT %")
    for name in (*names, "P99 TTFT s", "P99 gap ms", "longest gap s"):
        table.add_column(name, min_width=max(map(len, name.split())))
    for row in rows:
        table.add_row(
            f"{row.rps:g}",
            f"{row.requests:,}",
            f"{100 * row.joint_mean:.2f}",
            f"{100 * row.joint_lowest:.1f}",
            f"{100 * row.ttft_attainment:.1f}",
            f"{100 * row.tbt_attainment:.1f}",
            f"{100 * row.longest_prompts:.1f}",
            "-" if row.ttft_p99_s is None else f"{row.ttft_p99_s:.2f}",
            "-" if row.tbt_p99_ms is None else f"{row.tbt_p99_ms:.0f}",
            f"{row.longest_gap_s:.1f}",
        )
    return table
