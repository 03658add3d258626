"""DNS over UDP: each datagram is a message of its own, and its reply leaves from the address that was asked.

Moves bytes between a socket and the service; reads no DNS message.

On a wildcard address asyncio's datagram endpoints would let the kernel choose the source, and the client would refuse
the reply; `WildcardUdp` hands the kernel's packet information back with it (RFC 3542 section 6.2, ip(7) IP_PKTINFO).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any, cast

from cachebus.shim.query import Channel
from cachebus.shim.service import Service
from cachebus.shim.tasks import Tasks

BURST = 64
"""Datagrams read before the event loop gets its turn."""

_MAX_DATAGRAM = 4096
_IP_PKTINFO = 8
"""Linux; Python 3.11 has no name for it."""
_CONTROL_SIZE = 256
_Control = list[tuple[int, int, bytes]]


class UdpListener(asyncio.DatagramProtocol):
    """Each datagram is a message of its own."""

    def __init__(self, service: Service, tasks: Tasks) -> None:
        self._service = service
        self._tasks = tasks
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def error_received(self, exc: Exception) -> None:
        """A client that is gone sends ICMP errors: nobody is left to tell."""

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        answered = self._service.handle(data, addr[0], Channel.UDP)
        if answered is None:
            return
        if isinstance(answered, bytes):
            self._send(answered, addr)
        else:
            self._tasks.start(self._send_later(answered, addr))

    async def _send_later(self, reply: Coroutine[Any, Any, bytes], addr: tuple[Any, ...]) -> None:
        self._send(await reply, addr)

    def _send(self, reply: bytes, addr: tuple[Any, ...]) -> None:
        if self._transport is not None and addr[1]:  # port 0 cannot be sent to
            self._transport.sendto(reply, addr)


def is_wildcard(host: str) -> bool:
    """The address stands for all addresses of this host."""
    return host in ("0.0.0.0", "::")  # noqa: S104


class WildcardUdp:
    """Reads `sock` until closed; what waits for an answer is handed to `start`."""

    def __init__(
        self, sock: socket.socket, service: Service, start: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        self._socket = sock
        self._service = service
        self._start = start
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        for _ in range(BURST):
            try:
                data, control, _, client = self._socket.recvmsg(_MAX_DATAGRAM, _CONTROL_SIZE)
            except OSError:
                return  # nothing left, or an ICMP error about a client that is gone
            answered = self._service.handle(data, client[0], Channel.UDP)
            if isinstance(answered, bytes):
                self._send(answered, client, reply_from(control))
            elif answered is not None:
                self._start(self._send_later(answered, client, reply_from(control)))

    async def _send_later(self, reply: Coroutine[Any, Any, bytes], client: Any, control: _Control) -> None:
        self._send(await reply, client, control)

    def _send(self, reply: bytes, client: Any, control: _Control) -> None:
        if self._socket.fileno() < 0:
            return
        try:
            self._socket.sendmsg([reply], control, 0, client)
        except OSError:
            return  # the client is gone, or its buffer is full: it asks again

    def close(self) -> None:
        """Stop listening."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()


def reply_from(control: _Control) -> _Control:
    """The control message that makes a reply leave from the address that the query came to."""
    for level, kind, data in control:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= 12:
            asked = data[8:12]  # the header's destination address
            return [(level, kind, struct.pack("=I4s4s", 0, asked, bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) >= 20:
            return [(level, kind, data[:20])]
    return []
