"""No life after death: with the authoritative server gone, what two nodes shared is gone at its first expiry.

Two Unbounds fill each other both ways; one of them serves stale answers to its clients (RFC 8767), which must never
come back to life as fresh data.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.farm.client import Endpoint, Question, ask_all
from tests.farm.lies import a
from tests.farm.node import CachebusNode, Cluster, dnstap_source, unbound_sink
from tests.farm.process import eventually
from tests.farm.python_server import PythonServer, Query, nodata, reply
from tests.farm.unbound import Unbound
from tests.servers import require

pytestmark = pytest.mark.interop

TTL = 6
"""Seconds: dnstap is up to one late, a fill writes TTLs one less, whole seconds cost more; some life must be left."""
TTLS = 10
STALE_TTL = 30
"""Unbound's serve-expired-reply-ttl: what tells a stale answer from a fresh one."""
ROUNDING = 1.0
"""Seconds: resolvers and nodes count TTLs in whole seconds."""
ASK_EVERY = 0.3
CONNECT = 10.0
ZONE = "mortal.test."
QUESTIONS = [Question(f"n{i}.{ZONE}", "A") for i in range(8)]


def mortal(query: Query) -> bytes:
    if query.type != "A":
        return nodata(query, ZONE)
    return reply(query, a(query.owner, ttl=TTL))


class Side:
    """One resolver and its node: dnstap out of it, load_cache into it."""

    def __init__(self, farm: Path, name: str, upstream: Endpoint, *, stale: bool) -> None:
        self.tap = farm / f"tap-{name}"
        server = ["serve-expired: yes", f"serve-expired-reply-ttl: {STALE_TTL}"] if stale else []
        stubs = {ZONE: upstream}
        self.unbound = Unbound(farm, name=f"unbound-{name}", stubs=stubs, dnstap=self.tap, server=server)

    def node(self, farm: Path, cluster: Cluster, name: str) -> CachebusNode:
        sources = {"resolver": dnstap_source(self.tap, trust=["authoritative"])}
        sinks = {"resolver": unbound_sink(self.unbound.control_path)}
        return CachebusNode(farm, cluster.config(name, sources=sources, sinks=sinks))


def test_dead_data_is_gone_everywhere_at_its_first_expiry(farm: Path, running: ExitStack) -> None:
    require("unbound")
    server = running.enter_context(PythonServer(mortal))
    cluster = Cluster()
    cluster.add("a", "b")
    stale = Side(farm, "a", server.endpoint, stale=True)
    fresh = Side(farm, "b", server.endpoint, stale=False)
    nodes = [running.enter_context(side.node(farm, cluster, name)) for name, side in (("a", stale), ("b", fresh))]
    for side in (stale, fresh):
        running.enter_context(side.unbound)
    for node in nodes:
        eventually(lambda node=node: node.status()["sources"]["resolver"]["connections"], CONNECT, "connected")
        node.wait_until_live()

    half = len(QUESTIONS) // 2
    assert len(ask_all(stale.unbound.endpoint, QUESTIONS[:half])) == half
    assert len(ask_all(fresh.unbound.endpoint, QUESTIONS[half:])) == half
    server.stop()
    death = time.monotonic() + TTL + ROUNDING
    crossed = {question.name for question in QUESTIONS[half:]}
    eventually(lambda: crossed <= {name for name, _ in stale.unbound.answers()}, TTL, "b's names are in a")

    alive: list[str] = []
    while time.monotonic() < death + TTLS * TTL:
        after = time.monotonic() > death
        from_stale = ask_all(stale.unbound.endpoint, QUESTIONS, timeout=0.5)
        from_fresh = ask_all(fresh.unbound.endpoint, QUESTIONS, timeout=0.5)
        if after:
            alive += [f"a: {q}" for q, m in from_stale.items() for rrset in m.answer if rrset.ttl != STALE_TTL]
            alive += [f"b: {question}" for question, message in from_fresh.items() if message.answer]
        time.sleep(ASK_EVERY)  # the pace of clients that go on asking, not a wait for something
    assert not alive
    for node in nodes:
        assert not any(node.lookup(question) for question in QUESTIONS[::3])
