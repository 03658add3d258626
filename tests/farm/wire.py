"""Reads DNS messages into what they say, order and case aside, some ten times faster than a library that reads RDATA.

Written without the project's own code, because it judges that. Knows the RDATA that servers compress (RFC 3597 section
4) and DNAME and SRV; other RDATA is taken as bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

OPT = 41

_NAMES = {2: (0, 1), 5: (0, 1), 6: (0, 2), 12: (0, 1), 15: (2, 1), 33: (6, 1), 39: (0, 1)}
"""Type -> (bytes before the names, names)."""

Record = tuple[bytes, int, bytes]
"""Owner and RDATA in lower case as far as they are names, and type."""


class Said(NamedTuple):
    """What a message says."""

    rcode: int
    """With the upper bits that OPT carries."""
    flags: int
    """The header's bits without opcode and RCODE."""
    opt: tuple[int, bool] | None
    """EDNS version and DO."""
    question: bytes
    """As on the wire, case kept."""
    answer: frozenset[Record]
    authority: frozenset[Record]
    additional: frozenset[Record]


class Reply(NamedTuple):
    """A message, and what may differ from one moment to the next."""

    said: Said
    ttls: Mapping[tuple[bytes, int], int]
    """By owner and type, of answer and authority."""
    size: int


def read(wire: bytes) -> Reply:
    """Read a reply with at most one question. Raises `ValueError`, `IndexError` or `struct.error` for a broken one."""
    _, flags, questions, *counts = struct.unpack_from("!6H", wire)
    position = 12
    if questions:
        position = _name(wire, 12)[1] + 4
    question = wire[12:position]
    sections: list[frozenset[Record]] = []
    ttls: dict[tuple[bytes, int], int] = {}
    rcode, opt = flags & 15, None
    for index, count in enumerate(counts):
        records = []
        for _ in range(count):
            owner, position = _name(wire, position)
            rrtype, rrclass, ttl, length = struct.unpack_from("!HHIH", wire, position)
            start = position + 10
            position = start + length
            if rrtype == OPT:
                rcode |= ttl >> 24 << 4
                opt = (ttl >> 16 & 255, bool(ttl & 0x8000))
                continue
            if rrclass != 1:
                raise ValueError("a record of another class")
            records.append((owner, rrtype, _rdata(wire, rrtype, start, position)))
            if index < 2:
                ttls[owner, rrtype] = ttl
        sections.append(frozenset(records))
        if len(sections[-1]) != len(records):
            raise ValueError("a record stands there twice")
    if position != len(wire):
        raise ValueError("bytes behind the last record")
    return Reply(Said(rcode, flags & 0x87F0, opt, question, *sections), ttls, len(wire))


def _name(wire: bytes, position: int) -> tuple[bytes, int]:
    pieces, after = [], 0
    while length := wire[position]:
        if length >= 0xC0:
            after = after or position + 2
            position = (length & 0x3F) << 8 | wire[position + 1]
            if len(pieces) > 127:
                raise ValueError("pointers in a circle")
            continue
        pieces.append(wire[position : position + length + 1])
        position += length + 1
    return b"".join(pieces).lower() + b"\0", after or position + 1


def _rdata(wire: bytes, rrtype: int, start: int, end: int) -> bytes:
    if rrtype not in _NAMES:
        return wire[start:end]
    before, names = _NAMES[rrtype]
    position = start + before
    pieces = [wire[start:position]]
    for _ in range(names):
        name, position = _name(wire, position)
        pieces.append(name)
    return b"".join((*pieces, wire[position:end]))
