"""The shim's listeners together: opened, swept of idle connections, closed.

Decides which listener serves which address. Reads no DNS message.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cachebus.errors import ConfigError
from cachebus.shim.connections import Connections
from cachebus.shim.encrypted import QUIC_MISSING
from cachebus.shim.https import HttpsConnection, HttpsCounters
from cachebus.shim.query import Channel
from cachebus.shim.service import Service
from cachebus.shim.settings import Endpoint, ShimSettings
from cachebus.shim.sockets import bind_both, bind_datagram, bind_stream
from cachebus.shim.tasks import Tasks
from cachebus.shim.tcp import TcpConnection
from cachebus.shim.tls import DOT, H2, TlsCounters, TlsLayer
from cachebus.shim.udp import UdpListener, open_listener

if TYPE_CHECKING:
    from cachebus.shim.quic import QuicListener

SWEEP_INTERVAL = 1.0
"""Seconds between two looks at idle connections."""
BACKLOG = 256
"""Connections that the kernel holds until they are accepted."""


class Server:
    """UDP and TCP on every address, and what is encrypted; entered it listens, left its sockets and tasks are gone."""

    def __init__(self, settings: ShimSettings, service: Service, tasks: Tasks) -> None:
        self._settings = settings
        self._encrypted = settings.encrypted
        self._shared = settings.workers > 1
        self._service = service
        self._tasks = tasks
        self._udp: list[UdpListener] = []
        self._tcp: list[asyncio.Server] = []
        self._quic: list[QuicListener] = []
        self._quic_statistics: Callable[[], Mapping[str, int]] = dict
        self._tls_counters = TlsCounters()
        self._https_counters = HttpsCounters()
        self._connections: Connections | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self.endpoints: tuple[Endpoint, ...] = ()
        """Where it listens on UDP and TCP, with the ports that were taken for port 0."""
        self.encrypted: dict[Channel, tuple[Endpoint, ...]] = {}
        """Likewise, for each encrypted channel that is listened on."""

    async def __aenter__(self) -> Self:
        settings = self._settings
        self._connections = Connections(
            settings.max_tcp_connections,
            per_client=settings.max_connections_per_client,
            clock=asyncio.get_running_loop().time,
        )
        try:
            self.endpoints = tuple([await self._open(endpoint) for endpoint in settings.listen])
            await self._open_encrypted(self._connections)
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
        udp, tcp = bind_both(endpoint, shared=self._shared)
        connections = self._connections
        assert connections is not None
        self._udp.append(open_listener(udp, self._service, self._tasks.start))
        await self._accept(tcp, lambda: TcpConnection(self._service, self._tasks, connections))
        return endpoint[0], tcp.getsockname()[1]

    async def _accept(self, sock: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
        self._tcp.append(await asyncio.get_running_loop().create_server(make, sock=sock, backlog=BACKLOG))

    async def _open_encrypted(self, connections: Connections) -> None:
        encrypted, certificate = self._encrypted, self._encrypted.certificate
        if certificate is None:
            return

        def dot() -> asyncio.Protocol:
            inside = TcpConnection(self._service, self._tasks, connections, Channel.TLS)
            # Not required: RFC 7858 knows no ALPN, and its older clients send none.
            return TlsLayer(inside, certificate, self._tls_counters, alpn=DOT, required=False)

        def doh() -> asyncio.Protocol:
            inside = HttpsConnection(
                self._service, self._tasks, connections, self._https_counters, path=encrypted.https_path
            )
            return TlsLayer(inside, certificate, self._tls_counters, alpn=H2, required=True)

        for channel, endpoints, make in ((Channel.TLS, encrypted.tls, dot), (Channel.HTTPS, encrypted.https, doh)):
            found = []
            for endpoint in endpoints:
                sock = bind_stream(endpoint, shared=self._shared)
                await self._accept(sock, make)
                found.append((endpoint[0], sock.getsockname()[1]))
            self.encrypted[channel] = tuple(found)
        if encrypted.quic:
            self.encrypted[Channel.QUIC] = self._open_quic(connections)

    def _open_quic(self, connections: Connections) -> tuple[Endpoint, ...]:
        try:
            from cachebus.shim.quic import QuicCounters, QuicListener  # an extra's library, and half a second
        except ImportError as error:
            raise ConfigError(f"shim.listen_quic: {QUIC_MISSING}") from error
        certificate = self._encrypted.certificate
        assert certificate is not None
        counters = QuicCounters()
        found = []
        for endpoint in self._encrypted.quic:
            sock = bind_datagram(endpoint, shared=self._shared)
            self._quic.append(QuicListener(sock, certificate, self._service, self._tasks, connections, counters))
            found.append((endpoint[0], sock.getsockname()[1]))
        self._quic_statistics = counters.statistics
        return tuple(found)

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
            await self._connections.close_all()
        for listener in self._quic:
            listener.close()
        for server in self._tcp:
            await server.wait_closed()
        self._udp.clear()
        self._tcp.clear()
        self._quic.clear()
        self.encrypted.clear()

    def statistics(self) -> dict[str, int]:
        """Connections: open now, and what became of the others; requests and handshakes of what is encrypted."""
        found = self._connections
        if found is None:
            return {}
        counters = {
            "udp_unsent": sum(listener.unsent for listener in self._udp),
            "udp_dropped": sum(listener.dropped for listener in self._udp),
            "tcp_open": found.open,
            "tcp_accepted": found.accepted,
            "tcp_refused": found.refused,
            "tcp_evicted": found.evicted,
            "tcp_crowded": found.crowded,
            "tcp_timed_out": found.timed_out,
        }
        if self._encrypted.certificate is not None:
            counters |= {
                "certificate_expires": int(self._encrypted.certificate.expires),
                **self._tls_counters.statistics(),
                **self._https_counters.statistics(),
                **self._quic_statistics(),
            }
        return counters
