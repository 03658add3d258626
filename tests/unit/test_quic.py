"""Transport `quic`: who is let in. What it shares with `tcp` is tested there, the rest by the contract."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

pytest.importorskip("aioquic")
from cachebus_transports import quic
from cachebus_transports._outbox import Outbox
from cachebus_transports.quic import QuicTransport

from cachebus.errors import ConfigError
from cachebus.ports import Sender, TransportSettings
from cachebus.tls import CertificateFiles
from cachebus.wire.stream import LengthFraming
from tests.certificates import Authority
from tests.servers import free_port

NAMES = ["one.example", "two.example"]


def settings(listen: str | None, *peers: str, tls: CertificateFiles | None, **options: object) -> TransportSettings:
    framing = LengthFraming()
    return TransportSettings(
        name="wan", node="one", cluster="test", listen=listen, peers=peers, tls=tls, framing=framing, options=options
    )


def ignore(data: bytes, sender: Sender) -> None:
    """A receiver that keeps nothing."""


async def until(condition: Callable[[], object], complaint: str) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, complaint
        await asyncio.sleep(0.005)


def address_of(transport: QuicTransport) -> str:
    return f"127.0.0.1:{transport.addresses[0][1]}"


def test_has_no_cleartext() -> None:
    with pytest.raises(ConfigError, match="cleartext"):
        QuicTransport(settings("127.0.0.1:0", tls=None, insecure=True), ignore)
    with pytest.raises(ConfigError, match="needs `tls`"):
        QuicTransport(settings("127.0.0.1:0", tls=None), ignore)


@pytest.mark.parametrize("case", ["stranger", "expired", "other authority", "none"])
async def test_clients_are_refused_with_a_reason(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, got = Authority(tmp_path), list[bytes]()
    name = "stranger.example" if case == "stranger" else NAMES[1]
    issuer = Authority(tmp_path, "other") if case == "other authority" else authority
    cert, key = issuer.write(name, days_ago=60 if case == "expired" else 0)
    mine = CertificateFiles(ca=authority.path, cert=cert, key=key, peers=NAMES)
    server = QuicTransport(
        settings("127.0.0.1:0", tls=authority.files(NAMES[0], NAMES)), lambda data, sender: got.append(data)
    )
    if case == "none":  # as in a release of aioquic in which the flag means nothing
        monkeypatch.setattr(quic, "_demand_certificate", lambda connection: None)
    async with server, QuicTransport(settings(None, address_of(server), tls=mine), ignore) as client:
        client.send(b"x")
        counter = "unknown_peer" if case == "stranger" else "refused_certificates"
        await until(lambda: server.statistics()[counter], "not counted")
        await until(lambda: client.statistics()["refused_by_peer"], "the client was not told")
        assert not got
        assert server.statistics()["connections"] == 0


async def test_a_server_that_is_nobody_gets_nothing(tmp_path: Path) -> None:
    authority, got = Authority(tmp_path), list[bytes]()
    server = QuicTransport(
        settings("127.0.0.1:0", tls=authority.files("stranger.example", NAMES)), lambda data, sender: got.append(data)
    )
    async with server:
        mine = settings(None, address_of(server), tls=authority.files(NAMES[1], NAMES))
        async with QuicTransport(mine, ignore) as client:
            client.send(b"x")
            await until(lambda: client.statistics()["unknown_peer"], "not refused")
            assert client.statistics()["sent"] == 0
    assert not got


async def test_a_subscriber_gets_the_stream_on_its_own_connection(tmp_path: Path) -> None:
    authority, got, heard = Authority(tmp_path), list[bytes](), list[bytes]()
    one, two = (authority.files(name, NAMES) for name in NAMES)
    async with QuicTransport(settings("127.0.0.1:0", tls=one), lambda data, sender: got.append(data)) as hub:
        mine = settings(None, address_of(hub), tls=two, subscribe=True)
        async with QuicTransport(mine, lambda data, sender: heard.append(data)) as subscriber:
            await until(lambda: hub.statistics()["subscribers"], "no subscription")
            hub.send(b"to all")
            subscriber.send(b"back")
            await until(lambda: heard == [b"to all"] and got == [b"back"], "nothing came")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_is_given_up_while_it_is_opened_leaves_no_socket(
    tmp_path: Path, factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """uvloop, asked to end, waits for ever for a socket that nobody closes."""
    nowhere = ("127.0.0.1", free_port())
    mine = settings("127.0.0.1:0", tls=Authority(tmp_path).files(NAMES[0], NAMES))

    async def give_up_after(turns: int) -> None:
        async with QuicTransport(mine, ignore) as transport:
            dialling = asyncio.create_task(transport.connect(nowhere, Outbox(messages=1, size=1, age=1.0)))
            for _ in range(turns):
                await asyncio.sleep(0)
            dialling.cancel()
            await asyncio.gather(dialling, return_exceptions=True)
        await asyncio.sleep(0.01)

    async def all_of_them() -> None:
        await give_up_after(0)  # opens what stays open
        before = descriptors()
        for turns in range(12):
            await give_up_after(turns)
            assert descriptors() == before, f"after {turns} turns"

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(all_of_them())
