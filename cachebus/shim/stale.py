"""Serves what has expired while no upstream has an answer in time (RFC 8767). To the shim's own clients alone.

Decides when a client is given stale data, which, and with what TTL. What has expired stays in the cache for this and is
gone for everybody else: it is in no copy, no refill and on no transport, and is learned as nothing new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from cachebus.cache import MAX_CHAIN, Cache
from cachebus.entry import Cached, Lookup
from cachebus.ports import Clock
from cachebus.shim.caching import StaleSettings
from cachebus.shim.failures import Failures, Question
from cachebus.shim.lookup import NOT_AN_RRSET, Found, Later, Stage, suits
from cachebus.shim.query import Ede, Query, Response
from cachebus.wire import rrtypes
from cachebus.wire.message import NOERROR, NXDOMAIN, SERVFAIL, cname_target, pack
from cachebus.wire.name import ancestors, label_count

BOGUS = frozenset({1, 2, 5, 6, 7, 8, 9, 10, 11, 12})
"""Extended errors that say what is wrong with DNSSEC (RFC 8914 section 4): an answer that must not be papered over."""


class StaleStage:
    """Stands before the stages that ask upstreams, and answers for them when they fail or take too long."""

    def __init__(
        self,
        settings: StaleSettings,
        cache: Cache,
        failures: Failures,
        inner: Stage,
        clock: Clock,
        *,
        subnet: Callable[[Query], bytes] = lambda query: b"",
    ) -> None:
        """`subnet`: what upstreams are told of the client of a query."""
        self._settings = settings
        self._subnet = subnet
        self._cache = cache
        self._failures = failures
        self._inner = inner
        self._clock = clock
        self.answered = 0
        self.answered_early = 0

    def answer(self, query: Query, now: float) -> Found:
        """What the inner stage gives, unless it failed for this question less than half a minute ago."""
        if not query.recursion_desired or query.qtype in NOT_AN_RRSET:
            return self._inner.answer(query, now)
        question = Question(query.qname, query.qtype, query.checking_disabled, self._subnet(query))
        if self._failures.is_recent(question, now):
            stale = self._stale(query, now, self._failures.errors(question, now) or ())
            if stale is not None:
                return stale
        found = self._inner.answer(query, now)
        if found is None:
            return None
        if isinstance(found, Response):
            return self._instead(query, found, now)
        return partial(self._wait, query, found)

    async def _wait(self, query: Query, later: Later) -> Response | None:
        """The fresh answer, or after the client's time a stale one; the look-up goes on, and what it finds is kept."""
        waiting = asyncio.ensure_future(later())
        try:
            await asyncio.wait((waiting,), timeout=self._settings.client_timer)
            if not waiting.done():
                stale = self._stale(query, self._clock(), ())
                if stale is not None:
                    self.answered_early += 1
                    return stale
            return self._instead(query, await waiting, self._clock())
        finally:
            if not waiting.done():
                waiting.cancel()  # only this wait for it: look-ups are shared, and nobody's to end
                await asyncio.wait((waiting,))

    def _instead(self, query: Query, response: Response | None, now: float) -> Response | None:
        """Stale data instead of a failure, but not of the news that something is bogus."""
        if response is not None and (response.rcode != SERVFAIL or any(code in BOGUS for code, _ in response.errors)):
            return response
        return self._stale(query, now, () if response is None else response.errors) or response

    def _stale(self, query: Query, now: float, errors: tuple[tuple[int, str], ...]) -> Response | None:
        found = find_stale(self._cache, query.qname, query.qtype, now)
        if found is None or not suits(query, found, last_resort=True):
            return None
        self.answered += 1
        ttl = self._settings.answer_ttl
        chain = tuple(cached.rrset._replace(ttl=ttl) for cached in found.chain)
        authority = () if found.soa is None else (found.soa._replace(ttl=ttl),)
        code = Ede.STALE_NXDOMAIN if found.rcode == NXDOMAIN else Ede.STALE_ANSWER
        # Never authentic: nobody has validated it for this moment.
        return Response(found.rcode, chain, authority, authentic=False, errors=((code, ""), *errors))

    def statistics(self) -> Mapping[str, int]:
        """Stale answers given, and those of them because the client's time was up."""
        return {"stale_answered": self.answered, "stale_answered_early": self.answered_early}


def find_stale(cache: Cache, qname: bytes, qtype: int, now: float) -> Lookup | None:
    """The newest word on a question, expired or not; None where there is none, or where all of it lives.

    What was learned last counts: an NXDOMAIN replaces the data that it followed, expired though both are. Of denials,
    only those of the very name: none of a name above, nor of a top-level domain, outlives its TTL.
    """
    chain: list[Cached] = []
    name = qname
    for _ in range(MAX_CHAIN + 1):
        found = _newest(cache, name, qtype, now)
        if found is not None:
            rcode, cached = found
            if rcode == NXDOMAIN or cached.negative:
                soa = cached.rrset if cached.rrset.rrs else None
                end = Lookup(rcode, tuple(chain), complete=True, target=name, soa=soa)
                return end if _any_expired((*chain, cached), now) else None
            if cached.rrset.type == qtype:
                chain.append(cached)
                return Lookup(NOERROR, tuple(chain), complete=True, target=name) if _any_expired(chain, now) else None
            links: tuple[Cached, ...] = (cached,)
        else:
            links = _dname(cache, name, now)
        if not links:
            return None
        chain += links
        name = cname_target(links[-1].rrset)
    return None


def _newest(cache: Cache, name: bytes, qtype: int, now: float) -> tuple[int, Cached] | None:
    """(RCODE, entry) of what is known at a name: what lives, else what was learned last."""
    known: list[tuple[int, Cached]] = []
    for rrtype in dict.fromkeys((qtype, rrtypes.CNAME)):
        cached = cache.peek(name, rrtype, now)
        if cached is not None and not (cached.negative and rrtype != qtype):
            known.append((NOERROR, cached))
    denial = cache.peek(name, 0, now)
    if denial is not None and (denial.expires > now or label_count(name) > 1):
        known.append((NXDOMAIN, denial))
    return max(known, key=lambda one: (one[1].expires > now, one[1].learned), default=None)


def _dname(cache: Cache, name: bytes, now: float) -> tuple[Cached, ...]:
    """A DNAME above and the CNAME that it yields (RFC 6672 section 2.2)."""
    for above in ancestors(name):
        dname = None if above == name else cache.peek(above, rrtypes.DNAME, now)
        if dname is not None and not dname.negative:
            target = name[: len(name) - len(above)] + cname_target(dname.rrset)
            if len(target) > 255:
                return ()
            cname = dname.rrset._replace(
                owner=name, type=rrtypes.CNAME, rrs=pack(rrtypes.CNAME, dname.rrset.ttl, (target,)), sigs=b""
            )
            return dname, dname._replace(rrset=cname)
    return ()


def _any_expired(chain: list[Cached] | tuple[Cached, ...], now: float) -> bool:
    return any(cached.expires <= now for cached in chain)
