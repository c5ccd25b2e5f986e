"""The network and the command line: TLS, certificates of clients, half-open connections, what starts."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from superinfer_trt.build.triton import TOKEN_FILE, executor_maker
from superinfer_trt.cli.main import run as command_run
from superinfer_trt.serve import server as server_module
from superinfer_trt.serve.calls import Ended
from superinfer_trt.serve.pb.executor_pb2_grpc import ExecutorServiceStub
from superinfer_trt.serve.security import Certificates, SecurityFiles
from superinfer_trt.serve.security_client import Access, Target, open_aio_channel
from support.security import (
    ALONE,
    GATEWAY,
    OK,
    UNAUTHENTICATED,
    UNAVAILABLE,
    Authority,
    auth_file_in,
    authority,
    code_of,
    reaching,
    renew,
)
from support.wire import request, run, say, serving, until


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ours"))


def test_who_does_not_know_the_authority_or_speaks_in_clear_gets_nothing(
    ours: Authority, tmp_path: Path
) -> None:
    stranger = authority(tmp_path / "stranger")

    async def scenario() -> None:
        async with serving(security=ours.files) as wire:
            assert await code_of(wire, ours.client()) is OK
            assert await code_of(wire, stranger.client()) is UNAVAILABLE
            assert await code_of(wire, Access()) is UNAVAILABLE
            assert await code_of(wire, Access(tls=True)) is UNAVAILABLE  # public authorities
            assert wire.service.executor.totals.accepted == 1

    run(scenario())


def test_a_name_that_is_not_in_the_certificate_is_refused_by_the_client(ours: Authority) -> None:
    async def scenario() -> None:
        async with serving(security=ours.files) as wire:
            named = [("grpc.ssl_target_name_override", "elsewhere.example"), *ALONE]
            async with open_aio_channel(Target(wire.server.target, ours.client()), named) as channel:
                assert (await say(ExecutorServiceStub(channel).Generate(request(1)))).code is UNAVAILABLE

    run(scenario())


def test_clients_need_a_certificate_of_the_right_authority(ours: Authority, tmp_path: Path) -> None:
    theirs, stranger = trustme.CA(), trustme.CA()
    roots = tmp_path / "clients.pem"
    theirs.cert_pem.write_to_path(roots)

    def with_certificate(ca: trustme.CA) -> Access:
        issued = ca.issue_cert("client.example")
        chain = b"".join(one.bytes() for one in issued.cert_chain_pems)
        return Access(tls=True, ca=ours.pem, certificate=chain, key=issued.private_key_pem.bytes())

    async def scenario() -> None:
        async with serving(security=SecurityFiles(ours.cert, ours.key, roots)) as wire:
            assert await code_of(wire, with_certificate(theirs)) is OK
            assert await code_of(wire, with_certificate(stranger)) is UNAVAILABLE
            assert await code_of(wire, ours.client()) is UNAVAILABLE
            assert wire.service.executor.totals.accepted == 1

    run(scenario())


def test_half_open_connections_are_closed_and_hold_up_nobody(
    ours: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_TIMEOUT_MS", 500)

    async def scenario() -> None:
        async with serving(security=ours.files) as wire:
            silent = [socket.create_connection(("127.0.0.1", wire.server.port), 20) for _ in range(50)]
            try:
                assert await code_of(wire, ours.client()) is OK
                for connection in silent:
                    assert await asyncio.to_thread(connection.recv, 1) == b""  # closed from the other side
            finally:
                for connection in silent:
                    connection.close()
            assert await code_of(wire, ours.client()) is OK

    run(scenario())


def test_a_renewed_certificate_is_taken_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files = authority(tmp_path / "server")
    later = trustme.CA()

    async def scenario() -> None:
        async with serving(security=files.files) as wire, reaching(wire, files.client()) as stub:
            assert (await say(stub.Generate(request(1)))).code is OK
            renew(files, later)
            new = Access(tls=True, ca=later.cert_pem.bytes())
            await until(lambda: "certificates read anew" in caplog.text)
            assert await code_of(wire, new) is OK
            assert await code_of(wire, files.client()) is UNAVAILABLE
            assert (await say(stub.Generate(request(1)))).code is OK  # connections that are there stay

    run(scenario())


def test_a_certificate_that_fits_no_key_does_not_take_the_place_of_one_that_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = authority(tmp_path / "server")
    made = Certificates(files.cert, files.key)
    assert not made.refresh()
    files.key.write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes())
    assert not made.refresh()
    assert made.fetch() is None
    assert "key values mismatch; the certificate used so far stays" in caplog.text
    renew(files, files.ca)
    assert made.refresh()
    assert made.fetch() is not None
    assert made.fetch() is None


COMMAND = [sys.executable, "-c", "from superinfer_trt.cli.main import main; main()"]


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [*COMMAND, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


def test_from_the_making_of_a_token_to_an_answer(ours: Authority, tmp_path: Path) -> None:
    """As docs/security.md tells it; and neither the token nor its hash is on any line that is printed."""
    secret, auth, ca = tmp_path / "acme.token", tmp_path / "auth", tmp_path / "ca.pem"
    ca.write_bytes(ours.pem)
    made = cli("token", "--tenant", "acme", "--output", secret)
    assert made.returncode == 0, made.stderr
    auth.write_text(made.stdout)
    token = secret.read_text().strip()
    assert secret.stat().st_mode & 0o777 == 0o600
    assert len(token) > 40
    assert token not in made.stdout
    assert cli("token", "--tenant", "acme", "--output", secret).returncode == 2  # nothing is overwritten
    assert secret.read_text().strip() == token
    serve = ["serve", "--engine", "sim", "--port", "0", "--log-level", "debug", "--tls-cert", str(ours.cert)]
    serve += ["--tls-key", str(ours.key), "--auth-file", str(auth)]
    with subprocess.Popen(
        [*COMMAND, *serve], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            asked = [
                "generate",
                "--target",
                json.loads(ready)["target"],
                "--token-ids",
                "1,2",
                "--tls-ca",
                ca,
            ]
            done = cli(*asked, "--token-file", secret, "--max-tokens", "3", "--tenant", "acme")
            assert (done.returncode, len(done.stdout.split())) == (0, 3), done.stderr
            nobody = cli(*asked)
            assert (nobody.returncode, nobody.stdout) == (2, "")
            assert "UNAUTHENTICATED: authorization: one bearer token is required" in nobody.stderr
            other = cli(*asked, "--token-file", secret, "--tenant", "other")
            assert (other.returncode, "PERMISSION_DENIED: tenant" in other.stderr) == (2, True)
        finally:
            process.terminate()
            said = "".join(process.communicate(timeout=60))
    assert process.returncode == 0
    for text in (ready, said, done.stderr, nobody.stderr, other.stderr):
        assert token not in text
        assert made.stdout.split()[0].removeprefix("sha256:") not in text
    assert "peer" in said  # who was not let in


def test_a_triton_model_brings_what_its_repository_says(
    ours: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ca, token = tmp_path / "ca.pem", tmp_path / "gateway.token"
    ca.write_bytes(ours.pem)
    token.write_text(GATEWAY + "\n")
    files = SecurityFiles(ours.cert, ours.key, auth_file=auth_file_in(tmp_path))

    def parameters(target: str) -> dict[str, str]:
        options = ["--out", str(tmp_path / "models"), "--target", target, "--layout", "llmapi"]
        options += ["--tls-ca", str(ca), "--token-file", str(token)]
        assert command_run(["triton", "repo", *options]) == 0, capsys.readouterr().err
        text = (tmp_path / "models" / "tensorrt_llm" / "config.pbtxt").read_text()
        assert GATEWAY not in text  # where the token is, not what it is
        return dict(re.findall(r'key: "(superinfer_\w+)" value: { string_value: "([^"]*)"', text))

    async def scenario() -> None:
        async with serving(security=files) as wire:
            told = parameters(wire.server.target)
            executor = await executor_maker(told, tmp_path)()
            assert (await executor.model_info()).model
            await executor.close()
            del told[TOKEN_FILE]
            executor = await executor_maker(told, tmp_path)()
            with pytest.raises(Ended) as ended:
                await executor.model_info()
            assert ended.value.status.code is UNAUTHENTICATED
            await executor.close()

    run(scenario())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "insecure: true"),
        (["--tls-cert", "nowhere.pem", "--tls-key", "nowhere.key"], "service.tls_cert"),
        (["--auth-file", "nowhere"], "service.auth_file"),
    ],
)
def test_what_is_not_safe_does_not_start(arguments: list[str], words: str) -> None:
    done = cli("serve", "--engine", "sim", "--port", "0", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
