"""C-DNS files of any writer as DNS messages, and as the dnstap payloads that say the same (RFC 8618 sections 7.5, 9).

Decides what an item of a capture says for certain: which messages there were, who sent them when, and what was in them.
An item that leaves that open (no flags, no kind, no RCODE) gives no message. Files that hold no TTLs or RDATA, or
changed names, are refused whole. Our own private keys mean nothing here: a file is as good as whoever wrote it. Refuses
to know what a message proves. Bad bytes end in `FrameError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from cachebus.errors import FrameError
from cachebus.wire import rrtypes
from cachebus.wire.cbor import decode_whole
from cachebus.wire.cdns import (
    EARLIEST_TIME,
    HAS_QUERY,
    HAS_RESPONSE,
    PARAMETERS_INDEX,
    PREAMBLE,
    QUERY_RESPONSES,
    QUERY_WITHOUT_QUESTION,
    RESPONSE_WITHOUT_QUESTION,
    TABLES,
    Parameters,
    as_array,
    as_map,
    number,
    number_or,
)
from cachebus.wire.cdns_read import Tables, read_tables
from cachebus.wire.cdns_stream import CdnsSplitter, PreambleReader
from cachebus.wire.dnstap import MAX_PORT, MessageType, SocketProtocol, encode
from cachebus.wire.message import AA, AD, CD, DO, QR, RA, RCODE, RD, TC

MAX_FILE_BLOCK: Final = 32 << 20
"""Bytes of one block of a file: ten times what other writers' 10,000 items need."""
MAX_FILE_CONTAINERS: Final = 1 << 20
"""Maps and arrays of one block of a file: ten for each of 100,000 items."""
EXPANSION: Final = 64
"""Times its size that a block's messages may be together: real captures are eight times as large."""
_MAX_DNS: Final = 65535
_HEADER: Final = struct.Struct("!HHHHHH")
_TYPE_CLASS: Final = struct.Struct("!HH")
_RECORD: Final = struct.Struct("!HHIH")
_Z: Final = 0x0040
_QUERY_FLAGS: Final = ((0, CD), (1, AD), (2, _Z), (3, RA), (4, RD), (5, TC), (6, AA))
"""Bit of qr-dns-flags -> bit of a DNS header; those of the response stand eight higher."""
_RESPONSE_SHIFT: Final = 8
_QUERY_DO: Final = 1 << 7
_QUERY_HAS_OPT: Final = 0x04
_KINDS: Final = {
    0: MessageType.STUB_QUERY,
    1: MessageType.CLIENT_QUERY,
    2: MessageType.RESOLVER_QUERY,
    3: MessageType.AUTH_QUERY,
    4: MessageType.FORWARDER_QUERY,
    5: MessageType.TOOL_QUERY,
}
"""qr-type -> dnstap's kind of the query; that of the response is the next one."""
_PROTOCOLS: Final = {
    0: SocketProtocol.UDP,
    1: SocketProtocol.TCP,
    2: SocketProtocol.DOT,
    4: SocketProtocol.DOH,
}
"""Transport of qr-transport-flags -> dnstap's; anything else reads as UDP, which is told apart from nothing."""


class Captured(NamedTuple):
    """One DNS message out of a C-DNS item."""

    kind: MessageType
    wire: bytes
    """The DNS message. Names are not compressed, so it may be longer than it was; an ID that was not kept is 0."""
    time: float
    """Seconds since the epoch when it was sent; 0.0 when it is not told."""
    zone: bytes | None
    """The bailiwick of a response: the zone that the resolver took the server to speak for, in wire form."""
    query_address: bytes
    query_port: int
    response_address: bytes
    response_port: int
    protocol: SocketProtocol

    def payload(self) -> bytes:
        """The same as a dnstap payload. Raises `FrameError` where dnstap cannot say it."""
        response = self.kind.is_response
        return encode(
            self.kind,
            self.wire,
            protocol=self.protocol,
            query_address=self.query_address,
            query_port=self.query_port,
            response_address=self.response_address,
            response_port=self.response_port,
            query_zone=self.zone if response else None,
            query_time=0.0 if response else self.time,
            response_time=self.time if response else 0.0,
        )


class CdnsFileReceiver:
    """A `framestream.Receiver` of a C-DNS file: gives dnstap payloads, a query before the response to it.

    An item that gives no message for certain gives an empty payload, which every judge refuses and counts.
    """

    def __init__(self) -> None:
        self._splitter = CdnsSplitter(max_block=MAX_FILE_BLOCK, closed=True)
        self._preambles = PreambleReader()

    def receive_data(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes of the file; give the payloads of the blocks they complete, then raise if need be."""
        for message in self._splitter.receive_data(data):
            for captured in read_messages(message, self._preambles):
                yield _payload(captured)

    def receive_end(self) -> None:
        """Take note that the file has ended. Raises `FrameError` when it is not whole."""
        self._splitter.receive_end()

    def data_to_send(self) -> bytes:
        """Nothing."""
        return b""

    @property
    def started(self) -> bool:
        """True once the preamble is over."""
        return self._splitter.started

    @property
    def finished(self) -> bool:
        """True once the last block has come."""
        return self._splitter.finished

    @property
    def buffered(self) -> int:
        """Bytes held of a block that is not complete."""
        return self._splitter.buffered


def _payload(captured: Captured | None) -> bytes:
    try:
        return b"" if captured is None else captured.payload()
    except FrameError:
        return b""


def read_messages(data: bytes, preambles: PreambleReader) -> Iterator[Captured | None]:
    """The DNS messages of a C-DNS file of one block, as a splitter gives it; None for an item that gives none.

    Raises `FrameError` when the file is malformed, an index leads nowhere, or nothing in it can be trusted to be what
    was on the wire: no TTLs or RDATA, or anonymised.
    """
    sets, start = preambles.read(data)
    block = as_map(decode_whole(data[start:], containers=MAX_FILE_CONTAINERS))
    preamble = as_map(block.get(PREAMBLE))
    index = number_or(preamble, PARAMETERS_INDEX, 0)
    if index >= len(sets):
        raise FrameError("C-DNS: an index leads nowhere")
    parameters = sets[index]
    if not parameters.ttl_and_rdata:
        raise FrameError("C-DNS without TTLs or RDATA")
    if parameters.anonymised:
        raise FrameError("C-DNS with anonymised data: its names may be others than were asked for")
    reader = _Reader(read_tables(as_map(block.get(TABLES, {}))), parameters, preamble)
    room = EXPANSION * len(data) + _MAX_DNS
    for item in as_array(block.get(QUERY_RESPONSES)):
        try:
            messages = reader.messages(as_map(item))
        except IndexError as error:
            raise FrameError("C-DNS: an index leads nowhere") from error
        room -= sum([len(message.wire) for message in messages if message is not None])
        if room < 0:
            raise FrameError("C-DNS: a block that stands for too much")
        yield from messages


class _Reader:
    """Makes messages of the items of one block."""

    def __init__(self, tables: Tables, parameters: Parameters, preamble: dict[int, object]) -> None:
        self._tables = tables
        self._ticks = parameters.ticks
        self._pairs = not parameters.normalised
        self._earliest: tuple[int, int] | None = None
        time = as_array(preamble.get(EARLIEST_TIME))
        if time:
            parts = dict(enumerate(time))
            self._earliest = number(parts, 0), number(parts, 1)

    def messages(self, item: dict[int, object]) -> list[Captured | None]:
        """The query and the response of an item, as far as it has them. Raises `IndexError`, `FrameError`."""
        tables = self._tables
        if 4 not in item:
            return [None]
        signature = tables.signatures[number(item, 4)]
        flags = number_or(signature, 4, 0)
        kind = _KINDS.get(number_or(signature, 3, len(_KINDS)))
        if kind is None or not flags & (HAS_QUERY | HAS_RESPONSE):
            return [None]
        found: list[Captured | None] = []
        # A pair is one because its questions were alike, which a writer that changed the names' case cannot know.
        paired = self._pairs and not flags & (QUERY_WITHOUT_QUESTION | RESPONSE_WITHOUT_QUESTION)
        if flags & HAS_QUERY and (paired or not flags & HAS_RESPONSE):
            wire = self._query(item, signature, flags)
            found.append(self._captured(kind, wire, item, signature, delay=0))
        if flags & HAS_RESPONSE:
            delay = _signed(item, 6) if flags & HAS_QUERY else 0
            wire = self._response(item, signature, flags)
            found.append(self._captured(MessageType(kind + 1), wire, item, signature, delay=delay))
        return found

    def _captured(
        self,
        kind: MessageType,
        wire: bytes | None,
        item: dict[int, object],
        signature: dict[int, object],
        *,
        delay: int,
    ) -> Captured | None:
        if wire is None or len(wire) > _MAX_DNS:
            return None
        transport = number_or(signature, 2, 0)
        zone = None
        if kind.is_response and (processing := as_map(item.get(10, {}))) and 0 in processing:
            zone = self._tables.names[number(processing, 0)]
        return Captured(
            kind,
            wire,
            self._time(item, delay),
            zone,
            self._address(item, 1, transport),
            min(number_or(item, 2, 0), MAX_PORT),
            self._address(signature, 0, transport),
            min(number_or(signature, 1, 0), MAX_PORT),
            _PROTOCOLS.get(transport >> 1 & 15, SocketProtocol.UDP),
        )

    def _time(self, item: dict[int, object], delay: int) -> float:
        if self._earliest is None or 0 not in item or not self._ticks:
            return 0.0
        seconds, ticks = self._earliest
        ticks += number(item, 0) + delay
        if ticks < 0 or seconds + ticks // self._ticks >= 1 << 62:
            raise FrameError("C-DNS: a time out of range")
        return seconds + ticks / self._ticks

    def _address(self, found: dict[int, object], key: int, transport: int) -> bytes:
        """An address, of which a writer may have kept the first bits only; empty when it is not there."""
        if key not in found:
            return b""
        address = self._tables.addresses[number(found, key)]
        size = 16 if transport & 1 else 4
        if len(address) > size:
            raise FrameError("C-DNS: an address is too long")
        return address.ljust(size, b"\0")

    def _question(self, item: dict[int, object], signature: dict[int, object], extended: dict[int, object]) -> _Section:
        """The question section of either message."""
        if number_or(signature, 9, 1) == 0:
            return b"", 0
        tables = self._tables
        rrtype, rrclass = tables.classtypes[number(signature, 8)]
        pieces = [tables.names[number(item, 7)] + _TYPE_CLASS.pack(rrtype, rrclass)]
        if 0 in extended:
            indexes = tables.question_lists[number(extended, 0)]
            if 5 * len(indexes) > _MAX_DNS:
                raise FrameError("C-DNS: an item of more than a message")
            for index in indexes:
                name, kind = tables.questions[index]
                pieces.append(tables.names[name] + _TYPE_CLASS.pack(*tables.classtypes[kind]))
        return b"".join(pieces), len(pieces)

    def _query(self, item: dict[int, object], signature: dict[int, object], flags: int) -> bytes | None:
        without = flags & QUERY_WITHOUT_QUESTION
        if not without and (7 not in item or 8 not in signature):
            return None
        said = number_or(signature, 6, 0)
        header = (number_or(signature, 5, 0) & 15) << 11 | _header_flags(said)
        extended = as_map(item.get(11, {}))
        question = (b"", 0) if without else self._question(item, signature, extended)
        sections = self._sections(extended)
        if flags & _QUERY_HAS_OPT and not sections.has_opt:
            options = self._tables.names[number(signature, 15)] if 15 in signature else b""
            ttl = (number_or(signature, 13, 0) & 0xFF) << 16 | (DO if said & _QUERY_DO else 0)
            opt = _RECORD.pack(rrtypes.OPT, number_or(signature, 14, 512) & 0xFFFF, ttl, len(options))
            sections = sections._replace(wire=sections.wire + b"\0" + opt + options, additional=sections.additional + 1)
        return _message(number_or(item, 3, 0), header, question, sections)

    def _response(self, item: dict[int, object], signature: dict[int, object], flags: int) -> bytes | None:
        without = flags & RESPONSE_WITHOUT_QUESTION
        if 16 not in signature or (not without and (7 not in item or 8 not in signature)):
            return None
        rcode = number(signature, 16)
        said = _header_flags(number_or(signature, 6, 0) >> _RESPONSE_SHIFT)
        header = QR | (number_or(signature, 5, 0) & 15) << 11 | said | (rcode & RCODE)
        extended = as_map(item.get(12, {}))
        question = (b"", 0) if without else self._question(item, signature, extended)
        sections = self._sections(extended)
        if rcode > RCODE and not sections.has_opt:
            return None  # its upper bits have no place
        return _message(number_or(item, 3, 0), header, question, sections)

    def _sections(self, extended: dict[int, object]) -> _Sections:
        counts = []
        size = 0
        pieces: list[bytes] = []
        has_opt = False
        for key in (1, 2, 3):
            indexes = self._tables.record_lists[number(extended, key)] if key in extended else []
            counts.append(len(indexes))
            for index in indexes:
                name, kind, ttl, rdata = self._tables.records[index]
                rrtype, rrclass = self._tables.classtypes[kind]
                data = self._tables.names[rdata]
                size += len(data) + 11
                if size > _MAX_DNS:
                    raise FrameError("C-DNS: an item of more than a message")
                has_opt = has_opt or rrtype == rrtypes.OPT
                pieces += (self._tables.names[name], _RECORD.pack(rrtype, rrclass, ttl, len(data)), data)
        return _Sections(b"".join(pieces), counts[0], counts[1], counts[2], has_opt)


_Section = tuple[bytes, int]
"""A section in wire form, and how many entries it has."""


class _Sections(NamedTuple):
    wire: bytes
    answer: int
    authority: int
    additional: int
    has_opt: bool


def _message(ident: int, header: int, question: _Section, sections: _Sections) -> bytes:
    wire, count = question
    counts = (count, sections.answer, sections.authority, sections.additional)
    return _HEADER.pack(ident & 0xFFFF, header, *counts) + wire + sections.wire


def _header_flags(said: int) -> int:
    header = 0
    for bit, flag in _QUERY_FLAGS:
        if said >> bit & 1:
            header |= flag
    return header


def _signed(found: dict[int, object], key: int) -> int:
    value = found.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise FrameError("C-DNS: something else where an integer belongs")
    return value
