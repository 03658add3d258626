"""The short way through a bus message: take its answer section over as it stands, where it stands as senders put it.

That is: one question; the RRsets of one chain in order, each followed by its RRSIGs; owners written as pointers to the
question, or to the CNAME that leads to them; names in RDATA uncompressed. Nearly every message is like that, and costs
a fraction of a full parse. Decides nothing: whatever is unusual, doubtful or wrong gives None, and takes the long way,
which has the reasons. So no rule stands here alone.
"""

from __future__ import annotations

import struct

from cachebus.answer import RRset
from cachebus.presentation import MAX_NAME
from cachebus.wire import rrtypes
from cachebus.wire.message import HEADER_LENGTH, MAX_TTL
from cachebus.wire.name import is_at_or_below, label_count

MAX_LINKS = 8
"""CNAMEs of a chain that is taken this way."""
_LAST_NAME_END = HEADER_LENGTH + MAX_NAME - 1
_QUESTION = 0xC00C
_OWNER = b"\xc0\x0c"
_QTYPE_CLASS = struct.Struct("!HH")
_RECORD = struct.Struct("!HHHIH")
"""Owner as a pointer, type, class, TTL, RDLENGTH."""
_SIGNATURE = struct.Struct("!HBBIII")
"""RRSIG RDATA: covered, algorithm, labels, original TTL, expiration, inception (RFC 4034 section 3.1)."""
_LONG_WAY = frozenset({3, 4, 7, 8, 9, 14, 17, 18, 21, 26, 35, 36, 39}) | rrtypes.NEVER_SHARED | rrtypes.INFRASTRUCTURE
_NAME_AT = {rrtypes.CNAME: 0, rrtypes.PTR: 0, rrtypes.MX: 2, rrtypes.SRV: 6}
_FORMS: dict[int, tuple[int, int]] = {
    rrtype: ({rrtypes.A: 4, rrtypes.AAAA: 16}.get(rrtype, 0), _NAME_AT.get(rrtype, -1))
    for rrtype in range(65536)
    if rrtype not in _LONG_WAY
}
"""Type -> (bytes that its RDATA must have, or 0; where a name begins in its RDATA, or -1)."""

Taken = tuple[bytes, int, tuple[RRset, ...], bool]
"""Question name (lower case) and type, the chain, and whether every RRset of it has RRSIGs."""


def take_over(data: bytes, end: int, now: float, max_ttl: int) -> Taken | None:
    """The chain in `data` up to `end` (where TSIG begins), TTLs limited as an answer's are, or None: take the long way.

    The caller has seen to it that there is one question and nothing but the answer section behind it.
    """
    try:
        return _take_over(data, end, int(now), max_ttl)
    except (IndexError, KeyError, struct.error):
        return None


def _take_over(data: bytes, end: int, now: int, max_ttl: int) -> Taken | None:
    position = HEADER_LENGTH
    while length := data[position]:
        if length > 63:
            return None
        position += length + 1
    qname = owner = data[HEADER_LENGTH : position + 1].lower()
    qtype, qclass = _QTYPE_CLASS.unpack_from(data, position + 1)
    if position > _LAST_NAME_END or qclass != 1:
        return None
    position += 5
    count = data[6] << 8 | data[7]
    pointer = _QUESTION
    chain: tuple[RRset, ...] = ()
    all_signed = True
    while True:
        step = _rrset(data, position, count, pointer, max_ttl)
        if step is None:
            return None
        rrtype, ttl, after, number = step
        rrs = _packed(data, position, after, number, pointer)
        if number > 1 and _repeats(rrs):
            return None
        start, position, count = position, after, count - number
        sigs = b""
        if count and data[position + 3] == rrtypes.RRSIG and not data[position + 2]:
            ttl, after, number = _signatures(data, position, count, pointer, rrtype, owner, now, ttl)
            sigs = _packed(data, position, after, number, pointer)
            position, count = after, count - number
        else:
            all_signed = False
        if ttl <= 0:
            return None
        chain += (tuple.__new__(RRset, (owner, rrtype, ttl, rrs, sigs)),)
        if rrtype == qtype:
            return (qname, qtype, chain, all_signed) if not count and position == end else None
        if rrtype != rrtypes.CNAME or len(chain) > MAX_LINKS or not count or start + 12 > 0x3FFF:
            return None
        pointer = 0xC000 | start + 12
        owner = rrs[12:].lower()
        if len(rrs) != 12 + (rrs[10] << 8 | rrs[11]) or owner == qname or any(owner == link[0] for link in chain):
            return None


def _rrset(data: bytes, position: int, count: int, pointer: int, ttl: int) -> tuple[int, int, int, int] | None:
    """(type, smallest TTL, where the RRset ends, number of records) of the records of one type at `position`."""
    rrtype = -1
    number = 0
    fixed, name_at = 0, -1
    while count:
        owner, this_type, rrclass, this_ttl, size = _RECORD.unpack_from(data, position)
        if this_type != rrtype:
            if number:
                break
            rrtype = this_type
            fixed, name_at = _FORMS[rrtype]
        if owner != pointer or rrclass != 1:
            return None
        if this_ttl < ttl:
            ttl = this_ttl
        elif this_ttl > MAX_TTL:
            return None
        position += 12
        if fixed:
            if size != fixed:
                return None
        elif name_at >= 0:
            at = position + name_at
            while length := data[at]:
                if length > 63:
                    return None
                at += length + 1
            if at + 1 != position + size or size > MAX_NAME:
                return None
        position += size
        number += 1
        count -= 1
    return (rrtype, ttl, position, number) if number else None


def _signatures(
    data: bytes, position: int, count: int, pointer: int, covered: int, owner: bytes, now: int, ttl: int
) -> tuple[int, int, int]:
    """(the TTL that the RRSIGs at `position` leave, where they end, their number); TTL 0: take the long way."""
    labels = label_count(owner)
    number = 0
    while count:
        name, rrtype, rrclass, this_ttl, size = _RECORD.unpack_from(data, position)
        if rrtype != rrtypes.RRSIG:
            break
        this_covered, _, sig_labels, original, expiration, inception = _SIGNATURE.unpack_from(data, position + 12)
        left = (expiration - now) & 0xFFFFFFFF
        if (
            name != pointer
            or rrclass != 1
            or this_covered != covered
            or sig_labels != labels
            or left > MAX_TTL
            or (now - inception) & 0x80000000
            or not _signer_fits(data, position + 30, position + 12 + size, owner)
        ):
            return 0, position, number
        ttl = min(ttl, this_ttl, original, left)
        position += 12 + size
        number += 1
        count -= 1
    return ttl, position, number


def _signer_fits(data: bytes, position: int, end: int, owner: bytes) -> bool:
    """Whether the signer's name at `position` is the owner or above it; it nearly always is the owner's parent."""
    if data.startswith(owner[owner[0] + 1 :], position) or data.startswith(owner, position):
        return owner[0] != 1 or owner[1] != 0x2A  # a wildcard's own labels are counted otherwise: the long way
    at = position
    while length := data[at]:
        if length > 63:
            return False
        at += length + 1
    return at < end and is_at_or_below(owner, data[position : at + 1].lower())


def _packed(data: bytes, start: int, end: int, number: int, pointer: int) -> bytes:
    """The records with their owner as the pointer to offset 12, the form of `RRset.rrs`."""
    if pointer == _QUESTION:
        return data[start:end]
    if number == 1:
        return _OWNER + data[start + 2 : end]
    pieces: list[bytes] = []
    while start < end:
        after = start + 12 + (data[start + 10] << 8 | data[start + 11])
        pieces += (_OWNER, data[start + 2 : after])
        start = after
    return b"".join(pieces)


def _repeats(rrs: bytes) -> bool:
    """Whether two records of a packed RRset have the same RDATA."""
    seen: set[bytes] = set()
    position, end = 0, len(rrs)
    while position < end:
        after = position + 12 + (rrs[position + 10] << 8 | rrs[position + 11])
        rdata = rrs[position + 10 : after]
        if rdata in seen:
            return True
        seen.add(rdata)
        position = after
    return False
