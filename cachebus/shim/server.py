"""The shim's listeners together: opened, swept of idle connections, closed.

Decides which listener serves which address. Reads no DNS message.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from cachebus.shim.connections import Connections
from cachebus.shim.service import Service
from cachebus.shim.settings import Endpoint
from cachebus.shim.sockets import bind_both
from cachebus.shim.tasks import Tasks
from cachebus.shim.tcp import TcpConnection
from cachebus.shim.udp import UdpListener, open_listener

SWEEP_INTERVAL = 1.0
"""Seconds between two looks at idle connections."""
BACKLOG = 256
"""Connections that the kernel holds until they are accepted."""


class Server:
    """UDP and TCP on every address; entered it listens, left its sockets and tasks are gone."""

    def __init__(
        self,
        listen: tuple[Endpoint, ...],
        service: Service,
        tasks: Tasks,
        *,
        max_connections: int,
        shared: bool = False,
    ) -> None:
        """`shared`: other workers listen on the same addresses."""
        self._shared = shared
        self._listen = listen
        self._service = service
        self._max_connections = max_connections
        self._tasks = tasks
        self._udp: list[UdpListener] = []
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
        udp, tcp = bind_both(endpoint, shared=self._shared)
        loop = asyncio.get_running_loop()
        connections = self._connections
        assert connections is not None
        self._udp.append(open_listener(udp, self._service, self._tasks.start))
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
        """TCP connections: open now, and what became of the others; UDP questions and replies lost."""
        found = self._connections
        if found is None:
            return {}
        return {
            "udp_unsent": sum(listener.unsent for listener in self._udp),
            "udp_dropped": sum(listener.dropped for listener in self._udp),
            "tcp_open": found.open,
            "tcp_accepted": found.accepted,
            "tcp_refused": found.refused,
            "tcp_evicted": found.evicted,
            "tcp_timed_out": found.timed_out,
        }
