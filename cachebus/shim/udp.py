"""DNS over UDP: each datagram is a message of its own, and its reply leaves from the address that was asked.

Moves bytes between a socket and the service; reads no DNS message. Where the system can (`mmsg`), datagrams are taken
and answered many at a time; otherwise one by one.

On a wildcard address the kernel would choose the source of a reply, and the client would refuse it: there the kernel's
packet information goes back with it (RFC 3542 section 6.2, ip(7) IP_PKTINFO).
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from cachebus.shim import mmsg
from cachebus.shim.burst import MAX_DATAGRAM, MAX_REPLY, SLOTS, Burst
from cachebus.shim.query import Channel
from cachebus.shim.service import Service

_IP_PKTINFO = 8
"""Linux; Python 3.11 has no name for it."""
_CONTROL_SIZE = 256
_Control = list[tuple[int, int, bytes]]
_Address = tuple[Any, ...]
Start = Callable[[Coroutine[Any, Any, None]], None]


def is_wildcard(host: str) -> bool:
    """The address stands for all addresses of this host."""
    return host in ("0.0.0.0", "::")  # noqa: S104


def open_listener(sock: socket.socket, service: Service, start: Start) -> UdpListener:
    """Read `sock`, which is bound, until closed; what waits for an answer is handed to `start`."""
    return (BurstListener if mmsg.is_available() else UdpListener)(sock, service, start)


class UdpListener:
    """Takes datagrams one by one. Closed, its socket is."""

    def __init__(self, sock: socket.socket, service: Service, start: Start) -> None:
        self._socket = sock
        self._service = service
        self._start = start
        self._fast = service.fast
        self._clock = service.clock
        self._ipv6 = sock.family == socket.AF_INET6
        self._wildcard = is_wildcard(sock.getsockname()[0])
        self.unsent = 0
        """Replies that the kernel did not take: its buffer was full, or the client is gone."""
        if self._wildcard:
            if self._ipv6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        for _ in range(SLOTS):
            try:
                data, control, _, client = self._socket.recvmsg(MAX_DATAGRAM, _CONTROL_SIZE)
            except OSError:
                return  # nothing left, or an ICMP error about a client that is gone
            self._take(data, client, reply_from(control))

    def _take(self, data: bytes, client: _Address, control: _Control) -> None:
        if self._fast is not None:
            packed = socket.inet_pton(self._socket.family, client[0].partition("%")[0])
            if (reply := self._fast.answer(data, packed, self._clock())) is not None:
                self._send(reply, client, control)
                return
        answered = self._service.handle(data, client[0], Channel.UDP)
        if isinstance(answered, bytes):
            self._send(answered, client, control)
        elif answered is not None:
            self._start(self._send_later(answered, client, control))

    async def _send_later(self, reply: Coroutine[Any, Any, bytes], client: _Address, control: _Control) -> None:
        self._send(await reply, client, control)

    def _send(self, reply: bytes, client: _Address, control: _Control) -> None:
        if self._socket.fileno() < 0:
            return
        try:
            self._socket.sendmsg([reply], control, 0, client)
        except OSError:
            self.unsent += 1  # the client is gone, or the buffer is full: it asks again

    def close(self) -> None:
        """Stop listening."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()


class BurstListener(UdpListener):
    """Takes up to `SLOTS` datagrams at a time, and sends what can be answered at once together."""

    def __init__(self, sock: socket.socket, service: Service, start: Start) -> None:
        super().__init__(sock, service, start)
        self._burst = Burst(mmsg.address_of, ipv6=self._ipv6, source=self._wildcard)
        received, replies = self._burst.received, self._burst.replies
        self._calls = mmsg.Calls(sock, received, replies, header=len(received) // SLOTS)

    def _readable(self) -> None:
        burst = self._burst
        count = self._calls.receive()
        if not count:
            return
        burst.aim(count)
        others = range(count) if self._fast is None else burst.answer(count, self._fast, self._clock())
        first = 0
        for slot in others:
            if not self._answer(slot):  # what stands before it goes out; nothing stands here
                self.unsent += self._calls.send(first, slot)
                first = slot + 1
        self.unsent += self._calls.send(first, count)
        burst.make_room(count)

    def _answer(self, slot: int) -> bool:
        """Have the service answer; whether that is ready to go out with the others."""
        burst = self._burst
        client = self._address(burst.name(slot))
        answered = self._service.handle(burst.datagram(slot), client[0], Channel.UDP)
        if isinstance(answered, bytes) and len(answered) <= MAX_REPLY:
            burst.put(slot, answered)
            return True
        if isinstance(answered, bytes):
            self._send(answered, client, self._from(slot))
        elif answered is not None:
            self._start(self._send_later(answered, client, self._from(slot)))
        return False

    def _address(self, name: bytes) -> _Address:
        """A socket address as the socket module has it (struct sockaddr_in or sockaddr_in6)."""
        port = name[2] << 8 | name[3]
        if not self._ipv6:
            return socket.inet_ntop(socket.AF_INET, name[4:8]), port
        host, scope = socket.inet_ntop(socket.AF_INET6, name[8:24]), int.from_bytes(name[24:28], sys.byteorder)
        return host, port, int.from_bytes(name[4:8], "big"), scope

    def _from(self, slot: int) -> _Control:
        info = self._burst.packet_info(slot)
        if not info:
            return []
        if self._ipv6:
            return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)]
        return [(socket.IPPROTO_IP, _IP_PKTINFO, info)]


def reply_from(control: _Control) -> _Control:
    """The control message that makes a reply leave from the address that the query came to."""
    for level, kind, data in control:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= 12:
            asked = data[8:12]  # the header's destination address
            return [(level, kind, struct.pack("=I4s4s", 0, asked, bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) >= 20:
            return [(level, kind, data[:20])]
    return []
