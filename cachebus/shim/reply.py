"""Puts a reply on the wire for one client: its ID and case, its EDNS, its size. Decides what of a response it may see.

Knows neither where the records came from nor how the bytes travel.
"""

from __future__ import annotations

from collections.abc import Iterable

from cachebus.answer import RRset
from cachebus.shim.padding import padding
from cachebus.shim.query import MIN_PAYLOAD, Edns, Error, Query, Response
from cachebus.wire import rrtypes
from cachebus.wire.message import AD, CD, HEADER_LENGTH, OPCODE, QR, RA, RD, TC, Composer

MAX_UDP_PAYLOAD = 1232
"""Bytes of a UDP reply, and the size our OPT announces: fits the smallest IPv6 MTU (DNS flag day 2020)."""
MAX_STREAM_PAYLOAD = 65535
"""Bytes of a reply with a 16-bit length prefix (RFC 1035 section 4.2.2)."""
MAX_ERROR_TEXT = 200
"""Bytes of an Extended DNS Error's text: it must never be what makes a reply too big."""

_SUBNET = 8
_EDE = 15
_NOT_COPIED = 0xFFFF ^ (RD | CD)
_PROOFS = frozenset({rrtypes.NSEC, rrtypes.NSEC3})


def udp_limit(edns: Edns | None) -> int:
    """Bytes that a UDP reply to this client may have."""
    return MIN_PAYLOAD if edns is None else min(edns.payload, MAX_UDP_PAYLOAD)


def compose_reply(
    query: Query,
    response: Response,
    limit: int,
    options: bytes = b"",
    *,
    padded: bool = False,
    additional: Iterable[RRset] = (),
) -> bytes:
    """The reply to `query`, at most `limit` bytes: what does not fit becomes an empty reply with TC=1 (RFC 2181 9).

    RRSIGs and denial proofs go to DO=1 clients only, AD to those that understand it. `options`: EDNS options that the
    OPT carries, if there is one; `padded`: it is to hide the length. Of `additional` goes what fits.
    """
    flags = QR | RA | (query.flags & ~_NOT_COPIED) | (response.rcode & 0xF)
    if response.authentic and query.wants_ad:
        flags |= AD
    if response.subnet:
        options += _SUBNET.to_bytes(2, "big") + len(response.subnet).to_bytes(2, "big") + response.subnet
    if response.additional:
        additional = (*response.additional, *additional)
    edns = query.edns
    errors = response.errors
    opt = b"" if edns is None else compose_opt(edns, response.rcode, errors, options)
    composer = Composer(query.question, query.qname, suffixes=True)
    do = query.do
    sigs = do or query.qtype == rrtypes.ANY  # who asks for everything asks for RRSIGs (RFC 4035 section 3.2.1)
    answers = 0
    for rrset in response.answer:
        answers += composer.add(rrset, rrset.ttl, sigs=sigs)
    authorities = 0
    for rrset in response.authority:
        if do or rrset.type not in _PROOFS:
            authorities += composer.add(rrset, rrset.ttl, sigs=do)
    ident = query.id[0] << 8 | query.id[1]
    if composer.length + len(opt) > limit:
        composer = Composer(query.question, query.qname, suffixes=True)
        flags = flags & ~AD | TC
        answers = authorities = 0
        additional = errors = ()
        opt = b"" if edns is None else compose_opt(edns, response.rcode, errors, options)
    extras = 0
    for rrset in additional:
        if composer.length + _most(rrset) + len(opt) <= limit:
            extras += composer.add(rrset, rrset.ttl, sigs=do)
    if opt:
        if padded:
            options += padding(composer.length + len(opt), limit)
            opt = compose_opt(edns, response.rcode, errors, options)
        composer.raw(opt)
        extras += 1
    return composer.finish(ident, flags, (1, answers, authorities, extras))


def _most(rrset: RRset) -> int:
    """Bytes that an RRset takes at most: the first record has the whole owner, the others a pointer."""
    return len(rrset.owner) + len(rrset.rrs) + len(rrset.sigs)


def compose_error(error: Error, options: bytes = b"", *, padded: bool = False) -> bytes:
    """The reply to a message that asks nothing we may answer; `options` and `padded` as for `compose_reply`."""
    flags = QR | (error.flags & (OPCODE | RD)) | (error.rcode & 0xF)
    if not error.flags & OPCODE:
        flags |= RA | error.flags & CD  # these bits mean something else elsewhere, as in UPDATE (RFC 2136 section 2.2)
    opt = compose_opt(error.edns, error.rcode, (), options) if error.edns is not None else b""
    if padded and opt:
        length = HEADER_LENGTH + len(error.question) + len(opt) + len(error.tsig)
        opt = compose_opt(error.edns, error.rcode, (), options + padding(length, MAX_STREAM_PAYLOAD))
    tail = opt + error.tsig
    counts = bytes((0, 1 if error.question else 0, 0, 0, 0, 0, 0, bool(opt) + bool(error.tsig)))
    return error.id + flags.to_bytes(2, "big") + counts + error.question + tail


def compose_opt(edns: Edns | None, rcode: int, errors: Iterable[tuple[int, str]], options: bytes = b"") -> bytes:
    """Our OPT record: version 0, DO as the client set it (RFC 3225), Extended DNS Errors (RFC 8914) after `options`."""
    for code, text in errors:
        data = code.to_bytes(2, "big") + text.encode()[:MAX_ERROR_TEXT]
        options += _EDE.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data
    do = 0x80 if edns is not None and edns.do else 0
    fixed = bytes((0, 0, rrtypes.OPT)) + MAX_UDP_PAYLOAD.to_bytes(2, "big") + bytes((rcode >> 4, 0, do, 0))
    return fixed + len(options).to_bytes(2, "big") + options
