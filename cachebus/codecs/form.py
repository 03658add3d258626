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
from typing import TYPE_CHECKING, Final

from cachebus.answer import Evidence, Refusal, RRset
from cachebus.errors import MessageError
from cachebus.filters.chain import assemble
from cachebus.presentation import check_name
from cachebus.wire import rrtypes
from cachebus.wire.message import MAX_TTL, expand_rdata, pack
from cachebus.wire.name import is_at_or_below, label_count

if TYPE_CHECKING:
    from mypy_extensions import i64

Raw = tuple[bytes, int, int, list[bytes], list[bytes]]
"""An RRset as it came: owner, type, TTL, its RDATAs, the RDATAs of its RRSIGs. All RDATA is uncompressed."""

MAX_LINKS: Final = 8
"""RRsets of a chain that is proved the short way."""
_MAX_RDATA: Final = 0xFFFF
MAX_PACKED: Final = 0xFFFF - 12 - 5
"""Bytes of an answer's packed records: what stands in a DNS message beside its header and the shortest question. More
was never learned by DNS, and could never be told to a client: it would only stand in the way of what can."""
_LONG_WAY: Final = (
    frozenset({3, 4, 7, 8, 9, 14, 17, 18, 21, 26, 35, 36, 39}) | rrtypes.NEVER_SHARED | rrtypes.INFRASTRUCTURE
)
_FIXED: Final = {rrtypes.A: 4, rrtypes.AAAA: 16}
_NAME_AT: Final = {rrtypes.CNAME: 0, rrtypes.PTR: 0, rrtypes.MX: 2, rrtypes.SRV: 6}
FORMS: Final[dict[int, tuple[int, int]]] = {
    rrtype: (_FIXED.get(rrtype, 0), _NAME_AT.get(rrtype, -1)) for rrtype in range(65536) if rrtype not in _LONG_WAY
}
"""Type -> (bytes that its RDATA must have, or 0; where its one name begins, or -1 for types without names). Types that
are not in it go the long way."""
_PACKED: Final = struct.Struct("!HHHIH").pack
_OWNER: Final = 0xC00C
_CNAME: Final = 5
_SIGNATURE_START: Final = _PACKED(_OWNER, rrtypes.RRSIG, 1, 0, 0)[:6]
_LONGEST_NAME: Final = 255
_LONGEST_LABEL: Final = 63
_LONGEST_TTL: Final = 0x7FFFFFFF
_U32: Final = 0xFFFFFFFF
_FEW: Final = 8
"""RDATAs up to which each is compared with each: it is quicker than to make a set."""
_LENGTH: Final = struct.Struct("!H").pack
_LENGTHS: Final[list[bytes]] = [size.to_bytes(2, "big") for size in range(256)]
_SIGNER_AT: Final = 18
_new: Final = tuple.__new__
_RRSET: Final[type[RRset]] = RRset

_LABEL: Final = b"|".join(re.escape(bytes([length])) + b".{%d}" % length for length in range(1, 64))
_NAME: Final = rb"(?:" + _LABEL + rb")*+\x00"
"""Labels are alternatives by length, taken without going back, as a walk would."""
_NAME_THERE: Final = re.compile(b"(?s)" + _NAME).match


def split_names(data: bytes) -> list[bytes] | None:
    """The names that stand one after the other in `data`, in lower case; None when anything else stands there."""
    data = data.lower()  # no length of a label is a letter
    names: list[bytes] = []
    start: i64 = 0
    position: i64 = 0
    end: i64 = len(data)
    while position < end:
        length: i64 = data[position]
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
    if not rdatas or not 0 < ttl <= _LONGEST_TTL:
        return None
    shape = Shape(rrtype, ttl, max_ttl)
    if not signatures:
        return shape.rrset(owner, rdatas, 0, len(rdatas), 0, learned)
    return shape.rrset(owner, rdatas + signatures, 0, len(rdatas), len(signatures), learned)


class Shape:
    """What type and TTL say of an RRset. Many RRsets have them in common."""

    __slots__ = ("_fixed", "_head", "_name_at", "_ttl", "ttl", "type", "usual")

    def __init__(self, rrtype: int, ttl: int, max_ttl: int) -> None:
        """Anything within the Python types."""
        form = FORMS.get(rrtype)
        self.type = rrtype
        self.ttl = ttl
        """As it came."""
        self.usual = form is not None and 0 < ttl <= _LONGEST_TTL
        """Whether `rrset` may give one."""
        self._fixed: i64 = 0
        self._name_at: i64 = -1
        self._ttl: i64 = 0
        self._head = b""
        if form is not None and self.usual:
            fixed, name_at = form
            self._fixed, self._name_at = fixed, name_at
            self._ttl = min(ttl, max_ttl)
            head = _PACKED(_OWNER, rrtype, 1, ttl, fixed)
            self._head = head if fixed else head[:-2]
            """A record before its RDATA; before its RDLENGTH, where that is not the same for all."""

    def rrset(
        self, owner: bytes, rdatas: list[bytes], start: i64, records: i64, signatures: i64, learned: float
    ) -> RRset | None:
        """The RRset whose `records`, at least one, and then RRSIGs begin at `start`, as `usual_rrset` gives it."""
        if not self.usual:
            return None
        fixed = self._fixed
        if records == 1:
            rdata = rdatas[start]
            size: i64 = len(rdata)
            if fixed:
                if size != fixed:
                    return None
                rrs = self._head + rdata
            else:
                if self._name_at >= 0:
                    if not _is_name_at(rdata, self._name_at):
                        return None
                elif size > MAX_PACKED - 12:
                    return None
                rrs = b"%b%b%b" % (self._head, _length(size), rdata)
        else:
            packed = self._several(rdatas, start, start + records)
            if packed is None:
                return None
            rrs = packed
        if not signatures:
            return _new(_RRSET, (owner, self.type, self._ttl, rrs, b""))
        return self._signed(owner, rrs, rdatas, start + records, signatures, math.ceil(learned))

    def _signed(self, owner: bytes, rrs: bytes, rdatas: list[bytes], start: i64, number: i64, now: int) -> RRset | None:
        if number > 1 and _repeat(rdatas, start, start + number):
            return None
        head = _SIGNATURE_START + self._head[6:10]
        sigs = b""
        left = self._ttl
        position = start
        while position < start + number:
            signature = rdatas[position]
            lasts = _left(signature, self.type, owner, now)
            if lasts <= 0:
                return None
            left = min(left, lasts)
            sigs += b"%b%b%b" % (head, _length(len(signature)), signature)
            position += 1
        return _new(_RRSET, (owner, self.type, left, rrs, sigs)) if len(rrs) + len(sigs) <= MAX_PACKED else None

    def _several(self, rdatas: list[bytes], start: i64, end: i64) -> bytes | None:
        """The records of an RRset of several, packed; None when one is wrong, doubtful or there twice."""
        if self.type == _CNAME or _repeat(rdatas, start, end):
            return None
        fixed, name_at, head = self._fixed, self._name_at, self._head
        position = start
        if fixed:
            if (end - start) * (12 + fixed) > MAX_PACKED:
                return None
            while position < end:
                if len(rdatas[position]) != fixed:
                    return None
                position += 1
            return head + head.join(rdatas[start:end])
        pieces: list[bytes] = []
        while position < end:
            rdata = rdatas[position]
            size: i64 = len(rdata)
            if name_at >= 0:
                if not _is_name_at(rdata, name_at):
                    return None
            elif size > _MAX_RDATA:
                return None
            pieces.append(b"%b%b%b" % (head, _length(size), rdata))
            position += 1
        packed = b"".join(pieces)
        return packed if len(packed) <= MAX_PACKED else None


def _repeat(rdatas: list[bytes], start: i64, end: i64) -> bool:
    """Whether two from `start` to `end` are the same."""
    if end - start > _FEW:
        return len({*rdatas[start:end]}) != end - start
    one = start
    while one < end:
        rdata = rdatas[one]
        one += 1
        other = one
        while other < end:
            if rdatas[other] == rdata:
                return True
            other += 1
    return False


def _length(size: i64) -> bytes:
    """A length that 16 bits hold, on the wire."""
    return _LENGTHS[size] if size < len(_LENGTHS) else _LENGTH(size)


def _is_name_at(rdata: bytes, position: i64) -> bool:
    """Whether exactly one uncompressed name stands from `position` to the end."""
    end: i64 = len(rdata)
    if end - position > _LONGEST_NAME:
        return False
    while position < end:
        length: i64 = rdata[position]
        if not length:
            return position == end - 1
        if length > _LONGEST_LABEL:
            return False
        position += length + 1
    return False


def u32(data: bytes, at: i64) -> i64:
    """Four bytes as a number."""
    a: i64 = data[at]
    b: i64 = data[at + 1]
    c: i64 = data[at + 2]
    d: i64 = data[at + 3]
    return a << 24 | b << 16 | c << 8 | d


def _stands_at(piece: bytes, data: bytes, start: i64, end: i64) -> bool:
    after = start + len(piece)
    return after <= end and data[start:after] == piece


def _left(signature: bytes, covered: i64, owner: bytes, now: int) -> i64:
    """Seconds from `now`, rounded up, that an RRSIG leaves its RRset; 0: the long way."""
    end: i64 = len(signature) - 1
    if end <= _SIGNER_AT or end >= _MAX_RDATA:
        return 0
    # Covered type, algorithm, labels, original TTL, expiration, inception (RFC 4034 section 3.1).
    rrtype: i64 = signature[0] << 8 | signature[1]
    labels: i64 = signature[3]
    original = u32(signature, 4)
    moment: i64 = now & _U32
    left: i64 = (u32(signature, 8) - moment) & _U32
    if (
        rrtype != covered
        or labels != label_count(owner)
        or original > _LONGEST_TTL
        or left > _LONGEST_TTL
        or (moment - 1 - u32(signature, 12)) & 0x80000000  # rounded up, `now` may be where it has not begun yet
        or owner.startswith(b"\x01*")  # a wildcard's own labels are counted otherwise
    ):
        return 0
    zone = owner[owner[0] + 1 :] or owner  # the signer nearly always is the owner's parent, or the owner
    if not (_stands_at(zone, signature, _SIGNER_AT, end) or _stands_at(owner, signature, _SIGNER_AT, end)):
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
