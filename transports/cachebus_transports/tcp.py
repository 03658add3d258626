"""TCP, IPv4 and IPv6, under TLS 1.3 with certificates on both sides; cleartext only on loopback, and when asked for.

Decides how a connection is opened, accepted, authenticated and given up. What is sent on it, and to whom, is `_links`'
matter; what its bytes mean, `_stream`'s.

The sender of what comes is the peer's name as its certificate has it, in cleartext its address. A connection sends
from its peer's queue only while its own buffer has room, so a peer that does not read keeps waiting nothing but that
queue. One that has vanished is noticed after 5 s by TCP itself: it asks an idle peer (keep-alive), and does not wait
longer for an acknowledgement (user timeout), because its own timers would outlast a partition by many seconds.

Whoever connects can make us do work before its certificate is seen, so handshakes in progress are bounded. The oldest
makes room: an honest one is done in milliseconds, and refusing the newest would let silent clients keep all others out.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import ClassVar, cast

from cachebus.errors import FrameError, TransportError
from cachebus.ports import Receive, Sender, TransportSettings
from cachebus_transports._address import Address, addresses_to_bind, family_of
from cachebus_transports._keepalive import keep_alive
from cachebus_transports._links import (
    CLOSE_TIMEOUT,
    CONNECT_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    MAX_ACCEPTED,
    MAX_BUFFERED,
    MIN_BUFFERED,
    TURN,
    Link,
    StreamTransport,
)
from cachebus_transports._outbox import Outbox
from cachebus_transports._stream import SUBSCRIBE, Incoming, Outgoing
from cachebus_transports._words import shown, why

MAX_HANDSHAKES = 128
"""Unfinished handshakes at a time, of whomever; some 100 KiB each."""
ACCEPT_PAUSE = 1.0
"""Seconds of rest when accepting fails, which means that descriptors or memory have run out."""
BACKLOG = 128
"""Connections that the kernel may hold until we accept them."""


class TcpTransport(StreamTransport):
    """The transport `tcp`: settings and options as in `StreamTransport`."""

    KIND = "tcp"
    CLEARTEXT = True

    def __init__(self, settings: TransportSettings, receive: Receive) -> None:
        """Raises `ConfigError` for settings that make no sense; entering it, `TransportError` when it cannot listen."""
        super().__init__(settings, receive)
        self._listening: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: dict[asyncio.Task[None], None] = {}

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Address of each listening socket while it runs; tells which port `:0` became."""
        return tuple(listening.getsockname() for listening in self._listening)

    def abort(self, link: Link) -> None:
        """End a connection at once."""
        cast("_Connection", link).abort()

    async def connect(self, address: Address, outbox: Outbox) -> Link:
        """Open a connection to a peer. Raises `OSError`, or `TransportError` when it is not one of our peers."""
        loop = asyncio.get_running_loop()
        opened = socket.socket(family_of(address), socket.SOCK_STREAM)
        try:
            opened.setblocking(False)  # noqa: FBT003 - the argument has no name
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await loop.sock_connect(opened, address)
            connection = _Connection(self, address, outbox)
            await loop.create_connection(
                lambda: connection,
                sock=opened,
                ssl=None if self.tls is None else self.tls.client_context(),
                server_hostname=None if self.tls is None else "",
                ssl_handshake_timeout=None if self.tls is None else HANDSHAKE_TIMEOUT,
                ssl_shutdown_timeout=None if self.tls is None else CLOSE_TIMEOUT,
            )
        except BaseException:
            opened.close()
            raise
        if connection.refused is not None:
            await connection.lost
            raise connection.refused
        return connection

    async def open(self) -> None:
        """Listen. Raises `OSError`."""
        for address in addresses_to_bind(self.listen):
            port = self._listening[0].getsockname()[1] if self._listening else address[1]
            listening = socket.socket(family_of(address), socket.SOCK_STREAM)
            self._listening.append(listening)
            listening.setblocking(False)  # noqa: FBT003 - likewise
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for TIME_WAIT
            if listening.family is socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((address[0], port, *address[2:]))
            listening.listen(BACKLOG)
        self._accepting = [
            asyncio.create_task(self._accept(listening), name=f"{self.settings.name}: accept")
            for listening in self._listening
        ]

    async def close(self) -> None:
        """Stop listening, and give up handshakes in progress."""
        tasks = (*self._accepting, *self._handshakes)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listening in self._listening:
            listening.close()
        self._accepting.clear()
        self._listening.clear()

    async def _accept(self, listening: socket.socket) -> None:
        # Not `sock_accept`: what it has accepted in the turn in which it is cancelled is lost, and stays open.
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(listening.fileno(), ready.set)
        try:
            while True:
                await ready.wait()
                ready.clear()
                try:
                    accepted, address = listening.accept()
                except (BlockingIOError, InterruptedError):
                    continue
                except OSError as error:
                    self.complain("cannot accept a connection: %s", error)
                    await asyncio.sleep(ACCEPT_PAUSE)
                    continue
                accepted.setblocking(False)  # noqa: FBT003 - the argument has no name
                self._admit(accepted, address)
        finally:
            loop.remove_reader(listening.fileno())

    def _admit(self, accepted: socket.socket, address: Address) -> None:
        if len(self.accepted) >= MAX_ACCEPTED:
            self.counters.refused_connections += 1
            self.complain("connection from %s refused: there are %d already", shown(address), MAX_ACCEPTED)
            accepted.close()
            return
        if len(self._handshakes) >= MAX_HANDSHAKES:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel()
            self.counters.refused_connections += 1

        def ended(done: asyncio.Task[None]) -> None:
            self._handshakes.pop(done, None)
            if done.cancelled():
                accepted.close()  # it may have been cancelled before it began

        task = asyncio.create_task(self._shake(accepted, address), name=f"{self.settings.name}: handshake")
        self._handshakes[task] = None
        task.add_done_callback(ended)

    async def _shake(self, accepted: socket.socket, address: Address) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Connection(self, address, None),
                accepted,
                ssl=None if self.tls is None else self.tls.server_context(),
                ssl_handshake_timeout=None if self.tls is None else HANDSHAKE_TIMEOUT,
                ssl_shutdown_timeout=None if self.tls is None else CLOSE_TIMEOUT,
            )
        except OSError as error:  # TimeoutError and every ssl error among them
            # A missing certificate is an error of its own kind, which is no verification error.
            missing = isinstance(error, ssl.SSLError) and error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
            if missing or isinstance(error, ssl.SSLCertVerificationError):
                self.counters.refused_certificates += 1
                self.complain("certificate of %s refused: %s", shown(address), why(error))
            else:
                self.counters.failed_handshakes += 1
                self.complain("no TLS with %s: %s", shown(address), why(error))
        except BaseException:
            accepted.close()
            raise


class TlsTransport(TcpTransport):
    """The transport `tls`, a name for `tcp` that promises certificates: `insecure` is refused."""

    KIND = "tls"
    CLEARTEXT: ClassVar[bool] = False


class _Connection(asyncio.Protocol):
    """One connection, opened (with an outbox) or accepted (without, until its peer subscribes)."""

    def __init__(self, owner: TcpTransport, address: Address, outbox: Outbox | None) -> None:
        self._owner = owner
        self._address = address
        self._outbox = outbox
        self._accepted = outbox is None
        self._outgoing: Outgoing | None = None
        self._incoming: Incoming | None = None
        self._loop = asyncio.get_running_loop()
        self._scheduled = self._paused = self._ended = False
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.refused: TransportError | None = None
        """Why it was ended as soon as it stood."""

    def __repr__(self) -> str:
        return shown(self._address)

    @property
    def drained(self) -> bool:
        """Nothing waits in it to be sent."""
        return self._ended or not (self._scheduled or self._transport.get_write_buffer_size())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=MAX_BUFFERED, low=MIN_BUFFERED)
        keep_alive(self._transport.get_extra_info("socket"))
        sender: Sender = self._address
        name = None
        if self._owner.tls is not None:
            try:
                sender = name = self._identify()
            except TransportError as error:
                self.refused = error
                self._owner.complain("%s refused: %s", self, error)
                self.abort()
                return
        if self._accepted:
            self._owner.counters.accepted_connections += 1
            self._owner.admit(self, name)
            self._incoming = Incoming(self._owner.framing, self._owner.taker(sender), self._subscribed)
            return
        if self._owner.subscribe:
            self._incoming = Incoming(self._owner.framing, self._owner.taker(sender))
            self._write(SUBSCRIBE)
        assert self._outbox is not None
        self._start(self._outbox)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._owner.counters.received_bytes += len(data)
        if self._incoming is None:
            self._owner.broken(self, FrameError("nothing was asked of it"))
            self.abort()
            return
        try:
            self._incoming.feed(data)
        except FrameError as error:
            self._owner.broken(self, error)
            self.abort()

    def eof_received(self) -> None:
        if self._incoming is None or self._ended:
            return
        try:
            self._incoming.end()
        except FrameError:
            self._owner.counters.truncated += 1

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        if self._outbox is not None and self._outbox.wake == self.wake:
            self._outbox.wake = None
        if self._accepted:
            self._owner.forget(self)
        elif isinstance(exc, ssl.SSLError):
            # In TLS 1.3 the side that connects is done before the other has looked at its certificate.
            self._owner.counters.refused_by_peer += 1
            self._owner.complain("%s ended the link: %s", self, exc.reason or exc)
        if not self.lost.done():
            self.lost.set_result(None)

    def wake(self) -> None:
        """Send what waits, in the next turn of the event loop: then all that was sent in this one goes together."""
        if not (self._scheduled or self._paused or self._ended):
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def abort(self) -> None:
        """End it at once; what waits in it is lost."""
        self._ended = True
        self._transport.abort()

    async def finish(self) -> None:
        """End the stream and the connection; returns when it is gone, after `CLOSE_TIMEOUT` at the latest."""
        if not self._ended:
            if self._outgoing is not None:
                self._write(self._outgoing.close())
            self._ended = True
            if self._incoming is not None and self._outgoing is not None and self._transport.can_write_eof():
                self._transport.write_eof()  # closing with bytes unread would make TCP reset what is on its way
            else:
                self._transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.shield(self.lost)
        if not self.lost.done():
            self._transport.abort()
            await self.lost

    def _identify(self) -> str:
        session = self._transport.get_extra_info("ssl_object")
        return self._owner.identify(session.getpeercert(binary_form=True))

    def _subscribed(self) -> None:
        self._outbox = self._owner.subscribed(self)
        self._start(self._outbox)

    def _start(self, outbox: Outbox) -> None:
        self._outgoing = Outgoing(self._owner.framing, compressed=self._owner.compressed)
        self._write(self._outgoing.open())
        outbox.wake = self.wake
        self.wake()

    def _pump(self) -> None:
        self._scheduled = False
        if self._paused or self._ended or self._outbox is None or self._outgoing is None:
            return
        if frames := self._outbox.take_many(TURN, self._loop.time()):
            self._owner.counters.sent += len(frames)
            self._write(self._outgoing.turn(frames))
            if len(self._outbox):
                self.wake()

    def _write(self, data: bytes) -> None:
        if data:
            self._owner.counters.sent_bytes += len(data)
            self._transport.write(data)
