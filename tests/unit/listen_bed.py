"""What the tests of the listeners stand on: a transport in memory, a service that does as told, an HTTP/2 client.

No test is in here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import h2.connection
import h2.events
import h2.exceptions
import trustme
from h2.config import H2Configuration

from cachebus.shim.connections import Connections
from cachebus.shim.encrypted import EncryptedSettings
from cachebus.shim.https import HttpsConnection, HttpsCounters
from cachebus.shim.query import Channel
from cachebus.shim.tasks import Tasks
from cachebus.shim.tls import ServerCertificate

NAME = "dns.example.net"
PEER = ("192.0.2.7", 40000)


class Authority:
    """An authority, and the files of a server's certificate from it, which can be replaced."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self.directory = directory
        self.ca = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca)
        self.cert, self.key = directory / "cert.pem", directory / "key.pem"
        self.issue()

    def issue(self, *names: str) -> bytes:
        """Write a new certificate over the old one; gives it as DER."""
        made = self._ca.issue_cert(*(names or (NAME, "127.0.0.1", "::1")))
        self.key.touch(mode=0o600)
        self.key.write_bytes(made.private_key_pem.bytes())
        self.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        return ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())

    def certificate(self) -> ServerCertificate:
        return ServerCertificate(self.cert, self.key)

    def client(self, alpn: str | None = None) -> ssl.SSLContext:
        """A client's context that trusts this authority alone."""
        context = ssl.create_default_context(cafile=self.ca)
        if alpn is not None:
            context.set_alpn_protocols([alpn])
        return context

    def settings(self, **changes: Any) -> EncryptedSettings:
        """TLS and HTTPS on free loopback ports."""
        anywhere = (("127.0.0.1", 0),)
        return EncryptedSettings(**{"tls": anywhere, "https": anywhere, "certificate": self.certificate(), **changes})


class MemoryTransport(asyncio.Transport):
    """Keeps what is written; tells the protocol of nothing by itself."""

    def __init__(self, peer: tuple[str, int] = PEER) -> None:
        super().__init__()
        self._peer = peer
        self.written = bytearray()
        self.closed = self.aborted = self.paused = False
        self.unsent = 0
        """What `get_write_buffer_size` says."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._peer if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.aborted
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def take(self) -> bytes:
        taken = bytes(self.written)
        self.written.clear()
        return taken


class ScriptedService:
    """Gives for each message what `respond` says: a reply, a coroutine of one, or None."""

    def __init__(self, respond: Callable[[bytes], bytes | Coroutine[Any, Any, bytes] | None]) -> None:
        self._respond = respond
        self.asked: list[tuple[bytes, str, Channel]] = []

    def handle(self, data: bytes, client: str, channel: Channel) -> Any:
        self.asked.append((data, client, channel))
        return self._respond(data)


class H2Client:
    """An HTTP/2 client joined to an `HttpsConnection` in memory."""

    def __init__(
        self,
        respond: Callable[[bytes], bytes | Coroutine[Any, Any, bytes] | None],
        *,
        step: int | None = None,
        peer: tuple[str, int] = PEER,
    ) -> None:
        """`step`: bytes that the server is handed at a time."""
        self.service = ScriptedService(respond)
        self.tasks = Tasks()
        self.connections = Connections(100, per_client=50, clock=asyncio.get_running_loop().time)
        self.counters = HttpsCounters()
        self.server = HttpsConnection(self.service, self.tasks, self.connections, self.counters, path="/dns-query")
        self.transport = MemoryTransport(peer)
        self.step = step
        self.http = h2.connection.H2Connection(H2Configuration(client_side=True, header_encoding="ascii"))
        self.statuses: dict[int, int] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaway: int | None = None
        self.server.connection_made(self.transport)
        self.http.initiate_connection()
        self.exchange()

    def send(self, data: bytes) -> None:
        """Hand bytes to the server."""
        step = self.step or max(len(data), 1)
        for start in range(0, len(data), step):
            self.server.data_received(data[start : start + step])

    def exchange(self, *, acknowledge: bool = True) -> None:
        """Move bytes both ways until nothing moves."""
        while True:
            there = self.http.data_to_send()
            if there:
                self.send(there)
            back = self.transport.take()
            if not back:
                if not there:
                    return
                continue
            for event in self.http.receive_data(back):
                self._note(event, acknowledge=acknowledge)

    def _note(self, event: h2.events.Event, *, acknowledge: bool) -> None:
        match event:
            case h2.events.ResponseReceived():
                headers = dict(event.headers)
                self.statuses[event.stream_id] = int(headers.pop(":status"))
                self.headers[event.stream_id] = headers
            case h2.events.DataReceived():
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                if acknowledge:
                    self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                self.ended.add(event.stream_id)
            case h2.events.StreamReset():
                self.resets[event.stream_id] = int(event.error_code)
            case h2.events.ConnectionTerminated():
                self.goaway = int(event.error_code)

    def request(
        self,
        method: str = "POST",
        path: str = "/dns-query",
        body: bytes | None = None,
        *,
        content_type: str | None = "application/dns-message",
        more: tuple[tuple[str, str], ...] = (),
        end: bool = True,
    ) -> int:
        """Begin a request, and unless told otherwise end it; nothing moves yet."""
        stream = self.http.get_next_available_stream_id()
        headers = [(":method", method), (":scheme", "https"), (":authority", NAME), (":path", path), *more]
        if content_type is not None and body is not None:
            headers.append(("content-type", content_type))
        self.http.send_headers(stream, headers, end_stream=body is None and end)
        if body is not None:
            for start in range(0, len(body), 16384):
                self.http.send_data(stream, body[start : start + 16384])
            if end:
                self.http.end_stream(stream)
        return stream

    async def settle(self) -> None:
        """Let the service's coroutines go on, then move what they wrote."""
        for _ in range(5):
            await asyncio.sleep(0)
        self.exchange()
