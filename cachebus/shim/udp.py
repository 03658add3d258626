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
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from cachebus.shim import mmsg
from cachebus.shim.burst import MAX_DATAGRAM, SLOTS, Burst
from cachebus.shim.query import Channel
from cachebus.shim.service import Service

BURSTS = 8
"""Times `SLOTS` datagrams that are read before the event loop gets its turn: 4 ms of answers from the cache."""
MAX_WAITING = 500
"""Questions that wait for the long way; more would wait for longer than a client does."""
TURN = 0.002
"""Seconds of the long way at a time, after which the socket is looked at again, and everything else in the process."""

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
    """Takes datagrams one by one. Closed, its socket is.

    What the short way answers is answered at once. Everything else waits in a bounded queue for its turn, of which the
    event loop gets a little at a time: questions that nobody has an answer to, however many, delay the others no more.
    Where there is no short way, the kernel's buffer is the longer queue: nothing is read that there is no room for.
    """

    def __init__(self, sock: socket.socket, service: Service, start: Start) -> None:
        self._socket = sock
        self._service = service
        self._start = start
        self._fast = service.fast
        self._clock = service.clock
        self._ipv6 = sock.family == socket.AF_INET6
        self._wildcard = is_wildcard(sock.getsockname()[0])
        self._waiting: deque[tuple[bytes, _Address, _Control]] = deque()
        self._turn: asyncio.Handle | None = None
        self.unsent = 0
        """Replies that the kernel did not take: its buffer was full, or the client is gone."""
        self.dropped = 0
        """Questions for which there was no room."""
        if self._wildcard:
            if self._ipv6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        for _ in range(BURSTS * SLOTS):
            if self._fast is None and len(self._waiting) >= MAX_WAITING:
                break
            try:
                data, control, _, client = self._socket.recvmsg(MAX_DATAGRAM, _CONTROL_SIZE)
            except OSError:
                break  # nothing left, or an ICMP error about a client that is gone
            if self._fast is not None:
                packed = socket.inet_pton(self._socket.family, client[0].partition("%")[0])
                if (reply := self._fast.answer(data, packed, self._clock())) is not None:
                    self._send(reply, client, reply_from(control))
                    continue
            self._postpone(data, client, reply_from(control))
        self._work_off()

    def _postpone(self, data: bytes, client: _Address, control: _Control) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
        else:
            self._waiting.append((data, client, control))

    def _work_off(self) -> None:
        """Answer what waits, for as long as it may take at a time."""
        end = time.monotonic() + TURN
        while self._waiting:
            data, client, control = self._waiting.popleft()
            answered = self._service.handle(data, client[0], Channel.UDP)
            if isinstance(answered, bytes):
                self._send(answered, client, control)
            elif answered is not None:
                self._start(self._send_later(answered, client, control))
            if time.monotonic() > end:
                break
        if self._waiting and self._turn is None:
            self._turn = self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn = None
        self._work_off()

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
        self._waiting.clear()
        if self._turn is not None:
            self._turn.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()


class BurstListener(UdpListener):
    """Takes up to `SLOTS` datagrams at a time, and sends what the short way answers together."""

    def __init__(self, sock: socket.socket, service: Service, start: Start) -> None:
        super().__init__(sock, service, start)
        self._burst = Burst(mmsg.address_of, ipv6=self._ipv6, source=self._wildcard)
        received, replies = self._burst.received, self._burst.replies
        self._calls = mmsg.Calls(sock, received, replies, header=len(received) // SLOTS)

    def _readable(self) -> None:
        burst = self._burst
        for _ in range(BURSTS):
            if self._fast is None and len(self._waiting) > MAX_WAITING - SLOTS:
                break
            count = self._calls.receive()
            if not count:
                break
            burst.aim(count)
            others = range(count) if self._fast is None else burst.answer(count, self._fast, self._clock())
            first = 0
            for slot in others:
                self.unsent += self._calls.send(first, slot)
                self._postpone(burst.datagram(slot), self._address(burst.name(slot)), self._from(slot))
                first = slot + 1
            self.unsent += self._calls.send(first, count)
            burst.make_room(count)
            if count < SLOTS:
                break
        self._work_off()

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
