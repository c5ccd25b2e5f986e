"""Who gets in, for whom, and what leaks: tokens, tenants, owners of ids, logs."""

from __future__ import annotations

import ast
import asyncio
import logging
import os
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.serve.pb import executor_pb2 as pb
from superinfer_trt.serve.pb import trtllm_service_pb2 as trt
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.pb.trtllm_service_pb2_grpc import TrtllmServiceStub
from superinfer_trt.serve.security import Caller, Certificates, Guard, SecurityFiles, token_line
from superinfer_trt.serve.security_client import Access, Target, open_aio_channel, open_channel, read_access
from support.facade import ask, read
from support.modelled import modelled
from support.security import (
    ACME,
    ALONE,
    CALLERS,
    DENIED,
    GATEWAY,
    OK,
    OPERATOR,
    OTHER,
    UNAUTHENTICATED,
    Authority,
    auth_file_in,
    authority,
    code_of,
    reaching,
)
from support.wire import request, run, say, serving, until
from tidy import source_tree


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture
def auth_file(tmp_path: Path) -> Path:
    return auth_file_in(tmp_path)


NO_TOKENS: list[list[tuple[str, str]]] = [
    [],
    [("authorization", "")],
    [("authorization", ACME)],
    [("authorization", f"Basic {ACME}")],
    [("authorization", "Bearer ")],
    [("authorization", f"Bearer {ACME} ")],
    [("authorization", f"Bearer {ACME[:-1]}")],
    [("authorization", f"Bearer {ACME.upper()}")],
    [("authorization", "Bearer " + "a" * 4000)],
    [("authorization", f"Bearer {ACME}"), ("authorization", f"Bearer {ACME}")],
    [("x-authorization", f"Bearer {ACME}")],
]


@pytest.mark.parametrize("metadata", NO_TOKENS)
def test_without_a_token_nothing_is_told_and_nothing_is_taken(
    auth_file: Path, metadata: list[tuple[str, str]]
) -> None:
    async def scenario() -> None:
        async with serving(security=SecurityFiles(auth_file=auth_file), reflection=True) as wire:
            facade = TrtllmServiceStub(wire.channel)
            calls = [
                wire.stub.Generate(request(1), metadata=metadata),
                wire.stub.WatchStats(pb.WatchStatsRequest(), metadata=metadata),
                facade.Generate(ask(1), metadata=metadata),
            ]
            for call in calls:
                said = await say(call)
                assert (said.code, said.trailers["superinfer-code"]) == (UNAUTHENTICATED, "unauthenticated")
                assert ACME not in said.details
            for call in (
                wire.stub.GetStats(pb.GetStatsRequest(), metadata=metadata),
                wire.stub.Abort(pb.AbortRequest(request_id="a"), metadata=metadata),
                facade.GetModelInfo(trt.GetModelInfoRequest(), metadata=metadata),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is UNAUTHENTICATED
            assert wire.service.executor.totals.accepted == 0
            assert wire.server.calls.refused == 6

    run(scenario())


def test_a_message_that_cannot_be_parsed_is_not_even_looked_at(auth_file: Path) -> None:
    async def scenario() -> None:
        async with serving(security=SecurityFiles(auth_file=auth_file)) as wire:
            call = wire.channel.unary_stream("/superinfer.v1.ExecutorService/Generate")
            assert (await say(call(b"\xff" * 1000))).code is UNAUTHENTICATED
            known = call(b"\xff" * 1000, metadata=[("authorization", f"Bearer {ACME}")])
            assert (await say(known)).code is grpc.StatusCode.UNKNOWN  # grpc's own word

    run(scenario())


def test_probes_need_no_token(auth_file: Path) -> None:
    async def scenario() -> None:
        async with serving(security=SecurityFiles(auth_file=auth_file)) as wire:
            health = await health_pb2_grpc.HealthStub(wire.channel).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            facade = await TrtllmServiceStub(wire.channel).HealthCheck(trt.HealthCheckRequest())
            assert facade.status == "OK"

    run(scenario())


def test_a_token_is_for_its_tenant(auth_file: Path) -> None:
    """The tenant's own quota holds, whether the request names it or not, and it can name no other."""
    flags = {"tenants.named": {"acme": {"requests_max": 1}}}

    async def scenario() -> None:
        async with modelled(flags, security=SecurityFiles(auth_file=auth_file)) as served:

            def channel(token: str) -> Any:
                return open_aio_channel(Target(served.server.target, Access(token=token)), ALONE)

            async with channel(ACME) as acme, channel(OTHER) as other, channel(GATEWAY) as gateway:
                a, o, g = (ExecutorServiceStub(one) for one in (acme, other, gateway))
                live = a.Generate(request(1, max_tokens=150))
                await live.initial_metadata()
                for call in (a.Generate(request(1)), a.Generate(request(1, tenant="acme"))):
                    said = await say(call)
                    assert (said.code, said.trailers["superinfer-code"]) == (
                        grpc.StatusCode.RESOURCE_EXHAUSTED,
                        "quota",
                    )
                    assert "tenants.named.acme" in said.details
                assert (await say(o.Generate(request(1)))).code is OK
                said = await say(o.Generate(request(1, tenant="acme")))
                assert (said.code, said.trailers["superinfer-field"]) == (DENIED, "tenant")
                beside = [("superinfer-tenant", "acme")]
                assert (await say(o.Generate(request(1), metadata=beside))).code is DENIED
                got = await read(TrtllmServiceStub(other).Generate(ask(1), metadata=beside))
                assert got.code is DENIED
                said = await say(g.Generate(request(1, tenant="acme")))
                assert said.trailers["superinfer-code"] == "quota"
                assert (await say(g.Generate(request(1)))).code is OK
                live.cancel()
                await until(lambda: served.server.calls.live == 0)

    run(scenario())


def test_ids_are_ones_own(auth_file: Path) -> None:
    """Another tenant's request can neither be ended nor found out about by its id."""

    async def scenario() -> None:
        async with serving(security=SecurityFiles(auth_file=auth_file)) as wire:
            wire.service.driver.hold()
            async with (
                reaching(wire, Access(token=ACME)) as acme,
                reaching(wire, Access(token=OTHER)) as other,
            ):
                first = acme.Generate(request(1, request_id="job", max_tokens=50))
                await first.initial_metadata()
                assert not (await other.Abort(pb.AbortRequest(request_id="job"))).found
                second = other.Generate(request(1, request_id="job", max_tokens=50))
                await second.initial_metadata()
                twin = await say(acme.Generate(request(1, request_id="job")))
                assert twin.code is grpc.StatusCode.ALREADY_EXISTS
                assert (await other.Abort(pb.AbortRequest(request_id="job"))).found
                wire.service.driver.release()
                ended = await say(second)
                assert ended.ending is not None
                assert ended.ending.finish_reason == pb.FINISH_REASON_CANCELLED
                assert len((await say(first)).token_ids) == 50

    run(scenario())


def test_what_shows_all_tenants_is_for_operators(auth_file: Path, ours: Authority) -> None:
    files = SecurityFiles(ours.cert, ours.key, auth_file=auth_file)

    def scrape(url: str, token: str) -> str:
        asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
        context = ssl.create_default_context(cadata=ours.pem.decode())
        with urllib.request.urlopen(asked, timeout=20, context=context) as answer:
            return str(answer.read().decode())

    async def scenario() -> None:
        async with modelled(security=files, metrics_port=0) as served:
            target = served.server.target
            for token, code in ((ACME, DENIED), (GATEWAY, DENIED), (OPERATOR, grpc.StatusCode.UNIMPLEMENTED)):
                async with open_aio_channel(Target(target, ours.client(token)), ALONE) as channel:
                    call = ExecutorServiceStub(channel).Profile(pb.ProfileRequest(duration_ms=10))
                    assert (await say(call)).code is code
            url = served.server.metrics_url
            assert url.startswith("https://")
            silent = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2].split("/")[0])), 20)
            try:
                text = await asyncio.to_thread(scrape, url, OPERATOR)
            finally:
                silent.close()
            assert 'superinfer_refusals_total{code="forbidden"} 2.0' in text
            for token in ("", ACME, GATEWAY, "x"):
                with pytest.raises(urllib.error.HTTPError) as caught:
                    await asyncio.to_thread(scrape, url, token)
                assert caught.value.code == 401
                assert "superinfer_" not in caught.value.read().decode()
            with pytest.raises(OSError):
                await asyncio.to_thread(scrape, url.replace("https", "http"), OPERATOR)

    run(scenario())


def test_tokens_come_and_go_without_a_restart(auth_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        async with serving(security=SecurityFiles(auth_file=auth_file)) as wire:
            new = "n" * 40
            assert await code_of(wire, Access(token=new)) is UNAUTHENTICATED
            auth_file.write_text(token_line(new, Caller("acme")) + "\n")
            await until(lambda: "tokens read anew" in caplog.text)
            assert await code_of(wire, Access(token=new)) is OK
            assert await code_of(wire, Access(token=ACME)) is UNAUTHENTICATED
            auth_file.write_text(f"{new}\n")
            await until(lambda: "the tokens known so far stay" in caplog.text)
            assert await code_of(wire, Access(token=new)) is OK
            assert new not in caplog.text

    run(scenario())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has 0 tokens"),
        ("# none\n", "has 0 tokens"),
        (f"{ACME} acme\n", "line 1"),
        (f"sha256:{ACME} acme\n", "line 1"),
        (token_line(ACME, CALLERS[ACME]) + " admin\n", "line 1"),
        ("\n" + token_line(ACME, Caller("a b")) + "\n", "line 2"),
        ((token_line(ACME, CALLERS[ACME]) + "\n") * 2, "twice"),
        ("".join(token_line(str(n), Caller("a")) + "\n" for n in range(1025)), "has 1025 tokens"),
        ("sha256:" + "ä" * 64 + " acme\n", "ASCII"),
        ("#" * (1 << 20) + "\n", "larger"),
    ],
)
def test_a_file_of_tokens_that_is_not_one_is_refused_by_its_line(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "auth"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"service\.auth_file: .*{words}") as caught:
        Guard(path)
    assert ACME not in str(caught.value)


def test_files_that_cannot_be_used_are_named(ours: Authority, auth_file: Path, tmp_path: Path) -> None:
    nowhere, empty = tmp_path / "nowhere", tmp_path / "empty"
    empty.write_bytes(b"")
    for make, field in (
        (lambda: Guard(nowhere), "service.auth_file"),
        (lambda: Certificates(nowhere, ours.key), "service.tls_cert"),
        (lambda: Certificates(ours.cert, empty), "service.tls_key"),
        (lambda: Certificates(ours.cert, ours.key, nowhere), "service.tls_client_ca"),
        (lambda: Certificates(ours.cert, ours.key, empty), "service.tls_client_ca"),
    ):
        with pytest.raises(ConfigError, match=field):
            make()
    auth_file.chmod(0o666)
    with pytest.raises(ConfigError, match="anybody may write"):
        Guard(auth_file)


def test_a_token_does_not_go_over_a_network_in_clear(tmp_path: Path) -> None:
    for address in ("10.0.0.1:50051", "example.org:50051", "127.example.org:1"):
        with pytest.raises(ConfigError, match="in clear"):
            Target(address, Access(token=ACME))
        assert Target(address, Access(token=ACME, tls=True)) == address
    for address in ("127.0.0.1:1", "localhost:1", "[::1]:1"):
        assert Target(address, Access(token=ACME)).access.token == ACME
    assert ACME not in repr(Access(token=ACME))
    bad = tmp_path / "token"
    bad.write_text(f"{ACME} {ACME}")
    with pytest.raises(ConfigError, match="must hold one token") as caught:
        read_access(token_file=bad)
    assert ACME not in str(caught.value)
    with pytest.raises(ConfigError, match="one without the other"):
        read_access(certificate=bad)


@pytest.mark.parametrize("tls", [True, False])
def test_a_client_that_waits_brings_its_token_too(ours: Authority, auth_file: Path, tls: bool) -> None:
    files = SecurityFiles(*((ours.cert, ours.key) if tls else ()), auth_file=auth_file)
    access = ours.client(ACME) if tls else Access(token=ACME)

    def asked(target: str) -> tuple[int, int]:
        with open_channel(Target(target, access), ALONE) as channel:
            stub = ExecutorServiceStub(channel)
            count = len([one for one in stub.Generate(request(1)) if one.HasField("ending")])
            return count, stub.GetStats(pb.GetStatsRequest()).stats.output_tokens

    async def scenario() -> None:
        async with serving(security=files) as wire:
            assert await asyncio.to_thread(asked, wire.server.target) == (1, 4)

    run(scenario())


def test_no_secret_is_ever_logged(ours: Authority, auth_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the level that tells most, through good calls, bad ones, and a bug in the service."""
    caplog.set_level(logging.DEBUG)
    wrong, prompt = "w" * 40, 77

    async def scenario() -> None:
        files = SecurityFiles(ours.cert, ours.key, auth_file=auth_file)
        async with serving(security=files) as wire:
            assert await code_of(wire, ours.client(ACME)) is OK
            assert await code_of(wire, ours.client(wrong)) is UNAUTHENTICATED
            async with reaching(wire, ours.client(ACME)) as stub:
                assert (await say(stub.Generate(request(prompt, tenant=OTHER)))).code is DENIED
                wire.server.calls.tally.accepted = None  # type: ignore[assignment,method-assign]
                assert (await say(stub.Generate(request(prompt)))).code is grpc.StatusCode.INTERNAL
            os.utime(auth_file, (1, 1))
            await until(lambda: "tokens read anew" in caplog.text)

    run(scenario())
    assert "a call to Generate failed" in caplog.text
    told = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    key = "".join(ours.key.read_text().splitlines()[1:3])
    for secret in (ACME, wrong, key, *(token_line(t, c).split()[0] for t, c in CALLERS.items())):
        assert secret not in told.replace(OTHER, "")


UNPICKLES = frozenset({"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"})


def test_nothing_from_the_network_is_unpickled_or_evaluated() -> None:
    found = []
    for name in source_tree.files(".py", under="superinfer_trt/"):
        tree = source_tree.tree(name)
        tops = {dotted.split(".")[0] for _, dotted in source_tree.imports(tree)}
        if tops & UNPICKLES:
            found.append(f"{name}: {tops & UNPICKLES}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                loose = called in {"eval", "exec", "compile", "yaml.load", "yaml.full_load", "torch.load"}
                if loose or any(one.arg == "allow_pickle" for one in node.keywords):
                    found.append(f"{name}:{node.lineno}: {called}")
    assert found == []
