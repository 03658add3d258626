"""The control channel over TLS, with the files that unbound-control-setup makes, against the real Unbound."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dns.rcode
import pytest

from cachebus.answer import Answer, Evidence, RRset
from cachebus.errors import ConfigError, ResolverError
from cachebus.holdings import Holdings
from cachebus.presentation import name_from_text
from cachebus.sinks.unbound import UnboundSink
from cachebus.unbound.control import ControlChannel, ControlTls
from cachebus.wire import message, rrtypes
from tests.farm.client import Endpoint, Question, ask, data
from tests.farm.unbound import Unbound
from tests.servers import find, free_port, require

pytestmark = pytest.mark.interop

DEAD = Endpoint("127.0.0.1", 1)


class TlsUnbound(Unbound):
    """An Unbound whose control channel is TLS on a TCP port."""

    def __init__(self, directory: Path, keys: Path) -> None:
        super().__init__(directory, name="tls", stubs={".": DEAD})
        self.keys = keys
        self.control_port = free_port()

    def _clauses(self) -> list[str]:
        return [
            "remote-control:\n  control-enable: yes\n  control-interface: 127.0.0.1",
            f"  control-port: {self.control_port}",
            *(
                f'  {option}-file: "{self.keys}/{file}"'
                for option, file in (
                    ("server-key", "unbound_server.key"),
                    ("server-cert", "unbound_server.pem"),
                    ("control-key", "unbound_control.key"),
                    ("control-cert", "unbound_control.pem"),
                )
            ),
            *super()._clauses()[2:],
        ]

    @property
    def control(self) -> str:  # type: ignore[override]  # the address, not the command
        return f"127.0.0.1:{self.control_port}"

    @property
    def tls(self) -> ControlTls:
        return tls_of(self.keys)


def tls_of(keys: Path) -> ControlTls:
    return ControlTls(
        server_cert=keys / "unbound_server.pem", key=keys / "unbound_control.key", cert=keys / "unbound_control.pem"
    )


def set_up(directory: Path) -> Path:
    """Run unbound-control-setup, as an operator does."""
    require("unbound", "unbound-control-setup", "openssl")
    directory.mkdir()
    program = find("unbound-control-setup")
    assert program
    subprocess.run([program, "-d", str(directory)], check=True, capture_output=True, timeout=60)
    return directory


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return set_up(tmp_path_factory.mktemp("keys") / "one")


@pytest.fixture(scope="module")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return set_up(tmp_path_factory.mktemp("keys") / "two")


@pytest.fixture(scope="module")
def resolver(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[TlsUnbound]:
    with TlsUnbound(tmp_path_factory.mktemp("f"), keys) as server:
        yield server


async def test_fills_over_tls(resolver: TlsUnbound) -> None:
    owner = name_from_text("tls.test")
    rrset = RRset(owner, rrtypes.A, 300, message.pack(rrtypes.A, 0, [bytes([192, 0, 2, 1])]))
    answers = [
        Answer(bytes([1, 97 + i]) + owner, rrtypes.A, (rrset._replace(owner=bytes([1, 97 + i]) + owner),),
               Evidence.AUTHORITATIVE, "node-a", time.time())
        for i in range(20)
    ]  # fmt: skip
    sink = UnboundSink(
        name="tls", control=resolver.control, tls=resolver.tls, clock=time.time, holdings=Holdings(),
        refill=lambda now: [answers],
    )  # fmt: skip
    async with sink, asyncio.timeout(10):
        while sink.statistics()["filled"] < len(answers):  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.01)
    assert sink.statistics()["errors"] == 0
    for i in range(20):
        reply = await asyncio.to_thread(ask, resolver.endpoint, Question(f"{chr(97 + i)}.tls.test.", "A"))
        assert reply is not None
        assert reply.rcode() == dns.rcode.NOERROR
        assert data(reply) == {f"{chr(97 + i)}.tls.test. A 192.0.2.1"}


async def test_a_large_load_over_tls(resolver: TlsUnbound) -> None:
    channel = ControlChannel(resolver.control, resolver.tls)
    rrsets = "".join(f";rrset 300 1 0 5 0\nx{i}.test. 300 IN TYPE1 \\# 4 c0000201\n" for i in range(5000))
    dump = f"START_RRSET_CACHE\n{rrsets}END_RRSET_CACHE\nSTART_MSG_CACHE\nEND_MSG_CACHE\nEOF\n".encode()
    await channel.load(dump)


async def test_a_server_with_another_certificate_gets_nothing(resolver: TlsUnbound, other_keys: Path) -> None:
    wrong_pin = replace(resolver.tls, server_cert=other_keys / "unbound_server.pem")
    with pytest.raises(ResolverError, match="certificate verify failed"):
        await ControlChannel(resolver.control, wrong_pin).command("status")


async def test_a_client_cannot_pose_as_the_server(keys: Path) -> None:
    """The client's certificate is signed by the server's, so a chain check alone would accept it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "unbound_control.pem", keys / "unbound_control.key")
    received = bytearray()

    async def pose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(pose, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ResolverError, match=r"another certificate|certificate verify failed"):
            await ControlChannel(f"127.0.0.1:{port}", tls_of(keys)).command("status")
    assert not received


async def test_a_stranger_is_refused(resolver: TlsUnbound, other_keys: Path) -> None:
    stranger = ControlTls(
        server_cert=resolver.tls.server_cert,
        key=other_keys / "unbound_control.key",
        cert=other_keys / "unbound_control.pem",
    )
    with pytest.raises(ResolverError):
        await ControlChannel(resolver.control, stranger).command("status")


async def test_a_plain_port_is_an_error_and_no_traceback(keys: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        channel = ControlChannel(f"127.0.0.1:{silent.getsockname()[1]}", tls_of(keys), timeout=0.3)
        with pytest.raises(ResolverError, match="no answer in time"):
            await channel.command("status")


@pytest.mark.parametrize("missing", ["server_cert", "key", "cert"])
def test_unreadable_files_are_configuration_errors(keys: Path, tmp_path: Path, missing: str) -> None:
    for content in (None, b"", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        path = tmp_path / "file"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match="file"):
            ControlChannel("127.0.0.1:8953", replace(tls_of(keys), **{missing: path}))
