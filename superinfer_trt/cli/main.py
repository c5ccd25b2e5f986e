"""The `superinfer-trt` command: its subcommands, errors and exit codes.

Light on purpose: a subcommand's module is imported when it is run, so `--help` loads no numpy, grpc
or pydantic. Exit codes: 0 fine, 1 failed, 2 wrong use or configuration, 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Any

import click

import superinfer_trt
from superinfer_trt.core.errors import ConfigError, Refused, SuperInferError

# name -> (module:attribute, one line of help)
COMMANDS = {
    "serve": ("superinfer_trt.cli.serve:serve", "Serve a model over gRPC."),
    "generate": ("superinfer_trt.cli.generate:generate", "Send one request and stream its answer."),
    "batch": ("superinfer_trt.cli.batch:batch", "Answer a file of requests, OpenAI's Batch format."),
    "top": ("superinfer_trt.cli.top:top", "Watch a server."),
    "profile": ("superinfer_trt.cli.profile:profile", "Record a server for Perfetto."),
    "bench": ("superinfer_trt.cli.bench:bench", "Load a server and report how it kept its objectives."),
    "simulate": ("superinfer_trt.cli.simulate:simulate", "Run a workload on modelled hardware."),
    "sweep": ("superinfer_trt.cli.sweep:sweep", "Simulate many policies, rates and seeds."),
    "advise": ("superinfer_trt.cli.advise:advise", "Find the highest rate, parameters and pools."),
    "chaos": ("superinfer_trt.cli.chaos:chaos", "Run the scheduler in worlds of faults, from a seed."),
    "report": ("superinfer_trt.cli.report:report", "Plots and tables of a sweep, as one HTML page."),
    "fit": ("superinfer_trt.cli.fit:fit", "Turn measured step times into a hardware profile."),
    "demo": ("superinfer_trt.cli.demo:demo", "Watch requests rotate, and what it gives."),
    "trtllm": ("superinfer_trt.cli.trtllm:trtllm_group", "Rotation inside TensorRT-LLM."),
    "triton": ("superinfer_trt.cli.triton:triton_group", "Models for Triton Inference Server."),
    "token": ("superinfer_trt.cli.token:token", "Make a bearer token for a client."),
    "config": ("superinfer_trt.cli.config:config_group", "Show or check a configuration."),
    "build": ("superinfer_trt.cli.build:build_group", "Make models, options and plans ready."),
    "model": ("superinfer_trt.cli.model:model_group", "Fetch models and look into them."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"no command {args[0]!r}; there are {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)


def _tell_version(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
    del parameter
    if asked and not ctx.resilient_parsing:
        click.echo(f"superinfer-trt, version {superinfer_trt.__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_tell_version,
    help="Show it and exit.",
)
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
@click.pass_context
def cli(ctx: click.Context, traceback: bool) -> None:
    """SLO-aware serving of language models: requests rotate between HBM and DRAM."""
    ctx.obj = {"traceback": traceback}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Runs the command; every error becomes one line on stderr and a code."""
    try:
        outcome: Any = cli.main(arguments, prog_name="superinfer-trt", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # or the interpreter complains about stdout at its end
        return 1
    except SuperInferError as error:
        _tell(arguments, f"error: {error}")
        return 2 if isinstance(error, (ConfigError, Refused)) else 1
    except Exception as error:
        _tell(arguments, f"internal error: {type(error).__name__}: {' '.join(str(error).split())}")
        return 1
    return outcome if isinstance(outcome, int) else 0


def _tell(arguments: list[str], line: str) -> None:
    if "--traceback" in arguments:
        traceback.print_exc()
    click.secho(line, fg="red", err=True)
