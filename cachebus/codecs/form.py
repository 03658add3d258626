"""What an answer of another node must look like, for codecs that carry RDATA one by one (trust rules 3 and 6.6).

Decides whether some RRsets are one whole answer to their question, and what TTLs are left to them. Refuses to know who
sent them and how. Nearly every answer is proved right in a few calls into C; whatever is unusual, doubtful or wrong
goes the long way over the chain rules, which has the reasons, so no rule stands in the short way alone.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from typing import Final

from cachebus.answer import Evidence, Refusal, RRset
from cachebus.errors import MessageError
from cachebus.filters.chain import assemble
from cachebus.presentation import check_name
from cachebus.wire import rrtypes
from cachebus.wire.message import MAX_TTL, expand_rdata, pack
from cachebus.wire.name import is_at_or_below, label_count

Raw = tuple[bytes, int, int, list[bytes], list[bytes]]
"""An RRset as it came: owner, type, TTL, its RDATAs, the RDATAs of its RRSIGs. All RDATA is uncompressed."""

MAX_LINKS: Final = 8
"""RRsets of a chain that is proved the short way."""
_MAX_RDATA: Final = 0xFFFF
MAX_PACKED: Final = 0xFFFF - 12 - 5
"""Bytes of an answer's packed records: what stands in a DNS message beside its header and the shortest question. More
was never learned by DNS, and could never be told to a client: it would only stand in the way of what can."""
_LONG_WAY = frozenset({3, 4, 7, 8, 9, 14, 17, 18, 21, 26, 35, 36, 39}) | rrtypes.NEVER_SHARED | rrtypes.INFRASTRUCTURE
_FIXED = {rrtypes.A: 4, rrtypes.AAAA: 16}
_NAME_AT = {rrtypes.CNAME: 0, rrtypes.PTR: 0, rrtypes.MX: 2, rrtypes.SRV: 6}
FORMS: Final[dict[int, tuple[int, int]]] = {
    rrtype: (_FIXED.get(rrtype, 0), _NAME_AT.get(rrtype, -1)) for rrtype in range(65536) if rrtype not in _LONG_WAY
}
"""Type -> (bytes that its RDATA must have, or 0; where its one name begins, or -1 for types without names). Types that
are not in it go the long way."""
_PACKED: Final = struct.Struct("!HHHIH").pack
_OWNER: Final = 0xC00C
_CNAME: Final = 5
_RRSIG: Final = 46
_LONGEST_NAME: Final = 255
_LONGEST_LABEL: Final = 63
_LONGEST_TTL: Final = 0x7FFFFFFF
_RRSIG_FIELDS: Final = struct.Struct("!HBBIII").unpack_from
"""Covered type, algorithm, labels, original TTL, expiration, inception (RFC 4034 section 3.1)."""
_SIGNER_AT: Final = 18
_new: Final = tuple.__new__

_LABEL = b"|".join(re.escape(bytes([length])) + b".{%d}" % length for length in range(1, 64))
_NAME = rb"(?:" + _LABEL + rb")*+\x00"
"""Labels are alternatives by length, taken without going back, as a walk would."""
_NAME_THERE: Final = re.compile(b"(?s)" + _NAME).match
_ONE_NAME: Final = re.compile(b"(?s)" + _NAME).fullmatch


def split_names(data: bytes) -> list[bytes] | None:
    """The names that stand one after the other in `data`, in lower case; None when anything else stands there."""
    data = data.lower()  # no length of a label is a letter
    names: list[bytes] = []
    start = position = 0
    end = len(data)
    while position < end:
        length = data[position]
        position += length + 1
        if length:
            if length > _LONGEST_LABEL:
                return None
        else:
            if position - start > _LONGEST_NAME:
                return None
            names.append(data[start:position])
            start = position
    return names if start == position == end else None


def check(
    qname: bytes,
    qtype: int,
    rrsets: Sequence[Raw],
    evidence: Evidence,
    learned: float,
    max_ttl: int,
    infrastructure: bool,
) -> tuple[RRset, ...] | Refusal:
    """The chain of RRsets that answers a question, TTLs limited from `learned` on; or why it is none.

    `learned` is when the TTLs begin, in seconds since the epoch; whether anything is left of them now, the caller has
    to see. All names are looked at. Types, TTLs and RDATAs may be anything within their Python types. Every RRset given
    must be part of the chain: `BROKEN_CHAIN` otherwise. `MALFORMED` for names or RDATA that are not well-formed or
    compressed, for RDATA or an RRSIG given twice, and for an RRset without any; `OVERSIZE` beyond `MAX_PACKED`.
    """
    for name in (qname, *[rrset[0] for rrset in rrsets if rrset[0] != qname]):
        try:
            check_name(name)
        except MessageError:
            return Refusal.MALFORMED
        if name != name.lower():
            return Refusal.MALFORMED
    return take(qname, qtype, rrsets, evidence, learned, max_ttl, infrastructure)


def take(
    qname: bytes,
    qtype: int,
    rrsets: Sequence[Raw],
    evidence: Evidence,
    learned: float,
    max_ttl: int,
    infrastructure: bool,
) -> tuple[RRset, ...] | Refusal:
    """`check` where question name and owners are known to be well-formed and in lower case."""
    chain = take_usual(qname, qtype, rrsets, evidence, learned, max_ttl)
    return _long_way(qname, qtype, rrsets, evidence, learned, max_ttl, infrastructure) if chain is None else chain


def take_usual(
    qname: bytes, qtype: int, rrsets: Sequence[Raw], evidence: Evidence, learned: float, max_ttl: int
) -> tuple[RRset, ...] | None:
    """The short way alone: a chain in order whose every part is proved right; None: the long way."""
    count = len(rrsets)
    if not 0 < count <= MAX_LINKS:
        return None
    name = qname
    chain: tuple[RRset, ...] = ()
    room = MAX_PACKED
    must_be_signed = evidence is Evidence.VALIDATED
    for owner, rrtype, ttl, rdatas, signatures in rrsets:
        count -= 1
        if owner != name or (rrtype != qtype if not count else rrtype != _CNAME or rrtype == qtype):
            return None
        rrset = usual_rrset(owner, rrtype, ttl, rdatas, signatures, learned, max_ttl)
        if rrset is None or (must_be_signed and not signatures):
            return None
        room -= len(rrset[3]) + len(rrset[4])
        chain += (rrset,)
        if count:
            name = rdatas[0].lower()
            if len(rdatas) > 1 or any(name == link[0] for link in chain):
                return None
    return chain if room >= 0 else None


def usual_rrset(
    owner: bytes, rrtype: int, ttl: int, rdatas: list[bytes], signatures: list[bytes], learned: float, max_ttl: int
) -> RRset | None:
    """One RRset with the TTL that is left to it from `learned` on; None: the long way."""
    form = FORMS.get(rrtype)
    if form is None or not 0 < ttl <= _LONGEST_TTL:
        return None
    fixed, name_at = form
    if len(rdatas) == 1:
        rdata = rdatas[0]
        size = len(rdata)
        if fixed:
            if size != fixed:
                return None
        elif name_at >= 0:
            if size - name_at > _LONGEST_NAME or _ONE_NAME(rdata, name_at) is None:
                return None
        elif size > MAX_PACKED - 12:
            return None
        rrs = _PACKED(_OWNER, rrtype, 1, ttl, size) + rdata
    else:
        packed = _several(rrtype, ttl, rdatas, fixed, name_at)
        if packed is None:
            return None
        rrs = packed
    if not signatures:
        return _new(RRset, (owner, rrtype, min(ttl, max_ttl), rrs, b""))
    if len({*signatures}) != len(signatures):
        return None
    sigs = b""
    left = min(ttl, max_ttl)
    now = math.ceil(learned)
    for signature in signatures:
        left = min(left, _left(signature, rrtype, owner, now))
        if left <= 0:
            return None
        sigs += _PACKED(_OWNER, _RRSIG, 1, ttl, len(signature)) + signature
    return _new(RRset, (owner, rrtype, left, rrs, sigs)) if len(rrs) + len(sigs) <= MAX_PACKED else None


def _several(rrtype: int, ttl: int, rdatas: list[bytes], fixed: int, name_at: int) -> bytes | None:
    """The records of an RRset of several, packed; None when one is wrong, doubtful or there twice."""
    if not rdatas or rrtype == _CNAME or len({*rdatas}) != len(rdatas):
        return None
    if fixed:
        for rdata in rdatas:
            if len(rdata) != fixed:
                return None
        if len(rdatas) * (12 + fixed) > MAX_PACKED:
            return None
        head = _PACKED(_OWNER, rrtype, 1, ttl, fixed)
        return head + head.join(rdatas)
    pieces: list[bytes] = []
    for rdata in rdatas:
        size = len(rdata)
        if name_at >= 0:
            if size - name_at > _LONGEST_NAME or _ONE_NAME(rdata, name_at) is None:
                return None
        elif size > _MAX_RDATA:
            return None
        pieces += (_PACKED(_OWNER, rrtype, 1, ttl, size), rdata)
    packed = b"".join(pieces)
    return packed if len(packed) <= MAX_PACKED else None


def _left(signature: bytes, covered: int, owner: bytes, now: int) -> int:
    """Seconds from `now`, rounded up, that an RRSIG leaves its RRset; 0: the long way."""
    end = len(signature) - 1
    if end <= _SIGNER_AT or end >= _MAX_RDATA:
        return 0
    fields: tuple[int, ...] = _RRSIG_FIELDS(signature)
    rrtype, _, labels, original, expiration, inception = fields
    left = (expiration - now) & 0xFFFFFFFF
    if (
        rrtype != covered
        or labels != label_count(owner)
        or original > _LONGEST_TTL
        or left > _LONGEST_TTL
        or (now - 1 - inception) & 0x80000000  # rounded up, `now` may be where it has not begun yet
        or owner.startswith(b"\x01*")  # a wildcard's own labels are counted otherwise
    ):
        return 0
    zone = owner[owner[0] + 1 :] or owner  # the signer nearly always is the owner's parent, or the owner
    if not (signature.startswith(zone, _SIGNER_AT, end) or signature.startswith(owner, _SIGNER_AT, end)):
        signer = _NAME_THERE(signature, _SIGNER_AT, end)
        if signer is None or not is_at_or_below(owner, signer[0].lower()):
            return 0
    return min(original, left)


def _long_way(
    qname: bytes,
    qtype: int,
    rrsets: Sequence[Raw],
    evidence: Evidence,
    learned: float,
    max_ttl: int,
    infrastructure: bool,
) -> tuple[RRset, ...] | Refusal:
    packed: dict[tuple[bytes, int], RRset] = {}
    for owner, rrtype, ttl, rdatas, signatures in rrsets:
        if (owner, rrtype) in packed:
            return Refusal.BROKEN_CHAIN
        try:
            packed[owner, rrtype] = _pack(owner, rrtype, ttl, rdatas, signatures)
        except MessageError:
            return Refusal.MALFORMED
    chain = assemble(
        qname, qtype, packed.values(), learned, max_ttl=max_ttl, evidence=evidence, infrastructure=infrastructure
    )
    if isinstance(chain, Refusal):
        return chain
    if sum([len(rrset.rrs) + len(rrset.sigs) for rrset in chain]) > MAX_PACKED:
        return Refusal.OVERSIZE
    return chain if packed.keys() <= {(rrset.owner, rrset.type) for rrset in chain} else Refusal.BROKEN_CHAIN


def _pack(owner: bytes, rrtype: int, ttl: int, rdatas: list[bytes], signatures: list[bytes]) -> RRset:
    """The RRset with every RDATA looked at. Raises `MessageError` for what is not one."""
    if not rdatas or len({*rdatas}) != len(rdatas) or len({*signatures}) != len(signatures):
        raise MessageError("an RRset is empty, or a record is there twice")
    if not 0 <= ttl <= 0xFFFFFFFF or not 0 <= rrtype <= 0xFFFF:
        raise MessageError("a TTL or type is out of range")
    if ttl > MAX_TTL:
        ttl = 0
    for code, found in ((rrtype, rdatas), (rrtypes.RRSIG, signatures)):
        for rdata in found:
            if len(rdata) > _MAX_RDATA or expand_rdata(rdata, code, 0, len(rdata)) != rdata:
                raise MessageError("RDATA is too long, or a name in it is compressed")
    for signature in signatures:
        if signature[0] << 8 | signature[1] != rrtype:
            raise MessageError("an RRSIG covers another type")
    return RRset(owner, rrtype, ttl, pack(rrtype, ttl, rdatas), pack(rrtypes.RRSIG, ttl, signatures))
