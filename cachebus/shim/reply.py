"""Puts a reply on the wire for one client: its ID and case, its EDNS, its size. Decides what of a response it may see.

Knows neither where the records came from nor how the bytes travel.
"""

from __future__ import annotations

from collections.abc import Iterable

from cachebus.shim.query import MIN_PAYLOAD, Edns, Error, Query, Response
from cachebus.wire import rrtypes
from cachebus.wire.message import AD, CD, QR, RA, RD, TC, Composer

MAX_UDP_PAYLOAD = 1232
"""Bytes of a UDP reply, and the size our OPT announces: fits the smallest IPv6 MTU (DNS flag day 2020)."""
MAX_STREAM_PAYLOAD = 65535
"""Bytes of a reply with a 16-bit length prefix (RFC 1035 section 4.2.2)."""
MAX_ERROR_TEXT = 200
"""Bytes of an Extended DNS Error's text: it must never be what makes a reply too big."""

_SUBNET = 8
_EDE = 15
_NOT_COPIED = 0xFFFF ^ (RD | CD)
_OPCODE_AND_RD = 0x7900
_PROOFS = frozenset({rrtypes.NSEC, rrtypes.NSEC3})


def udp_limit(edns: Edns | None) -> int:
    """Bytes that a UDP reply to this client may have."""
    return MIN_PAYLOAD if edns is None else min(edns.payload, MAX_UDP_PAYLOAD)


def compose_reply(query: Query, response: Response, limit: int) -> bytes:
    """The reply to `query`, at most `limit` bytes: what does not fit becomes an empty reply with TC=1 (RFC 2181 9).

    RRSIGs and denial proofs go to DO=1 clients only, AD to those that understand it.
    """
    flags = QR | RA | (query.flags & ~_NOT_COPIED) | (response.rcode & 0xF)
    if response.authentic and query.wants_ad:
        flags |= AD
    subnet = response.subnet
    opt = compose_opt(query.edns, response.rcode, response.errors, subnet=subnet) if query.edns is not None else b""
    composer = Composer(query.question, query.qname)
    do = query.do
    answers = 0
    for rrset in response.answer:
        answers += composer.add(rrset, rrset.ttl, sigs=do)
    authorities = 0
    for rrset in response.authority:
        if do or rrset.type not in _PROOFS:
            authorities += composer.add(rrset, rrset.ttl, sigs=do)
    additionals = 0
    for rrset in response.additional:
        if composer.length + len(rrset.owner) + len(rrset.rrs) + len(opt) <= limit:
            additionals += composer.add(rrset, rrset.ttl, sigs=False)
    ident = query.id[0] << 8 | query.id[1]
    if composer.length + len(opt) > limit:
        composer = Composer(query.question, query.qname)
        flags = flags & ~AD | TC
        answers = authorities = additionals = 0
        opt = compose_opt(query.edns, response.rcode, (), subnet=subnet) if query.edns is not None else b""
    if opt:
        composer.raw(opt)
    return composer.finish(ident, flags, (1, answers, authorities, additionals + bool(opt)))


def compose_error(error: Error) -> bytes:
    """The reply to a message that asks nothing we may answer."""
    flags = QR | (error.flags & _OPCODE_AND_RD) | (error.rcode & 0xF)
    opt = compose_opt(error.edns, error.rcode, ()) if error.edns is not None else b""
    tail = opt + error.tsig
    counts = bytes((0, 1 if error.question else 0, 0, 0, 0, 0, 0, bool(opt) + bool(error.tsig)))
    return error.id + flags.to_bytes(2, "big") + counts + error.question + tail


def compose_opt(edns: Edns | None, rcode: int, errors: Iterable[tuple[int, str]], *, subnet: bytes = b"") -> bytes:
    """Our OPT record: version 0, DO as the client set it (RFC 3225), Extended DNS Errors (RFC 8914)."""
    options = _SUBNET.to_bytes(2, "big") + len(subnet).to_bytes(2, "big") + subnet if subnet else b""
    for code, text in errors:
        data = code.to_bytes(2, "big") + text.encode()[:MAX_ERROR_TEXT]
        options += _EDE.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data
    do = 0x80 if edns is not None and edns.do else 0
    fixed = bytes((0, 0, rrtypes.OPT)) + MAX_UDP_PAYLOAD.to_bytes(2, "big") + bytes((rcode >> 4, 0, do, 0))
    return fixed + len(options).to_bytes(2, "big") + options
