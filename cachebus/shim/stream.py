"""One TCP or TLS connection to an upstream, opened when needed, with many questions under way on it.

Decides when it is opened, given up and closed; what is said on it is `session.py`'s business.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Hashable

from cachebus.errors import TransportError
from cachebus.shim.exchange import Exchange, Outgoing, belongs
from cachebus.shim.session import LengthPrefixed, MakeSession, Session
from cachebus.shim.settings import Endpoint

CONNECT_TIMEOUT = 2.0
"""Seconds for TCP connect and TLS handshake; a client waits for 5 at most."""
IDLE_TIMEOUT = 10.0
"""Seconds that an unused stream stays open for the next question (RFC 7766 section 6.2.3: of the order of seconds)."""
MAX_PIPELINED = 256
"""Questions under way on one stream; more would wait behind each other anyway."""
CHUNK = 64 * 1024
"""Bytes read at a time."""


class Stream:
    """See the module. `tls` and `tls_name` make it TLS, with a certificate for that name."""

    def __init__(
        self,
        address: Endpoint,
        *,
        tls: ssl.SSLContext | None = None,
        tls_name: str | None = None,
        make_session: MakeSession = LengthPrefixed,
    ) -> None:
        self._address = address
        self._tls = tls
        self._tls_name = tls_name
        self._make_session = make_session
        self._session: Session | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[Hashable, tuple[Outgoing, asyncio.Future[bytes]]] = {}
        self._connecting = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None
        self.opened = 0

    async def ask(self, outgoing: Outgoing) -> Exchange:
        """Send and wait for the reply, for as long as the caller lets it. `TransportError` when the link fails.

        A connection that the server closed while idle is opened again, once.
        """
        for _ in range(2):
            reused = self._writer is not None
            try:
                return await self._ask(outgoing)
            except TransportError:
                if not reused:
                    raise
        raise TransportError("the connection was closed twice")

    async def _ask(self, outgoing: Outgoing) -> Exchange:
        writer, session = await self._connect()
        if len(self._waiting) >= MAX_PIPELINED:
            raise TransportError("too many questions under way")
        key, outgoing, data = session.ask(outgoing)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[key] = (outgoing, future)
        if self._idle is not None:
            self._idle.cancel()
        try:
            writer.write(data)
            return Exchange(outgoing.wire, await future)
        finally:
            if self._waiting.get(key, (None, None))[1] is future:
                del self._waiting[key]
            if session is self._session and self._writer is not None:
                self._writer.write(session.forget(key))
                if not self._waiting:
                    self._idle = asyncio.get_running_loop().call_later(IDLE_TIMEOUT, self._drop, "idle")

    async def _connect(self) -> tuple[asyncio.StreamWriter, Session]:
        async with self._connecting:
            if self._writer is not None and self._session is not None and not self._writer.is_closing():
                return self._writer, self._session
            await self._end_reading()
            session = self._make_session()
            host, port = self._address
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    reader, writer = await asyncio.open_connection(
                        host, port, ssl=self._tls, server_hostname=self._tls_name if self._tls else None
                    )
            except (OSError, TimeoutError, ssl.CertificateError) as error:
                raise TransportError(f"no connection: {str(error) or 'timeout'}") from error
            secured: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
            # A server of DNS over TLS may ignore ALPN (RFC 7858 section 3.1); HTTP/2 must have been agreed on.
            if secured is not None and session.alpn == "h2" and secured.selected_alpn_protocol() != "h2":
                writer.close()
                raise TransportError("the server does not speak HTTP/2")
            self.opened += 1
            self._writer, self._session = writer, session
            writer.write(session.opening())
            self._reading = asyncio.create_task(self._read(reader, writer, session))
            return writer, session

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: Session) -> None:
        reason = "closed by the server"
        try:
            while data := await reader.read(CHUNK):
                replies, back = session.receive(data)
                if back:
                    writer.write(back)
                for key, message in replies:
                    self._take(key, message)
        except (OSError, TransportError) as error:
            reason = str(error)
        finally:
            if self._writer is writer:
                self._drop(reason)
            else:
                writer.close()

    def _take(self, key: Hashable, message: bytes | TransportError) -> None:
        waiting = self._waiting.get(key)
        if waiting is None:
            return  # its question was given up
        outgoing, future = waiting
        if isinstance(message, bytes) and not belongs(message, outgoing):
            raise TransportError("a reply that does not belong to its query")
        if future.done():
            return
        if isinstance(message, bytes):
            future.set_result(message)
        else:
            future.set_exception(message)

    def _drop(self, reason: str) -> None:
        writer, self._writer, self._session = self._writer, None, None
        if writer is not None:
            writer.close()
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(TransportError(reason))

    async def _end_reading(self) -> None:
        task, self._reading = self._reading, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Close the connection; questions under way end in `TransportError`."""
        if self._idle is not None:
            self._idle.cancel()
        self._drop("shutting down")
        await self._end_reading()
