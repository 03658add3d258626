"""Five nodes, one hot name, twenty TTLs: who asks the authoritative server, and how much goes over the bus.

The core is real: caches, publishers, codecs with TSIG, subscribers, the shim's lookup order and what it learns. Time is
a manual clock, moved in steps of a flight time: what is asked, or sent, in one step arrives in the next.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import dns.flags
import dns.message
import pytest

from cachebus import assembly, links
from cachebus.cache import Cache
from cachebus.config import loads
from cachebus.history import History
from cachebus.outlet import Outlet
from cachebus.ports import TransportSettings
from cachebus.presentation import name_from_text
from cachebus.publisher import Publisher
from cachebus.shim import UpstreamSettings
from cachebus.shim.exchange import Exchange, compose_query
from cachebus.shim.learn import Learner
from cachebus.shim.lookup import CacheStage, Later, LookupOrder
from cachebus.shim.query import Query, Response
from cachebus.shim.upstream import Quality, Reply, Upstream
from cachebus.subscriber import Subscriber
from cachebus.testing import ManualClock, MemoryNetwork
from cachebus.wire.message import NOERROR, RD, parse
from tests.unit.shim_bed import records, reply_to

NODES = 5
NAME = "www.hot.example."
QUERY = Query(b"\0\1", RD, name_from_text(NAME) + b"\0\1\0\1", name_from_text(NAME), 1, None)
FLIGHT = 0.05
"""Seconds, on the manual clock."""

CONFIG = """
node: node-{node}
keys:
  cluster: {{algorithm: hmac-sha256, secret: "{secret}", origins: [node-0, node-1, node-2, node-3, node-4]}}
transports:
  lan: {{type: udp, listen: "127.0.0.1:1", peers: ["127.0.0.1:2"], key: cluster}}
"""


class Authority:
    """The authoritative server's data at a time, and how often it was asked."""

    def __init__(self, ttl: int) -> None:
        self.upstream = Upstream(UpstreamSettings(address=("127.0.0.1", 53), authoritative=True))
        self.alive = True
        self.queries = 0
        self._answer = records(f"{NAME} {ttl} IN A 192.0.2.1")

    def reply(self) -> Reply | None:
        self.queries += 1
        if not self.alive:
            return None
        outgoing = compose_query(QUERY.qname, QUERY.qtype, recurse=False)
        wire = reply_to(dns.message.from_wire(outgoing.wire), self._answer, flags=dns.flags.AA)
        return Reply(self.upstream, Exchange(outgoing.wire, wire), parse(wire), Quality.GOOD)


class Node:
    """One shim node on the memory network; its forwarding stage asks `authority`, one question at a time."""

    def __init__(self, number: int, *, clock: ManualClock, network: MemoryNetwork, authority: Authority) -> None:
        secret = base64.b64encode(bytes(32)).decode()
        config = loads(CONFIG.format(node=number, secret=secret))
        self.clock = clock
        self.authority = authority
        self.cache = Cache(config.node)
        policy, history = assembly.make_policy(config.share), History(config.node)
        codec = links.make_codec("lan", config.transports["lan"], assembly.make_owner(config), start=None)
        self.subscriber = Subscriber(
            codec=codec, policy=policy, cache=self.cache, sinks=(), history=history, clock=clock
        )
        peers = tuple(f"n{other}" for other in range(NODES) if other != number)
        settings = TransportSettings(name="lan", node=config.node, cluster="test", listen=f"n{number}", peers=peers)
        self.transport = network.transport(settings, self.subscriber.receive)
        self.publisher = Publisher(
            policy=policy,
            noise=assembly.make_noise(config.share, self.clock()),
            cache=self.cache,
            outlets=[Outlet("lan", codec, self.transport)],
            history=history,
            clock=clock,
        )
        self.learner = Learner(config.node, self.cache, self.publisher.publish, infrastructure=False, max_ttl=86400)
        self.order = LookupOrder([CacheStage(self.cache, refresh=self.refresh), self], clock)
        self.refreshing: list[asyncio.Future[None]] = []
        self.under_way = False
        self.unanswered = 0

    def answer(self, query: Query, now: float) -> Later:
        async def ask() -> Response | None:
            reply = self.authority.reply()
            if reply is None:
                return None
            self.learner.learn(query.qname, query.qtype, reply, self.clock())
            return Response(NOERROR, reply.message.answer)

        return ask

    def refresh(self, query: Query) -> None:
        if not self.under_way:
            self.under_way = True
            self.refreshing.append(asyncio.ensure_future(self._finish(self.answer(query, self.clock())())))

    def ask(self) -> list[asyncio.Future[None]]:
        """A client's question; the look-up under way, if it needs one and none is."""
        outcome = self.order.answer(QUERY, self.clock())
        if isinstance(outcome, Response):
            started, self.refreshing = self.refreshing, []
            return started
        if self.under_way:
            return []
        self.under_way = True
        return [asyncio.ensure_future(self._finish(outcome()))]

    async def _finish(self, look_up: Coroutine[Any, Any, Response | None]) -> None:
        response = await look_up
        self.under_way = False
        self.unanswered += response is None or response.rcode != NOERROR


@asynccontextmanager
async def cluster(clock: ManualClock, authority: Authority) -> AsyncIterator[tuple[list[Node], MemoryNetwork]]:
    network = MemoryNetwork()
    nodes = [Node(number, clock=clock, network=network, authority=authority) for number in range(NODES)]
    for node in nodes:
        await node.transport.__aenter__()
        await node.publisher.__aenter__()
    try:
        yield nodes, network
    finally:
        for node in nodes:
            await node.publisher.__aexit__(None, None, None)
            await node.transport.__aexit__(None, None, None)
        await authority.upstream.close()


async def run(nodes: list[Node], network: MemoryNetwork, clock: ManualClock, seconds: float) -> int:
    """Clients ask every node in every step; gives the number of bus messages (each goes to every peer)."""
    messages = 0
    for _ in range(int(seconds / FLIGHT)):
        under_way = [future for node in nodes for future in node.ask()]
        clock.advance(FLIGHT)
        if under_way:
            await asyncio.gather(*under_way)
            for node in nodes:
                while node.publisher.statistics()["queued"]:  # noqa: ASYNC110  (its task gets its turn)
                    await asyncio.sleep(0)
        messages += len(network.pending)
        network.deliver()
    return messages // (NODES - 1)


@pytest.mark.parametrize("ttl", [30, 60, 120])
async def test_one_hot_name_costs_one_and_a_half_queries_and_messages_per_ttl_at_most(ttl: int) -> None:
    clock, authority, ttls = ManualClock(), Authority(ttl), 20 if ttl < 60 else 5
    async with cluster(clock, authority) as (nodes, network):
        await run(nodes, network, clock, 1)
        first = authority.queries
        assert first <= NODES, "cold nodes that are asked in the same instant each ask once"
        messages = await run(nodes, network, clock, ttl * ttls)
        assert sum(node.unanswered for node in nodes) == 0
        assert all(node.subscriber.accepted for node in nodes)
    queries = authority.queries - first
    assert ttls * 0.9 <= queries <= ttls * 1.5
    assert messages <= ttls * 1.5


async def test_without_its_authority_the_name_is_gone_everywhere_at_its_first_expiry() -> None:
    ttl = 30
    clock, authority = ManualClock(), Authority(ttl)
    async with cluster(clock, authority) as (nodes, network):
        await run(nodes, network, clock, 1)
        await run(nodes, network, clock, ttl * 2)
        authority.alive = False
        last = max(cached.expires for node in nodes if (cached := node.cache.get(QUERY.qname, 1, clock())) is not None)
        assert last <= clock() + ttl
        await run(nodes, network, clock, last - clock() + FLIGHT)
        for _ in range(ttl * 10):
            assert all(node.cache.get(QUERY.qname, 1, clock()) is None for node in nodes)
            await run(nodes, network, clock, 1)
