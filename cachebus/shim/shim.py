"""The shim as one running thing: listeners, lookup order, upstreams and what is learned from them, put together.

Decides nothing itself; it reads like the lookup order.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from cachebus.cache import Cache
from cachebus.ports import Clock
from cachebus.shim.fast import FastPath
from cachebus.shim.forward import Forwarder
from cachebus.shim.learn import Learned, Learner
from cachebus.shim.lookup import CacheStage, LookupOrder
from cachebus.shim.server import Server
from cachebus.shim.service import Service
from cachebus.shim.settings import Endpoint, ShimSettings
from cachebus.shim.tasks import Tasks
from cachebus.shim.upstream import Upstream


class Shim:
    """A DNS server that answers from the node's cache and asks upstreams for the rest.

    `learned` is called with each answer that may be shared; what may not is in `cache` already, as is what may.
    """

    def __init__(self, settings: ShimSettings, cache: Cache, learned: Learned, clock: Clock) -> None:
        self._upstreams = [Upstream(upstream) for upstream in settings.upstreams]
        self._learner = Learner(
            settings.node, cache, learned, infrastructure=settings.infrastructure, max_ttl=settings.max_ttl
        )
        self._forwarder = Forwarder(settings, self._upstreams, self._learner.learn, clock)
        self._cached = CacheStage(cache, refresh=self._forwarder.refresh if settings.refresh else None)
        self._last_resort = CacheStage(cache, last_resort=True)
        order = LookupOrder([self._cached, self._forwarder, self._last_resort], clock)
        self._tasks = Tasks()
        self._fast = make_fast_path(settings, cache)
        self._service = Service(
            order,
            self._tasks,
            clock,
            allow=settings.allow,
            max_in_flight=settings.max_in_flight,
            fast=self._fast,
        )
        self._server = Server(
            settings.listen,
            self._service,
            self._tasks,
            max_connections=settings.max_tcp_connections,
            shared=settings.workers > 1,
        )

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where it listens, once entered."""
        return self._server.endpoints

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.__aexit__(kind, error, trace)
        await self._forwarder.close()
        for upstream in self._upstreams:
            await upstream.close()

    def statistics(self) -> Mapping[str, int]:
        """Counters since the start, and how much is under way now."""
        upstreams = self._upstreams
        found = {
            **self._service.counters,
            "in_flight": len(self._tasks),
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
            "learned": self._learner.shared,
            "kept": self._learner.kept,
            **self._server.statistics(),
        }
        if self._fast is not None:
            found["fast"] = self._fast.answered
            found["queries"] += self._fast.answered
            found["hits"] += self._fast.answered
        for reason, count in self._learner.not_shared.items():
            found[f"not_shared_{reason.value.replace('-', '_')}"] = count
        return found


def make_fast_path(settings: ShimSettings, cache: Cache) -> FastPath | None:
    """The short way of plain questions; None where something is switched on that it knows nothing of."""
    return FastPath(cache, settings.allow, refreshes=settings.refresh)
