"""Tells clients which encrypted listeners there are (RFC 9462), and answers for the rest of `resolver.arpa` here.

Decides the order in which they are recommended and what stands in their records. What it is told to announce is what
listens; it opens nothing, and asks nobody: no question below `resolver.arpa` leaves this host, but for the DS records
that a validating client wants to see, which are the parent's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from cachebus.answer import RRset
from cachebus.shim.encrypted import DdrSettings
from cachebus.shim.query import Channel, Query, Response
from cachebus.shim.settings import Endpoint
from cachebus.wire import rrtypes
from cachebus.wire.message import NOERROR, pack
from cachebus.wire.name import is_at_or_below

TTL = 300
"""Seconds: a listener that goes is asked in vain for no longer."""
ZONE = b"\x08resolver\x04arpa\0"
DISCOVERY = b"\x04_dns" + ZONE
"""The name that clients ask, knowing nothing but an address (RFC 9462 section 4)."""
_ALPN, _PORT, _IPV4_HINT, _IPV6_HINT, _DOHPATH = 1, 3, 4, 6, 7
"""SvcParamKeys (RFC 9460 section 14.3.2, RFC 9461 section 5)."""
_ORDER = ((Channel.TLS, b"dot"), (Channel.HTTPS, b"h2"), (Channel.QUIC, b"doq"))
"""What is announced, the cheapest for both sides first; its place is its priority."""
_SOA_RDATA = ZONE + b"\x06nobody\x07invalid\0" + struct.pack("!IIIII", 1, 3600, 1200, 604800, TTL)
"""As RFC 6303 section 3 has it for zones that are served locally."""
_SOA = RRset(ZONE, rrtypes.SOA, TTL, pack(rrtypes.SOA, TTL, [_SOA_RDATA]), b"")
_NO_DATA = Response(NOERROR, (), (_SOA,))

Listeners = Mapping[Channel, Sequence[Endpoint]]


class DiscoveryStage:
    """Answers everything at and below `resolver.arpa`; that there is nothing, until `announce` and without settings."""

    def __init__(self, settings: DdrSettings | None, https_path: str) -> None:
        self._settings = settings
        self._https_path = https_path.encode()
        self._designated = _NO_DATA
        self.answers = 0

    def announce(self, listeners: Listeners) -> None:
        """These listen from now on."""
        if self._settings is None or not any(listeners.values()):
            self._designated = _NO_DATA
            return
        rdatas = []
        for priority, (channel, alpn) in enumerate(_ORDER, start=1):
            for port, hosts in _by_port(listeners.get(channel, ())).items():
                params = self._parameters(channel, alpn, port, hosts)
                rdatas.append(struct.pack("!H", priority) + self._settings.name + params)
        self._designated = Response(
            NOERROR, (RRset(DISCOVERY, rrtypes.SVCB, TTL, pack(rrtypes.SVCB, TTL, rdatas), b""),)
        )

    def answer(self, query: Query, now: float) -> Response | None:
        """The answer when the name is ours."""
        if not is_at_or_below(query.qname, ZONE) or (query.qtype == rrtypes.DS and query.qname == ZONE):
            return None
        self.answers += 1
        return self._designated if query.qtype == rrtypes.SVCB and query.qname == DISCOVERY else _NO_DATA

    def _parameters(self, channel: Channel, alpn: bytes, port: int, hosts: Sequence[str]) -> bytes:
        """The SvcParams in the order of their keys (RFC 9460 section 2.2)."""
        assert self._settings is not None
        addresses = [ip_address(host.partition("%")[0]) for host in hosts]
        if any(address.is_unspecified for address in addresses):
            addresses = [address for address in addresses if not address.is_unspecified] + list(
                self._settings.addresses
            )
        four = b"".join(address.packed for address in dict.fromkeys(addresses) if isinstance(address, IPv4Address))
        six = b"".join(address.packed for address in dict.fromkeys(addresses) if isinstance(address, IPv6Address))
        return b"".join(
            struct.pack("!HH", key, len(value)) + value
            for key, value in (
                (_ALPN, bytes((len(alpn),)) + alpn),
                (_PORT, struct.pack("!H", port)),
                (_IPV4_HINT, four),
                (_IPV6_HINT, six),
                (_DOHPATH, self._https_path + b"{?dns}" if channel is Channel.HTTPS else b""),
            )
            if value
        )


def _by_port(endpoints: Sequence[Endpoint]) -> dict[int, list[str]]:
    """One record says several addresses, but one port."""
    found: dict[int, list[str]] = {}
    for host, port in endpoints:
        found.setdefault(port, []).append(host)
    return found
