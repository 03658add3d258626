"""Serves copies of this node's cache over TCP: whoever connects, and may, gets one, and the connection ends.

Decides who may, and how many at a time. A copy is one C-DNS file, so `nc` (on loopback) or a TLS client can save it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Self

from cachebus.errors import CachebusError, TransportError
from cachebus.ports import Tls

MAX_CLIENTS = 4
"""Copies given at the same time; one more node that joins asks another peer, or again."""
MAX_HANDSHAKES = 32
"""Connections that may be in their TLS handshake at the same time; more are closed at once."""
HANDSHAKE_TIME = 5.0
"""Seconds for a TLS handshake."""
PATIENCE = 30.0
"""Seconds that a client may leave its receive buffer full."""
MAX_WAIT = 300.0
"""Seconds that a client may keep us waiting in all: else who takes a byte now and then keeps its place for ever."""
BACKLOG = 16

_log = logging.getLogger(__name__)


class SnapshotServer:
    """A running thing. `give` makes the pieces of a copy, for each client anew; `tls`: None in cleartext on loopback.

    Entering raises `TransportError` when the address cannot be opened.
    """

    def __init__(self, address: tuple[str, int], tls: Tls | None, give: Callable[[], AsyncIterator[bytes]]) -> None:
        self._address = address
        self._tls = tls
        self._give = give
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._serving = 0
        self._served = self._sent_bytes = self._refused = self._failed = 0

    @property
    def port(self) -> int:
        """The port it listens on while it runs; tells which one 0 became."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        try:
            self._server = await asyncio.start_server(self._accept, *self._address, backlog=BACKLOG)
        except OSError as error:
            host, port = self._address
            raise TransportError(f"snapshot: cannot listen on {host} port {port}: {error.strerror}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await asyncio.sleep(0)  # what was aborted lets go of its socket in the next turn

    def statistics(self) -> Mapping[str, int]:
        """`served` copies, their `sent_bytes`, `refused` clients (no peer, or too many), `failed` half-way."""
        return {
            "served": self._served, "serving": self._serving, "sent_bytes": self._sent_bytes,
            "refused": self._refused, "failed": self._failed,
        }  # fmt: skip

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_HANDSHAKES:
            self._refused += 1
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(writer), name="snapshot client")
        self._clients.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._clients.discard(done)
            writer.transport.abort()  # also where the task was cancelled before it began

        task.add_done_callback(ended)

    async def _serve(self, writer: asyncio.StreamWriter) -> None:
        try:
            who = await self._identify(writer)
            if who is None or self._serving >= MAX_CLIENTS:
                self._refused += 1
                return
            self._serving += 1
            try:
                await self._send(writer)
            finally:
                self._serving -= 1
            self._served += 1
            _log.info("snapshot: %s has a copy of the cache", who)
        except (OSError, TimeoutError) as error:
            self._failed += 1
            _log.info("snapshot: a client did not take its copy: %s", error or "too slow")

    async def _identify(self, writer: asyncio.StreamWriter) -> str | None:
        if self._tls is None:
            return str(writer.get_extra_info("peername")[0])
        try:
            await writer.start_tls(self._tls.server_context(), ssl_handshake_timeout=HANDSHAKE_TIME)
            secured: ssl.SSLObject = writer.get_extra_info("ssl_object")
            return self._tls.identify(secured.getpeercert(binary_form=True))
        except (OSError, CachebusError) as error:
            _log.info("snapshot: a client is refused: %s", error)
            return None

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        async with contextlib.aclosing(self._give()) as pieces:  # type: ignore[type-var]
            left = MAX_WAIT
            async for piece in pieces:
                writer.write(piece)
                self._sent_bytes += len(piece)
                begun = loop.time()
                async with asyncio.timeout(min(PATIENCE, left)):
                    await writer.drain()
                left -= loop.time() - begun
        if writer.can_write_eof():
            writer.write_eof()
        writer.close()
        async with asyncio.timeout(PATIENCE):
            await writer.wait_closed()
