"""What an answer is (trust rules, section 3): which records are on the chain from the question, and how long they live.

Works on RRsets and a time, on either side of the bus. Refuses to know where the records came from, what evidence there
is for them, and whether they may be shared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from cachebus.answer import Evidence, Refusal, RRset
from cachebus.errors import MessageError
from cachebus.presentation import MAX_NAME
from cachebus.wire.message import cname_target, pack, records, rrsig_fields
from cachebus.wire.name import ancestors, is_at_or_below, label_count
from cachebus.wire.rrtypes import CNAME, DNAME, INFRASTRUCTURE, NEVER_SHARED, NSEC, RRSIG

MAX_CNAMES = 11
"""Links followed from one question; resolvers stop between 8 and 17, and the design's validator at 11."""
DEFAULT_MAX_TTL = 86400
"""Seconds an RRset may live at most: a day, as resolvers' own caches have it."""
DEFAULT_SWILD = 65392
"""Type code of SWILD: not assigned, so one for private use (RFC 6895 section 3.1)."""
MAX_SIGNATURES = 0xFFFF
"""Bytes of packed RRSIGs over one RRset: the cache counts them in 16 bits. Only those of the root zone, whose owner is
one byte on the wire and two when packed, can be more in a message."""
_BESIDE_CNAME = frozenset({CNAME, RRSIG, NSEC})
"""What may stand at the owner of a CNAME (RFC 2181 section 10.1, RFC 4034 section 3)."""
_SERIAL_HALF = 1 << 31


class Link(NamedTuple):
    """One step of a chain."""

    rrset: RRset
    """The RRset as it came; for a DNAME step, the DNAME."""
    synthesised: RRset | None = None
    """The CNAME that the DNAME yields (RFC 6672 section 2.3), recomputed, with the DNAME's TTL and no RRSIG."""


class Chain(NamedTuple):
    """The records that answer a question, as far as they go."""

    links: tuple[Link, ...]
    complete: bool
    """The last link is the RRset of the asked type."""
    target: bytes
    """The name where the chain goes on when it is not complete."""

    def rrsets(self) -> tuple[RRset, ...]:
        """The chain as an `Answer` holds it: a DNAME before the CNAME it yields."""
        return tuple(flatten(self.links))


def flatten(links: Iterable[Link]) -> Iterable[RRset]:
    """The RRsets of some links in order, each DNAME before the CNAME it yields."""
    for rrset, synthesised in links:
        yield rrset
        if synthesised is not None:
            yield synthesised


def refused_type(qtype: int, *, infrastructure: bool) -> bool:
    """Whether `qtype` is never shared as the asked type."""
    return qtype in NEVER_SHARED or (qtype in INFRASTRUCTURE and not infrastructure)


def chain_from(rrsets: Iterable[RRset], qname: bytes, qtype: int, *, zone: bytes = b"\0") -> Chain | Refusal:
    """Walk from the question along the RRsets at or below `zone`; what is off the chain is left behind.

    Gives `NO_ANSWER` when nothing starts at the question, `BROKEN_CHAIN` for two CNAMEs or a CNAME beside other data,
    `CHAIN_LOOP` for a loop or more than `MAX_CNAMES` links, `FORGED_CNAME` for a CNAME that the DNAME above it does not
    yield. All names are uncompressed and in lower case.
    """
    found: dict[tuple[bytes, int], RRset] = {}
    dnames = False
    for rrset in rrsets:
        if zone == b"\0" or is_at_or_below(rrset.owner, zone):
            found[rrset.owner, rrset.type] = rrset
            dnames = dnames or rrset.type == DNAME
    links: list[Link] = []
    seen = {qname}
    name = qname
    while True:
        link = _step(found, name, qtype, dnames=dnames)
        if isinstance(link, Refusal):
            return link
        if link is None:
            return Chain(tuple(links), complete=False, target=name) if links else Refusal.NO_ANSWER
        links.append(link)
        alias = link.synthesised or link.rrset
        if alias.type == qtype or alias.type != CNAME:
            return Chain(tuple(links), complete=True, target=b"")
        name = cname_target(alias)
        if name in seen or len(links) > MAX_CNAMES:
            return Refusal.CHAIN_LOOP
        seen.add(name)


def _step(found: dict[tuple[bytes, int], RRset], name: bytes, qtype: int, *, dnames: bool) -> Link | Refusal | None:
    final = found.get((name, qtype))
    alias = found.get((name, CNAME))
    above = _dname_above(found, name) if dnames else None
    if alias is not None and (_count(alias) > 1 or _has_other_data(found, name)):
        return Refusal.BROKEN_CHAIN
    if above is None:
        rrset = final or alias
        return None if rrset is None else Link(rrset)
    if _has_other_data(found, name):
        return Refusal.FORGED_CNAME  # nothing but the DNAME's own CNAME lives below a DNAME (RFC 6672 section 2.4)
    synthesised = synthesise(above, name)
    if isinstance(synthesised, Refusal):
        return synthesised
    if alias is not None and cname_target(alias) != cname_target(synthesised):
        return Refusal.FORGED_CNAME
    return Link(above, synthesised)


def _has_other_data(found: dict[tuple[bytes, int], RRset], name: bytes) -> bool:
    return any(owner == name and rrtype not in _BESIDE_CNAME for owner, rrtype in found)


def _dname_above(found: dict[tuple[bytes, int], RRset], name: bytes) -> RRset | None:
    for ancestor in ancestors(name):
        rrset = found.get((ancestor, DNAME))
        if rrset is not None and ancestor != name:
            return rrset
    return None


def _count(rrset: RRset) -> int:
    """Different targets of a CNAME or DNAME RRset: letter case and TTL make no difference."""
    return len({rdata.lower() for _, _, rdata in records(rrset.rrs)})


def synthesise(dname: RRset, name: bytes) -> RRset | Refusal:
    """The CNAME at `name` that a DNAME above it yields (RFC 6672 section 2.2), with its TTL; lower case."""
    if _count(dname) != 1:
        return Refusal.BROKEN_CHAIN
    target = name[: len(name) - len(dname.owner)] + cname_target(dname)
    if len(target) > MAX_NAME:
        return Refusal.BROKEN_CHAIN
    return RRset(name, CNAME, dname.ttl, pack(CNAME, dname.ttl, (target,)))


def limit(rrset: RRset, learned: float, *, max_ttl: int = DEFAULT_MAX_TTL) -> RRset | Refusal:
    """The RRset with the TTL that its records and RRSIGs leave it from `learned` on (trust rules, section 3).

    RRSIGs that cannot belong to it, by labels or signer, are left out. Gives `RRSIG_EXPIRED`, `RRSIG_NOT_YET_VALID`,
    `WILDCARD_WITHOUT_PROOF` or `TTL_ZERO` when it must not be shared at all, `OVERSIZE` for more RRSIGs than are kept.
    """
    if len(rrset.sigs) > MAX_SIGNATURES:
        return Refusal.OVERSIZE
    ttl = min(rrset.ttl, max_ttl)
    sigs = rrset.sigs
    if sigs:
        kept = []
        labels = label_count(rrset.owner) - rrset.owner.startswith(b"\x01*")
        now, second = int(learned), math.ceil(learned)  # nothing outlives its RRSIG, by a fraction either
        for rrtype, _, rdata in records(sigs):
            try:
                sig = rrsig_fields(rdata)
            except MessageError:
                return Refusal.MALFORMED
            if sig.labels > labels or not is_at_or_below(rrset.owner, sig.signer):
                continue
            if sig.labels < labels:
                return Refusal.WILDCARD_WITHOUT_PROOF
            left = _serial_difference(sig.expiration, second)
            if left <= 0:
                return Refusal.RRSIG_EXPIRED
            if _serial_difference(sig.inception, now) > 0:
                return Refusal.RRSIG_NOT_YET_VALID
            ttl = min(ttl, sig.original_ttl if sig.original_ttl < _SERIAL_HALF else 0, left)
            kept.append(pack(rrtype, ttl, (rdata,)))
        if len(kept) != len(records(sigs)):
            sigs = b"".join(kept)
    if ttl <= 0:
        return Refusal.TTL_ZERO
    return rrset if ttl == rrset.ttl and sigs is rrset.sigs else rrset._replace(ttl=ttl, sigs=sigs)


def _serial_difference(time: int, now: int) -> int:
    """Seconds from `now` to a 32-bit serial time (RFC 4034 section 3.1.5)."""
    difference = (time - now) & 0xFFFFFFFF
    return difference - (1 << 32) if difference >= _SERIAL_HALF else difference


def limit_chain(links: Iterable[Link], learned: float, *, max_ttl: int = DEFAULT_MAX_TTL) -> tuple[Link, ...] | Refusal:
    """`limit` for every link; a recomputed CNAME takes its DNAME's TTL. The first refusal is the chain's."""
    limited = []
    for rrset, synthesised in links:
        kept = limit(rrset, learned, max_ttl=max_ttl)
        if isinstance(kept, Refusal):
            return kept
        limited.append(Link(kept, None if synthesised is None else synthesised._replace(ttl=kept.ttl)))
    return tuple(limited)


def signed(links: Iterable[Link]) -> bool:
    """Whether every RRset has an RRSIG; a recomputed CNAME needs none, its DNAME has it."""
    return all(link.rrset.sigs for link in links)


def assemble(
    qname: bytes,
    qtype: int,
    rrsets: Iterable[RRset],
    now: float,
    *,
    max_ttl: int = DEFAULT_MAX_TTL,
    evidence: Evidence = Evidence.AUTHORITATIVE,
    infrastructure: bool = False,
    partial: bool = False,
) -> tuple[RRset, ...] | Refusal:
    """The whole answer to a question out of a message's RRsets, TTLs limited from `now` on, or why there is none.

    Everything of section 3 that a receiver can check again. With `partial`, a chain that stops before the asked type is
    given as far as it goes, for its RRsets to be taken under their own names.
    """
    if refused_type(qtype, infrastructure=infrastructure):
        return Refusal.QTYPE
    chain = chain_from(rrsets, qname, qtype)
    if isinstance(chain, Refusal):
        return chain
    if not chain.complete and not partial:
        return Refusal.NO_ANSWER
    links = limit_chain(chain.links, now, max_ttl=max_ttl)
    if isinstance(links, Refusal):
        return links
    if evidence is Evidence.VALIDATED and not signed(links):
        return Refusal.RRSIG_MISSING
    return tuple(flatten(links))
