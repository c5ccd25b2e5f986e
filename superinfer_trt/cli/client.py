"""What the client commands share: channels, options of a request, and errors in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import grpc

from superinfer_trt.serve.pb import executor_pb2 as pb

Command = TypeVar("Command", bound=Callable[..., Any])

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # the target is what was said, whatever the environment says
    ("grpc.enable_retries", 0),  # a retried request would be measured, and billed, twice
]


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
    usage = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}
    return (CallRefused if error.code() in usage else CallFailed)(error, target)


def target_option(command: Command) -> Command:
    """--target HOST:PORT."""
    option = click.option(
        "--target", default="127.0.0.1:50051", show_default=True, metavar="HOST:PORT", help="The server."
    )
    return option(command)


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
