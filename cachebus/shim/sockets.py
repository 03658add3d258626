"""Sockets that the shim listens on. Errors name the address and are `TransportError`."""

from __future__ import annotations

import socket
from contextlib import suppress

from cachebus.errors import TransportError
from cachebus.shim.settings import Endpoint

UDP_BUFFER = 1 << 20
"""Bytes asked for as socket buffers: a burst of some thousand queries."""
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PROBE = 10, 23, 3
"""Linux; Python 3.11 has no names for them. PROBE sets DF and believes no ICMP message about the path's MTU."""
BIND_TRIES = 20
"""For port 0: draws of a port that is free for UDP until one is free for TCP too."""


def bind_stream(endpoint: Endpoint, *, shared: bool = False) -> socket.socket:
    """A TCP socket on this address. Raises `TransportError` naming it. `shared`: as for `bind_both`."""
    return _bind(socket.SOCK_STREAM, *endpoint, shared=shared)


def bind_datagram(endpoint: Endpoint, *, shared: bool = False) -> socket.socket:
    """A UDP socket on this address. Raises `TransportError` naming it. `shared`: as for `bind_both`."""
    return _bind(socket.SOCK_DGRAM, *endpoint, shared=shared)


def bind_both(endpoint: Endpoint, *, shared: bool = False) -> tuple[socket.socket, socket.socket]:
    """A UDP and a TCP socket on the same address and port. Raises `TransportError` naming the address.

    `shared`: other processes of this user listen there too, and the kernel deals out what comes (SO_REUSEPORT).
    """
    host, port = endpoint
    for attempt in range(BIND_TRIES):
        udp = _bind(socket.SOCK_DGRAM, host, port, shared=shared)
        try:
            return udp, _bind(socket.SOCK_STREAM, host, udp.getsockname()[1], shared=shared)
        except TransportError:
            udp.close()
            if port or attempt == BIND_TRIES - 1:
                raise
    raise AssertionError("the loop returns or raises")


def _bind(kind: socket.SocketKind, host: str, port: int, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UDP_BUFFER)
            _never_fragment(sock)
        sock.settimeout(0)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        word = "TCP" if kind is socket.SOCK_STREAM else "UDP"
        raise TransportError(f"shim: cannot listen on {host} port {port} ({word}): {error.strerror}") from error
    return sock


def _never_fragment(sock: socket.socket) -> None:
    """A reply fits or is lost, and the client asks again (RFC 9715): fragments can be exchanged for forged ones."""
    with suppress(OSError):  # where the system has no such option it fragments
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PROBE)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PROBE)
