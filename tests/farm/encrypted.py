"""Clients of encrypted DNS: over TLS, over QUIC, and an HTTPS connection that asks as browsers do.

TLS is dnspython's. HTTPS is h2's client over a socket, since dnspython's needs a library of its own; QUIC is aioquic's,
since dnspython's leaves sockets behind.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import dns.message
import dns.query
import h2.connection
import h2.events
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration
from h2.config import H2Configuration

from tests.farm.client import Endpoint

TIMEOUT = 10.0


class HttpReply(NamedTuple):
    """What came back for one request."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def over_tls(server: Endpoint, message: dns.message.Message, ca: Path) -> dns.message.Message:
    """One question on a connection of its own; the certificate has to be for the server's address."""
    context = ssl.create_default_context(cafile=ca)
    return dns.query.tls(
        message, server.host, port=server.port, timeout=TIMEOUT, ssl_context=context, server_hostname=server.host
    )


def over_quic(server: Endpoint, messages: Sequence[dns.message.Message], ca: Path) -> list[dns.message.Message]:
    """Questions on one connection, all at once, each with message ID 0; the answers in their order."""
    return asyncio.run(_over_quic(server, messages, ca))


async def _over_quic(server: Endpoint, messages: Sequence[dns.message.Message], ca: Path) -> list[dns.message.Message]:
    configuration = QuicConfiguration(alpn_protocols=["doq"], cafile=str(ca), server_name=server.host)

    async def one(connection: QuicConnectionProtocol, message: dns.message.Message) -> dns.message.Message:
        reader, writer = await connection.create_stream()
        wire = b"\0\0" + message.to_wire()[2:]
        writer.write(len(wire).to_bytes(2, "big") + wire)
        writer.write_eof()
        data = await reader.read()
        assert int.from_bytes(data[:2], "big") == len(data) - 2
        assert data[2:4] == b"\0\0"
        return dns.message.from_wire(data[2:])

    async with asyncio.timeout(TIMEOUT), connect(server.host, server.port, configuration=configuration) as connection:
        return await asyncio.gather(*(one(connection, message) for message in messages))


class HttpsClient:
    """One HTTP/2 connection."""

    def __init__(self, server: Endpoint, ca: Path, *, path: str = "/dns-query") -> None:
        context = ssl.create_default_context(cafile=ca)
        context.set_alpn_protocols(["h2", "http/1.1"])
        connection = socket.create_connection(server, timeout=TIMEOUT)
        self._socket = context.wrap_socket(connection, server_hostname=server.host)
        assert self._socket.selected_alpn_protocol() == "h2"
        self._http = h2.connection.H2Connection(H2Configuration(client_side=True, header_encoding="ascii"))
        self._http.initiate_connection()
        self._authority = f"{server.host}:{server.port}"
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, message: dns.message.Message, *, get: bool) -> dns.message.Message:
        """The answer to one question."""
        (reply,) = self.fetch([message.to_wire()], get=get)
        assert reply.status == 200
        assert reply.headers["content-type"] == "application/dns-message"
        return dns.message.from_wire(reply.body)

    def fetch(self, messages: Iterable[bytes], *, get: bool) -> list[HttpReply]:
        """The replies to several messages asked at once, in their order."""
        streams = [self._send(message, get=get) for message in messages]
        found: dict[int, tuple[dict[str, str], bytearray]] = {}
        done: set[int] = set()
        self._flush()
        while not done.issuperset(streams):
            data = self._socket.recv(65536)
            assert data, "the server has closed the connection"
            for event in self._http.receive_data(data):
                match event:
                    case h2.events.ResponseReceived():
                        found[event.stream_id] = (dict(event.headers), bytearray())
                    case h2.events.DataReceived():
                        found[event.stream_id][1].extend(event.data)
                        self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    case h2.events.StreamEnded():
                        done.add(event.stream_id)
            self._flush()
        replies = [found[stream] for stream in streams]
        return [HttpReply(int(headers[":status"]), headers, bytes(body)) for headers, body in replies]

    def _send(self, message: bytes, *, get: bool) -> int:
        stream: int = self._http.get_next_available_stream_id()
        encoded = base64.urlsafe_b64encode(message).rstrip(b"=").decode()
        headers = [
            (":method", "GET" if get else "POST"),
            (":scheme", "https"),
            (":authority", self._authority),
            (":path", f"{self._path}?dns={encoded}" if get else self._path),
            ("accept", "application/dns-message"),
            ("user-agent", "a browser"),
        ]
        if not get:
            headers += [("content-type", "application/dns-message"), ("content-length", str(len(message)))]
        self._http.send_headers(stream, headers, end_stream=get)
        if not get:
            self._http.send_data(stream, message, end_stream=True)
        return stream

    def _flush(self) -> None:
        if data := self._http.data_to_send():
            self._socket.sendall(data)
