"""Serves copies of this node's cache over TCP: whoever connects, and may, gets one, and the connection ends.

Decides who may, and how many at a time. A copy is one C-DNS file, so `nc` (on loopback) or a TLS client can save it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
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
ACCEPT_PAUSE = 1.0
"""Seconds until the next try when a connection cannot be accepted (no file descriptor is free)."""

_log = logging.getLogger(__name__)


class SnapshotServer:
    """A running thing. `give` makes the pieces of a copy, for each client anew; `tls`: None in cleartext on loopback.

    Entering raises `TransportError` when the address cannot be opened.
    """

    def __init__(self, address: tuple[str, int], tls: Tls | None, give: Callable[[], AsyncIterator[bytes]]) -> None:
        self._address = address
        self._tls = tls
        self._give = give
        self._listener: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._serving = 0
        self._served = self._sent_bytes = self._refused = self._failed = 0

    @property
    def port(self) -> int:
        """The port it listens on while it runs; tells which one 0 became."""
        assert self._listener is not None
        return int(self._listener.getsockname()[1])

    async def __aenter__(self) -> Self:
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server(self._address, family=family, backlog=BACKLOG)
        except OSError as error:
            raise TransportError(f"snapshot: cannot listen on {host} port {port}: {error.strerror}") from error
        listener.setblocking(False)  # noqa: FBT003 - the argument has no name
        self._listener = listener
        self._listen(listener)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pause is not None:
            self._pause.cancel()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
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

    def _listen(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, address = listener.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            _log.warning("snapshot: cannot accept a connection: %s", error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            self._pause = loop.call_later(ACCEPT_PAUSE, self._listen, listener)
            return
        if len(self._clients) >= MAX_HANDSHAKES:
            self._refused += 1
            accepted.close()
            return
        accepted.setblocking(False)  # noqa: FBT003 - the argument has no name
        task = asyncio.create_task(self._serve(accepted, str(address[0])), name="snapshot client")
        self._clients.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._clients.discard(done)
            if done.cancelled():
                accepted.close()  # it may have been cancelled before it began

        task.add_done_callback(ended)

    async def _serve(self, accepted: socket.socket, who: str) -> None:
        writer = None
        try:
            writer = await self._open(accepted)
            if self._tls is not None:
                secured: ssl.SSLObject = writer.get_extra_info("ssl_object")
                who = self._tls.identify(secured.getpeercert(binary_form=True))
        except (OSError, CachebusError) as error:
            self._refused += 1
            _log.info("snapshot: a client is refused: %s", str(error) or type(error).__name__)
            accepted.close() if writer is None else writer.transport.abort()
            return
        try:
            await self._serve_known(writer, who)
        finally:
            writer.transport.abort()

    async def _open(self, accepted: socket.socket) -> asyncio.StreamWriter:
        """The connection, TLS included. Not by `start_tls` on one that is read already: where the client's first bytes
        come in the same turn of uvloop, they are lost to TLS, and the handshake never ends."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            accepted,
            ssl=None if self._tls is None else self._tls.server_context(),
            ssl_handshake_timeout=None if self._tls is None else HANDSHAKE_TIME,
        )
        return asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _serve_known(self, writer: asyncio.StreamWriter, who: str) -> None:
        if self._serving >= MAX_CLIENTS:
            self._refused += 1
            return
        self._serving += 1
        try:
            await self._send(writer)
        except (OSError, TimeoutError) as error:
            self._failed += 1
            _log.info("snapshot: a client did not take its copy: %s", str(error) or "too slow")
        else:
            self._served += 1
            _log.info("snapshot: %s has a copy of the cache", who)
        finally:
            self._serving -= 1

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
