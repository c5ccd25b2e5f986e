"""Who may speak to the server, and for whom: certificates, bearer tokens, tenants.

The server's file of tokens holds their SHA-256 only, so a copy of it lets nobody in; a token has 256 bits of
chance, so its hash needs no salt. Both kinds of files are read anew when they change; one that cannot be used
is told in the log, and the last good one stays. Knows no socket. `refresh` and `caller` are for the server's
event loop, `fetch` for gRPC's threads, `knows_operator` for any.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from superinfer_trt.core.errors import ConfigError, RefusalCode, Refused
from superinfer_trt.serve.errors import WireStatus, end_call

log = logging.getLogger(__name__)

ANY_TENANT = "*"
TOKEN_CHARS_MAX = 512
TOKENS_MAX = 1024  # each is compared on each call: 0.2 us
FILE_BYTES_MAX = 1 << 20
AUTHORIZATION = "authorization"
OPERATORS_ONLY = frozenset({"/superinfer.v1.ExecutorService/Profile"})
"""What shows one tenant's requests to another."""
FOR_EVERYBODY = frozenset({"/grpc.health.v1.Health/", "/trtllm.TrtllmService/HealthCheck"})
"""Beginnings of what probes ask, which have no tokens: whether new requests are taken, and no more."""
_LINE = re.compile(r"sha256:([0-9a-f]{64})\s+(\*|[A-Za-z0-9._:/-]{1,64})(\s+operator)?\Z")

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class SecurityFiles:
    """Where the secrets are. Without `tls_cert` there is no TLS, without `auth_file` nobody is asked."""

    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    auth_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a token stands for. `tenant` ANY_TENANT: whichever a request names."""

    tenant: str = ANY_TENANT
    operator: bool = False

    def tenant_of(self, named: str) -> str:
        """The tenant of a request that names `named` (empty: none). Raises Refused (FORBIDDEN)."""
        if self.tenant == ANY_TENANT:
            return named
        if named not in ("", self.tenant):
            raise Refused(RefusalCode.FORBIDDEN, "tenant", f"this token is for {self.tenant} alone")
        return self.tenant


EVERYBODY = Caller(ANY_TENANT, operator=True)


class Guard:
    """Knows callers by their tokens. Without a file everybody is an operator for any tenant.

    Raises ConfigError for a file that cannot be used.
    """

    def __init__(self, auth_file: Path | None = None) -> None:
        self._file = _Watched((auth_file,)) if auth_file is not None else None
        self._callers: tuple[tuple[bytes, Caller], ...] = ()
        if auth_file is not None:
            self._callers = read_tokens(auth_file)

    @property
    def asks(self) -> bool:
        """Whether a token is needed."""
        return self._file is not None

    def caller(self, metadata: Metadata | None) -> Caller:
        """Who calls. Raises Refused (UNAUTHENTICATED)."""
        if self._file is None:
            return EVERYBODY
        given = [value for key, value in metadata or () if key == AUTHORIZATION]
        return self._known(given[0] if len(given) == 1 else "")

    def admit(self, method: str, metadata: Metadata | None) -> None:
        """Raises Refused (UNAUTHENTICATED, FORBIDDEN) unless the caller may call `method` at all."""
        if not self.caller(metadata).operator and method in OPERATORS_ONLY:
            raise Refused(RefusalCode.FORBIDDEN, AUTHORIZATION, "this call is for operators")

    def knows_operator(self, authorization: str) -> bool:
        """Whether an HTTP header of that value is an operator's."""
        try:
            return self._file is None or self._known(authorization).operator
        except Refused:
            return False

    def refresh(self) -> None:
        """Reads the file anew if it has changed."""
        if self._file is None or not self._file.changed():
            return
        try:
            self._callers = read_tokens(self._file.paths[0])
        except ConfigError as error:
            log.error("%s; the tokens known so far stay", error)  # noqa: TRY400  # no trace: the line says all
        else:
            log.info("tokens read anew", extra={"fields": {"tokens": len(self._callers)}})

    def _known(self, authorization: str | bytes) -> Caller:
        text = authorization if isinstance(authorization, str) else authorization.decode("latin-1")
        scheme, _, token = text.partition(" ")
        if scheme.lower() != "bearer" or not 0 < len(token) <= TOKEN_CHARS_MAX:
            raise Refused(RefusalCode.UNAUTHENTICATED, AUTHORIZATION, "one bearer token is required")
        given, found = digest_of(token), None
        for digest, caller in self._callers:  # all of them, whichever fits: the time tells nothing
            if hmac.compare_digest(given, digest):
                found = caller
        if found is None:
            raise Refused(RefusalCode.UNAUTHENTICATED, AUTHORIZATION, "the token is not known")
        return found


def digest_of(token: str) -> bytes:
    """SHA-256 of a token as the server's file has it."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def token_line(token: str, caller: Caller) -> str:
    """The line of the server's file for `token`."""
    return f"sha256:{digest_of(token).hex()} {caller.tenant}{' operator' if caller.operator else ''}"


def read_tokens(path: Path) -> tuple[tuple[bytes, Caller], ...]:
    """(digest, caller) of each line; empty lines and comments (`#`) count for nothing. Raises ConfigError."""
    name = f"service.auth_file: {path}"
    try:
        text = _read(path, "service.auth_file").decode("ascii")
        mode = path.stat().st_mode
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: has characters other than ASCII") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror})") from None
    if mode & 0o002:
        raise ConfigError(
            f"{name}: anybody may write to it (mode {mode & 0o777:o}); whoever can lets himself in"
        )
    found: dict[bytes, Caller] = {}
    for at, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        match = _LINE.match(words)  # what stands there may be a token by mistake: it is never shown
        if match is None:
            raise ConfigError(f"{name}, line {at}: is not `sha256:<64 hex digits> <tenant or *> [operator]`")
        digest = bytes.fromhex(match[1])
        if digest in found:
            raise ConfigError(f"{name}, line {at}: this token stands there twice")
        found[digest] = Caller(match[2], operator=match[3] is not None)
    if not 1 <= len(found) <= TOKENS_MAX:
        raise ConfigError(f"{name}: has {len(found)} tokens; 1 to {TOKENS_MAX} are possible")
    return tuple(found.items())


class Certificates:
    """The server's certificate and key, and who signs its clients'. Raises ConfigError.

    With `client_ca` a client without a certificate of its does not get past the handshake.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._file = _Watched((cert, key, client_ca))
        self._first = self._configuration()
        self._next: Any = None

    def credentials(self) -> grpc.ServerCredentials:
        """For a port; new connections get what the last `refresh` found."""
        required = self._client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._first, self.fetch, required)

    def fetch(self) -> Any:
        """A configuration that is new to gRPC, or None."""
        found, self._next = self._next, None
        return found

    def refresh(self) -> bool:
        """Reads the files anew if one has changed; whether it did."""
        if not self._file.changed():
            return False
        try:
            self._next = self._configuration()
        except ConfigError as error:
            log.error("%s; the certificate used so far stays", error)  # noqa: TRY400  # the line says all
            return False
        log.info("certificates read anew")
        return True

    def context(self) -> ssl.SSLContext:
        """The same for a server of Python's own. Raises ConfigError."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            made.load_cert_chain(self._cert, self._key, password="")
        except (OSError, ValueError) as error:  # SSLError is an OSError
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or "cannot be used"
            raise ConfigError(
                f"service.tls_cert, service.tls_key: {self._cert} and {self._key}: {_words(why)}"
            ) from None
        if self._client_ca is not None:
            try:
                made.load_verify_locations(self._client_ca)
            except OSError as error:
                why = getattr(error, "reason", None) or error.strerror or "cannot be used"
                raise ConfigError(f"service.tls_client_ca: {self._client_ca}: {_words(why)}") from None
            made.verify_mode = ssl.CERT_REQUIRED
        return made

    def _configuration(self) -> Any:
        self.context()  # looks whether they are readable and fit each other; gRPC would say so to nobody
        pair = _read(self._key, "service.tls_key"), _read(self._cert, "service.tls_cert")
        roots = None if self._client_ca is None else _read(self._client_ca, "service.tls_client_ca")
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Lets no call through without a token, but those of probes; its message is not even parsed.

    `refuse` counts and logs a refusal, and gives its status.
    """

    def __init__(self, guard: Guard, refuse: Callable[[Refused], WireStatus]) -> None:
        self._guard = guard
        self._refuse = refuse

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """The method's own handler, or one that ends the call."""
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None or any(method.startswith(prefix) for prefix in FOR_EVERYBODY):
            return handler
        try:
            self._guard.admit(method, handler_call_details.invocation_metadata)
        except Refused as refusal:
            return _refusing(handler, method, refusal, self._refuse)
        return handler


def _refusing(handler: Any, method: str, refusal: Refused, refuse: Callable[[Refused], WireStatus]) -> Any:
    """A handler of the same kind as `handler`, that only refuses."""

    async def end(request: Any, context: Any) -> None:
        del request
        fields = {"code": refusal.code.value, "method": method, "peer": context.peer()}
        log.warning("a call was not let in", extra={"fields": fields})
        await end_call(context, refuse(refusal))

    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    return kinds[handler.request_streaming, handler.response_streaming](end)


class _Watched:
    """Files of which it is asked again and again whether one has changed; links are followed."""

    def __init__(self, paths: tuple[Path | None, ...]) -> None:
        self.paths = tuple(path for path in paths if path is not None)
        self._stamp = self._now()

    def changed(self) -> bool:
        """Since it was last asked."""
        before, self._stamp = self._stamp, self._now()
        return before != self._stamp

    def _now(self) -> tuple[tuple[int, ...], ...]:
        return tuple(_stamp(path) for path in self.paths)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = os.stat(path)  # noqa: PTH116  # four times a second
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path, field: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{field}: {path}: cannot be read ({error.strerror})") from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{field}: {path}: larger than {FILE_BYTES_MAX} bytes")
    return data


def _words(reason: str) -> str:
    """OpenSSL's KEY_VALUES_MISMATCH for people."""
    return reason.replace("_", " ").lower()
