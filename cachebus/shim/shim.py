"""The shim as one running thing: listeners, lookup order, upstreams and what is learned from them, put together.

Decides nothing itself; it reads like the lookup order.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from cachebus.cache import Cache
from cachebus.flushes import Flush
from cachebus.ports import Clock
from cachebus.shim import ddr
from cachebus.shim.access import AccessList
from cachebus.shim.failures import Failures, FailureStage, Question
from cachebus.shim.fast import FastPath
from cachebus.shim.forward import Forwarder, Key
from cachebus.shim.learn import Learned, Learner
from cachebus.shim.local import LocalStage
from cachebus.shim.lookup import CacheStage, LookupOrder, Stage
from cachebus.shim.query import Channel, Query, Response
from cachebus.shim.server import Server
from cachebus.shim.service import Service
from cachebus.shim.settings import Endpoint, ShimSettings
from cachebus.shim.stale import StaleStage
from cachebus.shim.subnet import SubnetOrder, Subnets, SubnetStage
from cachebus.shim.swild import SwildStage
from cachebus.shim.swild_owners import Swilds
from cachebus.shim.tasks import Tasks
from cachebus.shim.upstream import Upstream
from cachebus.wire.message import RD, question_section


class Shim:
    """A DNS server that answers from the node's cache and asks upstreams for the rest.

    `learned` is called with each answer that may be shared; what may not is in `cache` already, as is what may.
    """

    def __init__(self, settings: ShimSettings, cache: Cache, learned: Learned, clock: Clock) -> None:
        self._settings = settings
        self._cache = cache
        self._upstreams = [Upstream(upstream) for upstream in settings.upstreams]
        caching = settings.caching
        self._clock = clock
        self._failures = Failures(caching.failures)
        self._subnets = Subnets(caching.subnet)
        self._swilds = None
        if settings.swild.zones:
            self._swilds = Swilds(cache, settings.swild, self._ask_for_swild if settings.upstreams else None)
        self._learner = Learner(
            settings.node,
            cache,
            learned,
            infrastructure=settings.infrastructure,
            max_ttl=settings.max_ttl,
            swild_type=settings.swild.type,
            swilds=self._swilds,
            ttl=caching.ttl,
        )
        self._forwarder = Forwarder(
            settings,
            self._upstreams,
            self._learner.learn,
            clock,
            generation=lambda: cache.generation,
            subnet=self._subnets.of,
            tells=self._subnets.is_told_about,
            finished=self._finished,
        )
        self._cached = CacheStage(cache, refresh=self._refresh if settings.refresh else None)
        self._last_resort = CacheStage(cache, last_resort=True)
        told = self._subnets.of
        self._failing = FailureStage(self._failures, self._forwarder, self._last_resort, subnet=told)
        self._stale: StaleStage | None = None
        if caching.stale is not None:
            self._stale = StaleStage(caching.stale, cache, self._failures, self._failing, clock, subnet=told)
        self._by_network: SubnetStage | None = None
        if caching.subnet.send:
            self._by_network = SubnetStage(self._subnets, self._stale or self._failing)
        self._swild = self._make_swild()
        self._local = LocalStage(settings.local, LookupOrder(self._behind_local_data(), clock))
        self._discovery = ddr.DiscoveryStage(settings.encrypted.ddr, settings.encrypted.https_path)
        self._fast = self._make_fast_path()
        self._tasks = Tasks()
        self._service = Service(
            self._make_order(),
            self._tasks,
            clock,
            allow=settings.allow,
            max_in_flight=settings.max_in_flight,
            notes_client=caching.subnet.send,
            front=settings.front,
            cache=cache,
            fast=self._fast,
        )
        self._server = Server(settings, self._service, self._tasks)

    def _make_order(self) -> LookupOrder:
        """The lookup order (design: local data, cache, SWILD, forward, stale)."""
        stages: list[Stage] = [self._local, self._discovery, *self._behind_local_data()]
        if self._by_network is None:
            return LookupOrder(stages, self._clock)
        return SubnetOrder(stages, self._clock, self._by_network)

    @property
    def _ask(self) -> Stage:
        return self._stale or self._failing

    def _behind_local_data(self) -> list[Stage]:
        stages = [self._by_network, self._cached, self._swild, self._ask, self._last_resort]
        return [stage for stage in stages if stage is not None]

    def _make_fast_path(self) -> FastPath | None:
        """The short way of plain questions; None where something is switched on that looks at each of them."""
        settings = self._settings
        front = settings.front
        if front.rate_limit is not None or front.rotate or not front.minimal or settings.caching.subnet.send:
            return None
        serves = AccessList(settings.allow, front.deny).serves
        return FastPath(self._cache, serves, refreshes=settings.refresh, reserved=(*self._local.special, ddr.ZONE))

    def _make_swild(self) -> SwildStage | None:
        if self._swilds is None:
            return None
        return SwildStage(
            self._swilds,
            self._cache,
            held=[stage for stage in (self._by_network, self._cached) if stage is not None],
            rest=LookupOrder([self._ask, self._last_resort], self._clock),
            clock=self._clock,
            validating=any(upstream.validating for upstream in self._settings.upstreams),
        )

    def _ask_for_swild(self, name: bytes) -> None:
        assert self._swilds is not None
        rrtype = self._swilds.settings.type
        self._forwarder.refresh(Query(b"\0\0", RD, question_section(name, rrtype), name, rrtype, None))

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where it listens, once entered."""
        return self._server.endpoints

    @property
    def encrypted(self) -> Mapping[Channel, tuple[Endpoint, ...]]:
        """Where it listens on encrypted channels, once entered."""
        return self._server.encrypted

    def _refresh(self, query: Query) -> None:
        """Fetch again what is about to expire, unless that has just failed: each further client would try once more."""
        question = Question(query.qname, query.qtype, checking_disabled=False, subnet=self._subnets.of(query))
        if self._failures.errors(question, self._clock()) is None:
            self._forwarder.refresh(query)

    def _finished(self, key: Key, response: Response | None) -> None:
        if key.generation != self._cache.generation:
            return  # it was asked before a flush, which wants everything asked anew
        now = self._clock()
        question = Question(key.qname, key.qtype, key.checking_disabled, key.subnet)
        self._failures.finished(question, response, now)
        if key.subnet:
            self._subnets.finished(key.qname, key.qtype, key.subnet, response, now)

    def flush(self, flush: Flush) -> int:
        """Forget what is kept beside the cache; gives the number of failures and of answers for networks."""
        return self._failures.forget(flush) + self._subnets.forget(flush)

    async def prepare(self) -> None:
        """Read what takes a while, so that nobody waits for it later. Raises `ConfigError` for a wrong file."""
        await self._local.load()
        if self._fast is not None:
            self._fast.claims = self._local.claims if self._local.has_data else None

    async def __aenter__(self) -> Self:
        cache, swilds, stale = self._cache, self._swilds, self._settings.caching.stale
        before = cache.observer, cache.keep_expired
        if swilds is not None:
            swilds.inherit(getattr(cache.observer, "__self__", None))
        cache.observer = None if swilds is None else swilds.observe
        cache.keep_expired = 0.0 if stale is None else float(stale.max_age)
        try:
            await self._server.__aenter__()
        except BaseException:
            cache.observer, cache.keep_expired = before  # whoever goes back to the shim before goes on with it
            raise
        self._discovery.announce(self._server.encrypted)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._swilds is not None:
            self._swilds.retire()
        await self._server.__aexit__(kind, error, trace)
        await self._forwarder.close()
        for upstream in self._upstreams:
            await upstream.close()

    def statistics(self) -> Mapping[str, int]:
        """Counters since the start, and how much is under way now."""
        upstreams = self._upstreams
        found = {
            **self._service.statistics(),
            "in_flight": len(self._tasks),
            "discovery": self._discovery.answers,
            "hits": self._cached.hits,
            "refreshed": self._cached.refreshed,
            "unsuitable": self._cached.unsuitable,
            "last_resort": self._last_resort.hits,
            "forwarded": self._forwarder.forwarded,
            "joined": self._forwarder.joined,
            "forward_failures": self._forwarder.failures,
            "upstream_queries": sum(upstream.queries for upstream in upstreams),
            "upstream_replies": sum(upstream.replies for upstream in upstreams),
            "upstream_queries_stream": sum(upstream.queries_stream for upstream in upstreams),
            "upstream_timeouts": self._forwarder.timeouts,
            "upstream_stray_replies": sum(upstream.stray_replies for upstream in upstreams),
            "upstream_malformed": sum(upstream.malformed for upstream in upstreams),
            **self._local.statistics(),
            "learned": self._learner.shared,
            "kept": self._learner.kept,
            "ttl_raised": self._learner.raised,
            **self._failing.statistics(),
            **({} if self._stale is None else self._stale.statistics()),
            **({} if self._by_network is None else self._by_network.statistics()),
            **self._server.statistics(),
        }
        if self._swild is not None:
            found |= self._swild.statistics()
        if self._fast is not None:
            found["fast"] = self._fast.answered
            found["queries"] += self._fast.answered
            found["hits"] += self._fast.answered
        for reason, count in self._learner.not_shared.items():
            found[f"not_shared_{reason.value.replace('-', '_')}"] = count
        return found
