"""What tests of security share: an authority, a server's files, callers with their tokens, clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import trustme

from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.security import Caller, SecurityFiles, token_line
from superinfer_trt.serve.security_client import Access, Target, open_aio_channel
from support.wire import Wire, request, say

OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
ALONE = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
ACME, OTHER, GATEWAY, OPERATOR = "a" * 40, "o" * 40, "g" * 40, "p" * 40
CALLERS = {
    ACME: Caller("acme"),
    OTHER: Caller("other"),
    GATEWAY: Caller(),
    OPERATOR: Caller("ops", operator=True),
}


@dataclass(frozen=True)
class Authority:
    """Who signs, and the files of one server."""

    ca: trustme.CA
    cert: Path
    key: Path

    @property
    def pem(self) -> bytes:
        return self.ca.cert_pem.bytes()

    @property
    def files(self) -> SecurityFiles:
        return SecurityFiles(self.cert, self.key)

    def client(self, token: str = "") -> Access:
        return Access(tls=True, ca=self.pem, token=token)


def authority(folder: Path) -> Authority:
    folder.mkdir(exist_ok=True)
    made = Authority(trustme.CA(), folder / "cert.pem", folder / "key.pem")
    renew(made, made.ca)
    return made


def renew(files: Authority, ca: trustme.CA) -> None:
    """Another certificate, by renaming, as those do who renew them."""
    issued = ca.issue_cert("localhost", "127.0.0.1")
    for path, data in (
        (files.cert, b"".join(one.bytes() for one in issued.cert_chain_pems)),
        (files.key, issued.private_key_pem.bytes()),
    ):
        new = path.with_suffix(".new")
        new.write_bytes(data)
        new.replace(path)


def auth_file_in(folder: Path) -> Path:
    """The file of CALLERS."""
    path = folder / "auth"
    lines = [token_line(token, caller) for token, caller in CALLERS.items()]
    path.write_text("\n".join(["# who may", "", *lines]) + "  # the last\n")
    return path


@asynccontextmanager
async def reaching(wire: Wire, access: Access) -> AsyncIterator[Any]:
    async with open_aio_channel(Target(wire.server.target, access), ALONE) as channel:
        yield ExecutorServiceStub(channel)


async def code_of(wire: Wire, access: Access) -> grpc.StatusCode:
    async with reaching(wire, access) as stub:
        return (await say(stub.Generate(request(1), timeout=20))).code
