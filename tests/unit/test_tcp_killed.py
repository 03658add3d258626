"""A peer that is killed and started again: the stream resumes within 5 seconds, over `tcp` and over `quic`."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest
from cachebus_transports.tcp import TcpTransport

from cachebus.ports import Transport, TransportSettings
from cachebus.tls import CertificateFiles
from cachebus.wire.stream import LengthFraming
from tests.certificates import Authority
from tests.servers import free_port

NAMES = ["one.example", "two.example"]
PEER = """
import asyncio, sys
from pathlib import Path
from cachebus.ports import TransportSettings
from cachebus.tls import CertificateFiles
from cachebus.wire.stream import LengthFraming
from importlib import import_module

kind, listen, ca, cert, key, *peers = sys.argv[1:]
made = getattr(import_module(f"cachebus_transports.{kind}"), f"{kind.title()}Transport")

async def main():
    tls = CertificateFiles(ca=Path(ca), cert=Path(cert), key=Path(key), peers=peers)
    settings = TransportSettings(
        name="peer", node="two", cluster="test", listen=listen, tls=tls, framing=LengthFraming()
    )
    async with made(settings, lambda data, sender: print(data.decode(), flush=True)):
        await asyncio.sleep(60)

asyncio.run(main())
"""
RESUMED = 5.0
"""Seconds: the promise."""


async def send_until_printed(sender: Transport, peer: asyncio.subprocess.Process, text: str, within: float) -> None:
    assert peer.stdout is not None
    end = time.monotonic() + within
    line = asyncio.ensure_future(peer.stdout.readline())
    while not line.done():
        assert time.monotonic() < end, "the stream did not resume"
        sender.send(text.encode())
        await asyncio.wait([line], timeout=0.02)
    assert line.result()


@pytest.mark.parametrize("kind", ["tcp", "quic"])
async def test_the_stream_resumes_after_a_kill(kind: str, tmp_path: Path) -> None:
    made: type[TcpTransport] = TcpTransport
    if kind == "quic":
        made = pytest.importorskip("cachebus_transports.quic").QuicTransport
    authority = Authority(tmp_path)
    cert, key = authority.write(NAMES[1])
    address = f"127.0.0.1:{free_port()}"
    arguments = [kind, address, str(authority.path), str(cert), str(key), *NAMES]
    tls: CertificateFiles = authority.files(NAMES[0], NAMES)
    settings = TransportSettings(
        name="wan", node="one", cluster="test", peers=(address,), tls=tls, framing=LengthFraming()
    )
    async with made(settings, lambda data, sender: None) as sender:
        for text in ("first", "second"):
            peer = await asyncio.create_subprocess_exec(
                sys.executable, "-c", PEER, *arguments, stdout=asyncio.subprocess.PIPE
            )
            try:
                # Starting the interpreter is not the transport's time.
                await send_until_printed(sender, peer, text, 15 if text == "first" else RESUMED + 2)
            finally:
                peer.kill()
                await peer.communicate()
        assert sender.statistics()["reconnects"] == 1
