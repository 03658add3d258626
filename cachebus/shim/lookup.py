"""The order in which a question is looked up: stages, one after the other, until one of them knows.

The whole order is: local data, hints, cache, SWILD, forward, stale. Here are the order itself and the cache; each stage
decides only whether it can answer, and knows no other stage.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

from cachebus.answer import Evidence, RRset
from cachebus.cache import Cache
from cachebus.entry import Cached, Lookup
from cachebus.ports import Clock
from cachebus.shim.query import Ede, Query, Response
from cachebus.wire import rrtypes
from cachebus.wire.message import NOERROR, REFUSED, SERVFAIL
from cachebus.wire.name import label_count

Later = Callable[[], Coroutine[Any, Any, Response | None]]
"""An answer that has to be waited for, and may turn out None. Nothing is under way until it is called."""

Found = Response | Later | None
"""What a stage gives: an answer, one that has to be waited for, or None: ask the next."""

Outcome = Response | Callable[[], Coroutine[Any, Any, Response]]
"""What all stages together give: an answer, now or later."""

NOT_AN_RRSET = frozenset({rrtypes.ANY, rrtypes.RRSIG, rrtypes.SIG})
"""Types whose answer is not one RRset of a name: the cache cannot know it whole."""


MAX_EARLY = 0.1
"""Part of its life at the end of which an RRset may be due: what `Cache.shortened` takes off at most."""


class Stage(Protocol):
    """One place where an answer may be found."""

    def answer(self, query: Query, now: float) -> Found:
        """The answer, a way to wait for it, or None when this stage has none. Never raises, never blocks."""
        ...


class LookupOrder:
    """Asks the stages in order. Answers without waiting where no stage waits: that is the path of a cache hit."""

    def __init__(self, stages: Sequence[Stage], clock: Clock) -> None:
        self._stages = tuple(stages)
        self._clock = clock

    def answer(self, query: Query, now: float) -> Outcome:
        """The response, or what to call and wait for."""
        return self._from(0, query, now)

    def _from(self, first: int, query: Query, now: float) -> Outcome:
        for index in range(first, len(self._stages)):
            found = self._stages[index].answer(query, now)
            if isinstance(found, Response):
                return found
            if found is not None:
                return partial(self._wait, found, index + 1, query)
        return _nothing_found(query)

    async def _wait(self, found: Later, then: int, query: Query) -> Response:
        response = await found()
        if response is not None:
            return response
        rest = self._from(then, query, self._clock())
        return rest if isinstance(rest, Response) else await rest()


def _nothing_found(query: Query) -> Response:
    if not query.recursion_desired:
        return Response(REFUSED, errors=((Ede.NOT_AUTHORITATIVE, "recursion is off for this question"),))
    return Response(SERVFAIL, errors=((Ede.NO_REACHABLE_AUTHORITY, "no upstream answered"),))


class CacheStage:
    """Answers from the node's cache, positive and negative, when what it holds is all this client may want.

    - A DO=1 client gets RRsets with their RRSIGs, or ones that our own upstream, asked with DO=1, gave without. What a
      peer told us without RRSIGs may be signed all the same: it goes upstream.
    - Neither a wildcard expansion nor a signed zone's denial is kept with its proof, so DO=1 goes upstream for both.
    - A CD=1 client must not be handed data that nobody validated and that its own upstream did not say: local data
      and `validated` data only.
    """

    def __init__(
        self, cache: Cache, *, last_resort: bool = False, refresh: Callable[[Query], None] | None = None
    ) -> None:
        """`last_resort`: asked after every upstream failed, so unsigned bus data is better than nothing.

        `refresh` is called, after the client has its answer, with a question whose answer is due (see `is_due`).
        """
        self._cache = cache
        self._last_resort = last_resort
        self._refresh = refresh
        self.hits = 0
        self.unsuitable = 0
        self.refreshed = 0

    def answer(self, query: Query, now: float) -> Response | None:
        """The cached answer, TTLs counted down to `now`, or None."""
        if query.qtype in NOT_AN_RRSET:
            return None
        found = self._cache.resolve(query.qname, query.qtype, now)
        if found is None or not found.complete:
            return None
        if (query.do or query.checking_disabled) and not suits(query, found, last_resort=self._last_resort):
            self.unsuitable += 1
            return None
        self.hits += 1
        if self._refresh is not None and any(is_due(cached, self._cache, now) for cached in found.chain):
            self.refreshed += 1
            self._refresh(query)
        chain = tuple([cached.rrset for cached in found.chain])
        if is_negative(found):
            return Response(found.rcode, chain, () if found.soa is None else (found.soa,))
        authentic = all(one.evidence is Evidence.VALIDATED for one in found.chain)
        return Response(found.rcode, chain, (), authentic)


def suits(query: Query, found: Lookup, *, last_resort: bool) -> bool:
    """Whether a client may be given what the cache knows; see `CacheStage`."""
    if query.checking_disabled and not all(map(_safe_unchecked, found.chain)):
        return False
    if not query.do:
        return True
    if is_negative(found):
        return False
    after_dname = False
    for cached in found.chain:
        rrset = cached.rrset
        synthesised = after_dname and rrset.type == rrtypes.CNAME
        after_dname = rrset.type == rrtypes.DNAME
        if rrset.sigs:
            if is_wildcard_expansion(rrset):
                return False
        elif not (synthesised or _surely_unsigned(cached) or (last_resort and not query.checking_disabled)):
            return False
    return True


def is_negative(found: Lookup) -> bool:
    """Whether the end of the chain is that there is nothing."""
    return found.rcode != NOERROR or not found.chain or found.chain[-1].rrset.owner != found.target


def _surely_unsigned(cached: Cached) -> bool:
    # Our upstream was asked with DO=1. What it gave as validated was signed, but for a CNAME that a DNAME yielded.
    return cached.local and cached.evidence is not Evidence.VALIDATED


def _safe_unchecked(cached: Cached) -> bool:
    return cached.local or cached.evidence is Evidence.VALIDATED


def is_due(cached: Cached, cache: Cache, now: float) -> bool:
    """Whether it is time for this node to fetch again, for the whole cluster, what it fetched itself.

    Nodes that fetched a name at the same moment would do so again at each expiry, for ever. So each fetches what is
    asked for again a little earlier, by the hash of node and name that shortens what peers send (trust rules 6.8): the
    first one's answer then renews the life of the others' copies, whose own time does not come.
    """
    life = cached.expires - cached.learned
    if not cached.local or cached.expires - now > life * MAX_EARLY:
        return False
    if life > int.from_bytes(cached.rrset.rrs[6:10], "big") + 1:
        return False  # longer than the upstream said: a peer has renewed it, and that is shortened already
    return now >= cached.learned + cache.shortened(cached.rrset.owner, int(life * 1000)) / 1000


def is_wildcard_expansion(rrset: RRset) -> bool:
    """Whether the first RRSIG counts fewer labels than the owner has (RFC 4035 section 5.3.4)."""
    owner_labels = label_count(rrset.owner) - rrset.owner.startswith(b"\x01*")
    return rrset.sigs[15] < owner_labels
