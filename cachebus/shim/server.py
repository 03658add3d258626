"""The shim's listeners: UDP, and TCP as RFC 7766 wants it. They move bytes between sockets and the service.

Decide only about connections: how many, how long idle, how much under way on each. They read no DNS message.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, cast

from cachebus.errors import TransportError
from cachebus.shim.service import Service
from cachebus.shim.settings import Endpoint
from cachebus.shim.tasks import Tasks
from cachebus.shim.wildcard import WildcardUdp, is_wildcard

IDLE_TIMEOUT = 10.0
"""Seconds without a whole query, or with a reply that the client does not read, after which a connection is closed
(RFC 7766 section 6.2.3: a few seconds)."""
SWEEP_INTERVAL = 1.0
"""Seconds between two looks at idle connections."""
MAX_UNDER_WAY = 100
"""Questions of one connection that wait for an upstream; reading pauses until one of them is answered."""
BACKLOG = 256
"""Connections that the kernel holds until they are accepted."""
UDP_BUFFER = 1 << 20
"""Bytes asked for as socket buffers: a burst of some thousand queries."""
BIND_TRIES = 20
"""For port 0: draws of a port that is free for UDP until one is free for TCP too."""


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
        answered = self._service.handle(data, addr[0], stream=False)
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


class TcpConnection(asyncio.Protocol):
    """One client's connection: messages with a 16-bit length, answered in the order in which answers are found."""

    def __init__(self, service: Service, tasks: Tasks, connections: Connections) -> None:
        self._service = service
        self._tasks = tasks
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._client = ""
        self._buffer = bytearray()
        self._ended = False
        self._choked = False
        self.under_way = 0
        self.active_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if not peer or not self._connections.admit(self):
            self._transport.abort()
            return
        self._client = peer[0]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._buffer.clear()
        self._connections.forget(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._take_messages()

    def eof_received(self) -> bool:
        # A client may close its half after the last question and still wait for the answers (RFC 7766 section 6.2.4).
        self._ended = True
        return self.under_way > 0

    def pause_writing(self) -> None:
        self._choked = True
        self._read_or_not()

    def resume_writing(self) -> None:
        self._choked = False
        self._connections.active(self)
        self._read_or_not()
        self._take_messages()

    @property
    def is_idle(self) -> bool:
        """Nothing is under way, or the client reads no replies."""
        return self._choked or not self.under_way

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _take_messages(self) -> None:
        buffer = self._buffer
        position = 0
        while not self._is_full and len(buffer) - position >= 2:
            end = position + 2 + (buffer[position] << 8 | buffer[position + 1])
            if end > len(buffer):
                break
            message = bytes(buffer[position + 2 : end])
            position = end
            self._connections.active(self)
            self._take(message)
        if position:
            del buffer[:position]
        self._read_or_not()

    def _take(self, message: bytes) -> None:
        answered = self._service.handle(message, self._client, stream=True)
        if isinstance(answered, bytes):
            self._send(answered)
        elif answered is not None:
            self.under_way += 1
            self._tasks.start(self._send_later(answered))

    async def _send_later(self, reply: Coroutine[Any, Any, bytes]) -> None:
        try:
            self._send(await reply)
        finally:
            self.under_way -= 1
            if self._transport is not None:
                self._connections.active(self)
                self._take_messages()
                if self._ended and not self.under_way:
                    self._transport.close()

    def _send(self, reply: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(len(reply).to_bytes(2, "big") + reply)

    @property
    def _is_full(self) -> bool:
        return self._choked or self.under_way >= MAX_UNDER_WAY or self._transport is None

    def _read_or_not(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._is_full:
            self._transport.pause_reading()
        elif not self._ended:
            self._transport.resume_reading()


class Connections:
    """All TCP connections, the one active last at the end. When there are too many, the longest idle makes room."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_activity: dict[TcpConnection, None] = {}
        self._loop = asyncio.get_running_loop()
        self.accepted = 0
        self.refused = 0
        self.evicted = 0
        self.timed_out = 0

    @property
    def open(self) -> int:
        """Connections now."""
        return len(self._by_activity)

    def admit(self, connection: TcpConnection) -> bool:
        """Take a new connection, or refuse it because all others are busy."""
        if len(self._by_activity) >= self._limit:
            longest_idle = next((other for other in self._by_activity if other.is_idle), None)
            if longest_idle is None:
                self.refused += 1
                return False
            self.evicted += 1
            self.forget(longest_idle)
            longest_idle.abort()
        self.accepted += 1
        self.active(connection)
        return True

    def active(self, connection: TcpConnection) -> None:
        """Something whole came or went on it."""
        self._by_activity.pop(connection, None)
        self._by_activity[connection] = None
        connection.active_at = self._loop.time()

    def forget(self, connection: TcpConnection) -> None:
        """It is closed."""
        self._by_activity.pop(connection, None)

    def sweep(self) -> None:
        """Close those idle for too long."""
        limit = self._loop.time() - IDLE_TIMEOUT
        for connection in list(self._by_activity):
            if connection.active_at > limit:
                return
            if connection.is_idle:
                self.timed_out += 1
                self.forget(connection)
                connection.abort()

    def close_all(self) -> None:
        """Close every connection."""
        for connection in list(self._by_activity):
            connection.abort()


class Server:
    """UDP and TCP on every address; entered it listens, left its sockets and tasks are gone."""

    def __init__(self, listen: tuple[Endpoint, ...], service: Service, tasks: Tasks, *, max_connections: int) -> None:
        self._listen = listen
        self._service = service
        self._max_connections = max_connections
        self._tasks = tasks
        self._udp: list[asyncio.DatagramTransport | WildcardUdp] = []
        self._tcp: list[asyncio.Server] = []
        self._connections: Connections | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self.endpoints: tuple[Endpoint, ...] = ()
        """Where it listens, with the ports that were taken for port 0."""

    async def __aenter__(self) -> Self:
        self._connections = Connections(self._max_connections)
        try:
            self.endpoints = tuple([await self._open(endpoint) for endpoint in self._listen])
        except BaseException:
            await self._close()
            raise
        self._sweep()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _open(self, endpoint: Endpoint) -> Endpoint:
        udp, tcp = bind_both(endpoint)
        loop = asyncio.get_running_loop()
        connections = self._connections
        assert connections is not None
        if is_wildcard(endpoint[0]):
            self._udp.append(WildcardUdp(udp, self._service, self._tasks.start))
        else:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: UdpListener(self._service, self._tasks), sock=udp
            )
            self._udp.append(transport)
        server = await loop.create_server(
            lambda: TcpConnection(self._service, self._tasks, connections), sock=tcp, backlog=BACKLOG
        )
        self._tcp.append(server)
        return endpoint[0], tcp.getsockname()[1]

    def _sweep(self) -> None:
        if self._connections is not None:
            self._connections.sweep()
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_INTERVAL, self._sweep)

    async def _close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for udp in self._udp:
            udp.close()
        for server in self._tcp:
            server.close()
        await self._tasks.end()
        if self._connections is not None:
            self._connections.close_all()
        for server in self._tcp:
            await server.wait_closed()
        self._udp.clear()
        self._tcp.clear()

    def statistics(self) -> dict[str, int]:
        """TCP connections: open now, and what became of the others."""
        found = self._connections
        if found is None:
            return {}
        return {
            "tcp_open": found.open,
            "tcp_accepted": found.accepted,
            "tcp_refused": found.refused,
            "tcp_evicted": found.evicted,
            "tcp_timed_out": found.timed_out,
        }


def bind_both(endpoint: Endpoint) -> tuple[socket.socket, socket.socket]:
    """A UDP and a TCP socket on the same address and port. Raises `TransportError` naming the address."""
    host, port = endpoint
    for attempt in range(BIND_TRIES):
        udp = _bind(socket.SOCK_DGRAM, host, port)
        try:
            return udp, _bind(socket.SOCK_STREAM, host, udp.getsockname()[1])
        except TransportError:
            udp.close()
            if port or attempt == BIND_TRIES - 1:
                raise
    raise AssertionError("the loop returns or raises")


def _bind(kind: socket.SocketKind, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UDP_BUFFER)
        sock.settimeout(0)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        word = "TCP" if kind is socket.SOCK_STREAM else "UDP"
        raise TransportError(f"shim: cannot listen on {host} port {port} ({word}): {error.strerror}") from error
    return sock
