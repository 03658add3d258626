"""Writes captures as C-DNS (RFC 8618): DNS messages of any kind with who told whom when, block by block.

Decides how a message becomes an item: one message each, so that nothing has to be paired or held back. What C-DNS has
no place for is named (`Lost`), never guessed. The bus's own blocks are `cdns_write`'s.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import Final, NamedTuple

from cachebus.errors import MessageError
from cachebus.wire import cbor, rrtypes
from cachebus.wire.cdns import FILE_TYPE, HAS_QUERY, HAS_RESPONSE, QUERY_WITHOUT_QUESTION, RESPONSE_WITHOUT_QUESTION
from cachebus.wire.dnstap import Frame, MessageType, SocketProtocol
from cachebus.wire.message import AA, AD, CD, DO, HEADER_LENGTH, QR, RA, RCODE, RD, TC, expand_rdata
from cachebus.wire.name import read_name

MAX_ITEMS: Final = 5000
"""Items of a block: half of what other writers put into one; a reader holds a block at a time."""
MAX_BYTES: Final = 4 * 1024 * 1024
"""Bytes of a block, about, after which it is ended: for captures of large messages."""
MAX_EXPANSION: Final = 32
"""Times its size that a block's messages may be together: readers that bound it, as ours, allow twice that."""
TICKS: Final = 1_000_000
"""Per second: microseconds, which is what a capture's clock means."""
_HEADER = struct.Struct("!HHHHHH")
_FIXED = struct.Struct("!HHIH")
_TYPE_CLASS = struct.Struct("!HH")
_Z: Final = 0x0040
_KINDS: Final = {
    MessageType.STUB_QUERY: 0,
    MessageType.CLIENT_QUERY: 1,
    MessageType.RESOLVER_QUERY: 2,
    MessageType.AUTH_QUERY: 3,
    MessageType.FORWARDER_QUERY: 4,
    MessageType.TOOL_QUERY: 5,
}
_PROTOCOLS: Final = {SocketProtocol.UDP: 0, SocketProtocol.TCP: 1, SocketProtocol.DOT: 2, SocketProtocol.DOH: 4}
_OTHER_PROTOCOL: Final = 5
_FLAGS: Final = ((0, CD), (1, AD), (2, _Z), (3, RA), (4, RD), (5, TC), (6, AA))
_QUERY_DO: Final = 1 << 7
_RESPONSE_SHIFT: Final = 8
_QUERY_HAS_OPT, _RESPONSE_HAS_OPT = 0x04, 0x08
_QR_HINTS: Final = sum(1 << bit for bit in (0, 1, 2, 3, 4, 7, 10, 11, 12, 13, 14, 15, 16, 17))
_SIGNATURE_HINTS: Final = sum(1 << bit for bit in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16))
_RR_TYPES: Final = (*range(1, 66), 99, 249, 250, 256, 257, 258, 260, 261, 32769)


class Lost(Enum):
    """What C-DNS does not say of a message."""

    KIND = "kind"
    """An UPDATE, which has no qr-type: the message is left out."""
    MALFORMED = "malformed"
    """Not a well-formed DNS message: it is left out."""
    HEADER = "header"
    """A response with QR=0, or a query with QR=1: an item cannot say so, and the message is left out."""
    PROTOCOL = "protocol"
    """DNSCrypt or DNS over QUIC: written as another protocol than those that have a number."""
    ZONE = "query-zone"
    """The zone that a query is about: an item has it for a response only."""
    OTHER_TIME = "other-time"
    """When the query of a response was sent, or the other way round: an item of one message has one time."""
    COMPRESSION = "compression"
    """Names were compressed: the message that is made of the item again is longer."""


LEFT_OUT: Final = frozenset({Lost.KIND, Lost.MALFORMED, Lost.HEADER})
"""Of which there is nothing in the file."""


class _Record(NamedTuple):
    owner: bytes
    type: int
    rrclass: int
    ttl: int
    rdata: bytes


class _Parsed(NamedTuple):
    """A message with nothing compressed."""

    ident: int
    flags: int
    questions: list[tuple[bytes, int, int]]
    sections: list[list[_Record]]
    size: int
    """Bytes of it, uncompressed."""


def preamble(generator: str) -> bytes:
    """What a file begins with, up to its blocks, the head of whose array is the last byte."""
    pieces = [
        FILE_TYPE, b"\xa3\x00\x01\x01\x00\x03\x81\xa2\x00\xa5",
        b"\x00", cbor.integer(TICKS), b"\x01", cbor.integer(MAX_ITEMS),
        b"\x02\xa4\x00", cbor.integer(_QR_HINTS), b"\x01", cbor.integer(_SIGNATURE_HINTS), b"\x02\x03\x03\x00",
        b"\x03", cbor.head(cbor.ARRAY, 7), *map(cbor.integer, range(7)),
        b"\x04", cbor.head(cbor.ARRAY, len(_RR_TYPES)), *map(cbor.integer, _RR_TYPES),
        b"\x01\xa1\x08", cbor.text(generator), b"\x9f",
    ]  # fmt: skip
    return b"".join(pieces)


class CdnsFileWriter:
    """Collects messages and gives the bytes of the file as they come to be."""

    def __init__(self) -> None:
        self._block = _Block()

    def add(self, frame: Frame) -> tuple[bytes, list[Lost]]:
        """Take one message; give the bytes that are complete by now, and what is not carried over.

        With one of `LEFT_OUT` nothing of it is.
        """
        query = frame.type if not frame.is_response else MessageType(frame.type - 1)
        if query not in _KINDS:
            return b"", [Lost.KIND]
        try:
            parsed = _parse(frame.message)
        except MessageError:
            return b"", [Lost.MALFORMED]
        if bool(parsed.flags & QR) != frame.is_response:
            return b"", [Lost.HEADER]
        done = b""
        if self._block.is_full(parsed.size):
            done = self.flush()
        self._block.add(frame, parsed, _KINDS[query])
        return done, [one for one, is_lost in (
            (Lost.PROTOCOL, frame.protocol not in _PROTOCOLS),
            (Lost.ZONE, frame.query_zone is not None and not frame.is_response),
            (Lost.OTHER_TIME, bool(frame.query_time if frame.is_response else frame.response_time)),
            (Lost.COMPRESSION, parsed.size != len(frame.message)),
        ) if is_lost]  # fmt: skip

    def flush(self) -> bytes:
        """The block that is begun, if any."""
        block, self._block = self._block, _Block()
        return block.written()

    def close(self) -> bytes:
        """What the file ends with."""
        return self.flush() + b"\xff"


class _Table:
    """Items of one table, each once."""

    def __init__(self) -> None:
        self._items: dict[bytes, int] = {}
        self.size = 0

    def index(self, item: bytes) -> int:
        found = self._items.get(item)
        if found is None:
            found = self._items[item] = len(self._items)
            self.size += len(item)
        return found

    def written(self, key: int) -> list[bytes]:
        if not self._items:
            return []
        return [cbor.integer(key), cbor.head(cbor.ARRAY, len(self._items)), *self._items]


class _Block:
    """One block while it grows."""

    def __init__(self) -> None:
        self._addresses, self._classtypes, self._names, self._signatures = _Table(), _Table(), _Table(), _Table()
        self._question_lists, self._questions, self._lists, self._records = _Table(), _Table(), _Table(), _Table()
        self._items: list[tuple[int | None, int, bytes]] = []
        self._size = 0
        self._stands_for = 0

    def is_full(self, more: int) -> bool:
        """Whether a message of `more` bytes belongs into the next block."""
        size = self._size + sum(table.size for _, table in self._tables())
        if not self._items:
            return False
        return len(self._items) >= MAX_ITEMS or size >= MAX_BYTES or self._stands_for + more > MAX_EXPANSION * size

    def add(self, frame: Frame, parsed: _Parsed, kind: int) -> None:
        time = frame.response_time if frame.is_response else frame.query_time
        fields = {3: cbor.integer(parsed.ident), 4: cbor.integer(self._signature(frame, parsed, kind))}
        if frame.query_address:
            fields[1] = cbor.integer(self._addresses.index(cbor.byte_string(frame.query_address)))
        if frame.query_port:
            fields[2] = cbor.integer(frame.query_port)
        if parsed.questions:
            fields[7] = cbor.integer(self._name(parsed.questions[0][0]))
        if frame.is_response and frame.query_zone is not None:
            fields[10] = b"\xa1\x00" + cbor.integer(self._name(frame.query_zone))
        extended = self._extended(parsed, is_response=frame.is_response)
        if extended:
            fields[12 if frame.is_response else 11] = _map(_entries(extended))
        item = b"".join(_entries(fields))
        self._items.append((round(time * TICKS) if time else None, len(fields), item))
        self._size += len(item) + 8
        self._stands_for += parsed.size

    def written(self) -> bytes:
        """The block; nothing when there is nothing in it."""
        if not self._items:
            return b""
        earliest = min((time for time, _, _ in self._items if time is not None), default=0)
        seconds, ticks = divmod(earliest, TICKS)
        count = cbor.integer(len(self._items))
        pieces = [b"\xa4\x00\xa1\x00\x82", cbor.integer(seconds), cbor.integer(ticks)]
        pieces += [b"\x01\xa2\x00", count, b"\x01", count]
        tables = [table.written(key) for key, table in self._tables()]
        pieces += [b"\x02", cbor.head(cbor.MAP, sum(map(bool, tables))), *(part for table in tables for part in table)]
        pieces += [b"\x03", cbor.head(cbor.ARRAY, len(self._items))]
        for time, entries, item in self._items:
            offset = b"" if time is None else b"\x00" + cbor.integer(time - earliest)
            pieces.append(cbor.head(cbor.MAP, entries + bool(offset)) + offset + item)
        return b"".join(pieces)

    def _tables(self) -> tuple[tuple[int, _Table], ...]:
        return tuple(enumerate((
            self._addresses, self._classtypes, self._names, self._signatures,
            self._question_lists, self._questions, self._lists, self._records,
        )))  # fmt: skip

    def _name(self, data: bytes) -> int:
        return self._names.index(cbor.byte_string(data))

    def _classtype(self, rrtype: int, rrclass: int) -> int:
        return self._classtypes.index(b"\xa2\x00" + cbor.integer(rrtype) + b"\x01" + cbor.integer(rrclass))

    def _signature(self, frame: Frame, parsed: _Parsed, kind: int) -> int:
        flags = parsed.flags
        said = sum(1 << bit for bit, flag in _FLAGS if flags & flag)
        fields: dict[int, int] = {
            2: (len(frame.response_address or frame.query_address) == 16)
            | _PROTOCOLS.get(SocketProtocol(frame.protocol), _OTHER_PROTOCOL) << 1,
            3: kind,
            5: flags >> 11 & 15,
            9: len(parsed.questions),
        }
        if frame.response_port:
            fields[1] = frame.response_port
        if frame.response_address:
            fields[0] = self._addresses.index(cbor.byte_string(frame.response_address))
        if parsed.questions:
            fields[8] = self._classtype(*parsed.questions[0][1:])
        opt = next((record for record in parsed.sections[2] if record.type == rrtypes.OPT), None)
        if frame.is_response:
            fields[4] = HAS_RESPONSE | (0 if parsed.questions else RESPONSE_WITHOUT_QUESTION)
            fields[4] |= 0 if opt is None else _RESPONSE_HAS_OPT
            fields[6] = said << _RESPONSE_SHIFT
            fields[16] = flags & RCODE | (0 if opt is None else opt.ttl >> 24 << 4)
        else:
            fields[4] = HAS_QUERY | (0 if parsed.questions else QUERY_WITHOUT_QUESTION)
            fields[6] = said
            fields[7] = flags & RCODE
            if opt is not None:
                fields[4] |= _QUERY_HAS_OPT
                fields[6] |= _QUERY_DO if opt.ttl & DO else 0
                fields |= {13: opt.ttl >> 16 & 0xFF, 14: opt.rrclass, 15: self._name(opt.rdata)}
        found = {key: cbor.integer(value) for key, value in fields.items()}
        return self._signatures.index(_map(_entries(found)))

    def _extended(self, parsed: _Parsed, *, is_response: bool) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        if len(parsed.questions) > 1:
            listed = [
                self._questions.index(
                    b"\xa2\x00" + cbor.integer(self._name(name)) + b"\x01" + cbor.integer(self._classtype(*kind))
                )
                for name, *kind in parsed.questions[1:]
            ]
            found[0] = cbor.integer(self._question_lists.index(_array(listed)))
        for key, records in enumerate(parsed.sections, 1):
            # The OPT of a query stands in its signature, unless that cannot say where it was, or what is in it.
            plain = is_response or key != 3 or not _is_plain_opt(records)
            kept = records if plain else records[:-1]
            if kept:
                found[key] = cbor.integer(self._lists.index(_array([self._record(record) for record in kept])))
        return found

    def _record(self, record: _Record) -> int:
        return self._records.index(_map(_entries({
            0: cbor.integer(self._name(record.owner)),
            1: cbor.integer(self._classtype(record.type, record.rrclass)),
            2: cbor.integer(record.ttl),
            3: cbor.integer(self._name(record.rdata)),
        })))  # fmt: skip


def _is_plain_opt(records: list[_Record]) -> bool:
    if not records or [record.type for record in records].count(rrtypes.OPT) != 1:
        return False
    last = records[-1]
    return last.type == rrtypes.OPT and last.owner == b"\0" and not last.ttl & ~(0x00FF0000 | DO)


def _entries(fields: dict[int, bytes]) -> list[bytes]:
    return [piece for key in sorted(fields) for piece in (cbor.integer(key), fields[key])]


def _map(entries: list[bytes]) -> bytes:
    return cbor.head(cbor.MAP, len(entries) // 2) + b"".join(entries)


def _array(indexes: list[int]) -> bytes:
    return cbor.head(cbor.ARRAY, len(indexes)) + b"".join(map(cbor.integer, indexes))


def _parse(wire: bytes) -> _Parsed:
    """Every record of a message, uncompressed, whatever its class. Raises `MessageError`."""
    end = len(wire)
    if end < HEADER_LENGTH:
        raise MessageError("shorter than a header")
    ident, flags, count, *counts = _HEADER.unpack_from(wire)
    position = size = HEADER_LENGTH
    questions = []
    for _ in range(count):
        name, position = read_name(wire, position, end)
        if position + 4 > end:
            raise MessageError("the question is cut short")
        questions.append((name, *_TYPE_CLASS.unpack_from(wire, position)))
        position += 4
        size += len(name) + 4
    sections: list[list[_Record]] = []
    for count in counts:
        records: list[_Record] = []
        for _ in range(count):
            record, position = _read_record(wire, position, end)
            records.append(record)
            size += len(record.owner) + 10 + len(record.rdata)
        sections.append(records)
    if position != end:
        raise MessageError("bytes after the last record")
    return _Parsed(ident, flags, questions, sections, size)


def _read_record(wire: bytes, position: int, end: int) -> tuple[_Record, int]:
    owner, position = read_name(wire, position, end)
    if position + 10 > end:
        raise MessageError("a record is cut short")
    rrtype, rrclass, ttl, length = _FIXED.unpack_from(wire, position)
    start = position + 10
    position = start + length
    if position > end:
        raise MessageError("RDATA runs past the end of the message")
    return _Record(owner, rrtype, rrclass, ttl, expand_rdata(wire, rrtype, start, position)), position
