"""Address literals as transports take them: what is one, what is listened on for it, and whether it is our own.

Resolves no name.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import cast

from cachebus.errors import ConfigError

Address = tuple[str, int] | tuple[str, int, int, int]
"""As the socket module takes it: host and port, and for IPv6 flow label and zone."""


_ANY_IPV4, _ANY_IPV6 = "0.0.0.0", "::"  # noqa: S104 - bound only where the operator wrote them


def parse_endpoint(text: str, *, any_port: bool = False) -> Address:
    """`ADDRESS:PORT` as the socket module takes it; the address is a literal, in brackets when it is IPv6.

    Port 0 (`any_port`) stands for one that the kernel picks. Raises `ConfigError` for anything else.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ConfigError(f"{text!r} is not ADDRESS:PORT with an address literal (names are not resolved)") from None
    if (address.version == 6) != bracketed:
        raise ConfigError(f"{text!r}: brackets are for an IPv6 address, as in [2001:db8::1]:5390")
    if not (colon and port.isascii() and port.isdigit() and int(port) < 65536 and (any_port or int(port))):
        raise ConfigError(f"{text!r} has no port from 1 to 65535")
    try:
        found = socket.getaddrinfo(str(address), int(port), type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        raise ConfigError(f"{text!r}: no such zone on this host") from None
    return cast("Address", found[0][4])


def family_of(address: Address) -> socket.AddressFamily:
    """The address family, by the address's form."""
    return socket.AF_INET if len(address) == 2 else socket.AF_INET6


def addresses_to_bind(listen: Address | None) -> tuple[Address, ...]:
    """One, or for `[::]` one of each family, so that an IPv4 sender never shows as a mapped address."""
    if listen is None:
        return ()
    return (listen, (_ANY_IPV4, listen[1])) if listen[0] == _ANY_IPV6 else (listen,)


def is_own(peer: Address, listening: Sequence[Address]) -> bool:
    """Whether `peer` is where we listen: that address, or, where we listen on all, one of this machine's."""
    for address in listening:
        if peer[:2] == address[:2]:
            return True
        if peer[1] == address[1] and address[0] in (_ANY_IPV4, _ANY_IPV6) and len(peer) == len(address):
            return _is_here(peer)
    return False


def _is_here(address: Address) -> bool:
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as tried:
        try:
            tried.bind((address[0], 0, *address[2:]))
        except OSError:
            return False
    return True
