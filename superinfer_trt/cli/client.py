"""What the client commands share: channels, options of a request, and errors in one line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc

from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.security_client import Target, read_access

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE: dict[str, Any] = {"type": click.Path(path_type=Path, dir_okay=False), "default": None}
_ACCESS: dict[str, tuple[str, dict[str, Any], str]] = {
    "tls": ("--tls", {"is_flag": True}, "TLS; public authorities vouch for the server."),
    "ca": ("--tls-ca", _FILE, "TLS; PEM file of who vouches for the server."),
    "certificate": ("--client-cert", _FILE, "PEM file of our own certificate, for a server that wants one."),
    "key": ("--client-key", _FILE, "PEM file of its key."),
    "token_file": ("--token-file", _FILE, "File with our token, for a server that wants one."),
}
"""Arguments of read_access: (flag, its kind, help)."""


class CallFailed(click.ClickException):
    """A call that ended with a status other than OK."""

    def __init__(self, error: grpc.RpcError, target: str) -> None:
        code = error.code()
        details = error.details() or "no details"
        where = f" at {target}" if code is grpc.StatusCode.UNAVAILABLE else ""
        super().__init__(f"{code.name}{where}: {' '.join(str(details).split())}")


class CallRefused(CallFailed):
    """The server said that the request itself is wrong: the caller's own fault."""

    exit_code = 2


def call_failed(error: grpc.RpcError, target: str) -> CallFailed:
    """The one line and the exit code for a call that ended with a status."""
    usage = {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
    return (CallRefused if error.code() in usage else CallFailed)(error, target)


def target_option(command: Command) -> Command:
    """--target HOST:PORT, and how to reach it."""
    option = click.option(
        "--target", default="127.0.0.1:50051", show_default=True, metavar="HOST:PORT", help="The server."
    )
    return option(access_options(command))


def access_options(command: Command) -> Command:
    """--tls-ca and its kind; the command gets its `target` (or None) as a serve.security_client.Target.

    Secrets come from files: a command line can be read by everybody on the machine.
    """

    @functools.wraps(command)
    def with_access(*, target: str | None, **values: Any) -> Any:
        files = {name: values.pop(f"access_{name}") for name in _ACCESS}
        if target is None:
            given = [option for name, (option, _, _) in _ACCESS.items() if files[name]]
            if given:
                raise click.UsageError(f"{', '.join(given)}: of no effect without --target")
            return command(target=None, **values)
        return command(target=Target(target, read_access(**files)), **values)

    made: Any = with_access
    for name, (flag, kind, text) in reversed(_ACCESS.items()):
        made = click.option(flag, f"access_{name}", help=text, **kind)(made)
    found: Command = made
    return found


def request_options(command: Command) -> Command:
    """Sampling and objectives of a request."""
    for option in reversed(
        (
            click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy."),
            click.option("--top-k", type=click.IntRange(0), default=0, help="0: all."),
            click.option("--top-p", type=float, default=None, help="(0, 1]."),
            click.option("--ttft-slo-ms", type=float, default=None, help="Objective: time to first token."),
            click.option("--tbt-slo-ms", type=float, default=None, help="Objective: time between tokens."),
            click.option("--tenant", default="", help="On whose behalf."),
        )
    ):
        command = option(command)
    return command


def base_request(
    *,
    temperature: float,
    top_k: int,
    top_p: float | None,
    ttft_slo_ms: float | None,
    tbt_slo_ms: float | None,
    tenant: str,
) -> pb.GenerateRequest:
    """A request with all but its prompt."""
    request = pb.GenerateRequest(tenant=tenant)
    request.sampling.temperature = temperature
    request.sampling.top_k = top_k
    if top_p is not None:
        request.sampling.top_p = top_p
    if ttft_slo_ms is not None:
        request.slo.ttft_ms = ttft_slo_ms
    if tbt_slo_ms is not None:
        request.slo.tbt_ms = tbt_slo_ms
    return request


def reason_name(reason: pb.FinishReason) -> str:
    """`stop`, `length`, ..."""
    return pb.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
