"""Walk, compose and age DNS messages on the wire (RFC 1035 section 4), decoding no RDATA but the names in it.

Gives and takes `RRset`s, whose records are packed wire bytes. Decides nothing about what a message means: flags,
evidence and policy are others'. Bad bytes end in `MessageError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from cachebus.answer import RRset
from cachebus.errors import MessageError
from cachebus.presentation import MAX_NAME
from cachebus.wire import rrtypes
from cachebus.wire.name import read_name, skip_name

QR = 0x8000
OPCODE = 0x7800
AA = 0x0400
TC = 0x0200
RD = 0x0100
RA = 0x0080
AD = 0x0020
CD = 0x0010
RCODE = 0x000F
DO = 0x8000
"""In the flags of an OPT record (RFC 3225)."""

NOERROR = 0
FORMERR = 1
SERVFAIL = 2
NXDOMAIN = 3
NOTIMP = 4
REFUSED = 5
BADVERS = 16

IN = 1
HEADER_LENGTH = 12
MAX_TTL = 0x7FFFFFFF
"""Seconds; a TTL with its top bit set is taken as 0 (RFC 2181 section 8)."""
OWNER_IS_QUESTION = b"\xc0\x0c"
"""Pointer to offset 12, the owner of every packed record."""

_HEADER = struct.Struct("!HHHHHH")
_FIXED = struct.Struct("!HHIH")
_PACKED = struct.Struct("!HHHIH")
_TYPE_CLASS = struct.Struct("!HH")
_RRSIG = struct.Struct("!HBBIIIH")
RRSIG_FIXED = _RRSIG.size

_NAMES_IN_RDATA = {
    2: (0, 1), 3: (0, 1), 4: (0, 1), 5: (0, 1), 6: (0, 2), 7: (0, 1), 8: (0, 1), 9: (0, 1), 12: (0, 1), 14: (0, 2),
    15: (2, 1), 17: (0, 2), 18: (2, 1), 21: (2, 1), 26: (2, 2), 30: (0, 1), 33: (6, 1), 36: (2, 1), 39: (0, 1),
}  # fmt: skip
"""Type -> (bytes before the names, names): the types whose names old senders may compress (RFC 3597 section 4, RFC
4034 section 6.2), NAPTR and the signatures apart. Whatever follows the names stays as it is."""
_SIGNATURES = frozenset({rrtypes.SIG, rrtypes.RRSIG})
_WITH_NAMES = frozenset(_NAMES_IN_RDATA) | _SIGNATURES | {rrtypes.NAPTR}
FIXED_LENGTH = {rrtypes.A: 4, rrtypes.AAAA: 16}
"""Types whose RDATA has one possible length, in bytes (RFC 1035 section 3.4.1, RFC 3596 section 2.2)."""


class Opt(NamedTuple):
    """The OPT pseudo-record of a message (RFC 6891 section 6.1)."""

    payload: int
    """Bytes of UDP payload that the sender takes."""
    version: int
    do: bool
    options: bytes
    """The options as on the wire: code, length, data, one after the other."""


class Message(NamedTuple):
    """A parsed DNS message. Records of classes other than IN are left out of the sections and counted."""

    id: int
    flags: int
    rcode: int
    """With the upper bits that OPT carries."""
    questions: int
    """QDCOUNT; the question fields below are those of the first."""
    question: bytes
    """The question section as on the wire, case kept; empty when there is none."""
    qname: bytes
    """Uncompressed, lower case; empty when there is no question."""
    qtype: int
    qclass: int
    answer: tuple[RRset, ...]
    authority: tuple[RRset, ...]
    additional: tuple[RRset, ...]
    opt: Opt | None
    other_class: int
    """Records of another class than IN."""
    tsig: bool
    """The last record is a TSIG; it is not checked here."""


class RRSIG(NamedTuple):
    """The fields of an RRSIG (RFC 4034 section 3.1). Times are 32-bit serial numbers (section 3.1.5)."""

    covered: int
    algorithm: int
    labels: int
    original_ttl: int
    expiration: int
    inception: int
    key_tag: int
    signer: bytes
    """Uncompressed, lower case."""


def parse(wire: bytes) -> Message:
    """Parse a whole message. Raises `MessageError` for any malformation and for bytes after the last record."""
    end = len(wire)
    if end < HEADER_LENGTH:
        raise MessageError("shorter than a header")
    ident, flags, questions, *counts = _HEADER.unpack_from(wire)
    position = HEADER_LENGTH
    qname, qtype, qclass = b"", 0, 0
    for index in range(questions):
        name, position = read_name(wire, position, end)
        if position + 4 > end:
            raise MessageError("the question is cut short")
        if not index:
            qname = name.lower()
            qtype, qclass = _TYPE_CLASS.unpack_from(wire, position)
        position += 4
    question = wire[HEADER_LENGTH:position]
    # Compression pointers lead into the question, so a resolver's 0x20 case would reach RDATA through it.
    wire = wire[:HEADER_LENGTH] + question.lower() + wire[position:] if questions == 1 else wire
    sections = []
    reader = _Reader(wire, end)
    for count in counts:
        rrsets, position = reader.section(position, count)
        sections.append(rrsets)
    if position != end:
        raise MessageError("bytes after the last record")
    rcode = flags & RCODE | reader.rcode_high << 4
    return Message(
        ident, flags, rcode, questions, question, qname, qtype, qclass,
        sections[0], sections[1], sections[2], reader.opt, reader.other_class, reader.tsig,
    )  # fmt: skip


def read_answer(wire: bytes, position: int, count: int, end: int) -> tuple[tuple[RRset, ...], int]:
    """Only the `count` records at `position`, grouped into RRsets, and the position after them.

    Raises `MessageError` as `parse` does, and for OPT, TSIG or a class other than IN among them.
    """
    reader = _Reader(wire, end)
    rrsets, position = reader.section(position, count)
    if reader.opt or reader.tsig or reader.other_class:
        raise MessageError("a record that no answer section holds")
    return rrsets, position


_Groups = dict[tuple[bytes, int], tuple[dict[bytes, None], list[int]]]
"""By owner and type: the distinct records in order, as keys, for there may be thousands; and their TTLs."""


class _Reader:
    """Reads sections into RRsets and remembers what belongs to the message as a whole."""

    def __init__(self, wire: bytes, end: int) -> None:
        self._wire = wire
        self._end = end
        self.opt: Opt | None = None
        self.rcode_high = 0
        self.other_class = 0
        self.tsig = False

    def section(self, position: int, count: int) -> tuple[tuple[RRset, ...], int]:
        wire, end = self._wire, self._end
        if count * 11 > end - position:
            raise MessageError("more records announced than there is room for")
        groups: _Groups = {}
        signatures: list[tuple[bytes, bytes, int]] = []
        for _ in range(count):
            owner, position = read_name(wire, position, end)
            if position + 10 > end:
                raise MessageError("a record is cut short")
            rrtype, rrclass, ttl, length = _FIXED.unpack_from(wire, position)
            start = position + 10
            position = start + length
            if position > end:
                raise MessageError("RDATA runs past the end of the message")
            if self.tsig:
                raise MessageError("a record after TSIG")
            if rrtype == rrtypes.OPT or rrtype == rrtypes.TSIG:
                self._pseudo(owner, rrtype, rrclass, ttl, wire[start:position])
                continue
            if rrclass != IN:
                self.other_class += 1
                continue
            owner = owner.lower()
            rdata = expand_rdata(wire, rrtype, start, position)
            if ttl > MAX_TTL:
                ttl = 0
            packed = _PACKED.pack(0xC00C, rrtype, rrclass, ttl, len(rdata)) + rdata
            if rrtype == rrtypes.RRSIG:
                signatures.append((owner, packed, ttl))
                continue
            group = groups.get((owner, rrtype))
            if group is None:
                groups[owner, rrtype] = ({packed: None}, [ttl])
            elif packed not in group[0]:
                group[0][packed] = None
                group[1].append(ttl)
        return tuple(_join(groups, signatures)), position

    def _pseudo(self, owner: bytes, rrtype: int, rrclass: int, ttl: int, rdata: bytes) -> None:
        if rrtype == rrtypes.TSIG:
            self.tsig = True
        elif self.opt is not None or owner != b"\0":
            raise MessageError("two OPT records, or one with an owner")
        else:
            self.opt = Opt(rrclass, ttl >> 16 & 0xFF, bool(ttl & DO), rdata)
            self.rcode_high = ttl >> 24


def _join(groups: _Groups, signatures: list[tuple[bytes, bytes, int]]) -> Iterable[RRset]:
    covering: _Groups = {}
    for owner, packed, ttl in signatures:
        covered = _TYPE_CLASS.unpack_from(packed, 12)[0]
        key = (owner, covered)
        if key in groups:
            groups[key][1].append(ttl)
        sigs = covering.setdefault(key, ({}, []))
        sigs[0][packed] = None
        sigs[1].append(ttl)
    for key, (rrs, ttls) in groups.items():
        sigs = covering.pop(key, ({}, []))
        yield RRset(key[0], key[1], min(ttls), b"".join(rrs), b"".join(sigs[0]))
    for (owner, _), (alone, ttls) in covering.items():
        yield RRset(owner, rrtypes.RRSIG, min(ttls), b"".join(alone))


def expand_rdata(wire: bytes, rrtype: int, start: int, end: int) -> bytes:
    """The RDATA at `start`..`end` with its names decompressed, their case kept.

    Raises `MessageError` when a name in it is malformed or an address has the wrong length.
    """
    if rrtype not in _WITH_NAMES:
        if end - start != FIXED_LENGTH.get(rrtype, end - start):
            raise MessageError("an address has the wrong length")
        return wire[start:end]
    if rrtype in _SIGNATURES:
        signer, after = read_name(wire, start + RRSIG_FIXED, end)
        if after - start - RRSIG_FIXED != len(signer):
            raise MessageError("a signer's name is compressed")  # RFC 4034 section 3.1.7 forbids it
        return wire[start:end]
    if rrtype == rrtypes.NAPTR:
        before, names = _naptr_name(wire, start, end) - start, 1
    else:
        before, names = _NAMES_IN_RDATA[rrtype]
    position = start + before
    pieces = [wire[start:position]]
    for _ in range(names):
        name, position = read_name(wire, position, end)
        pieces.append(name)
    rest = end - position
    if rest != (20 if rrtype == rrtypes.SOA else 0) and rrtype != rrtypes.NXT:
        raise MessageError("RDATA has the wrong length")
    pieces.append(wire[position:end])
    return b"".join(pieces)


def _naptr_name(wire: bytes, start: int, end: int) -> int:
    position = start + 4
    for _ in range(3):
        if position >= end:
            raise MessageError("RDATA has the wrong length")
        position += wire[position] + 1
    return position


def canonical_rdata(rrtype: int, rdata: bytes) -> bytes:
    """Uncompressed RDATA with the names in it in lower case (RFC 4034 section 6.2 point 3)."""
    if rrtype not in _WITH_NAMES:
        return rdata
    end = len(rdata)
    if rrtype in _SIGNATURES:
        after = skip_name(rdata, RRSIG_FIXED, end)
        return rdata[:RRSIG_FIXED] + rdata[RRSIG_FIXED:after].lower() + rdata[after:]
    before, names = (_naptr_name(rdata, 0, end), 1) if rrtype == rrtypes.NAPTR else _NAMES_IN_RDATA[rrtype]
    position = before
    for _ in range(names):
        position = skip_name(rdata, position, end)
    return rdata[:before] + rdata[before:position].lower() + rdata[position:]


def records(packed: bytes) -> list[tuple[int, int, bytes]]:
    """(type, TTL, RDATA) of each record in `RRset.rrs` or `RRset.sigs`."""
    found = []
    position = 2
    end = len(packed)
    while position < end:
        rrtype, _, ttl, length = _FIXED.unpack_from(packed, position)
        position += 10
        found.append((rrtype, ttl, packed[position : position + length]))
        position += length + 2
    return found


def pack(rrtype: int, ttl: int, rdatas: Iterable[bytes]) -> bytes:
    """Uncompressed RDATAs of class IN as packed records, the form of `RRset.rrs`."""
    return b"".join(_PACKED.pack(0xC00C, rrtype, IN, ttl, len(rdata)) + rdata for rdata in rdatas)


def same_data(one: RRset, other: RRset) -> bool:
    """Whether two RRsets hold the same set of RDATA: names case-blind, order, TTLs and RRSIGs ignored."""
    if one.rrs == other.rrs:
        return one.type == other.type
    if one.type != other.type or len(one.rrs) != len(other.rrs):
        return False
    return canonical_set(one) == canonical_set(other)


def canonical_set(rrset: RRset) -> frozenset[bytes]:
    """The RDATAs of an RRset in canonical form."""
    return frozenset(canonical_rdata(rrtype, rdata) for rrtype, _, rdata in records(rrset.rrs))


def rrsig_fields(rdata: bytes) -> RRSIG:
    """The fields of one RRSIG's RDATA. Raises `MessageError` when it is too short."""
    if len(rdata) <= RRSIG_FIXED:
        raise MessageError("an RRSIG is cut short")
    covered, algorithm, labels, original_ttl, expiration, inception, key_tag = _RRSIG.unpack_from(rdata)
    signer = rdata[RRSIG_FIXED : skip_name(rdata, RRSIG_FIXED, len(rdata))].lower()
    return RRSIG(covered, algorithm, labels, original_ttl, expiration, inception, key_tag, signer)


def cname_target(rrset: RRset) -> bytes:
    """Target of the first CNAME or DNAME record, lower case, uncompressed."""
    length = rrset.rrs[10] << 8 | rrset.rrs[11]
    return rrset.rrs[12 : 12 + length].lower()


def first_question(wire: bytes) -> tuple[bytes, int, int, int]:
    """Name (case kept), type and class of the first question, and the position after it; without a full parse.

    Raises `MessageError` when there is none or it is malformed.
    """
    end = len(wire)
    if end < HEADER_LENGTH or not (wire[4] or wire[5]):
        raise MessageError("no question")
    name, position = read_name(wire, HEADER_LENGTH, end)
    if position + 4 > end:
        raise MessageError("the question is cut short")
    qtype, qclass = _TYPE_CLASS.unpack_from(wire, position)
    return name, qtype, qclass, position + 4


class Composer:
    """Composes sections record by record, with owner names compressed against the question and earlier owners.

    RDATA is written as it is: only the names that senders have always been allowed to compress could be, and an answer
    gains nothing by it.
    """

    def __init__(self, question: bytes, qname: bytes, *, suffixes: bool = False) -> None:
        """`question`: the question section to write (empty for none); `qname`: its name, lower case.

        `suffixes`: owners also share the ends that they have in common with the question and with each other.
        """
        self._qname = qname
        self._suffixes = suffixes and bool(question)
        self._knows_question = False
        self._pieces = [question]
        self._length = HEADER_LENGTH + len(question)
        self._offsets = {qname: HEADER_LENGTH} if question else {}

    @property
    def length(self) -> int:
        """Bytes so far, header included."""
        return self._length

    def add(self, rrset: RRset, ttl: int, *, sigs: bool) -> int:
        """Append an RRset with every TTL set to `ttl`; gives the number of records."""
        packed = rrset.rrs + rrset.sigs if sigs else rrset.rrs
        owner = self._owner(rrset.owner)
        ttl_bytes = ttl.to_bytes(4, "big")
        pieces: list[bytes] = []
        position, end, count = 2, len(packed), 0
        while position < end:
            after = position + 10 + (packed[position + 8] << 8 | packed[position + 9])
            pieces += (owner, packed[position : position + 4], ttl_bytes, packed[position + 8 : after])
            owner = self._pointer(rrset.owner) or owner
            position = after + 2
            count += 1
        chunk = b"".join(pieces)
        if rrset.type == rrtypes.CNAME and count:
            self._remember_target(rrset, chunk)
        self._pieces.append(chunk)
        self._length += len(chunk)
        return count

    def _owner(self, owner: bytes) -> bytes:
        pointer = self._pointer(owner)
        if pointer:
            return pointer
        if self._suffixes:
            return self._shortened(owner)
        if self._length < 0x4000:
            self._offsets[owner] = self._length
        return owner

    def _shortened(self, owner: bytes) -> bytes:
        """The owner up to the longest end of it that stands in the message already, and a pointer to that."""
        if not self._knows_question:  # put off until there is an owner that is not the question's name
            self._knows_question = True
            self._know(self._qname, HEADER_LENGTH)
        position = 0
        while owner[position]:
            pointer = self._pointer(owner[position:])
            if pointer:
                self._know(owner, self._length, position)
                return owner[:position] + pointer
            position += owner[position] + 1
        self._know(owner, self._length)
        return owner

    def _know(self, name: bytes, offset: int, length: int = MAX_NAME) -> None:
        """Remember where a name of the message and its ends begin, those in its first `length` bytes."""
        position = 0
        while name[position] and position < length and offset + position < 0x4000:
            self._offsets.setdefault(name[position:], offset + position)
            position += name[position] + 1

    def _pointer(self, name: bytes) -> bytes | None:
        offset = self._offsets.get(name)
        return None if offset is None else (0xC000 | offset).to_bytes(2, "big")

    def _remember_target(self, rrset: RRset, chunk: bytes) -> None:
        # The next link's owner is this CNAME's target; its RDATA stands at the end of the first record.
        length = rrset.rrs[10] << 8 | rrset.rrs[11]
        start = skip_name(chunk, 0, len(chunk)) + 10
        offset = self._length + start
        target = chunk[start : start + length]
        if offset < 0x4000:
            self._offsets.setdefault(target.lower(), offset)

    def finish(self, ident: int, flags: int, counts: tuple[int, int, int, int]) -> bytes:
        """The message: header (ID, flags, the four counts), question, sections as appended."""
        return _HEADER.pack(ident, flags, *counts) + b"".join(self._pieces)

    def raw(self, record: bytes) -> None:
        """Append a whole record in wire form, such as OPT."""
        self._pieces.append(record)
        self._length += len(record)


def question_section(qname: bytes, qtype: int) -> bytes:
    """A question of class IN for an uncompressed name."""
    return qname + _TYPE_CLASS.pack(qtype, IN)


def compose(
    ident: int,
    flags: int,
    qname: bytes,
    qtype: int,
    rrsets: Iterable[tuple[RRset, int]],
    *,
    question: bool = True,
    sigs: bool = True,
) -> bytes:
    """A message of header, question and answer section; each RRset comes with the TTL to write, in seconds."""
    composer = Composer(question_section(qname, qtype) if question else b"", qname)
    count = 0
    for rrset, ttl in rrsets:
        count += composer.add(rrset, ttl, sigs=sigs)
    return composer.finish(ident, flags, (int(question), count, 0, 0))
