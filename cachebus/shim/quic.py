"""DNS over QUIC (RFC 9250) through aioquic, the extra `quic`: one listening socket, its connections, their streams.

Moves messages between streams and the service, and decides when a connection has had enough. What a stream may bring is
`doq.py`'s matter. Imported only where DNS over QUIC is configured.

Every client proves its address first (RFC 9000 section 8.1): a handshake costs a millisecond, and must not be had by
forging a packet. 0-RTT is not offered: what it brings can be repeated by anybody. aioquic does not limit what it
buffers for a peer, and not in all its versions how many streams that has, so both are counted here; it sends no
stateless reset.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.tls import load_pem_private_key, load_pem_x509_certificates

from cachebus.errors import FrameError
from cachebus.ports import TlsMaterial
from cachebus.shim import doq
from cachebus.shim.burst import SLOTS
from cachebus.shim.connections import ENCRYPTED_IDLE_TIMEOUT, Connections
from cachebus.shim.query import Channel
from cachebus.shim.service import Service
from cachebus.shim.tasks import Tasks
from cachebus.shim.tcp import MAX_UNDER_WAY
from cachebus.shim.tls import DOQ, ServerCertificate
from cachebus.shim.udp import is_wildcard, reply_from

MAX_STREAMS = 200
"""Streams of one connection that are not done: questions that come, are under way, or whose reply is on its way."""
MAX_BUFFERED = 1 << 19
"""Bytes of questions that are not whole, and of replies that the client has not taken, of one connection: eight of the
largest."""
FEW_STREAMS = 4
"""Streams that cannot keep more than that, and so are not looked at."""
MAX_STREAM_DATA = 2 + 65535
"""Bytes that a client may send on a stream (RFC 9250 section 4.2)."""
MAX_RESETS = 100
"""Questions of one connection that its client may take back; then it is ended."""

_IP_PKTINFO = 8
"""Linux; Python 3.11 has no name for it."""
_MAX_DATAGRAM = 65535
_CONTROL_SIZE = 256
_Control = list[tuple[int, int, bytes]]


@dataclass(slots=True)
class QuicCounters:
    """What became of connections and questions."""

    handshakes: int = 0
    requests: int = 0
    resets: int = 0
    """Questions that clients took back."""
    ended: int = 0
    """Connections that were ended because of what was sent on them."""

    def statistics(self) -> dict[str, int]:
        """By name."""
        return {f"quic_{name}": value for name, value in asdict(self).items()}


class QuicListener:
    """DNS over QUIC on one UDP socket, which is its own from now on."""

    def __init__(
        self,
        sock: socket.socket,
        certificate: ServerCertificate,
        service: Service,
        tasks: Tasks,
        connections: Connections,
        counters: QuicCounters,
    ) -> None:
        self.service = service
        self.tasks = tasks
        self.connections = connections
        self.counters = counters
        self._socket = sock
        self._certificate = certificate
        self._material: TlsMaterial | None = None
        self._wildcard = is_wildcard(sock.getsockname()[0])
        if self._wildcard:
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._loop = asyncio.get_running_loop()
        self._server = _Server(self)
        self._server.connection_made(_From(self, []))
        self._loop.add_reader(sock.fileno(), self._readable)

    def configuration(self) -> QuicConfiguration | None:
        """The certificate of the moment as aioquic takes it, or None when it is the same as the last time."""
        material = self._certificate.material()
        if material is self._material:
            return None
        self._material = material
        certificate, *chain = load_pem_x509_certificates(material.certificate)
        return QuicConfiguration(
            is_client=False,
            alpn_protocols=[DOQ],
            idle_timeout=ENCRYPTED_IDLE_TIMEOUT,
            max_stream_data=MAX_STREAM_DATA,
            certificate=certificate,
            certificate_chain=chain,
            private_key=load_pem_private_key(material.key),
        )

    def _readable(self) -> None:
        for _ in range(SLOTS):
            try:
                data, control, _, client = self._socket.recvmsg(_MAX_DATAGRAM, _CONTROL_SIZE)
            except OSError:
                return  # nothing left, or an ICMP error about a client that is gone
            if self._wildcard:  # a new connection keeps what it is made with
                self._server.connection_made(_From(self, reply_from(control)))
            self._server.datagram_received(data, client)

    def send(self, data: bytes, control: _Control, client: Any) -> None:
        """Send one datagram; what cannot leave is lost, as on the way."""
        if self._socket.fileno() >= 0:
            try:
                self._socket.sendmsg([data], control, 0, client)
            except OSError:
                return  # the client is gone or the buffer is full: QUIC sends it again

    def close(self) -> None:
        """Stop listening; the connections have been closed."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()


class _From(asyncio.DatagramTransport):
    """Sends from the address that a client asked: what its connection has for a transport."""

    def __init__(self, listener: QuicListener, control: _Control) -> None:
        super().__init__()
        self._listener = listener
        self._control = control

    def sendto(self, data: Any, addr: Any = None) -> None:
        self._listener.send(bytes(data), self._control, addr)


class _Server(QuicServer):
    """aioquic's table of connections; new ones get the certificate of the moment."""

    def __init__(self, listener: QuicListener) -> None:
        self._listener = listener
        configuration = listener.configuration()
        assert configuration is not None
        super().__init__(
            configuration=configuration, create_protocol=partial(QuicClient, listener=listener), retry=True
        )

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        if data and cast("bytes", data)[0] & 0x80:  # a long header, as new connections have
            self._configuration = self._listener.configuration() or self._configuration
        super().datagram_received(data, addr)


class QuicClient(QuicConnectionProtocol):
    """One client's connection."""

    def __init__(self, quic: QuicConnection, stream_handler: object = None, *, listener: QuicListener) -> None:
        super().__init__(quic)
        self._listener = listener
        self._client = ""
        self._questions: dict[int, doq.Question] = {}
        self._waiting: set[int] = set()
        self._unwanted: set[int] = set()
        self._resets = 0
        self._ended = self._has_asked = False
        self.under_way = 0
        self.active_at = 0.0

    @property
    def is_idle(self) -> bool:
        """Nothing is under way."""
        return not self.under_way

    @property
    def is_dear(self) -> bool:
        """It has asked something."""
        return self._has_asked

    def shut(self) -> None:
        """Close with DOQ_NO_ERROR."""
        self._end(doq.NO_ERROR)

    def abort(self) -> None:
        """Close and tell the client why: a datagram lingers nowhere."""
        self._end(doq.EXCESSIVE_LOAD)

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        if self._ended:
            return
        if not self._client:
            if not self._listener.connections.admit(self, addr[0]):
                self._drop()
                return
            self._client = addr[0]
        super().datagram_received(data, addr)
        if not self._ended and self._keeps_too_much():
            self._break(doq.EXCESSIVE_LOAD)

    def quic_event_received(self, event: events.QuicEvent) -> None:
        if self._ended:
            return
        match event:
            case events.HandshakeCompleted():
                self._listener.counters.handshakes += 1
            case events.StreamDataReceived():
                self._take(event.stream_id, event.data, end=event.end_stream)
            case events.StreamReset():
                self._questions.pop(event.stream_id, None)
                if not event.stream_id & 3:
                    self._quic.reset_stream(event.stream_id, doq.REQUEST_CANCELLED)
                self._taken_back(event.stream_id)
            case events.StopSendingReceived():  # aioquic has reset our side
                self._unwanted.add(event.stream_id)
                self._taken_back(event.stream_id)
            case events.ConnectionTerminated():
                self._drop()

    def _take(self, stream: int, data: bytes, *, end: bool) -> None:
        if stream & 3:  # not a client's bidirectional one
            self._break(doq.PROTOCOL_ERROR)
            return
        try:
            question = self._questions.get(stream)
            if question is None:
                question = self._questions[stream] = doq.Question()
            question.feed(data)
            if end:
                del self._questions[stream]
                message = question.end()
                if stream in self._unwanted:
                    self._unwanted.discard(stream)
                else:
                    self._ask(stream, message)
        except FrameError:
            self._break(doq.PROTOCOL_ERROR)

    def _ask(self, stream: int, message: bytes) -> None:
        if self.under_way >= MAX_UNDER_WAY:
            self._quic.reset_stream(stream, doq.EXCESSIVE_LOAD)
            return
        self._has_asked = True
        self._listener.counters.requests += 1
        self._listener.connections.active(self)
        answered = self._listener.service.handle(message, self._client, Channel.QUIC)
        if answered is None:
            raise FrameError("no query")
        if isinstance(answered, bytes):
            self._reply(stream, answered)
        else:
            self.under_way += 1
            self._waiting.add(stream)
            self._listener.tasks.start(self._reply_later(stream, answered))

    async def _reply_later(self, stream: int, answered: Coroutine[Any, Any, bytes]) -> None:
        try:
            reply = await answered
            if stream in self._waiting:
                self._waiting.discard(stream)
                self._reply(stream, reply)
        finally:
            self.under_way -= 1
            if not self._ended:
                if stream in self._waiting:  # a bug: the client need not wait for its own timer
                    self._waiting.discard(stream)
                    self._quic.reset_stream(stream, doq.INTERNAL_ERROR)
                self._listener.connections.active(self)
                self.transmit()

    def _reply(self, stream: int, reply: bytes) -> None:
        self._quic.send_stream_data(stream, len(reply).to_bytes(2, "big") + reply, end_stream=True)

    def _keeps_too_much(self) -> bool:
        """Whether the client sends more, or takes less, than anyone needs to: aioquic would go on buffering."""
        streams = self._quic._streams
        if len(streams) <= FEW_STREAMS:
            return False
        theirs = sum(len(stream.receiver._buffer) + len(stream.sender._buffer) for stream in streams.values())
        return len(streams) > MAX_STREAMS or theirs + sum(map(len, self._questions.values())) > MAX_BUFFERED

    def _taken_back(self, stream: int) -> None:
        self._waiting.discard(stream)
        self._listener.counters.resets += 1
        self._resets += 1
        if self._resets > MAX_RESETS:
            self._break(doq.EXCESSIVE_LOAD)

    def _break(self, code: int) -> None:
        self._listener.counters.ended += 1
        self._end(code)

    def _end(self, code: int) -> None:
        """Tell the client, and let go of everything."""
        if not self._ended:
            self.close(error_code=code)
            self._drop()

    def _drop(self) -> None:
        self._ended = True
        self._questions.clear()
        self._waiting.clear()
        self._unwanted.clear()
        self._listener.connections.forget(self)
        self._loop.call_soon(self._let_go)  # aioquic may be in the middle of handling a datagram of it

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._connection_terminated_handler()
