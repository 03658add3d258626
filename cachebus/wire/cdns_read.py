"""Reads C-DNS blocks (RFC 8618 section 7.5): the tables of any writer, and the items of our own blocks.

Decides whether a block is well-formed: every index leads into its table, records have TTL and RDATA, a block of the bus
says whose it is. Tables as `cdns_write` lays them out are taken over whole, each in a few calls into C; any other form
goes the long way, which alone has the reasons. Refuses to know whether an answer is right, and who sent the block.
Bad bytes end in `FrameError`.
"""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple, cast

from cachebus.errors import FrameError
from cachebus.wire import rrtypes
from cachebus.wire.cbor import Decoder, decode_whole
from cachebus.wire.cdns import (
    BLOCK_LENGTH,
    CLASSTYPE,
    CLUSTER,
    EARLIEST_TIME,
    MAX_BLOCK_ITEMS,
    META,
    NAME_RDATA,
    ORIGIN,
    PARAMETERS_INDEX,
    POLICY,
    PREAMBLE,
    QLIST,
    QR_SIG,
    QRR,
    QUERY_RESPONSES,
    RESPONSE_AD,
    RR,
    RRLIST,
    SENT,
    SEQUENCE,
    STATISTICS,
    STREAM,
    TABLES,
    as_array,
    as_map,
    number,
    number_or,
    string,
)
from cachebus.wire.cdns_write import BlockHead

Raw = tuple[bytes, int, int, list[bytes], list[bytes]]
"""An RRset as it came: owner, type, TTL, its RDATAs, the RDATAs of its RRSIGs."""
Item = tuple[int, bool, int, bytes, int, list[Raw]]
"""An answer: level and `validating` as our private key has them, AD, ticks since the block's earliest time, question
name and type, RRsets."""
_Record = tuple[int, int, int, int]
"""Indexes of the owner and of class and type, TTL, index of the RDATA."""

MAX_EXPANDED: Final = 8 << 20
"""Bytes of records that a block may stand for, heads of 12 bytes included, when every index is followed: a list may be
meant by many items, a large RDATA by many records. Eight times the largest block; ours stand for twice their size."""
MAX_TTL_FIELD: Final = 0xFFFFFFFF
_IN: Final = 1
_FEW: Final = 24
_PREAMBLE_CONTAINERS: Final = 64

_ARRAY: Final = b"\x99"
_CLASSTYPES: Final = re.compile(rb"(?s)(?:\xa2\x00\x19..\x01\x01)*+").fullmatch
_TYPES: Final = struct.Struct("!3xH2x")
_SIGNATURES: Final = re.compile(rb"(?s)(?:\xa6\x03\x02\x04\x02\x06\x19..\x08[\x00-\x17]\x09\x01\x10\x00)*+").fullmatch
_FLAGS: Final = struct.Struct("!7xHxB4x")
_RECORDS: Final = re.compile(rb"(?s)(?:\xa4\x00\x19..\x01[\x00-\x17]\x02\x1a.{4}\x03\x19..)*+").fullmatch
_RECORD: Final = struct.Struct("!3xHxB2xI2xH")
_ITEMS: Final = re.compile(
    rb"(?s)(?:\xa5\x00\x1a.{4}\x04[\x00-\x17]\x07\x19..\x0a\xa1\x38\x63[\x00-\x17]\x0c\xa1\x01\x19..)*+"
).fullmatch
_ITEM: Final = struct.Struct("!3xIxB2xH4xB4xH")
_LIST: Final = b"|".join(re.escape(bytes((0x80 | count,))) + rb"(?:\x19..){%d}" % count for count in range(1, _FEW))
_LISTS: Final = re.compile(b"(?s)(?:" + _LIST + b")*+").match
_EACH_LIST: Final = re.compile(b"(?s)" + _LIST).findall
_INDEXES: Final = [struct.Struct("!x" + "xH" * count) for count in range(_FEW)]


class BusBlock(NamedTuple):
    """A block that a node sent."""

    head: BlockHead
    parameters: int
    """Index of the file's block parameters that hold for it."""
    earliest: int
    """Its earliest time in ticks since the epoch, if a second has `cdns.TICKS` of them."""
    policy: str
    """In a hello: the hash of what a cluster has in common; empty where it is not told."""
    names: list[bytes]
    """Every name that stands as a question or an owner, each once."""
    items: list[Item]


def read_bus_block(data: bytes, start: int, ticks: int) -> BusBlock:
    """The block of a node that `data` holds from `start` to its end. `ticks`: per second, as the file says.

    Raises `FrameError` when it is malformed, or a block of other making.
    """
    decoder = Decoder(data, start + 2, _PREAMBLE_CONTAINERS)
    keys = data[start : start + 2]
    if keys != b"\xa4\x00" and keys != b"\xa2\x00":
        return _long_way(data, start, ticks)
    head, parameters, earliest = _read_preamble(as_map(decoder.item(0)), ticks, len(data) - start)
    at = decoder.position
    if data[at : at + 1] != b"\x01":
        return _long_way(data, start, ticks)
    decoder.position = at + 1
    policy = string(as_map(decoder.item(0)), POLICY)
    at = decoder.position
    if keys == b"\xa2\x00":
        if at != len(data):
            return _long_way(data, start, ticks)
        return BusBlock(head, parameters, earliest, policy, [], [])
    try:
        found = _usual_items(data, at)
    except (IndexError, struct.error):
        found = None
    if found is None:
        return _long_way(data, start, ticks)
    names, items = found
    return BusBlock(head, parameters, earliest, policy, names, items)


def _read_preamble(preamble: dict[int, object], ticks: int, length: int) -> tuple[BlockHead, int, int]:
    if number_or(preamble, BLOCK_LENGTH, length) != length:
        raise FrameError("C-DNS: a block of another length than it says")
    time = as_array(preamble.get(EARLIEST_TIME))
    if len(time) != 2 or not all(isinstance(part, int) and part >= 0 for part in time):
        raise FrameError("C-DNS: a block without its earliest time")
    seconds, part = cast("list[int]", time)
    head = BlockHead(
        number(preamble, STREAM),
        number(preamble, SEQUENCE),
        number(preamble, SENT),
        string(preamble, CLUSTER),
        string(preamble, ORIGIN),
    )
    return head, number_or(preamble, PARAMETERS_INDEX, 0), seconds * ticks + part


# The usual form


def _span(data: bytes, at: int, stride: int) -> int:
    """Where an array at `at` of entries of one length ends; 0: another form."""
    if data[at : at + 1] != _ARRAY:
        return 0
    return at + 3 + stride * (data[at + 1] << 8 | data[at + 2])


def _usual_items(data: bytes, at: int) -> tuple[list[bytes], list[Item]] | None:
    """Tables and items from `at` to the end; None: the long way. Raises `IndexError` where an index leads nowhere."""
    if data[at : at + 3] != b"\x02\xa5\x01" or not (end := _span(data, at + 3, _TYPES.size)):
        return None
    if _CLASSTYPES(data, at + 6, end) is None:
        return None
    types: list[int] = [rrtype for (rrtype,) in _TYPES.iter_unpack(data[at + 6 : end])]
    if data[end : end + 2] != b"\x02\x99":
        return None
    names: list[bytes] = []
    at = _names(data, end + 4, data[end + 2] << 8 | data[end + 3], names)
    if data[at : at + 1] != b"\x03" or not (end := _span(data, at + 1, _FLAGS.size)):
        return None
    if _SIGNATURES(data, at + 4, end) is None:
        return None
    signatures: list[tuple[int, int]] = [*_FLAGS.iter_unpack(data[at + 4 : end])]
    if data[end : end + 2] != b"\x06\x99" or (found := _LISTS(data, end + 4)) is None:
        return None
    at = found.end()
    lists: list[bytes] = _EACH_LIST(data, end + 4, at)
    if len(lists) != data[end + 2] << 8 | data[end + 3]:
        return None
    if data[at : at + 1] != b"\x07" or not (end := _span(data, at + 1, _RECORD.size)):
        return None
    if _RECORDS(data, at + 4, end) is None:
        return None
    records: list[_Record] = [*_RECORD.iter_unpack(data[at + 4 : end])]
    owners = {record[0] for record in records}
    if data[end : end + 1] != b"\x03" or _span(data, end + 1, _ITEM.size) != len(data):
        return None
    if _ITEMS(data, end + 4, len(data)) is None or len(data) - end > (MAX_BLOCK_ITEMS + 1) * _ITEM.size:
        return None
    items: list[Item] = []
    most = MAX_EXPANDED // (max(map(len, names), default=0) + 12)
    for offset, signature, name, meta, listed in _ITEM.iter_unpack(data[end + 4 :]):
        flags, kind = signatures[signature]
        chosen = lists[listed]
        most -= len(chosen) // 3
        if most < 0:
            return None
        rrsets = _group(_INDEXES[chosen[0] & 31].unpack(chosen), records, types, names)
        owners.add(name)
        items.append((meta, flags & RESPONSE_AD != 0, offset, names[name], types[kind], rrsets))
    return [names[owner] for owner in owners], items


def _names(data: bytes, at: int, count: int, names: list[bytes]) -> int:
    """Take the byte strings at `at` into `names`; the position after them. Raises `IndexError` for another form."""
    for _ in range(count):
        size = data[at] - 0x40
        at += 1
        if size >= _FEW:
            if size == _FEW:
                size = data[at]
                at += 1
            elif size == _FEW + 1:
                size = data[at] << 8 | data[at + 1]
                at += 2
            else:
                raise IndexError
        elif size < 0:
            raise IndexError
        names.append(data[at : at + size])
        at += size
    return at


def _group(indexes: tuple[int, ...], records: list[_Record], types: list[int], names: list[bytes]) -> list[Raw]:
    """Records in the order of their list, as RRsets: those of one owner and type in a row, each then its RRSIGs."""
    owner = kind = least = -1
    rrsets: list[Raw] = []
    rdatas: list[bytes] = []
    signatures: list[bytes] = []
    for index in indexes:
        name, classtype, ttl, rdata = records[index]
        if name == owner and classtype == kind:
            rdatas.append(names[rdata])
        elif types[classtype] == rrtypes.RRSIG:
            if name != owner:
                raise IndexError("an RRSIG apart from its RRset")
            signatures.append(names[rdata])
        else:
            owner, kind, least = name, classtype, ttl
            rdatas = [names[rdata]]
            signatures = []
            rrsets.append((names[name], types[classtype], ttl, rdatas, signatures))
        if ttl < least:
            least = ttl
            rrsets[-1] = (names[owner], types[kind], least, rdatas, signatures)
    return rrsets


# Any form


class Tables(NamedTuple):
    """The block tables of any writer. Indexes in them are checked where they are followed."""

    addresses: list[bytes]
    classtypes: list[tuple[int, int]]
    """Type and class."""
    names: list[bytes]
    """Names and RDATAs."""
    signatures: list[dict[int, object]]
    questions: list[tuple[int, int]]
    """Indexes of name, and of class and type."""
    question_lists: list[list[int]]
    records: list[_Record]
    record_lists: list[list[int]]


def read_tables(found: dict[int, object]) -> Tables:
    """The tables of a decoded BlockTables. Raises `FrameError` for nonsense, and for a record without TTL or RDATA."""
    return Tables(
        [_bytes(one) for one in as_array(found.get(0))],
        [_classtype(as_map(one)) for one in as_array(found.get(CLASSTYPE))],
        [_bytes(one) for one in as_array(found.get(NAME_RDATA))],
        [as_map(one) for one in as_array(found.get(QR_SIG))],
        [(number(as_map(one), 0), number(as_map(one), 1)) for one in as_array(found.get(QRR))],
        [_indexes(one) for one in as_array(found.get(QLIST))],
        [_record(as_map(one)) for one in as_array(found.get(RR))],
        [_indexes(one) for one in as_array(found.get(RRLIST))],
    )


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise FrameError("C-DNS: something else where a byte string belongs")
    return value


def _classtype(found: dict[int, object]) -> tuple[int, int]:
    rrtype, rrclass = number(found, 0), number(found, 1)
    if max(rrtype, rrclass) > 0xFFFF:
        raise FrameError("C-DNS: a class or type beyond 16 bits")
    return rrtype, rrclass


def _record(found: dict[int, object]) -> _Record:
    ttl = number(found, 2)
    if ttl > MAX_TTL_FIELD:
        raise FrameError("C-DNS: a TTL beyond 32 bits")
    return number(found, 0), number(found, 1), ttl, number(found, 3)


def _indexes(value: object) -> list[int]:
    indexes = as_array(value)
    for index in indexes:
        if index.__class__ is not int or not isinstance(index, int) or index < 0:
            raise FrameError("C-DNS: something else where an index belongs")
    return cast("list[int]", indexes)


def _long_way(data: bytes, start: int, ticks: int) -> BusBlock:
    block = as_map(decode_whole(data[start:]))
    head, parameters, earliest = _read_preamble(as_map(block.get(PREAMBLE)), ticks, len(data) - start)
    policy = string(as_map(block.get(STATISTICS, {})), POLICY)
    tables = read_tables(as_map(block.get(TABLES, {})))
    found = as_array(block.get(QUERY_RESPONSES))
    if len(found) > MAX_BLOCK_ITEMS:
        raise FrameError("C-DNS: a block of too many items")
    _check_expanded(found, tables)
    types = [rrtype if rrclass == _IN else -1 for rrtype, rrclass in tables.classtypes]
    try:
        items = [_item(as_map(one), tables, types) for one in found]
        owners = {record[0] for record in tables.records}
        names = {tables.names[owner] for owner in owners}
    except IndexError as error:
        raise FrameError("C-DNS: an index leads nowhere, or an RRSIG stands apart from its RRset") from error
    names.update(item[3] for item in items)
    return BusBlock(head, parameters, earliest, policy, list(names), items)


def _check_expanded(found: list[object], tables: Tables) -> None:
    try:
        sizes = [12 + len(tables.names[record[3]]) for record in tables.records]
        listed = [sum([sizes[index] for index in indexes]) for indexes in tables.record_lists]
        total = sum([listed[number(as_map(as_map(item).get(12)), 1)] for item in found])
    except IndexError as error:
        raise FrameError("C-DNS: an index leads nowhere") from error
    if total > MAX_EXPANDED:
        raise FrameError("C-DNS: a block that stands for too much")


def _item(found: dict[int, object], tables: Tables, types: list[int]) -> Item:
    signature = tables.signatures[number(found, 4)]
    listed = tables.record_lists[number(as_map(found.get(12)), 1)]
    rrsets = _group(tuple(listed), tables.records, types, tables.names)
    qtype = types[number(signature, 8)]
    if qtype < 0 or any(rrset[1] < 0 for rrset in rrsets):
        raise FrameError("C-DNS: a class other than IN on the bus")
    if number_or(signature, 16, 0):
        raise FrameError("C-DNS: an RCODE other than NOERROR on the bus")
    return (
        number(as_map(found.get(10)), META),
        number_or(signature, 6, 0) & RESPONSE_AD != 0,
        number_or(found, 0, 0),
        tables.names[number(found, 7)],
        qtype,
        rrsets,
    )
