"""Which clients are served: networks allowed and denied, and the one look-up that says so.

Decides by address alone. Knows no message.
"""

from __future__ import annotations

import socket
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from itertools import zip_longest

Network = IPv4Network | IPv6Network

LOOPBACK: tuple[Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
"""Who is served unless `allow` says otherwise: an open resolver must be asked for by name."""

_MAPPED = "::ffff:"
"""How the kernel writes an IPv4 client of a socket for both families (RFC 4291 section 2.5.5.2). The older form without
`ffff`, `::192.0.2.1`, is an IPv6 address like any other."""


def packed_address(client: str) -> bytes:
    """4 or 16 bytes of an address as the kernel writes it; of a mapped one the 4 of IPv4. Raises `OSError`."""
    if ":" not in client:
        return socket.inet_pton(socket.AF_INET, client)
    if client.startswith(_MAPPED) and "." in client:
        return socket.inet_pton(socket.AF_INET, client[len(_MAPPED) :])
    return socket.inet_pton(socket.AF_INET6, client.partition("%")[0])


class AccessList:
    """Serves who is in `allow` and not in `deny`: one binary search over the borders of what remains."""

    def __init__(self, allow: Sequence[Network], deny: Sequence[Network] = ()) -> None:
        self._borders = {
            4: _borders(*(_of(networks, IPv4Network) for networks in (allow, deny))),
            16: _borders(*(_of(networks, IPv6Network) for networks in (allow, deny))),
        }

    def allows(self, client: str) -> bool:
        """Whether this address is served; what is no address is not."""
        try:
            packed = packed_address(client)
        except OSError:
            return False
        return self.serves(packed)

    def serves(self, packed: bytes) -> bool:
        """Whether the client with these 4 or 16 bytes of address is served."""
        return bisect_right(self._borders[len(packed)], int.from_bytes(packed, "big")) & 1 == 1


def _of(networks: Iterable[Network], kind: type[Network]) -> list[Network]:
    return [network for network in networks if isinstance(network, kind)]


def _borders(allow: Iterable[Network], deny: Iterable[Network]) -> list[int]:
    """Addresses as numbers at which being served begins, ends, begins, ...: odd positions lie inside."""
    events: list[tuple[int, int, int]] = []
    for networks, allowed, denied in ((allow, 1, 0), (deny, 0, 1)):
        for network in networks:
            first = int(network.network_address)
            events += [(first, allowed, denied), (first + network.num_addresses, -allowed, -denied)]
    events.sort()
    borders: list[int] = []
    allowing = denying = 0
    for (position, allowed, denied), after in zip_longest(events, events[1:]):
        allowing += allowed
        denying += denied
        if after is not None and after[0] == position:
            continue  # all that begins and ends at one address counts together
        if (allowing > 0 and not denying) != len(borders) % 2:
            borders.append(position)
    return borders
