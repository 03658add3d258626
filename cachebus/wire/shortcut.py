"""The short way through a bus message: take its answer section over as it stands, where it stands as senders put it.

That is: one question; the RRsets of one chain in order, each followed by its RRSIGs; owners written as pointers to the
question, or to the CNAME that leads to them; names in RDATA uncompressed. Nearly every message is like that, and costs
a fraction of a full parse. Header, question and first record are matched by one regular expression: one call into C for
what takes a hundred steps otherwise. Decides nothing: whatever is unusual, doubtful or wrong gives None, and takes the
long way, which has the reasons. So no rule stands here alone.
"""

from __future__ import annotations

import math
import re
import struct
from typing import Final

from cachebus.answer import RRset
from cachebus.presentation import MAX_NAME
from cachebus.wire import rrtypes
from cachebus.wire.message import AD, CD, MAX_TTL, QR, RCODE, TC
from cachebus.wire.name import is_at_or_below, label_count
from cachebus.wire.tsig import Verified

MAX_LINKS = 8
"""CNAMEs of a chain that is taken this way."""
_QUESTION: Final = 0xC00C
_OWNER: Final = b"\xc0\x0c"
_new: Final = tuple.__new__
_RECORD: Final = struct.Struct("!HHHIH")
"""Owner as a pointer, type, class, TTL, RDLENGTH."""
_SIGNATURE: Final = struct.Struct("!HBBIII")
"""RRSIG RDATA: covered, algorithm, labels, original TTL, expiration, inception (RFC 4034 section 3.1)."""
_LONG_WAY: Final = (
    frozenset({3, 4, 7, 8, 9, 14, 17, 18, 21, 26, 35, 36, 39}) | rrtypes.NEVER_SHARED | rrtypes.INFRASTRUCTURE
)
_STRIDE: Final = {rrtypes.A: 16, rrtypes.AAAA: 28}
_NAME_AT: Final = {rrtypes.CNAME: 12, rrtypes.PTR: 12, rrtypes.MX: 14, rrtypes.SRV: 18}
_FORMS: dict[int, tuple[int, int]] = {
    rrtype: (_STRIDE.get(rrtype, 0), _NAME_AT.get(rrtype, -1)) for rrtype in range(65536) if rrtype not in _LONG_WAY
}
"""Type -> (bytes that a packed record must have, or 0; where a name begins in it, or -1)."""

_LABEL: Final = b"|".join(re.escape(bytes([length])) + b".{%d}" % length for length in range(1, 64))
_NAME: Final = rb"(?:" + _LABEL + rb")*+\x00"
"""Labels are alternatives by length, taken without going back, as a walk would."""
_USUAL: Final = re.compile(
    b"(?s)(" + _NAME + rb")(..)\x00\x01"  # the question's name and type, class IN
    rb"(\xc0\x0c(..)\x00\x01.{6}.*)"  # all records; the first is of the question: type, class IN, TTL, RDLENGTH
).match
_ONE_NAME: Final = re.compile(b"(?s)" + _NAME).fullmatch
_NAME_THERE: Final = re.compile(b"(?s)" + _NAME).match
_ONE_RRSIG: Final = struct.Struct("!HHHIHHBBIIIH")
"""An RRSIG record up to the signer's name (RFC 4034 section 3.1)."""
_TTL_AND_SIZE: Final = struct.Struct("!IH").unpack_from
_RDATAS: Final = {stride: struct.Struct(f"!12x{stride - 12}s").iter_unpack for stride in _STRIDE.values()}
"""Bytes of a packed record -> what gives the RDATA of each of such records, as a tuple of one."""
_ALIKE: Final = {
    stride: re.compile(rb"(?s)(.{12}).{%d}(?:\1.{%d})*+" % (stride - 12, stride - 12)).fullmatch
    for stride in _STRIDE.values()
}
"""Bytes of a packed record -> what matches such records whose owner, type, class, TTL and length are the same."""
_CNAME: Final = b"\x00\x05"
_KNOWN_FORMS: Final = {rrtype.to_bytes(2, "big"): (rrtype, *form) for rrtype, form in _FORMS.items()}

_MOST_RECORDS: Final = 32
"""ANCOUNT up to which a header is in the table."""
_HEADERS: dict[bytes, tuple[bool, int]] = {
    struct.pack("!HHHH", flags, 1, count, 0): (bool(flags & AD), count)
    for flags in range(QR, QR | 0x800)
    if not flags & (TC | CD | RCODE)
    for count in range(1, _MOST_RECORDS + 1)
}
"""Flags (response, QUERY, not truncated, checked, NOERROR), one question, ANCOUNT, no authority -> (AD, ANCOUNT)."""

Taken = tuple[bool, bytes, int, tuple[RRset, ...], bool]
"""Whether AD is set, question name (lower case) and type, the chain, and whether every RRset of it has RRSIGs."""


def take_over(message: Verified, now: float, max_ttl: int) -> Taken | None:
    """The chain in the answer section, TTLs limited as an answer's are; None: the long way."""
    header, body, _ = message
    known = _HEADERS.get(header)
    usual = _USUAL(body)
    if known is None or usual is None:
        return None
    claims, count = known
    second = math.ceil(now)
    qname, qtype, rrs, rrtype = usual.groups()
    form = _KNOWN_FORMS.get(rrtype)
    if form is None or len(qname) > MAX_NAME:
        return None
    qname = qname.lower()
    if rrtype == qtype:
        code, fixed, name_at = form
        ttl, size = _TTL_AND_SIZE(rrs, 6)
        stride = 12 + size
        number = 1
        if fixed:
            if count > 1 and stride * (number := count) != len(rrs):
                number -= 1
            plain = stride == fixed and (number == 1 or _rdatas(rrs[: stride * number], fixed, number) is not None)
        else:
            plain = name_at < 0 or _name_fits(rrs, name_at, stride)
        if plain and 0 < ttl <= MAX_TTL:
            stop = stride * number
            if ttl > max_ttl:
                ttl = max_ttl
            if number == count:
                if stop == len(rrs):
                    return claims, qname, code, (_new(RRset, (qname, code, ttl, rrs, b"")),), False
            elif number == count - 1:
                ttl = _signed_by_one(rrs, stop, len(rrs), _QUESTION, code, qname, second, ttl)
                if ttl > 0:
                    return claims, qname, code, (_new(RRset, (qname, code, ttl, rrs[:stop], rrs[stop:])),), True
    wanted = qtype[0] << 8 | qtype[1]
    at = 12 + len(body) - len(rrs)
    found = None
    if rrtype == _CNAME and count <= _MOST_RECORDS:
        found = _alias(rrs, count, at, qname, qtype, second, max_ttl)
    if found is None:
        try:
            found = _chain(rrs, count, at, qname, wanted, second, max_ttl)
        except (IndexError, KeyError, struct.error):
            return None
    return None if found is None else (claims, qname, wanted, *found)


def _name_fits(record: bytes, start: int, end: int) -> bool:
    """Whether exactly one uncompressed name stands there."""
    return end - start <= MAX_NAME and _ONE_NAME(record, start, end) is not None


def _rdatas(rrs: bytes, stride: int, number: int) -> list[bytes] | None:
    """The RDATA of that many records of one length, if they differ in RDATA and in nothing else."""
    if len(rrs) != stride * number or _ALIKE[stride](rrs) is None:
        return None
    rdatas: list[bytes] = [rdata for (rdata,) in _RDATAS[stride](rrs)]
    return rdatas if len({*rdatas}) == number else None


def _alias(
    rrs: bytes, count: int, at: int, qname: bytes, qtype: bytes, now: int, max_ttl: int
) -> tuple[tuple[RRset, ...], bool] | None:
    """One CNAME and its target's addresses, each with one RRSIG or none: nearly every chain. `at`: see `_chain`."""
    form = _KNOWN_FORMS.get(qtype)
    ttl, size = _TTL_AND_SIZE(rrs, 6)
    stop = after = 12 + size
    end = len(rrs)
    if form is None or not form[1] or ttl > MAX_TTL or end < stop + 16 or not _name_fits(rrs, 12, stop):
        return None
    ttl = min(ttl, max_ttl)
    if rrs[stop + 3] == rrtypes.RRSIG:
        after += 12 + (rrs[stop + 10] << 8 | rrs[stop + 11])
        ttl = _signed_by_one(rrs, stop, after, _QUESTION, rrtypes.CNAME, qname, now, ttl)
        count -= 1
    code, stride, _ = form
    number = count - 1
    behind = after + stride * number
    if behind != end:
        number -= 1
        behind -= stride
    rdatas = _rdatas(rrs[after:behind], stride, number) if number > 0 else None
    if rdatas is None:
        return None
    pointer, rrtype, rrclass, last_ttl, size = _RECORD.unpack_from(rrs, after)
    target = rrs[12:stop].lower()
    if (
        pointer != 0xC000 | at + 12
        or rrtype != code
        or rrclass != 1
        or 12 + size != stride
        or last_ttl > MAX_TTL
        or target == qname
    ):
        return None
    last_ttl = min(last_ttl, max_ttl)
    sigs = b""
    if behind != end:
        last_ttl = _signed_by_one(rrs, behind, end, pointer, code, target, now, last_ttl)
        sigs = _OWNER + rrs[behind + 2 :]
    if ttl <= 0 or last_ttl <= 0:
        return None
    head = _OWNER + rrs[after + 2 : after + 12]
    cname = (qname, rrtypes.CNAME, ttl, rrs[:stop], rrs[stop:after])
    last = (target, code, last_ttl, head + head.join(rdatas), sigs)
    return (_new(RRset, cname), _new(RRset, last)), after > stop and behind < end


def _signed_by_one(data: bytes, start: int, end: int, owned: int, code: int, owner: bytes, now: int, ttl: int) -> int:
    """The TTL that the one RRSIG from `start` to `end` leaves; 0: take the long way. `owned`: pointer to its owner.

    `now`: rounded up, as nothing outlives its RRSIG; an RRSIG that began less than a second before goes the long way.
    """
    if not start + _ONE_RRSIG.size < end <= len(data):
        return 0
    fields: tuple[int, ...] = _ONE_RRSIG.unpack_from(data, start)
    pointer, rrtype, rrclass, this_ttl, size, covered, _, labels, original, expiration, inception, _ = fields
    left = (expiration - now) & 0xFFFFFFFF
    if (
        pointer != owned
        or rrtype != rrtypes.RRSIG
        or rrclass != 1
        or start + 12 + size != end
        or covered != code
        or labels != label_count(owner)
        or this_ttl > MAX_TTL
        or original > MAX_TTL
        or left > MAX_TTL
        or (now - 1 - inception) & 0x80000000
        or not _signer_fits(data, start + 30, end, owner)
    ):
        return 0
    return min(ttl, this_ttl, original, left)


def _chain(
    data: bytes, count: int, at: int, qname: bytes, qtype: int, now: int, max_ttl: int
) -> tuple[tuple[RRset, ...], bool] | None:
    """A chain of any RRsets, and whether all of it is signed. `data`: that many records, which stand at `at`."""
    position, end = 0, len(data)
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
            if number > 1 and _repeats(sigs):
                return None
        else:
            all_signed = False
        if ttl <= 0:
            return None
        chain += (_new(RRset, (owner, rrtype, ttl, rrs, sigs)),)
        if rrtype == qtype:
            return (chain, all_signed) if not count and position == end else None
        if rrtype != rrtypes.CNAME or len(chain) > MAX_LINKS or not count or at + start + 12 > 0x3FFF:
            return None
        pointer = 0xC000 | at + start + 12
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
            if size != fixed - 12:
                return 0, 0, 0, 0
        elif name_at >= 0 and not _name_fits(data, position + name_at - 12, position + size):
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
            or (now - 1 - inception) & 0x80000000
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
    if owner.startswith(b"\x01*"):
        return False  # a wildcard's own labels are counted otherwise: the long way
    zone = owner[owner[0] + 1 :] or owner
    if data.startswith(zone, position, end - 1) or data.startswith(owner, position, end - 1):
        return True
    signer = _NAME_THERE(data, position, end - 1)
    return signer is not None and is_at_or_below(owner, signer[0].lower())


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
