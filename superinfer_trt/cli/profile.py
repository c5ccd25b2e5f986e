"""`superinfer-trt profile`: record a server for a while, into a file for Perfetto."""

from __future__ import annotations

from pathlib import Path

import click
import grpc

from superinfer_trt.cli.client import call_failed, target_option
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.security_client import open_channel


@click.command("profile")
@target_option
@click.option(
    "--seconds", type=click.FloatRange(0.001, 60), default=1.0, show_default=True, help="How long to record."
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("profile.json"),
    show_default=True,
    help="The file; it is there only when it is whole.",
)
def profile(*, target: str, seconds: float, output: Path) -> int:
    """Record turns, phases of requests and both directions of the link; ui.perfetto.dev opens the file."""
    if not output.parent.is_dir():
        raise click.BadParameter(f"{output.parent} is no folder", param_hint="--output")
    part = output.with_name(output.name + ".part")
    try:
        with open_channel(target) as channel, part.open("wb") as file:
            stub = ExecutorServiceStub(channel)  # type: ignore[no-untyped-call]
            for message in stub.Profile(pb.ProfileRequest(duration_ms=max(1, round(seconds * 1000)))):
                file.write(message.chunk)
        part.replace(output)
    except grpc.RpcError as error:
        raise call_failed(error, target) from None
    except OSError as error:
        raise click.ClickException(f"--output: cannot write {output} ({error.strerror})") from None
    finally:
        part.unlink(missing_ok=True)
    click.echo(f"{output}: {output.stat().st_size} bytes; open it at https://ui.perfetto.dev")
    return 0
