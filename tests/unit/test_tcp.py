"""Transport `tcp`: settings, the form of its streams, who is let in, and what happens when certificates change."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd
from cachebus_transports import _links, tcp
from cachebus_transports._stream import (
    SUBSCRIBE,
    ZSTD_MAGIC,
    Incoming,
    Outgoing,
)
from cachebus_transports.tcp import TcpTransport, TlsTransport
from hypothesis import given
from hypothesis import strategies as st

from cachebus.errors import ConfigError, FrameError
from cachebus.ports import Sender, TransportSettings
from cachebus.tls import CertificateFiles
from cachebus.wire.stream import LengthFraming
from tests.certificates import Authority
from tests.servers import free_port

NAMES = ["one.example", "two.example"]
DEADLINE = 5.0


def settings(
    listen: str | None, *peers: str, tls: CertificateFiles | None = None, **options: object
) -> TransportSettings:
    if tls is None:
        options.setdefault("insecure", True)
    framing = LengthFraming()
    return TransportSettings(
        name="wan", node="one", cluster="test", listen=listen, peers=peers, tls=tls, framing=framing, options=options
    )


def ignore(data: bytes, sender: Sender) -> None:
    """A receiver that keeps nothing."""


async def until(condition: Callable[[], object], complaint: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, complaint
        await asyncio.sleep(0.005)


def address_of(transport: TcpTransport) -> str:
    return f"127.0.0.1:{transport.addresses[0][1]}"


class TestSettings:
    @pytest.mark.parametrize(
        ("made", "complaint"),
        [
            (settings(None), "listen"),
            (settings("127.0.0.1:0", insecure=False), "needs `tls`"),
            (settings("0.0.0.0:0"), "loopback"),
            (settings(None, "192.0.2.1:5391"), "loopback"),
            (settings("localhost:1"), "literal"),
            (settings("127.0.0.1:0", insecure="yes"), "true or false"),
            (settings("127.0.0.1:0", zstd=3), "zstd: is true or false"),
            (settings("127.0.0.1:0", zstd="fast"), "zstd: is true or false"),
            (settings("127.0.0.1:0", subscribe=1), "true or false"),
            (TransportSettings(name="x", node="x", cluster="x", listen="127.0.0.1:0"), "codec"),
        ],
    )
    def test_refuses_what_makes_no_sense(self, made: TransportSettings, complaint: str) -> None:
        with pytest.raises(ConfigError, match=complaint):
            TcpTransport(made, ignore)

    def test_tls_is_never_cleartext(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cleartext"):
            TlsTransport(settings("127.0.0.1:0"), ignore)
        files = Authority(tmp_path).files(NAMES[0], NAMES)
        with pytest.raises(ConfigError, match="contradicts"):
            TcpTransport(settings("127.0.0.1:0", tls=files, insecure=True), ignore)


class TestStream:
    @given(st.lists(st.binary(min_size=1, max_size=300), max_size=20), st.booleans(), st.integers(1, 50), st.booleans())
    def test_what_was_sent_arrives_however_it_is_cut(
        self, messages: list[bytes], compressed: bool, step: int, subscribes: bool
    ) -> None:
        framing, got, asked = LengthFraming(), list[bytes](), list[bool]()
        outgoing = Outgoing(framing, compressed=compressed)
        sent = (SUBSCRIBE if subscribes else b"") + outgoing.open()
        sent += b"".join(outgoing.turn([framing.frame(message)]) for message in messages) + outgoing.close()
        incoming = Incoming(framing, got.append, lambda: asked.append(True))
        for start in range(0, len(sent), step):
            incoming.feed(sent[start : start + step])
        incoming.end()
        assert got == messages
        assert len(asked) == subscribes

    @given(st.lists(st.binary(min_size=1, max_size=200), max_size=5), st.sampled_from([b"", ZSTD_MAGIC, SUBSCRIBE]))
    def test_any_bytes_are_messages_or_a_frame_error(self, pieces: list[bytes], first: bytes) -> None:
        incoming = Incoming(LengthFraming(), lambda message: None, lambda: None)
        with contextlib.suppress(FrameError):
            for piece in (first, *pieces):
                if piece:
                    incoming.feed(piece)
            incoming.end()

    def test_a_bomb_ends_the_stream_before_it_is_unpacked(self) -> None:
        bomb = zstd.compress((b"\0\0\x04\0" + bytes(1024)) * 65536)
        assert len(bomb) < 16384
        got = 0

        def count(message: bytes) -> None:
            nonlocal got
            got += len(message)

        with pytest.raises(FrameError, match="hold more than"):
            Incoming(LengthFraming(), count).feed(bomb)
        assert got <= 16 * 1024 * 1024

    def test_a_large_window_and_bytes_after_the_end_are_refused(self) -> None:
        large = zstd.compress(bytes(1 << 25), options={zstd.CompressionParameter.window_log: 25})
        with pytest.raises(FrameError, match="window"):
            Incoming(LengthFraming(), lambda message: None).feed(large)
        small = zstd.compress(b"\0\0\0\1x")
        with pytest.raises(FrameError, match="after the end"):
            Incoming(LengthFraming(), lambda message: None).feed(small + b"x")


class TestPeers:
    async def test_a_peer_that_will_not_have_us_is_reported_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In TLS 1.3 a link stands for the side that connects before the other has looked at its certificate."""
        monkeypatch.setattr(_links, "MAX_BACKOFF", 0.01)
        monkeypatch.setattr(_links, "FIRST_BACKOFF", 0.01)
        monkeypatch.setattr(_links, "SETTLED", 0.3)
        caplog.set_level("INFO")
        authority = Authority(tmp_path)
        strict = settings("127.0.0.1:0", tls=authority.files(NAMES[1], ["other.example"]))
        async with TcpTransport(strict, ignore) as server:
            refused = settings(None, address_of(server), tls=authority.files(NAMES[0], NAMES))
            async with TcpTransport(refused, ignore) as client:
                await until(lambda: client.statistics()["reconnects"] >= 4, "not tried again")
            said = [text for text in caplog.messages if "link" in text]
            assert said == [f"transport wan: no link to {address_of(server)}: it ended the connection at once"]
            caplog.clear()
        async with TcpTransport(settings("127.0.0.1:0"), ignore) as server:
            address = address_of(server)
            async with TcpTransport(settings(None, address), ignore):
                await until(lambda: len(caplog.messages) == 1, "not told")
        assert caplog.messages == [f"transport wan: linked to {address}"]

    async def test_it_does_not_dial_itself_where_it_listens_on_all(self, tmp_path: Path) -> None:
        port = free_port()
        made = settings(f"0.0.0.0:{port}", f"127.0.0.1:{port}", tls=Authority(tmp_path).files(NAMES[0], NAMES))
        async with TcpTransport(made, ignore) as transport:
            assert len(transport._peers) == 0

    async def test_a_subscriber_gets_the_stream_on_its_own_connection(self) -> None:
        got: list[bytes] = []
        async with TcpTransport(settings("127.0.0.1:0"), lambda data, sender: got.append(data)) as hub:
            heard: list[bytes] = []
            link = settings(None, address_of(hub), subscribe=True, zstd=True)
            async with TcpTransport(link, lambda data, sender: heard.append(data)) as subscriber:
                await until(lambda: hub.statistics()["subscribers"], "no subscription")
                hub.send(b"to all")
                subscriber.send(b"back")
                await until(lambda: heard == [b"to all"] and got == [b"back"], "nothing came")
            await until(lambda: not hub.statistics()["connections"], "the connection is kept")

    async def test_a_peer_that_answers_unasked_is_cut_off(self) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"\0\0\0\1x")
            with contextlib.suppress(OSError):
                await reader.read()
                writer.close()
                await writer.wait_closed()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with TcpTransport(settings(None, f"127.0.0.1:{port}"), ignore) as transport:
            await until(lambda: transport.statistics()["malformed"], "it was listened to")
            server.close()

    async def test_flush_does_not_wait_for_the_dead_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_links, "FLUSH_CONNECT", 0.2)
        async with TcpTransport(settings(None, f"127.0.0.1:{free_port()}"), ignore) as transport:
            transport.send(b"x")
            await asyncio.wait_for(transport.flush(), DEADLINE)
        assert transport.statistics()["dropped"] == 1

    async def test_connections_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tcp, "MAX_ACCEPTED", 20)
        async with TcpTransport(settings("127.0.0.1:0"), ignore) as transport:
            host, port = transport.addresses[0][:2]
            opened = [await asyncio.open_connection(host, port) for _ in range(60)]
            await until(lambda: transport.statistics()["refused_connections"] == 40, "not refused")
            assert transport.statistics()["connections"] == 20
            for _, writer in opened:
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            await until(lambda: not transport.statistics()["connections"], "connections are kept")


class TestCertificates:
    async def test_silent_handshakes_keep_no_peer_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tcp, "MAX_HANDSHAKES", 8)
        authority, got = Authority(tmp_path), list[bytes]()
        one, two = (authority.files(name, NAMES) for name in NAMES)
        async with TcpTransport(settings("127.0.0.1:0", tls=one), lambda data, sender: got.append(data)) as server:
            host, port = server.addresses[0][:2]
            silent = [await asyncio.open_connection(host, port) for _ in range(30)]
            async with TcpTransport(settings(None, address_of(server), tls=two), ignore) as client:
                client.send(b"x")
                await until(lambda: got, "kept out")
            assert server.statistics()["refused_connections"] >= 22
            for _, writer in silent:
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    @pytest.mark.parametrize(
        ("case", "counter"),
        [("stranger", "unknown_peer"), ("expired", "refused_certificates"), ("none", "refused_certificates")],
    )
    async def test_refused_with_a_reason(
        self, case: str, counter: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        authority = Authority(tmp_path)
        async with TcpTransport(settings("127.0.0.1:0", tls=authority.files(NAMES[0], NAMES)), ignore) as server:
            context = ssl.create_default_context(cafile=authority.path)
            context.check_hostname = False
            if case != "none":
                name = NAMES[1] if case == "expired" else "stranger.example"
                context.load_cert_chain(*authority.write(name, days_ago=60 if case == "expired" else 0))
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(*server.addresses[0][:2], ssl=context)
                await until(lambda: server.statistics()[counter], "not counted")
                writer.transport.abort()
            await until(lambda: server.statistics()[counter] == 1, "not counted")
            assert not server.statistics()["connections"]
            assert "refused" in caplog.text

    async def test_tls_1_2_is_refused(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        async with TcpTransport(settings("127.0.0.1:0", tls=authority.files(NAMES[0], NAMES)), ignore) as server:
            context = ssl.create_default_context(cafile=authority.path)
            context.check_hostname, context.maximum_version = False, ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(*authority.write(NAMES[1]))
            with pytest.raises(OSError):  # noqa: PT011 - an alert, or a reset that overtakes it
                await asyncio.open_connection(*server.addresses[0][:2], ssl=context)
            await until(lambda: server.statistics()["failed_handshakes"] == 1, "not counted")

    async def test_a_server_that_is_nobody_gets_nothing(self, tmp_path: Path) -> None:
        authority, got = Authority(tmp_path), list[bytes]()
        stranger = authority.files("stranger.example", NAMES)
        async with TcpTransport(settings("127.0.0.1:0", tls=stranger), lambda data, sender: got.append(data)) as server:
            mine = settings(None, address_of(server), tls=authority.files(NAMES[1], NAMES))
            async with TcpTransport(mine, ignore) as client:
                client.send(b"secret")
                await until(lambda: client.statistics()["unknown_peer"] > 1, "not refused, or not tried again")
            assert not got
            assert client.statistics()["sent"] == 0

    async def test_certificates_change_under_traffic(self, tmp_path: Path) -> None:
        authority, got = Authority(tmp_path), list[Sender]()
        one, two = (authority.files(name, [*NAMES, "new.example"]) for name in NAMES)
        async with TcpTransport(settings("127.0.0.1:0", tls=one), lambda data, sender: got.append(sender)) as server:
            mine = settings(None, address_of(server), tls=two)
            async with TcpTransport(mine, ignore) as client:
                client.send(b"x")
                await until(lambda: got == ["two.example"], "nothing came")
                authority.write("new.example", "two.example")
                client.send(b"x")
                await until(lambda: got == ["two.example"] * 2, "a standing connection was ended")
            async with TcpTransport(mine, ignore) as client:
                client.send(b"x")
                await until(lambda: got[2:] == ["new.example"], "the old certificate was shown")
