"""One node's refresh serves all: five shims, one hot name, 20 TTLs, hardly more than one upstream query per TTL."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.farm.client import Endpoint, Question, ask
from tests.farm.lies import a
from tests.farm.node import CachebusNode, Cluster
from tests.farm.process import eventually
from tests.farm.python_server import PythonServer, Query, nodata, reply
from tests.servers import free_port

pytestmark = pytest.mark.interop

SHIMS = 5
TTL = 5
TTLS = 20
PER_TTL = 1.5
"""Upstream queries, and bus messages, that the issue allows per TTL."""
ASK_EVERY = 0.02
"""Seconds between two queries of one client: the name is hot."""
READY = 10.0
WARM_UP = Question("warm-up.example.test.", "A")
HOT = Question("hot.example.test.", "A")


def hot(query: Query) -> bytes:
    return reply(query, a(query.owner, ttl=TTL)) if query.type == "A" else nodata(query, "example.test.")


def keep_asking(shim: Endpoint, until: float, lost: list[str]) -> None:
    while time.monotonic() < until:
        answer = ask(shim, HOT, timeout=1.0)
        if answer is None or not answer.answer:
            lost.append(f"{shim}: {answer}")
        time.sleep(ASK_EVERY)  # the client's pace


def test_one_hot_name_costs_about_one_upstream_query_per_ttl(farm: Path, running: ExitStack) -> None:
    server = running.enter_context(PythonServer(hot))
    cluster = Cluster()
    names = [f"shim-{i}" for i in range(SHIMS)]
    cluster.add(*names)
    shims = [Endpoint("127.0.0.1", free_port()) for _ in names]
    upstream = {"address": f"{server.endpoint.host}:{server.endpoint.port}", "authoritative": True}
    nodes = [
        running.enter_context(
            CachebusNode(
                farm, cluster.config(name, shim={"listen": [f"{shim.host}:{shim.port}"], "upstreams": [upstream]})
            )
        )
        for name, shim in zip(names, shims, strict=True)
    ]
    for shim in shims:
        eventually(lambda shim=shim: ask(shim, WARM_UP, timeout=0.5), READY, f"{shim} answers")
    for node in nodes:
        node.wait_until_live()
    lost: list[str] = []
    until = time.monotonic() + TTLS * TTL
    clients = [threading.Thread(target=keep_asking, args=(shim, until, lost)) for shim in shims]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert not lost
    counters = [node.transport() for node in nodes]
    asked = server.asked[HOT.name, HOT.type]
    sent = sum(counter["sent"] for counter in counters)
    received = sum(counter["received"] for counter in counters)
    assert asked >= TTLS * 0.5, "the load never reached the authoritative server"
    assert asked <= TTLS * PER_TTL, f"{asked} upstream queries in {TTLS} TTLs"
    assert received <= TTLS * PER_TTL * (SHIMS - 1), f"{received} received in {TTLS} TTLs, {sent} sent"
