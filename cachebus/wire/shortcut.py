"""The short way through a bus message: take its answer section over as it stands, where it stands as senders put it.

That is: one question; the RRsets of one chain in order, each followed by its RRSIGs; owners written as pointers to the
question, or to the CNAME that leads to them; names in RDATA uncompressed. Nearly every message is like that, and costs
a fraction of a full parse. Header, question and first record are matched by one regular expression: one call into C for
what takes a hundred steps otherwise. Decides nothing: whatever is unusual, doubtful or wrong gives None, and takes the
long way, which has the reasons. So no rule stands here alone.
"""

from __future__ import annotations

import re
import struct

from cachebus.answer import RRset
from cachebus.presentation import MAX_NAME
from cachebus.wire import rrtypes
from cachebus.wire.message import MAX_TTL
from cachebus.wire.name import is_at_or_below, label_count

MAX_LINKS = 8
"""CNAMEs of a chain that is taken this way."""
_QUESTION = 0xC00C
_OWNER = b"\xc0\x0c"
_new = tuple.__new__
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

_LABEL = b"|".join(re.escape(bytes([length])) + b".{%d}" % length for length in range(1, 64))
_USUAL = re.compile(
    b"(?s)"
    rb"(..)\x00\x01(..)\x00\x00\x00\x01"  # flags, one question, ANCOUNT, no authority, one additional record: TSIG
    rb"((?:" + _LABEL + rb")*+\x00)(..)\x00\x01"  # the question's name and type, class IN
    rb"\xc0\x0c(..)\x00\x01(....)(..)"  # the first record: owner is the question, type, class IN, TTL, RDLENGTH
).match
"""Matches from the flags on. Labels are alternatives by length, taken without going back, as a walk would."""
_ONE_RRSIG = re.compile(
    rb"(?s)\xc0\x0c\x00\x2e\x00\x01(....)..(..).(.)(....)(....)(....)..((?:" + _LABEL + rb")*+\x00)."
).match
"""An RRSIG over the question's name: TTL, covered, labels, original TTL, expiration, inception, signer."""
_KNOWN_FORMS = {rrtype.to_bytes(2, "big"): (rrtype, *form) for rrtype, form in _FORMS.items()}

Taken = tuple[bytes, bytes, int, tuple[RRset, ...], bool]
"""Flags, question name (lower case) and type, the chain, and whether every RRset of it has RRSIGs."""


def take_over(data: bytes, end: int, now: float, max_ttl: int) -> Taken | None:
    """The chain in `data` up to `end` (where TSIG begins), TTLs limited as an answer's are; None: the long way."""
    usual = _USUAL(data, 2)
    if usual is None:
        return None
    flags, number, qname, qtype, rrtype, ttl, size = usual.groups()
    form = _KNOWN_FORMS.get(rrtype)
    if form is None or len(qname) > MAX_NAME:
        return None
    code, fixed, name_at = form
    qname = qname.lower()
    after = usual.end()
    if rrtype == qtype:
        start = after - 12
        seconds = int.from_bytes(ttl, "big")
        count = number[0] << 8 | number[1]
        length = size[0] << 8 | size[1]
        if fixed:
            # Records of one type, length and TTL all begin with the same twelve bytes; RRSIGs may follow them.
            records = count if count == 1 else data.count(data[start:after], start, end)
            plain = length == fixed and (records == 1 or _differ(data, start, length + 12, records))
        else:
            records = 1
            plain = name_at < 0
        stop = start + (12 + length) * records
        if plain and 0 < seconds <= MAX_TTL:
            if seconds > max_ttl:
                seconds = max_ttl
            if records == count and stop == end:
                return flags, qname, code, (_new(RRset, (qname, code, seconds, data[start:end], b"")),), False
            if records == count - 1:
                seconds = _signed_by_one(data, stop, end, rrtype, qname, int(now), seconds)
                if seconds > 0:
                    rrset = (qname, code, seconds, data[start:stop], data[stop:end])
                    return flags, qname, code, (_new(RRset, rrset),), True
    try:
        chain = _chain(data, after - 12, end, qname, qtype[0] << 8 | qtype[1], int(now), max_ttl)
    except (IndexError, KeyError, struct.error):
        return None
    return None if chain is None else (flags, qname, qtype[0] << 8 | qtype[1], *chain)


def _differ(data: bytes, start: int, stride: int, records: int) -> bool:
    """Whether that many records of equal head and length stand there, and no two are the same."""
    end = start + stride * records
    head = data[start : start + 12]
    if not all(data.startswith(head, at) for at in range(start, end, stride)):
        return False  # one of the heads that were counted is RDATA
    return len({data[at : at + stride] for at in range(start, end, stride)}) == records


def _signed_by_one(data: bytes, start: int, end: int, rrtype: bytes, owner: bytes, now: int, ttl: int) -> int:
    """The TTL that the one RRSIG from `start` to `end` leaves; 0: take the long way."""
    match = _ONE_RRSIG(data, start, end)
    if match is None:
        return 0
    this_ttl, covered, labels, original, expiration, inception, signer = match.groups()
    left = (int.from_bytes(expiration, "big") - now) & 0xFFFFFFFF
    if (
        covered != rrtype
        or this_ttl[0] & 0x80
        or original[0] & 0x80
        or labels[0] != label_count(owner)
        or left > MAX_TTL
        or (now - int.from_bytes(inception, "big")) & 0x80000000
        or start + 12 + (data[start + 10] << 8 | data[start + 11]) != end
        or owner.startswith(b"\x01*")
    ):
        return 0
    signer = signer.lower()
    if signer != owner[owner[0] + 1 :] and not is_at_or_below(owner, signer):
        return 0
    return min(ttl, int.from_bytes(this_ttl, "big"), int.from_bytes(original, "big"), left)


def _chain(
    data: bytes, position: int, end: int, qname: bytes, qtype: int, now: int, max_ttl: int
) -> tuple[tuple[RRset, ...], bool] | None:
    """A chain of several RRsets, or one with RRSIGs, or with names in RDATA; and whether all of it is signed."""
    count = data[6] << 8 | data[7]
    owner = qname
    pointer = _QUESTION
    chain: tuple[RRset, ...] = ()
    all_signed = True
    while True:
        rrtype, ttl, after, number = _rrset(data, position, count, pointer, max_ttl)
        if rrtype == rrtypes.CNAME and number > 1:
            return None
        rrs = data[position:after] if pointer == _QUESTION else _packed(data, position, after, number)
        if number > 1 and _repeats(rrs):
            return None
        start, position, count = position, after, count - number
        sigs = b""
        if count and data[position + 3] == rrtypes.RRSIG and not data[position + 2]:
            ttl, after, number = _signatures(data, position, count, pointer, rrtype, owner, now, ttl)
            sigs = data[position:after] if pointer == _QUESTION else _packed(data, position, after, number)
            position, count = after, count - number
        else:
            all_signed = False
        if ttl <= 0:
            return None
        chain += (_new(RRset, (owner, rrtype, ttl, rrs, sigs)),)
        if rrtype == qtype:
            return (chain, all_signed) if not count and position == end else None
        if rrtype != rrtypes.CNAME or len(chain) > MAX_LINKS or not count or start + 12 > 0x3FFF:
            return None
        pointer = 0xC000 | start + 12
        owner = rrs[12:].lower()
        if len(rrs) != 12 + (rrs[10] << 8 | rrs[11]) or any(owner == link[0] for link in chain):
            return None


def _rrset(data: bytes, position: int, count: int, pointer: int, ttl: int) -> tuple[int, int, int, int]:
    """(type, smallest TTL, where the RRset ends, number of records) of the records of one type at `position`.

    Number 0: take the long way. Raises `KeyError` for a type that always does.
    """
    number = 0
    wanted = fixed = name_at = -1
    while number < count:
        owner, rrtype, rrclass, this_ttl, size = _RECORD.unpack_from(data, position)
        if rrtype != wanted:
            if number:
                break
            fixed, name_at = _FORMS[rrtype]
            wanted = rrtype
        if owner != pointer or rrclass != 1 or this_ttl > MAX_TTL:
            return 0, 0, 0, 0
        if this_ttl < ttl:
            ttl = this_ttl
        position += 12
        if fixed:
            if size != fixed:
                return 0, 0, 0, 0
        elif name_at >= 0:
            at = position + name_at
            while length := data[at]:
                if length > 63:
                    return 0, 0, 0, 0
                at += length + 1
            if at + 1 != position + size or size > MAX_NAME:
                return 0, 0, 0, 0
        position += size
        number += 1
    return wanted, ttl if number else 0, position, number


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
            or this_ttl > MAX_TTL
            or original > MAX_TTL
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
    if data.startswith(owner[owner[0] + 1 :], position, end) or data.startswith(owner, position, end):
        return owner[0] != 1 or owner[1] != 0x2A  # a wildcard's own labels are counted otherwise: the long way
    at = position
    while length := data[at]:
        if length > 63:
            return False
        at += length + 1
    return at < end and is_at_or_below(owner, data[position : at + 1].lower())


def _packed(data: bytes, start: int, end: int, number: int) -> bytes:
    """The records with their owner made the pointer to offset 12, the form of `RRset.rrs`."""
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
