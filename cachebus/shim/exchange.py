"""One question to one server and the reply that belongs to it; over UDP, each from a fresh port.

Decides only whether a reply belongs to the query (RFC 5452 section 9.1); what it says is others' business.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from typing import NamedTuple

from cachebus.errors import TransportError
from cachebus.shim.settings import Endpoint
from cachebus.wire import rrtypes
from cachebus.wire.message import CD, FORMERR, HEADER_LENGTH, NOTIMP, RD, REFUSED, SERVFAIL

MAX_STRAY_REPLIES = 16
"""Datagrams that are not the reply: so many on one port are an attack, and the question goes over TCP."""
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
