"""How a client reaches a server: plain, by TLS, with a certificate and a token of its own.

A token goes over TLS, or in clear on this machine, and nowhere else. Knows no command line. No thread promise
needed: nothing changes once made.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.serve.security import AUTHORIZATION, FILE_BYTES_MAX, TOKEN_CHARS_MAX

Options = Sequence[tuple[str, Any]]
_OPTIONS: Options = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # the target is what was said, whatever the environment says
    ("grpc.enable_retries", 0),  # a retried request would be measured, and billed, twice
)


@dataclass(frozen=True, slots=True)
class Access:
    """What a client brings. `tls` without `ca`: public authorities vouch for the server."""

    tls: bool = False
    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    token: str = field(default="", repr=False)


class Target(str):
    """`host:port`, and how to speak to it. A plain string is a target without TLS or token."""

    __slots__ = ("access",)
    access: Access

    def __new__(cls, address: str, access: Access | None = None) -> Target:  # noqa: PYI034  # Self: Python 3.11
        """Raises ConfigError where the token would be sent in clear over a network."""
        made = super().__new__(cls, address)
        made.access = access or Access()
        if made.access.token and not made.access.tls and not is_loopback(address):
            raise ConfigError(f"--token-file: would go to {address} in clear; needs --tls or --tls-ca")
        return made


def is_loopback(address: str) -> bool:
    """Whether `host:port` is on this machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or address.startswith("unix:")


def read_access(
    *,
    tls: bool = False,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    token_file: Path | None = None,
) -> Access:
    """From files. Raises ConfigError."""
    if (certificate is None) != (key is None):
        raise ConfigError("--tls-cert, --tls-key: one without the other")
    made = Access(
        tls=tls or ca is not None or certificate is not None,
        ca=_read(ca, "--tls-ca") if ca is not None else None,
        certificate=_read(certificate, "--tls-cert") if certificate is not None else None,
        key=_read(key, "--tls-key") if key is not None else None,
    )
    return made if token_file is None else replace(made, token=_token(token_file))


def open_channel(target: str, options: Options = ()) -> grpc.Channel:
    """Connects when it is first used. `options`: more than those of every client of ours."""
    access, options = _access(target), (*_OPTIONS, *options)
    if access.tls:
        return grpc.secure_channel(target, _credentials(access), options=options)
    channel = grpc.insecure_channel(target, options=options)
    if not access.token:
        return channel
    return grpc.intercept_channel(channel, _Bearer(access.token))


def open_aio_channel(target: str, options: Options = ()) -> grpc.aio.Channel:
    """The same for asyncio."""
    access, options = _access(target), (*_OPTIONS, *options)
    if access.tls:
        return grpc.aio.secure_channel(target, _credentials(access), options=options)
    bearers: Any = [_AioUnary(access.token), _AioStream(access.token)] if access.token else None
    return grpc.aio.insecure_channel(target, options=options, interceptors=bearers)


def _access(target: str) -> Access:
    return target.access if isinstance(target, Target) else Access()


def _credentials(access: Access) -> grpc.ChannelCredentials:
    made = grpc.ssl_channel_credentials(access.ca, access.key, access.certificate)
    if not access.token:
        return made
    return grpc.composite_channel_credentials(made, grpc.access_token_call_credentials(access.token))


def _with_token(details: Any, token: str) -> Any:
    metadata = grpc.aio.Metadata(*(details.metadata or ()), (AUTHORIZATION, f"Bearer {token}"))
    return details._replace(metadata=metadata)


class _Details(grpc.ClientCallDetails):
    """What an interceptor hands on."""

    def __init__(self, details: Any, token: str) -> None:
        self.method, self.timeout = details.method, details.timeout
        self.metadata = (*(details.metadata or ()), (AUTHORIZATION, f"Bearer {token}"))
        self.credentials = details.credentials
        self.wait_for_ready, self.compression = details.wait_for_ready, details.compression


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]  # generic in the stubs only
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Call credentials need TLS; on this machine a token can do without."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(_Details(client_call_details, self._token), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(_Details(client_call_details, self._token), request)


class _AioUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(_with_token(client_call_details, self._token), request)


class _AioStream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(_with_token(client_call_details, self._token), request)


def _token(path: Path) -> str:
    """The one word in the file; what is wrong is told without it."""
    try:
        text = _read(path, "--token-file").decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    if not 0 < len(text) <= TOKEN_CHARS_MAX or not text.isprintable() or " " in text:
        raise ConfigError(
            f"--token-file: {path}: must hold one token, of {TOKEN_CHARS_MAX} characters at most"
        )
    return text


def _read(path: Path, option: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX)
    except OSError as error:
        raise ConfigError(f"{option}: {path}: cannot be read ({error.strerror})") from None
