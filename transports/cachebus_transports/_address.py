"""Address literals as transports take them. Decides what is one; resolves no name and opens no socket."""

from __future__ import annotations

import ipaddress
import socket
from typing import cast

from cachebus.errors import ConfigError

Address = tuple[str, int] | tuple[str, int, int, int]
"""As the socket module takes it: host and port, and for IPv6 flow label and zone."""


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
    except OSError:
        raise ConfigError(f"{text!r}: no such zone on this host") from None
    return cast("Address", found[0][4])


def family_of(address: Address) -> socket.AddressFamily:
    """The address family, by the address's form."""
    return socket.AF_INET if len(address) == 2 else socket.AF_INET6
