"""`superinfer-trt generate`: one request, streamed."""

from __future__ import annotations

import json
from typing import Any

import click
import grpc
from google.protobuf import json_format

from superinfer_trt.cli.client import (
    base_request,
    call_failed,
    reason_name,
    request_options,
    target_option,
)
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.security_client import open_channel


@click.command("generate")
@target_option
@click.option("--prompt", "text", default=None, help="Plain text.")
@click.option("--chat", "chat", multiple=True, metavar="[ROLE:]TEXT", help="A message; user: unless said.")
@click.option("--token-ids", default=None, metavar="ID,ID,...", help="Token ids.")
@click.option("--max-tokens", type=click.IntRange(1), default=None, help="Output tokens, at most.")
@request_options
@click.option("--seed", type=click.IntRange(0, (1 << 64) - 1), default=None, help="Of the sampling.")
@click.option("--stop", multiple=True, help="Stop string; may be given often.")
@click.option("--stop-token-id", "stop_token_ids", type=click.IntRange(0), multiple=True, help="Stop id.")
@click.option("--ignore-eos", is_flag=True, help="Do not stop at the model's own end.")
@click.option(
    "--logprobs", type=click.IntRange(0), default=None, help="0: of the tokens; n: of the n likeliest."
)
@click.option("--request-id", default="", help="Name of the request.")
@click.option("--timeout-s", type=float, default=None, help="Give up after this.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end instead of the text.")
def generate(
    *,
    target: str,
    text: str | None,
    chat: tuple[str, ...],
    token_ids: str | None,
    timeout_s: float | None,
    as_json: bool,
    **values: Any,
) -> int:
    """Send one request and stream its answer."""
    request = build_request(text, chat, token_ids, values)
    ids: list[int] = []
    texts: list[str] = []
    logprobs: list[pb.TokenLogprobs] = []
    ending: pb.Ending | None = None
    try:
        with open_channel(target) as channel:
            stub = ExecutorServiceStub(channel)  # type: ignore[no-untyped-call]
            for response in stub.Generate(request, timeout=timeout_s):
                ids += response.delta.token_ids
                texts.append(response.delta.text)
                logprobs += response.delta.logprobs
                if response.HasField("ending"):
                    ending = response.ending
                if not as_json:
                    click.echo(response.delta.text, nl=False)
    except grpc.RpcError as error:
        if texts and not as_json:
            click.echo()
        raise call_failed(error, target) from error
    if ending is None:
        raise click.ClickException("the stream ended without an ending")
    if as_json:
        click.echo(json.dumps(_result(ids, "".join(texts), logprobs, ending)))
    else:
        _tell(ids, texts, ending)
    return 0


def build_request(
    text: str | None, chat: tuple[str, ...], token_ids: str | None, values: dict[str, Any]
) -> pb.GenerateRequest:
    """The request that the flags describe. Raises click.UsageError."""
    if (text is not None) + bool(chat) + (token_ids is not None) != 1:
        raise click.UsageError("give exactly one of --prompt, --chat and --token-ids")
    extras = ("max_tokens", "seed", "stop", "stop_token_ids", "ignore_eos", "logprobs", "request_id")
    own = {name: values.pop(name) for name in extras}
    request = base_request(**values)
    request.request_id = own["request_id"]
    sampling = request.sampling
    for name in ("max_tokens", "seed", "logprobs"):
        if own[name] is not None:
            setattr(sampling, name, own[name])
    sampling.stop.extend(own["stop"])
    sampling.stop_token_ids.extend(own["stop_token_ids"])
    sampling.ignore_eos = own["ignore_eos"]
    if text is not None:
        request.text = text
    elif token_ids is not None:
        try:
            request.token_ids.ids.extend(int(part) for part in token_ids.split(",") if part.strip())
        except ValueError as error:
            raise click.UsageError(f"--token-ids: {error}") from None
        request.token_ids.SetInParent()
    for message in chat:
        role, colon, content = message.partition(":")
        known = colon and role in {"system", "user", "assistant", "tool"}
        request.chat.messages.add(role=role if known else "user", content=content if known else message)
    return request


def _result(
    ids: list[int], text: str, logprobs: list[pb.TokenLogprobs], ending: pb.Ending
) -> dict[str, object]:
    told = json_format.MessageToDict(
        ending, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    told["finish_reason"] = reason_name(ending.finish_reason)
    result: dict[str, object] = {"text": text, "token_ids": ids, "ending": told}
    if logprobs:
        result["logprobs"] = [
            {"logprob": one.logprob, "top": [[top.token_id, top.logprob] for top in one.top]}
            for one in logprobs
        ]
    return result


def _tell(ids: list[int], texts: list[str], ending: pb.Ending) -> None:
    """Text is out already; without a tokenizer the ids are the answer."""
    if ids and not any(texts):
        click.echo(" ".join(map(str, ids)), nl=False)
    click.echo()
    times = ending.timings
    click.secho(
        f"{reason_name(ending.finish_reason)}: {ending.usage.output_tokens} tokens, TTFT "
        f"{times.ttft_ms:.0f} ms, TBT {times.tbt_mean_ms:.1f} ms, {ending.rotations} rotations",
        dim=True,
        err=True,
    )
