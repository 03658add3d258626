"""QUIC (RFC 9000) through aioquic, the extra `quic`: the streams of `tcp` over UDP, where TLS 1.3 is part of it.

Decides how a connection is opened, accepted, authenticated and given up. Each side that sends opens one unidirectional
stream; any other stream ends the connection. What is sent, and to whom, is `_links`' matter; what its bytes mean,
`_stream`'s.

aioquic has certificates on both sides only half: it asks clients for one when a private flag says so, checks that the
client holds its key, and leaves the rest to us. So here the handshake counts as done only after the client's chain, its
dates and its purpose have been checked as well; a release in which the flag means nothing lets nobody in.

What it cannot do: the library has no limit on what it buffers, so we look at its buffer (private too) and stop; and it
sends no stateless reset (RFC 9000 section 10.3), so a peer that was killed is noticed by its silence alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from functools import partial
from typing import Any, cast

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import (
    Alert,
    AlertDescription,
    load_pem_private_key,
    load_pem_x509_certificates,
    verify_certificate,
)
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from cachebus.errors import FrameError, TransportError
from cachebus.ports import Receive, TlsMaterial, TransportSettings
from cachebus_transports._address import Address, family_of
from cachebus_transports._links import (
    CLOSE_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    MAX_ACCEPTED,
    MAX_BUFFERED,
    TURN,
    Link,
    StreamTransport,
)
from cachebus_transports._outbox import Outbox
from cachebus_transports._stream import SUBSCRIBE, Incoming, Outgoing
from cachebus_transports._words import shown

ALPN = "cachebus"
"""Application protocol of the connections (RFC 7301): QUIC demands one."""
IDLE_TIMEOUT = 3.0
"""Seconds of silence after which a peer is gone; with the time to connect again within the 5 s for its return."""
PING_INTERVAL = 0.8
"""Seconds between two pings that keep an idle connection from that."""
CONNECT_TIMEOUT = 2.5
"""Seconds for the handshake: three repetitions of its first packet."""
MAX_CONNECTIONS = 2 * MAX_ACCEPTED
"""Connections at a time, unfinished handshakes included. Each has proved its address before (RFC 9000 section 8.1)."""
_REFUSED = QuicErrorCode.CRYPTO_ERROR + AlertDescription.bad_certificate
_CRYPTO_ERRORS = range(0x100, 0x200)  # RFC 9001 section 4.8
_POLL = 0.01


class QuicTransport(StreamTransport):
    """The transport `quic`: settings and options as in `StreamTransport`, always with `tls`."""

    KIND = "quic"
    QUEUE_BYTES = 2 * 1024 * 1024  # aioquic carries a few MiB/s: more would only make what waits old

    def __init__(self, settings: TransportSettings, receive: Receive) -> None:
        """Raises `ConfigError` for settings that make no sense; entering it, `TransportError` when it cannot listen."""
        super().__init__(settings, receive)
        self._servers: list[tuple[_Server, asyncio.DatagramTransport]] = []
        self._material: TlsMaterial | None = None
        self._configurations: dict[bool, QuicConfiguration] = {}

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Address of each listening socket while it runs; tells which port `:0` became."""
        return tuple(endpoint.get_extra_info("sockname") for _, endpoint in self._servers)

    def abort(self, link: Link) -> None:
        """End a connection at once."""
        cast("_Connection", link).abort()

    async def connect(self, address: Address, outbox: Outbox) -> Link:
        """Open a connection to a peer. Raises `OSError`, or `TransportError` when it is not one of our peers."""
        loop = asyncio.get_running_loop()
        quic = QuicConnection(configuration=self.configuration(is_client=True))
        connection = _Connection(quic, owner=self, outbox=outbox, address=address)
        anywhere = ("0.0.0.0" if len(address) == 2 else "::", 0)  # noqa: S104 - it only sends
        opening = asyncio.ensure_future(
            loop.create_datagram_endpoint(lambda: connection, local_addr=anywhere, family=family_of(address))
        )
        try:
            await asyncio.shield(opening)
        except BaseException:
            # Given up in the turns in which it is opened, the socket would be nobody's, and stay open.
            with contextlib.suppress(OSError):
                await opening
            connection.discard()
            raise
        try:
            connection.connect(address)
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await asyncio.shield(connection.stands)  # a time-out must not cancel the connection's own future
        except BaseException:
            connection.abort()
            raise
        return connection

    async def open(self) -> None:
        """Listen. Raises `OSError`."""
        if self.listen is None:
            return
        # aioquic asks for the address of the socket, so `[::]` is one socket for both families here.
        endpoint, server = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Server(self), local_addr=self.listen[:2], family=family_of(self.listen)
        )
        self._servers.append((server, endpoint))

    async def close(self) -> None:
        """Stop listening."""
        links = tuple(self.accepted)
        await asyncio.gather(*(link.finish() for link in links))
        for server, endpoint in self._servers:
            server.close()
            endpoint.abort()
        await asyncio.sleep(0)
        self._servers.clear()

    def configuration(self, *, is_client: bool) -> QuicConfiguration:
        """The certificates of the moment, as aioquic takes them."""
        assert self.tls is not None
        material = self.tls.material()
        if material is not self._material:
            self._configurations = {side: _configuration(material, is_client=side) for side in (True, False)}
            self._material = material
        return self._configurations[is_client]

    def authenticate(self, quic: QuicConnection, *, is_client: bool) -> str:
        """The peer at the other end, when everything about its certificate is right. Raises `TransportError`."""
        certificate: x509.Certificate | None = getattr(quic.tls, "_peer_certificate", None)
        chain: list[x509.Certificate] = getattr(quic.tls, "_peer_certificate_chain", [])
        if certificate is None:
            self.counters.refused_certificates += 1
            raise TransportError("no certificate was shown")
        try:
            # Once more for servers, whose certificate aioquic has verified: it costs little and depends on no default.
            verify_certificate(certificate, chain, cadata=quic.configuration.cadata)
            _check_purpose(certificate, is_client=is_client)
        except (Alert, ValueError) as error:
            self.counters.refused_certificates += 1
            raise TransportError(f"its certificate is refused: {error}") from None
        return self.identify(certificate.public_bytes(Encoding.DER))


class _Server(QuicServer):
    """The listening end: new connections get the certificates of the moment."""

    def __init__(self, owner: QuicTransport) -> None:
        self._owner = owner
        super().__init__(
            configuration=owner.configuration(is_client=False),
            create_protocol=partial(_Connection, owner=owner, outbox=None, address=None),
            retry=True,
        )

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        if data and cast("bytes", data)[0] & 0x80:  # a long header, as new connections have
            if len(set(self._protocols.values())) >= MAX_CONNECTIONS:
                self._owner.counters.refused_connections += 1
                return
            self._configuration = self._owner.configuration(is_client=False)
        super().datagram_received(data, addr)


class _Connection(QuicConnectionProtocol):
    """One connection, opened (with an outbox) or accepted (without, until its peer subscribes)."""

    def __init__(
        self,
        quic: QuicConnection,
        stream_handler: object = None,
        *,
        owner: QuicTransport,
        outbox: Outbox | None,
        address: Address | None,
    ) -> None:
        super().__init__(quic)
        self._owner = owner
        self._outbox = outbox
        self._address = address
        self._accepted = outbox is None
        self._outgoing: Outgoing | None = None
        self._incoming: Incoming | None = None
        self._receiving: int | None = None
        self._sending = -1
        self._scheduled = self._paused = self._ended = False
        self.stands: asyncio.Future[None] = self._loop.create_future()
        """Done when the peer is authenticated; else it has the reason."""
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._alarm = self._loop.call_later(HANDSHAKE_TIMEOUT, self._too_slow)
        if self._accepted:
            _demand_certificate(quic)

    def __repr__(self) -> str:
        return "a peer" if self._address is None else shown(self._address)

    @property
    def drained(self) -> bool:
        """Nothing waits in it to be sent, or to be acknowledged."""
        return self._ended or not (self._scheduled or self._unacknowledged())

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        if self._accepted:
            self._address = addr
        super().datagram_received(data, addr)
        self.wake()

    def quic_event_received(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.ConnectionTerminated):
            self._terminated(event)
        elif self._ended:
            return
        elif isinstance(event, events.HandshakeCompleted):
            self._stand()
        elif isinstance(event, events.StreamDataReceived):
            self._take(event)
        elif isinstance(event, events.StreamReset):
            self._broken(FrameError("it was reset"))

    def wake(self) -> None:
        """Send what waits, in the next turn of the event loop: then all that was sent in this one goes together."""
        if not (self._scheduled or self._paused or self._ended) and self._outbox is not None and len(self._outbox):
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def abort(self) -> None:
        """End it at once; what waits in it is lost."""
        self._end(QuicErrorCode.NO_ERROR)

    def discard(self) -> None:
        """End one of which the peer has not heard yet: aioquic has nobody to tell."""
        self._end(None)

    async def finish(self) -> None:
        """End the stream and the connection; returns when it is gone, after `CLOSE_TIMEOUT` at the latest."""
        if not self._ended and self._outgoing is not None:
            self._paused = True
            self._write(self._outgoing.close(), end=True)
            end = self._loop.time() + CLOSE_TIMEOUT
            while not self.drained and self._loop.time() < end:  # noqa: ASYNC110 - aioquic tells nobody
                await asyncio.sleep(_POLL)
        self._end(QuicErrorCode.NO_ERROR)

    def _stand(self) -> None:
        self._alarm.cancel()
        try:
            name = self._owner.authenticate(self._quic, is_client=not self._accepted)
        except TransportError as error:
            if not self._accepted:
                self.stands.set_exception(error)
            self._owner.complain("%s refused: %s", self, error)
            self._end(_REFUSED)
            return
        self._ping()
        taker = self._owner.taker(name)
        if self._accepted:
            self._owner.counters.accepted_connections += 1
            self._owner.admit(self, name)
            self._incoming = Incoming(self._owner.framing, taker, self._subscribed)
            if len(self._owner.accepted) > MAX_ACCEPTED:
                self._owner.counters.refused_connections += 1
                self.abort()
            return
        if not self.stands.done():
            self.stands.set_result(None)
        if self._owner.subscribe:
            self._incoming = Incoming(self._owner.framing, taker)
        assert self._outbox is not None
        self._start(self._outbox, SUBSCRIBE if self._owner.subscribe else b"")

    def _take(self, event: events.StreamDataReceived) -> None:
        self._owner.counters.received_bytes += len(event.data)
        if self._receiving is None:
            self._receiving = event.stream_id
        try:
            if self._incoming is None or event.stream_id != self._receiving or not event.stream_id & 2:
                self._broken(FrameError("it came where nothing was asked for"))
                return
            if event.data:
                self._incoming.feed(event.data)
        except FrameError as error:
            self._broken(error)
            return
        if event.end_stream:
            try:
                self._incoming.end()
            except FrameError:
                self._owner.counters.truncated += 1

    def _broken(self, error: FrameError) -> None:
        self._owner.broken(self, error)
        self._end(QuicErrorCode.APPLICATION_ERROR)

    def _subscribed(self) -> None:
        self._outbox = self._owner.subscribed(self)
        self._start(self._outbox, b"")

    def _start(self, outbox: Outbox, first: bytes) -> None:
        self._outgoing = Outgoing(self._owner.framing, compressed=self._owner.compressed)
        self._sending = self._quic.get_next_available_stream_id(is_unidirectional=True)
        self._write(first + self._outgoing.open())
        outbox.wake = self.wake
        self.wake()

    def _pump(self) -> None:
        self._scheduled = False
        if self._paused or self._ended or self._outbox is None or self._outgoing is None:
            return
        if self._unacknowledged() > MAX_BUFFERED:
            return  # an acknowledgement wakes it again
        if frames := self._outbox.take_many(TURN, self._loop.time()):
            self._owner.counters.sent += len(frames)
            self._write(self._outgoing.turn(frames))
            self.wake()

    def _write(self, data: bytes, *, end: bool = False) -> None:
        if data or end:
            self._owner.counters.sent_bytes += len(data)
            self._quic.send_stream_data(self._sending, data, end_stream=end)
            self.transmit()

    def _unacknowledged(self) -> int:
        stream = self._quic._streams.get(self._sending)
        return 0 if stream is None else len(stream.sender._buffer)

    def _ping(self) -> None:
        if not self._ended:
            self._quic.send_ping(0)
            self.transmit()
            self._alarm = self._loop.call_later(PING_INTERVAL, self._ping)

    def _too_slow(self) -> None:
        if self._accepted:
            self._owner.counters.failed_handshakes += 1
            self._owner.complain("no TLS with %s: no answer in time", self)
        self._end(QuicErrorCode.NO_ERROR)

    def _terminated(self, event: events.ConnectionTerminated) -> None:
        if not self._ended and event.error_code in _CRYPTO_ERRORS:
            if self._accepted:
                self._owner.counters.failed_handshakes += 1
            else:
                self._owner.counters.refused_by_peer += 1
            self._owner.complain("%s ended the link: %s", self, event.reason_phrase or f"error {event.error_code}")
        self._end(None)

    def _end(self, code: int | None) -> None:
        """Let go of everything, once; tell the peer `code` if there is one."""
        if self._ended:
            return
        self._ended = True
        self._alarm.cancel()
        if code is not None and self._transport is not None:
            self.close(error_code=code)
        if self._outbox is not None:
            self._outbox.wake = None
        if not self.stands.done():
            self.stands.set_exception(TransportError("the connection was ended during the handshake"))
        self.stands.exception()  # seen: nobody may be waiting any more
        if self._accepted:
            self._owner.forget(self)
        elif self._transport is not None:
            self._loop.call_soon(self._close_socket)
        self.lost.set_result(None)

    def _close_socket(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(OSError):
            cast("asyncio.DatagramTransport", self._transport).close()


def _configuration(material: TlsMaterial, *, is_client: bool) -> QuicConfiguration:
    certificate, *chain = load_pem_x509_certificates(material.certificate)
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[ALPN],
        idle_timeout=IDLE_TIMEOUT,
        verify_mode=ssl.CERT_REQUIRED,
        cadata=material.authorities,
        certificate=certificate,
        certificate_chain=chain,
        private_key=load_pem_private_key(material.key),
    )


def _demand_certificate(quic: QuicConnection) -> None:
    """Let a server's connection ask for the client's certificate; aioquic makes its TLS state with the first packet."""
    initialize = quic._initialize

    def demanding(peer_cid: bytes) -> None:
        initialize(peer_cid)
        quic.tls._request_client_certificate = True

    quic._initialize = demanding  # type: ignore[method-assign]


def _check_purpose(certificate: x509.Certificate, *, is_client: bool) -> None:
    """Refuse a certificate that is for something else (RFC 5280 section 4.2.1.12). Raises `ValueError`.

    `is_client` is our side, so the peer's is the other.
    """
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    wanted = ExtendedKeyUsageOID.SERVER_AUTH if is_client else ExtendedKeyUsageOID.CLIENT_AUTH
    if wanted not in uses:
        raise ValueError("unsuitable certificate purpose")
