"""Which interface a name or an address means, now: the kernel's index of it.

Decides nothing else. Interfaces come and go, so nothing is remembered here.
"""

from __future__ import annotations

import array
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

ANY = 0
"""The index that leaves the choice to the routing table."""
_SIOCGIFCONF = 0x8912  # linux/sockios.h
_IFREQ = struct.Struct("@16s4x4s16x" if struct.calcsize("P") == 8 else "@16s4x4s8x")
"""struct ifreq with a struct sockaddr_in: name, then family, port and address (netdevice(7))."""
_MAX_ADDRESSES = 4096
"""IPv4 addresses of this machine that are looked through."""
_IF_INET6 = Path("/proc/net/if_inet6")


def find_interface(text: str | None) -> int:
    """Index of the interface with this name or address; `ANY` for None. Raises `OSError` when there is none."""
    if text is None:
        return ANY
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return _index_of(text)
    addresses = _ipv4_addresses() if address.version == 4 else _ipv6_addresses()
    for name, packed in addresses:
        if packed == address.packed:
            return _index_of(name)
    raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def _index_of(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:  # which has no error number, and so no text where others have one
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from None


def _ipv4_addresses() -> Iterator[tuple[str, bytes]]:
    buffer = array.array("B", bytes(_MAX_ADDRESSES * _IFREQ.size))
    where, length = buffer.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        filled = struct.unpack_from("@i", fcntl.ioctl(asked, _SIOCGIFCONF, struct.pack("@iP", length, where)))[0]
    for label, packed in _IFREQ.iter_unpack(buffer.tobytes()[:filled]):
        yield label.rstrip(b"\0").decode().partition(":")[0], packed  # an alias is called eth0:1


def _ipv6_addresses() -> Iterator[tuple[str, bytes]]:
    for line in _IF_INET6.read_text().splitlines():
        packed, *_, name = line.split()
        yield name, bytes.fromhex(packed)
