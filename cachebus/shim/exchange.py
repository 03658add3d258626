"""One question to one server and the reply that belongs to it: over UDP from a fresh port, over a TCP or TLS stream.

Decides only whether a reply belongs to the query (RFC 5452 section 9.1); what it says is others' business.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
from typing import NamedTuple

from cachebus.errors import TransportError
from cachebus.shim.settings import Endpoint
from cachebus.wire import rrtypes
from cachebus.wire.message import CD, FORMERR, HEADER_LENGTH, NOTIMP, RD, REFUSED, SERVFAIL

MAX_STRAY_REPLIES = 16
"""Datagrams that are not the reply: so many on one port are an attack, and the question goes over TCP."""
CONNECT_TIMEOUT = 2.0
"""Seconds for TCP connect and TLS handshake; a client waits for 5 at most."""
IDLE_TIMEOUT = 10.0
"""Seconds that an unused stream stays open for the next question (RFC 7766 section 6.2.3: of the order of seconds)."""
MAX_PIPELINED = 256
"""Questions under way on one stream; more would wait behind each other anyway."""
PAYLOAD = 1232
"""EDNS size asked for: no fragments, which could be forged (DNS flag day 2020)."""
PADDED_TO = 128
"""Bytes: encrypted queries are padded to a multiple of it (RFC 8467 section 4.1)."""

_PADDING = 12
_MAX_DATAGRAM = 65535
_HEADER_ONLY = frozenset({FORMERR, SERVFAIL, NOTIMP, REFUSED})
"""RCODEs that some servers send without repeating the question."""


class Outgoing(NamedTuple):
    """A query as it is sent, and what its reply must repeat."""

    wire: bytes
    question: bytes
    """The question section, case as sent."""


class Exchange(NamedTuple):
    """A query and the reply that belongs to it."""

    query: bytes
    reply: bytes


class StrayRepliesError(TransportError):
    """Raised when too many datagrams were not the reply: somebody is guessing."""


class NoSocketError(TransportError):
    """Raised when this host gives no socket: the server asked has nothing to do with it."""


class CaseNotKeptError(TransportError):
    """Raised when the reply repeats the question in another case: 0x20 cannot protect it, so TCP must."""


def compose_query(
    qname: bytes,
    qtype: int,
    *,
    recurse: bool,
    checking_disabled: bool = False,
    edns: bool = True,
    mix_case: bool = False,
    padded: bool = False,
    options: bytes = b"",
) -> Outgoing:
    """A query with a random ID, DO=1; `mix_case` randomises the case of the name (draft-vixie-dnsext-dns0x20).

    `options`: EDNS options to send along, in wire form.
    """
    flags = (RD if recurse else 0) | (CD if checking_disabled else 0)
    question = (mixed_case(qname) if mix_case else qname) + qtype.to_bytes(2, "big") + b"\0\1"
    opt = b""
    if edns:
        if padded:
            unpadded = HEADER_LENGTH + len(question) + 11 + len(options) + 4
            fill = -unpadded % PADDED_TO
            options += _PADDING.to_bytes(2, "big") + fill.to_bytes(2, "big") + bytes(fill)
        opt = bytes((0, 0, rrtypes.OPT)) + PAYLOAD.to_bytes(2, "big") + b"\0\0\x80\0"
        opt += len(options).to_bytes(2, "big") + options
    counts = b"\0\1\0\0\0\0\0\1" if edns else b"\0\1\0\0\0\0\0\0"
    return Outgoing(secrets.token_bytes(2) + flags.to_bytes(2, "big") + counts + question + opt, question)


def mixed_case(name: bytes) -> bytes:
    """`name`, lower case on the wire, with each letter's case drawn at random: a bit that a forger must guess."""
    bits = secrets.randbits(8 * len(name))
    return bytes(
        byte - 32 if 97 <= byte <= 122 and bits >> index & 1 else byte for index, byte in enumerate(name)
    )  # a length byte is at most 63, so it is never taken for a letter


def belongs(reply: bytes, outgoing: Outgoing) -> bool:
    """Whether `reply` answers `outgoing`: ID, QR, opcode, and the question byte for byte.

    Raises `CaseNotKeptError` when only the case of the question differs.
    """
    if len(reply) < HEADER_LENGTH or reply[:2] != outgoing.wire[:2] or reply[2] & 0xF8 != 0x80:
        return False
    if reply[4:6] == b"\0\0":
        return reply[3] & 0xF in _HEADER_ONLY and reply[6:10] == b"\0\0\0\0"
    question = outgoing.question
    theirs = reply[HEADER_LENGTH : HEADER_LENGTH + len(question)]
    if reply[4:6] != b"\0\1":
        return False
    if theirs != question and theirs[:-4].lower() == question[:-4].lower() and theirs[-4:] == question[-4:]:
        raise CaseNotKeptError("the question came back in another case")
    return theirs == question


async def ask_udp(address: Endpoint, outgoing: Outgoing) -> Exchange:
    """Send over UDP from a port of its own and wait for the reply, for as long as the caller lets it.

    Raises `TransportError` when the network says no (an ICMP error), `StrayRepliesError` and `CaseNotKeptError`.
    """
    attempt = _UdpAttempt(address, outgoing)
    try:
        return Exchange(outgoing.wire, await attempt.reply())
    finally:
        attempt.close()


class _UdpAttempt:
    """A connected socket, so that the kernel drops what comes from elsewhere. The kernel draws its port at random."""

    def __init__(self, address: Endpoint, outgoing: Outgoing) -> None:
        self._outgoing = outgoing
        self._loop = asyncio.get_running_loop()
        self._strays = 0
        self._done: asyncio.Future[bytes] = self._loop.create_future()
        try:
            self._socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM)
        except OSError as error:
            raise NoSocketError(f"no socket: {error.strerror}") from error
        try:
            self._socket.settimeout(0)
            self._socket.connect(address)
            self._socket.send(outgoing.wire)
        except OSError as error:
            self._socket.close()
            raise TransportError(f"cannot send: {error.strerror}") from error
        self._loop.add_reader(self._socket.fileno(), self._readable)

    async def reply(self) -> bytes:
        return await self._done

    def _readable(self) -> None:
        while not self._done.done():
            try:
                data = self._socket.recv(_MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._done.set_exception(TransportError(f"refused: {error.strerror}"))
                return
            try:
                if belongs(data, self._outgoing):
                    self._done.set_result(data)
                    return
            except CaseNotKeptError as error:
                self._done.set_exception(error)
                return
            self._strays += 1
            if self._strays >= MAX_STRAY_REPLIES:
                self._done.set_exception(StrayRepliesError("too many replies that belong to no query"))

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if self._done.done() and not self._done.cancelled():
            self._done.exception()  # the caller may have given up already
        self._done.cancel()


class Stream:
    """One TCP or TLS connection to a server, opened when needed, with pipelined questions (RFC 7766 6.2.1.1)."""

    def __init__(self, address: Endpoint, *, tls: ssl.SSLContext | None = None, tls_name: str | None = None) -> None:
        self._address = address
        self._tls = tls
        self._tls_name = tls_name
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[bytes, tuple[Outgoing, asyncio.Future[bytes]]] = {}
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
        writer = await self._connect()
        if len(self._waiting) >= MAX_PIPELINED:
            raise TransportError("too many questions under way")
        while outgoing.wire[:2] in self._waiting:
            outgoing = outgoing._replace(wire=secrets.token_bytes(2) + outgoing.wire[2:])
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[outgoing.wire[:2]] = (outgoing, future)
        if self._idle is not None:
            self._idle.cancel()
        try:
            writer.write(len(outgoing.wire).to_bytes(2, "big") + outgoing.wire)
            return Exchange(outgoing.wire, await future)
        finally:
            self._waiting.pop(outgoing.wire[:2], None)
            if not self._waiting and self._writer is not None:
                self._idle = asyncio.get_running_loop().call_later(IDLE_TIMEOUT, self._drop, "idle")

    async def _connect(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is not None and not self._writer.is_closing():
                return self._writer
            await self._end_reading()
            host, port = self._address
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    reader, writer = await asyncio.open_connection(
                        host, port, ssl=self._tls, server_hostname=self._tls_name if self._tls else None
                    )
            except (OSError, TimeoutError, ssl.CertificateError) as error:
                raise TransportError(f"no connection: {str(error) or 'timeout'}") from error
            self.opened += 1
            self._writer = writer
            self._reading = asyncio.create_task(self._read(reader, writer))
            return writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reason = "closed by the server"
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                self._take(await reader.readexactly(size))
        except asyncio.IncompleteReadError:
            pass
        except (OSError, TransportError) as error:
            reason = str(error)
        finally:
            if self._writer is writer:
                self._drop(reason)
            else:
                writer.close()

    def _take(self, data: bytes) -> None:
        waiting = self._waiting.get(data[:2])
        if waiting is None:
            return  # its question was given up
        outgoing, future = waiting
        if not belongs(data, outgoing):
            raise TransportError("a reply that does not belong to its query")
        if not future.done():
            future.set_result(data)

    def _drop(self, reason: str) -> None:
        writer, self._writer = self._writer, None
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
