"""Takes a client's bytes apart: a question that may be asked, a reply that refuses it, or silence. Works on the wire.

Decides only what the message itself tells (RFC 1035, 6891, 8945, 9619). Knows neither who sent it nor any data.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from cachebus.answer import RRset
from cachebus.presentation import MAX_LABEL, MAX_NAME
from cachebus.wire import rrtypes
from cachebus.wire.message import AD, BADVERS, CD, FORMERR, HEADER_LENGTH, NOTIMP, OPCODE, QR, RD, REFUSED

NOTAUTH = 9
"""RCODE for a message signed with a key that is not known here (RFC 8945 section 5.2.1)."""
MAX_ADDITIONAL = 2
"""OPT and TSIG; a query has no use for a third additional record."""
MIN_PAYLOAD = 512
"""Smaller EDNS sizes count as this (RFC 6891 section 6.2.3), and clients without EDNS take it (RFC 1035 4.2.1)."""

_CLASS_IN = b"\0\1"
_REFUSED_TYPES = frozenset({251, 252})
"""IXFR and AXFR: there is no zone here to transfer."""
_MALFORMED_TYPES = frozenset({0, rrtypes.OPT, 249, rrtypes.TSIG, 253, 254})
"""Types that no question may carry: 0, OPT, TKEY, TSIG, MAILB, MAILA (the last two obsolete, RFC 1035 3.2.3)."""
_META_TYPES = range(128, 249)
"""Reserved for further question and meta types (RFC 6895 section 3.1)."""


class Ede:
    """Extended DNS Error codes the shim uses (RFC 8914 section 4)."""

    OTHER = 0
    STALE_ANSWER = 3
    CACHED_ERROR = 13
    NOT_READY = 14
    BLOCKED = 15
    CENSORED = 16
    FILTERED = 17
    PROHIBITED = 18
    STALE_NXDOMAIN = 19
    NOT_AUTHORITATIVE = 20
    NO_REACHABLE_AUTHORITY = 22
    NETWORK_ERROR = 23
    SYNTHESIZED = 29


class Channel(Enum):
    """The way a message came, which its reply takes too."""

    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"
    HTTPS = "https"
    QUIC = "quic"

    @property
    def is_encrypted(self) -> bool:
        """Nobody on the way reads it, but its size shows."""
        return self not in (Channel.UDP, Channel.TCP)


class Edns(NamedTuple):
    """What the client's OPT record says (RFC 6891)."""

    payload: int
    """Largest UDP reply it takes, at least 512."""
    do: bool
    options: bytes = b""
    """All options, as sent; found to be well formed."""


class Query(NamedTuple):
    """One question of one client. `qname` and `qtype` are what look-ups need; the rest shapes the reply."""

    id: bytes
    flags: int
    question: bytes
    """The question section as sent, case kept."""
    qname: bytes
    """Uncompressed wire form, lower case."""
    qtype: int
    edns: Edns | None
    client: str = ""
    """The client's address, where its subnet is told to upstreams; else empty."""

    @property
    def is_plain(self) -> bool:
        """No EDNS option asks for anything, so over UDP the reply depends on the question and the EDNS size alone."""
        return self.edns is None or not self.edns.options

    @property
    def do(self) -> bool:
        """The client takes DNSSEC records (RFC 3225)."""
        return self.edns is not None and self.edns.do

    @property
    def wants_ad(self) -> bool:
        """The client understands the AD bit (RFC 6840 section 5.7)."""
        return bool(self.flags & AD) or self.do

    @property
    def checking_disabled(self) -> bool:
        """CD=1: the client validates itself (RFC 4035 section 3.2.2)."""
        return bool(self.flags & CD)

    @property
    def recursion_desired(self) -> bool:
        """RD=1."""
        return bool(self.flags & RD)


class Error(NamedTuple):
    """A refusal that is answered: an extended RCODE, for as much of the query as could be read."""

    id: bytes
    flags: int
    question: bytes
    edns: Edns | None
    rcode: int
    tsig: bytes = b""
    """The TSIG record of an unsigned error reply, wire form, or nothing."""


class Drop(Enum):
    """Why bytes get no reply at all. The value is the counter's name."""

    SHORT = "dropped_short"
    """Less than a header: there is no ID to reply to."""
    RESPONSE = "dropped_response"
    """QR=1: a reply to it could start an endless exchange between two servers."""


class Response(NamedTuple):
    """What the reply to a question is to say, before it is put on the wire for one client."""

    rcode: int
    answer: tuple[RRset, ...] = ()
    """`ttl` of each is what remains now."""
    authority: tuple[RRset, ...] = ()
    """SOA of a negative answer, and denial proofs; proofs go to DO=1 clients only."""
    authentic: bool = False
    """Every RRset is `validated`."""
    errors: tuple[tuple[int, str], ...] = ()
    """Extended DNS Errors: (code, text)."""
    additional: tuple[RRset, ...] = ()
    """What may be left out where it does not fit."""
    scope: int = 0
    """Bits of the client's network for which this is the answer; 0: everybody, -1: this client alone."""
    subnet: bytes = b""
    """Data of the client subnet option in the reply, for a client that sent one."""


def parse_query(wire: bytes) -> Query | Error | Drop:
    """Take one message from a client. Never raises: any bytes give one of the three.

    Checks in the order in which a reply can still be made: header, opcode, question, additional records, class, type.
    """
    if len(wire) < HEADER_LENGTH:
        return Drop.SHORT
    flags = wire[2] << 8 | wire[3]
    if flags & QR:
        return Drop.RESPONSE
    name_end = end_of_name(wire, HEADER_LENGTH)
    if flags & OPCODE or wire[4:10] != b"\0\1\0\0\0\0" or not name_end or name_end + 4 > len(wire):
        return _unusual(wire, flags, name_end)
    position = name_end + 4
    question = wire[HEADER_LENGTH:position]
    edns, version, tsig = None, 0, b""
    if wire[10:12] != b"\0\0":
        extra = _additional(wire, position)
        if extra is None:
            return Error(wire[:2], flags, question, None, FORMERR)
        edns, version, tsig = extra
    elif position != len(wire):
        return Error(wire[:2], flags, question, None, FORMERR)
    qtype = question[-4] << 8 | question[-3]
    if version:
        return Error(wire[:2], flags, question, edns, BADVERS)
    if tsig:
        return Error(wire[:2], flags, question, edns, NOTAUTH, tsig)
    if qtype in _MALFORMED_TYPES or qtype in _META_TYPES:
        return Error(wire[:2], flags, question, edns, FORMERR)
    if question[-2:] != _CLASS_IN or qtype in _REFUSED_TYPES:
        return Error(wire[:2], flags, question, edns, REFUSED)
    return Query(wire[:2], flags, question, question[:-4].lower(), qtype, edns)


def _unusual(wire: bytes, flags: int, name_end: int) -> Error:
    """The refusal of what is no question: with EDNS, where that can be read, because the client sent it.

    RFC 6891 section 6.1.1 wants an OPT for an OPT. A message without a question may ask for a cookie.
    """
    rcode = NOTIMP if flags & OPCODE else FORMERR
    counts, position = wire[4:10], HEADER_LENGTH
    if counts == b"\0\1\0\0\0\0" and name_end:
        position = name_end + 4
    elif counts != bytes(6):
        return Error(wire[:2], flags, b"", None, rcode)
    extra = _additional(wire, position) if position <= len(wire) else None
    if extra is None:
        return Error(wire[:2], flags, b"", None, rcode)
    edns, version, _ = extra
    if rcode == NOTIMP:  # what stands in the question's place is something else there
        return Error(wire[:2], flags, b"", edns, NOTIMP)
    return Error(wire[:2], flags, wire[HEADER_LENGTH:position], edns, BADVERS if version else FORMERR)


def end_of_name(wire: bytes, position: int) -> int:
    """Position after an uncompressed name, 0 when there is none: a query has nothing that a pointer could lead to."""
    start, size = position, len(wire)
    while position < size:
        length = wire[position]
        if length > MAX_LABEL:
            return 0
        position += length + 1
        if position - start > MAX_NAME:
            return 0
        if not length:
            return position
    return 0


def _additional(wire: bytes, position: int) -> tuple[Edns | None, int, bytes] | None:
    """EDNS, its version, and the TSIG record of the error reply; None when the records are malformed."""
    count = wire[10] << 8 | wire[11]
    if count > MAX_ADDITIONAL:
        return None
    edns, version, tsig = None, 0, b""
    for _ in range(count):
        start, position = position, end_of_name(wire, position)
        if not position or tsig or position + 10 > len(wire):
            return None  # nothing may stand behind TSIG (RFC 8945 section 5.1)
        end = position + 10 + (wire[position + 8] << 8 | wire[position + 9])
        if end > len(wire):
            return None
        rrtype = wire[position] << 8 | wire[position + 1]
        if rrtype == rrtypes.OPT:
            if edns is not None or wire[start]:
                return None
            payload = wire[position + 2] << 8 | wire[position + 3]
            version = wire[position + 5]
            options = b"" if version else wire[position + 10 : end]  # a later version's may have any form
            if options and not _well_formed_options(options):
                return None
            edns = Edns(max(payload, MIN_PAYLOAD), bool(wire[position + 6] & 0x80), options)
        elif rrtype == rrtypes.TSIG:
            tsig = _bad_key(wire[start:position], wire[position : position + 8], wire[position + 10 : end])
            if not tsig:
                return None
        position = end
    return (edns, version, tsig) if position == len(wire) else None


def _well_formed_options(options: bytes) -> bool:
    position = 0
    while position + 4 <= len(options):
        position += 4 + (options[position + 2] << 8 | options[position + 3])
    return position == len(options)


def find_option(options: bytes, code: int) -> bytes | None:
    """Data of the first option with this code in well-formed `options`, None when there is none."""
    position = 0
    while position < len(options):
        end = position + 4 + (options[position + 2] << 8 | options[position + 3])
        if options[position] << 8 | options[position + 1] == code:
            return options[position + 4 : end]
        position = end
    return None


def _bad_key(owner: bytes, fixed: bytes, rdata: bytes) -> bytes:
    """TSIG record of an unsigned reply with error BADKEY (RFC 8945 section 5.2.1): no client has a key here."""
    end = end_of_name(rdata, 0)
    if not end or end + 10 > len(rdata) or fixed[2:] != b"\0\xff\0\0\0\0":
        return b""
    mac_end = end + 10 + (rdata[end + 8] << 8 | rdata[end + 9])
    if mac_end + 6 > len(rdata):
        return b""
    reply = rdata[: end + 8] + b"\0\0" + rdata[mac_end : mac_end + 2] + b"\0\x11\0\0"
    return owner + fixed + len(reply).to_bytes(2, "big") + reply
