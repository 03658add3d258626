"""The stage that answers for the subdomains of a SWILD owner, without asking for each of them (docs/shim/swild.md).

Decides whether one question may be answered so, and what the answer is: a CNAME made here, then what the lookup order
finds for its target. Refuses to know where that comes from, and which SWILDs are believed (`swild_owners`).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import partial
from zlib import crc32

from cachebus.answer import RRset
from cachebus.cache import Cache
from cachebus.filters.chain import MAX_CNAMES
from cachebus.ports import Clock
from cachebus.shim.lookup import Found, Later, Stage
from cachebus.shim.query import Ede, Query, Response
from cachebus.shim.swild_owners import Include, Owner, Swilds
from cachebus.wire import rrtypes
from cachebus.wire.message import NOERROR, NXDOMAIN, SERVFAIL, cname_target, pack, question_section
from cachebus.wire.name import ancestors, is_at_or_below

SAVED_BITS = 1 << 20
"""Names of synthesised answers are told apart by so many bits, 128 KiB: of 10,000 names 50 are taken for others."""

_PROBED = (
    0, rrtypes.A, rrtypes.AAAA, rrtypes.NS, rrtypes.DNAME, rrtypes.TXT, rrtypes.MX, rrtypes.SRV, rrtypes.HTTPS,
    rrtypes.DS, rrtypes.SOA,
)  # fmt: skip
"""Types under which a name that exists beside the wildcard is likely to be cached; 0 is NXDOMAIN. Such data may be
older than the SWILD; of what comes later `Swilds.is_existing` knows every type."""
_NOT_ALIASED = rrtypes.INFRASTRUCTURE | rrtypes.NEVER_SHARED - {rrtypes.ANY}
"""Types that belong to a zone or its signatures, and meta types: nothing is made up for them."""
_LOOP = Response(SERVFAIL, errors=((Ede.OTHER, "the CNAME chain of a wildcard loops or is too long"),))


class Passed(Enum):
    """Why a question below a SWILD owner is left to the next stage. The value is the counter's name."""

    DNSSEC = "swild_passed_dnssec"
    """DO=1 or CD=1: the client wants what can be validated."""
    SIGNED = "swild_passed_signed"
    """The zone is signed, and the upstreams validate."""
    BRANCH = "swild_passed_branch"
    """The target, something below it, or between it and the owner."""
    TYPE = "swild_passed_type"
    """The asked type is a zone's or DNSSEC's own."""
    INACTIVE = "swild_passed_inactive"
    """No `x.owner CNAME target` has been seen yet."""
    ENDED = "swild_passed_ended"
    """The SWILD's life, or what `ttl_cap` leaves of it, is over."""
    EXISTS = "swild_passed_exists"
    """Cached data says that the name, or one between it and the owner, exists beside the wildcard, or does not."""


class SwildStage:
    """Stands behind the stages that answer from what is held, before those that ask."""

    def __init__(
        self, swilds: Swilds, cache: Cache, *, held: Sequence[Stage], rest: Stage, clock: Clock, validating: bool
    ) -> None:
        """`held`, in order, answer for the target from what there is, `rest` asks where its chain breaks off: all are
        given that name in place of the name asked for, with the client's EDNS options.

        `validating`: upstreams validate, so in a signed zone nothing is made up that nobody could have validated.
        """
        self._swilds = swilds
        self._cache = cache
        self._held = tuple(held)
        self._rest = rest
        self._clock = clock
        self._include = swilds.settings.include
        self._validating = validating
        self._names: bytearray | None = None
        self.passed = dict.fromkeys(Passed, 0)
        self.synthesised = 0
        self.entries_saved = 0
        """Names that would each have cost a cache entry; not counted again while the bits remember them."""
        self.tails = 0
        """Targets, or later links of their chains, that had to be asked for."""

    def answer(self, query: Query, now: float) -> Found:
        """The answer with a CNAME made from the closest SWILD above the name; None where there is none that counts."""
        if not self._swilds.owners:
            return None
        owner = self._swilds.closest(query.qname)
        if owner is None:
            return None
        held = self._swilds.held(owner, now)
        if held is None:
            self.passed[Passed.ENDED] += 1
            return None
        reason = self._reason_to_pass(query, owner, signed=bool(held.rrset.sigs), now=now)
        if reason is not None:
            self.passed[reason] += 1
            return None
        assert owner.sighting is not None
        ttl = min(held.rrset.ttl, owner.sighting.ttl, self._swilds.settings.ttl_cap)
        alias = RRset(query.qname, rrtypes.CNAME, ttl, pack(rrtypes.CNAME, ttl, (owner.rdata,)))
        swild = held.rrset._replace(sigs=b"")
        if query.qtype in (rrtypes.CNAME, rrtypes.ANY):  # ANY: one RRset, RFC 8482 section 4.1
            return self._finish(query, (alias,), swild, Response(NOERROR))
        for stage in self._held:
            known = stage.answer(_about(query, owner.target), now)
            if isinstance(known, Response):
                return self._finish(query, (alias,), swild, known)
            if known is not None:  # answers for the target differ by network, and this client's is to be asked for
                self.tails += 1
                return partial(self._wait, known, query, (alias,), swild, now)
        return self._ask_on(query, owner, (alias,), swild, now)

    def _reason_to_pass(self, query: Query, owner: Owner, *, signed: bool, now: float) -> Passed | None:
        if query.do or query.checking_disabled:
            return Passed.DNSSEC
        if signed and self._validating:
            return Passed.SIGNED
        if is_at_or_below(query.qname, owner.branch):
            return Passed.BRANCH
        if query.qtype in _NOT_ALIASED:
            return Passed.TYPE
        if owner.sighting is None:
            return Passed.INACTIVE
        return Passed.EXISTS if self._exists(query.qname, owner, now) else None

    def _exists(self, qname: bytes, owner: Owner, now: float) -> bool:
        """Whether the wildcard cannot match: it does so only where neither the name nor one above it, below the owner,
        has anything of its own (RFC 4592 section 2.2.1)."""
        get = self._cache.get
        for name in ancestors(qname):
            if name == owner.name:
                return False
            if self._swilds.is_existing(name, now):
                return True
            for rrtype in _PROBED:
                if get(name, rrtype, now) is not None:
                    return True
            alias = get(name, rrtypes.CNAME, now)
            if alias is not None and (alias.negative or cname_target(alias.rrset) != owner.target):
                return True
        return False

    def _ask_on(self, query: Query, owner: Owner, chain: tuple[RRset, ...], swild: RRset, now: float) -> Found:
        """Ask for the one name where the chain from the target breaks off, never for the one that was asked for."""
        found = self._cache.resolve(owner.target, query.qtype, now)
        name = owner.target
        if found is not None:
            chain += tuple(cached.rrset for cached in found.chain)
            name = found.target
        if _loops(query.qname, chain):
            return _LOOP
        self.tails += 1
        tail = self._rest.answer(_about(query, name), now)
        if tail is None or isinstance(tail, Response):
            return None if tail is None else self._finish(query, chain, swild, tail)
        return partial(self._wait, tail, query, chain, swild, now)

    async def _wait(
        self, tail: Later, query: Query, chain: tuple[RRset, ...], swild: RRset, asked: float
    ) -> Response | None:
        response = await tail()
        if response is None:
            return None
        passed = max(0, int(self._clock() - asked))
        chain = tuple(_aged(rrset, passed) for rrset in chain)
        return self._finish(query, chain, _aged(swild, passed), response)

    def _finish(self, query: Query, chain: tuple[RRset, ...], swild: RRset, tail: Response) -> Response:
        """The response: the chain so far, what was found for its end, and the SWILD where it is to be."""
        if tail.rcode not in (NOERROR, NXDOMAIN):
            return tail._replace(authentic=False)
        whole = chain + tail.answer
        if _loops(query.qname, whole):
            return _LOOP
        self._count(query.qname)
        additional = tail.additional
        if self._include is Include.ANSWER:
            whole += (swild,)
        elif self._include is Include.ADDITIONAL:
            additional += (swild,)
        errors = (*tail.errors, (Ede.SYNTHESIZED, "SWILD"))
        return tail._replace(answer=whole, authentic=False, errors=errors, additional=additional)

    def _count(self, qname: bytes) -> None:
        self.synthesised += 1
        if self._names is None:
            self._names = bytearray(SAVED_BITS >> 3)
        bit = crc32(qname) % SAVED_BITS
        if not self._names[bit >> 3] >> (bit & 7) & 1:
            self._names[bit >> 3] |= 1 << (bit & 7)
            self.entries_saved += 1
            if not self.entries_saved % (SAVED_BITS >> 2):  # a quarter of the bits tell too few names apart
                self._names = bytearray(SAVED_BITS >> 3)

    def statistics(self) -> dict[str, int]:
        """Counters by snake_case name."""
        return {
            "swild_synthesised": self.synthesised,
            "swild_entries_saved": self.entries_saved,
            "swild_tails": self.tails,
            **{reason.value: count for reason, count in self.passed.items()},
            **self._swilds.statistics(),
        }


def _about(query: Query, name: bytes) -> Query:
    """The same client's question about another name."""
    return query._replace(qname=name, question=question_section(name, query.qtype))


def _aged(rrset: RRset, seconds: int) -> RRset:
    return rrset._replace(ttl=max(0, rrset.ttl - seconds)) if seconds else rrset


def _loops(qname: bytes, chain: tuple[RRset, ...]) -> bool:
    """Whether a chain comes to a name twice, or has more links than are followed."""
    seen = {qname}
    links = 0
    for rrset in chain:
        if rrset.type == rrtypes.CNAME:
            links += 1
            target = cname_target(rrset)
            if target in seen or links > MAX_CNAMES:
                return True
            seen.add(target)
    return False
