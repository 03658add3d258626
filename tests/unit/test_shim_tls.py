"""TLS for clients: versions, ALPN, the certificate of the moment, and the layer in memory and over sockets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import dns.message
import pytest

from cachebus.cache import Cache
from cachebus.errors import ConfigError
from cachebus.shim import Shim
from cachebus.shim import connections as connections_module
from cachebus.shim import server as server_module
from cachebus.shim.encrypted import EncryptedSettings
from cachebus.shim.query import Channel
from cachebus.shim.tls import TlsCounters, TlsLayer
from cachebus.testing import ManualClock
from tests.unit.listen_bed import NAME, Authority, MemoryTransport
from tests.unit.shim_bed import WAIT, ScriptedUpstream, bus_answer, records, reply_to, rrset, settings, until

QUERY = dns.message.make_query("www.example.", "A").to_wire()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


class Above(asyncio.Protocol):
    """Keeps what it is told; `stays` is what it says at the end of what comes."""

    def __init__(self, *, stays: bool = False) -> None:
        self.received = bytearray()
        self.stays = stays
        self.eofs = self.losses = 0
        self.transport: asyncio.Transport = MemoryTransport()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool:
        self.eofs += 1
        return self.stays

    def connection_lost(self, exc: Exception | None) -> None:
        self.losses += 1


class Pair:
    """A TLS client in memory, and the layer."""

    def __init__(
        self,
        authority: Authority,
        client: ssl.SSLContext,
        *,
        alpn: str = "dot",
        required: bool = False,
        step: int = 65536,
    ) -> None:
        self.counters = TlsCounters()
        self.above = Above()
        self.layer = TlsLayer(self.above, authority.certificate(), self.counters, alpn=alpn, required=required)
        self.tcp = MemoryTransport()
        self.step = step
        self.layer.connection_made(self.tcp)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(self.incoming, self.outgoing, server_hostname=NAME)

    def move(self) -> None:
        while (there := self.outgoing.read()) or self.tcp.written:
            for start in range(0, len(there), self.step):
                self.layer.data_received(there[start : start + self.step])
            self.incoming.write(self.tcp.take())
            if not there:
                return

    def shake(self) -> None:
        for _ in range(10):
            try:
                self.client.do_handshake()
            except ssl.SSLWantReadError:
                self.move()
            else:
                self.move()
                return
        raise AssertionError("no handshake")


@pytest.mark.parametrize("step", [1, 5, 65536])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_byte_by_byte(authority: Authority, step: int, version: ssl.TLSVersion) -> None:
    context = authority.client("dot")
    context.minimum_version = context.maximum_version = version
    pair = Pair(authority, context, step=step)
    pair.above.transport.write(b"written before the handshake")
    pair.shake()
    assert pair.client.selected_alpn_protocol() == "dot"
    assert pair.client.read(100) == b"written before the handshake"
    pair.client.write(b"x" * 3000)
    pair.move()
    assert pair.above.received == b"x" * 3000
    pair.above.transport.write(b"y" * 40_000)
    pair.move()
    received = b""
    while len(received) < 40_000:
        received += pair.client.read(65536)
    pair.above.transport.close()
    pair.move()
    assert pair.client.read(1) == b"", "a close_notify, so nothing was cut"
    assert pair.tcp.closed
    assert (pair.counters.completed, pair.counters.failed) == (1, 0)


def test_the_client_closes_and_what_is_under_way_still_leaves(authority: Authority) -> None:
    pair = Pair(authority, authority.client())
    pair.above.stays = True
    pair.shake()
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    pair.move()
    assert pair.above.eofs == 1
    assert not pair.tcp.closed
    pair.above.transport.write(b"late")
    assert pair.tcp.written
    pair.above.transport.close()
    assert pair.tcp.closed


def test_the_client_closes_and_nothing_is_under_way(authority: Authority) -> None:
    pair = Pair(authority, authority.client())
    pair.shake()
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    pair.move()
    assert pair.tcp.closed


def test_old_versions_are_refused(authority: Authority) -> None:
    context = authority.client()
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match=r"TLSv1_1|deprecated"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    pair = Pair(authority, context)
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        pair.shake()
    assert pair.tcp.closed
    pair.layer.connection_lost(None)
    assert (pair.counters.completed, pair.counters.failed, pair.above.losses) == (0, 1, 1)


@pytest.mark.parametrize("alpn", [None, "http/1.1", "dot"])
def test_without_the_protocol_that_is_required_nobody_gets_in(authority: Authority, alpn: str | None) -> None:
    pair = Pair(authority, authority.client(alpn), alpn="h2", required=True)
    pair.shake()
    pair.client.write(b"GET / HTTP/1.1\r\n\r\n")
    pair.move()
    assert pair.tcp.closed
    assert not pair.above.received


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.0\r\n\r\n", b"\0" * 100, b"\x16\x03\x01\xff\xff" + bytes(70000)])
def test_noise_ends_it(authority: Authority, noise: bytes) -> None:
    pair = Pair(authority, authority.client())
    pair.layer.data_received(noise)
    assert pair.tcp.closed
    pair.layer.data_received(noise)
    assert not pair.above.received


def test_noise_after_the_handshake_ends_it(authority: Authority) -> None:
    pair = Pair(authority, authority.client())
    pair.shake()
    pair.layer.data_received(b"\x17\x03\x03\0\x20" + bytes(32))
    assert pair.tcp.closed
    pair.above.transport.write(b"nobody gets this")
    pair.above.transport.close()


def test_a_cut_connection_is_the_end_of_what_comes(authority: Authority) -> None:
    pair = Pair(authority, authority.client())
    assert not pair.layer.eof_received()
    pair = Pair(authority, authority.client())
    pair.shake()
    pair.above.stays = True
    assert pair.layer.eof_received()
    pair.above.transport.abort()
    assert pair.tcp.aborted
    assert not pair.layer.eof_received()


class TestCertificate:
    def test_a_new_one_counts_from_the_next_connection_on(self, authority: Authority) -> None:
        certificate = authority.certificate()
        before, material = certificate.context("dot"), certificate.material()
        assert certificate.context("dot") is before
        authority.issue()
        assert certificate.context("dot") is not before
        assert certificate.material() is not material

    def test_what_cannot_be_used_leaves_the_old_in_use_and_is_told_of_once(
        self, authority: Authority, caplog: pytest.LogCaptureFixture
    ) -> None:
        certificate = authority.certificate()
        before = certificate.context("dot")
        authority.cert.write_bytes(b"nothing")
        for _ in range(5):
            assert certificate.context("dot") is before
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
        authority.issue()
        assert certificate.context("dot") is not before

    def test_a_key_that_is_open_to_everyone_is_refused(self, authority: Authority) -> None:
        authority.key.chmod(0o644)
        with pytest.raises(ConfigError, match="chmod o="):
            authority.certificate()

    @pytest.mark.parametrize("missing", ["cert", "key"])
    def test_a_missing_file_is_named(self, authority: Authority, missing: str) -> None:
        getattr(authority, missing).unlink()
        with pytest.raises(ConfigError, match=f"{missing}.pem"):
            authority.certificate()

    def test_its_host_is_the_first_that_is_one(self, authority: Authority) -> None:
        assert authority.certificate().host() == NAME
        authority.issue("*.example.net", "192.0.2.1", "Resolver.example.NET")
        assert authority.certificate().host() == "resolver.example.net"
        authority.issue("192.0.2.1")
        assert authority.certificate().host() is None

    def test_nothing_of_the_key_is_shown(self, authority: Authority) -> None:
        certificate = authority.certificate()
        text = repr(certificate) + repr(certificate.material()) + repr(vars(certificate))
        assert "PRIVATE" not in text
        assert "dns.example.net" not in repr(certificate.material())


def test_encrypted_listeners_need_a_certificate(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    with pytest.raises(ConfigError, match="need `tls`"):
        EncryptedSettings(tls=(("127.0.0.1", 0),))
    monkeypatch.setattr("cachebus.shim.encrypted.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cachebus\[quic\]"):
        EncryptedSettings(quic=(("127.0.0.1", 0),), certificate=authority.certificate())


# Over sockets


class Bed:
    """A shim with DNS over TLS whose cache holds `www.example. A`."""

    def __init__(self, authority: Authority, *upstreams: ScriptedUpstream, **changes: object) -> None:
        clock = ManualClock()
        cache = Cache("node-a")
        address = rrset("www.example.", "A", 300, bytes((192, 0, 2, 1)))
        cache.put(bus_answer(address, learned=clock.now, transport=""), clock.now)
        self.shim = Shim(
            settings(*upstreams, encrypted=authority.settings(), **changes), cache, lambda answer: None, clock
        )
        self.authority = authority

    async def connect(self, alpn: str | None = "dot") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            *self.shim.encrypted[Channel.TLS][0], ssl=self.authority.client(alpn), server_hostname="127.0.0.1"
        )


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes = QUERY
) -> dns.message.Message:
    writer.write(framed(message))
    async with asyncio.timeout(WAIT):
        size = int.from_bytes(await reader.readexactly(2), "big")
        return dns.message.from_wire(await reader.readexactly(size))


def shown(writer: asyncio.StreamWriter) -> bytes:
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return found


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_the_certificate_is_exchanged_while_a_client_stays(authority: Authority) -> None:
    bed = Bed(authority)
    async with bed.shim:
        stays = await bed.connect()
        assert (await ask(*stays)).answer
        old = shown(stays[1])
        new = authority.issue()
        comes = await bed.connect()
        assert shown(comes[1]) == new != old
        assert (await ask(*comes)).answer
        assert (await ask(*stays)).answer, "on the connection that was there"
        for _, writer in (stays, comes):
            writer.close()
            await writer.wait_closed()


async def test_a_reply_that_has_to_be_waited_for(authority: Authority) -> None:
    async with ScriptedUpstream(lambda message, stream: reply_to(message, records("a. 60 IN A 192.0.2.2"))) as upstream:
        bed = Bed(authority, upstream)
        async with bed.shim:
            reader, writer = await bed.connect(None)
            assert (await ask(reader, writer, dns.message.make_query("a.", "A").to_wire())).answer
            writer.close()
            await writer.wait_closed()


async def test_clients_that_shake_no_hand_are_swept(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "IDLE_TIMEOUT", 0.2)
    monkeypatch.setattr(server_module, "SWEEP_INTERVAL", 0.02)
    bed = Bed(authority)
    async with bed.shim:
        stays = await bed.connect()
        assert (await ask(*stays)).answer
        silent = [await asyncio.open_connection(*bed.shim.encrypted[Channel.TLS][0]) for _ in range(5)]
        for _, writer in silent:
            writer.write(b"\x16\x03\x01")
        async with asyncio.timeout(WAIT):
            for reader, writer in silent:
                assert await reader.read() == b""
                writer.close()
        assert bed.shim.statistics()["tcp_timed_out"] == 5
        assert bed.shim.statistics()["tls_failed"] == 5
        assert (await ask(*stays)).answer, "one that has asked something may stay longer"
        stays[1].close()
        await stays[1].wait_closed()


async def test_handshakes_count_and_make_room(authority: Authority) -> None:
    bed = Bed(authority, max_connections_per_client=20)
    async with bed.shim:
        slow = [await asyncio.open_connection(*bed.shim.encrypted[Channel.TLS][0]) for _ in range(50)]
        await until(lambda: bed.shim.statistics()["tcp_crowded"] == 30)
        assert bed.shim.statistics()["tcp_open"] == 20
        good = await bed.connect()
        assert (await ask(*good)).answer
        for _, writer in (*slow, good):
            writer.close()


@pytest.mark.parametrize("ending", ["shim first", "clients first", "aborted"])
async def test_nothing_is_left_behind(authority: Authority, ending: str) -> None:
    loop = asyncio.get_running_loop()
    tasks, files = len(asyncio.all_tasks(loop)), descriptors()
    closing: list[Callable[[], None]] = []
    async with ScriptedUpstream(lambda message, stream: None) as upstream:
        bed = Bed(authority, upstream)
        async with bed.shim:
            clients = [await bed.connect() for _ in range(5)]
            for _, writer in clients:
                writer.write(framed(dns.message.make_query("slow.example.", "A").to_wire()))
            await until(lambda: bed.shim.statistics()["in_flight"] == 5)
            for _, writer in clients:
                closing.append(writer.transport.abort if ending == "aborted" else writer.close)
            if ending != "shim first":
                for close in closing:
                    close()
                closing.clear()
                await until(lambda: bed.shim.statistics()["tcp_open"] == 0)
        for close in closing:
            close()
        assert bed.shim.statistics()["tcp_open"] == 0
    await until(lambda: descriptors() <= files)
    assert len(asyncio.all_tasks(loop)) == tasks
