"""The demo's authoritative server: one zone of numbered names, a fixed delay, and a count of what it was asked.

A process of its own (`python -m cachebus.cli.demo_zone`): a line `count` on its standard input is answered with the
number of queries so far, the end of the input ends it. Knows no node and no load.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any, cast

from cachebus.answer import RRset
from cachebus.presentation import name_from_text
from cachebus.shim.query import MIN_PAYLOAD, Error, Query, parse_query
from cachebus.shim.reply import compose_error
from cachebus.wire import rrtypes
from cachebus.wire.message import AA, NOERROR, NXDOMAIN, QR, RD, Composer, pack
from cachebus.wire.name import is_at_or_below

ZONE = "demo.test."
NAMES = 500
"""As many as a node's clients ask for in the time of one run, nearly; the rarest only some of them."""
TTL = 30
"""Seconds: some names expire during a run, and are fetched again, by one node for all."""
NEGATIVE_TTL = 60
DELAY = 0.040
"""Seconds between a query and its answer: an authoritative server on the same continent."""

_ZONE_WIRE = name_from_text(ZONE)
_SOA = RRset(
    _ZONE_WIRE,
    rrtypes.SOA,
    NEGATIVE_TTL,
    pack(
        rrtypes.SOA,
        NEGATIVE_TTL,
        [b"".join((_ZONE_WIRE, _ZONE_WIRE, *(n.to_bytes(4, "big") for n in (1, 3600, 600, 86400, NEGATIVE_TTL))))],
    ),
)


def name_of(number: int) -> str:
    """The zone's names: `n0.demo.test.` is the most popular."""
    return f"n{number}.{ZONE}"


def addresses() -> dict[bytes, RRset]:
    """Every name with its address, out of a range for documentation, which may be shared (RFC 5737)."""
    found = {}
    for number in range(NAMES):
        owner = name_from_text(name_of(number))
        address = bytes((198, 51, 100, number % 256))
        found[owner] = RRset(owner, rrtypes.A, TTL, pack(rrtypes.A, TTL, [address]))
    return found


class DemoZone(asyncio.DatagramProtocol):
    """Answers over UDP, with AA=1, after `delay` seconds."""

    def __init__(self, delay: float = DELAY) -> None:
        self._delay = delay
        self._addresses = addresses()
        self._transport: asyncio.DatagramTransport | None = None
        self.queries = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        query = parse_query(data)
        if isinstance(query, Query):
            self.queries += 1
            asyncio.get_running_loop().call_later(self._delay, self._send, self.reply(query), addr)
        elif isinstance(query, Error):
            self._send(compose_error(query), addr)

    def _send(self, reply: bytes, addr: tuple[Any, ...]) -> None:
        if self._transport is not None:
            self._transport.sendto(reply, addr)

    def reply(self, query: Query) -> bytes:
        """The zone's answer: an address, NODATA, or NXDOMAIN."""
        rrset = self._addresses.get(query.qname)
        composer = Composer(query.question, query.qname)
        flags = QR | AA | (query.flags & RD) | NOERROR
        counts = (1, 0, 1, 0)
        if rrset is not None and query.qtype == rrtypes.A:
            composer.add(rrset, TTL, sigs=False)
            counts = (1, 1, 0, 0)
        elif is_at_or_below(query.qname, _ZONE_WIRE):
            if rrset is None and query.qname != _ZONE_WIRE:
                flags |= NXDOMAIN
            composer.add(_SOA, NEGATIVE_TTL, sigs=False)
        else:
            return compose_error(Error(query.id, query.flags, query.question, query.edns, 5))
        if query.edns is not None:
            composer.raw(b"\0\0\x29" + MIN_PAYLOAD.to_bytes(2, "big") + bytes(6))
            counts = (*counts[:3], 1)
        return composer.finish(int.from_bytes(query.id, "big"), flags, counts)


async def serve() -> None:
    """Serve until standard input ends. The first line of output is the port."""
    loop = asyncio.get_running_loop()
    transport, zone = await loop.create_datagram_endpoint(DemoZone, local_addr=("127.0.0.1", 0), family=socket.AF_INET)
    _print(transport.get_extra_info("sockname")[1])
    reader = asyncio.StreamReader()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while await reader.readline():
            _print(zone.queries)
    finally:
        pipe.close()
        transport.close()


def _print(number: int) -> None:
    os.write(sys.stdout.fileno(), b"%d\n" % number)


if __name__ == "__main__":
    asyncio.run(serve())
