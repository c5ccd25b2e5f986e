"""`superinfer-trt token`: a new bearer token into a file of its owner's, its hash for the server's."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

import click

from superinfer_trt.core.errors import ConfigError

BYTES = 32
PREFIX = "sitrt_"  # so that those who look for secrets in places where none should be find it


@click.command("token")
@click.option("--tenant", required=True, help="For whom; *: for whichever tenant a request names.")
@click.option("--operator", is_flag=True, help="Also for metrics and recordings, which show all tenants.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="A new file, that nobody else can read; clients take it by --token-file.",
)
def token(*, tenant: str, operator: bool, output: Path) -> int:
    """Make a token. The secret goes into --output and nowhere else; the printed line is for the server's
    --auth-file and lets nobody in."""
    from superinfer_trt.serve.security import Caller, token_line

    if not re.fullmatch(r"\*|[A-Za-z0-9._:/-]{1,64}", tenant):
        raise ConfigError("--tenant: must be * or 1 to 64 of the characters A-Z a-z 0-9 . _ : - /")
    made = PREFIX + secrets.token_urlsafe(BYTES)
    try:
        number = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(f"--output: {output}: cannot be made ({error.strerror})") from None
    with os.fdopen(number, "w", encoding="ascii") as file:
        file.write(made + "\n")
    click.echo(token_line(made, Caller(tenant, operator=operator)))
    return 0
