"""Transports over stream links against the transport contract: cleartext on loopback, TLS, compressed, and QUIC."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from cachebus_transports.tcp import TcpTransport

from cachebus.ports import TransportFactory, TransportSettings
from cachebus.testing import Check, TransportBed, transport_contract
from cachebus.tls import CertificateFiles
from cachebus.wire.stream import MAX_FRAME, LengthFraming
from tests.certificates import Authority
from tests.servers import free_port

NODES = 4
NAMES = [f"node-{index}.example" for index in range(NODES)]
GARBAGE = [b"GET / HTTP/1.1\r\nHost: node\r\n\r\n", bytes(range(256)) * 64, b"\xff" * 8, b"\x16\x03\x01\x02\x00\x01"]
"""Another protocol, every byte, a length beyond all bounds, and the beginning of a TLS record."""


def bed_of(
    host: str,
    certificates: list[CertificateFiles] | None,
    factory: TransportFactory = TcpTransport,
    **options: object,
) -> TransportBed:
    """A full mesh over free ports of `host`."""
    shown = f"[{host}]" if ":" in host else host
    addresses = [f"{shown}:{port}" for port in free_ports(host)]

    def settings(index: int, count: int) -> TransportSettings:
        return TransportSettings(
            name="wan",
            node=f"node-{index}",
            cluster="test",
            listen=addresses[index],
            peers=tuple(addresses[:count]),  # its own among them: every node may have the same list
            tls=None if certificates is None else certificates[index],
            framing=LengthFraming(),
            options=options,
        )

    async def garbage(attacked: TransportSettings) -> None:
        port = int((attacked.listen or "").rpartition(":")[2])
        for data in GARBAGE:
            await throw(host, port, data, None)
            if certificates is not None:
                await throw(host, port, data, certificates[0].client_context())

    def stalled(settings: TransportSettings) -> contextlib.AbstractAsyncContextManager[None]:
        context = None if certificates is None else certificates[2].server_context()
        return deaf(host, int((settings.listen or "").rpartition(":")[2]), context)

    return TransportBed(
        factory=factory,
        settings=settings,
        max_size=MAX_FRAME,
        unauthenticated=lambda: dataclasses.replace(settings(0, 2), tls=None, options={}),
        garbage=garbage,
        stalled=stalled,
    )


def quic_bed(host: str, certificates: list[CertificateFiles], **options: object) -> TransportBed:
    quic = pytest.importorskip("cachebus_transports.quic")
    bed = bed_of(host, certificates, quic.QuicTransport, **options)

    async def garbage(attacked: TransportSettings) -> None:
        address = (host, int((attacked.listen or "").rpartition(":")[2]))
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as thrower:
            for data in GARBAGE:
                thrower.sendto(data[:1400], address)
                thrower.sendto(b"\xc3\0\0\0\1" + data[:1400].ljust(1200, b"\0"), address)

    return dataclasses.replace(bed, garbage=garbage, stalled=None, window=16)


def free_ports(host: str) -> list[int]:
    found: set[int] = set()
    while len(found) < NODES:
        found.add(free_port(host))
    return sorted(found)


async def throw(host: str, port: int, data: bytes, context: ssl.SSLContext | None) -> None:
    """Connect, send, and wait until the other side has ended the connection, or has taken it for unfinished."""
    reader, writer = await asyncio.open_connection(
        host, port, ssl=context, server_hostname=None if context is None else ""
    )
    writer.write(data)
    if context is None:
        writer.write_eof()
    with contextlib.suppress(OSError):
        async with asyncio.timeout(0.2 if context else 5):
            await reader.read()
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def deaf(host: str, port: int, context: ssl.SSLContext | None) -> AsyncIterator[None]:
    """A server that accepts whoever comes and reads nothing."""
    writers = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writers.append(writer)

    server = await asyncio.start_server(accept, host, port, ssl=context)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def with_certificates(directory: Path) -> list[CertificateFiles]:
    authority = Authority(directory)
    return [authority.files(name, NAMES) for name in NAMES]


BEDS: dict[str, Callable[[Path], TransportBed]] = {
    "cleartext-ipv4": lambda directory: bed_of("127.0.0.1", None, insecure=True),
    "cleartext-ipv6-zstd": lambda directory: bed_of("::1", None, insecure=True, zstd=True),
    "tls": lambda directory: bed_of("127.0.0.1", with_certificates(directory)),
    "tls-zstd": lambda directory: bed_of("127.0.0.1", with_certificates(directory), zstd=True),
    "quic": lambda directory: quic_bed("127.0.0.1", with_certificates(directory)),
}


@pytest.fixture(params=list(BEDS))
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> TransportBed:
    return BEDS[request.param](tmp_path)


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


@pytest.mark.parametrize("check", transport_contract(), ids=lambda check: check.__name__)
def test_contract(check: Check, bed: TransportBed, runner: asyncio.Runner) -> None:
    async def run() -> None:
        await check(bed)

    runner.run(run())
