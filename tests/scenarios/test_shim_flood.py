"""Floods: cached names are answered all the same, memory stays bounded, and the bus goes on filling the cache.

A flood is 1,500 questions a second for subdomains that nobody asked for before, as many malformed packets, 5,000 slow
TCP clients, an upstream that says nothing; one at a time, and all at once. Whoever sends more than a server can read
fills the kernel's buffer, which is nothing that the server could do anything about.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import dns.message
import pytest

from tests.farm.authoritative import Nsd
from tests.farm.client import Endpoint, Question, ask
from tests.farm.flood import CLIENTS, RATE
from tests.farm.node import CachebusNode, Cluster
from tests.farm.process import eventually
from tests.farm.zones import PLAIN, Zones
from tests.servers import free_port, require

pytestmark = [pytest.mark.interop, pytest.mark.alone]

ROOT = Path(__file__).resolve().parents[2]
P99 = 0.050
"""Seconds that the issue allows."""
MAX_GROWTH = 96 * 1024 * 1024
"""Bytes: 2,048 questions under way and 512 connections take a third of it."""
CACHE_ENTRIES = 5000
"""Most RRsets of the flooded node's cache: fewer than the names that a flood asks for."""
CACHED = [Question(f"cached{number}.wild.{PLAIN}", "A") for number in range(20)]
SECONDS = 3.0
"""Of each flood."""
PROBE_RATE = 150
"""Questions for cached names a second meanwhile."""
PATIENCE = 1.0
"""Seconds after which a reply counts as lost."""
ARRIVE = 15.0
"""Seconds for a peer's answer to arrive in quiet times."""


class Scene(NamedTuple):
    node: CachebusNode
    peer: CachebusNode
    shim: Endpoint
    peer_shim: Endpoint
    upstream: Nsd
    numbers: Iterator[int]

    def fresh(self) -> Question:
        """A name that the peer has not asked for."""
        return Question(f"fresh{next(self.numbers)}.wild.{PLAIN}", "A")

    def has_arrived(self, question: Question) -> bool:
        """Have the peer ask, and see whether the node has heard of it."""
        return ask(self.peer_shim, question) is not None and is_cached(self.shim, question)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, zones: Zones, nsd: Nsd) -> Iterator[Scene]:
    """The node that is flooded, its upstream, and a peer in front of another server."""
    require("nsd")
    folder = tmp_path_factory.mktemp("f")
    cluster = Cluster()
    cluster.add("a", "b")
    here, there = Endpoint("127.0.0.1", free_port()), Endpoint("127.0.0.1", free_port())
    with ExitStack() as running:
        upstream = running.enter_context(Nsd(tmp_path_factory.mktemp("f"), zones.files))

        def shim(endpoint: Endpoint, server: Nsd) -> dict[str, object]:
            address = f"{server.endpoint.host}:{server.endpoint.port}"
            return {
                "listen": [f"127.0.0.1:{endpoint.port}"],
                "upstreams": [{"address": address, "authoritative": True}],
                "timeout": 2,
            }

        peer = running.enter_context(CachebusNode(folder, cluster.config("b", shim=shim(there, nsd))))
        config = cluster.config("a", shim=shim(here, upstream), cache={"max_entries": CACHE_ENTRIES})
        node = running.enter_context(CachebusNode(folder, config))
        made = Scene(node, peer, here, there, upstream, itertools.count())
        eventually(lambda: made.has_arrived(made.fresh()), ARRIVE, "what the peer learns arrives")
        for question in CACHED:
            eventually(lambda question=question: made.has_arrived(question), ARRIVE, f"{question} has arrived")
        yield made


def is_cached(endpoint: Endpoint, question: Question) -> bool:
    reply = ask(endpoint, question, recurse=False, timeout=PATIENCE)
    return reply is not None and bool(reply.answer)


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def probe(endpoint: Endpoint, seconds: float) -> list[float]:
    """Seconds that each question for a cached name took, ascending; a reply that does not come takes `PATIENCE`."""
    found = []
    end = time.monotonic() + seconds
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.bind(("127.0.1.1", 0))
        client.connect(endpoint)
        for number in itertools.count():
            query = dns.message.make_query(*CACHED[number % len(CACHED)][:2], id=number & 0xFFFF).to_wire()
            begun = time.monotonic()
            if begun > end:
                return sorted(found)
            client.send(query)
            found.append(_reply(client, query[:2], begun))
            time.sleep(1 / PROBE_RATE)
    raise AssertionError("the loop ends with the time")


def _reply(client: socket.socket, ident: bytes, begun: float) -> float:
    while True:
        try:
            reply = client.recv(4096)
        except TimeoutError:
            return PATIENCE
        if reply[:2] == ident:
            assert reply[3] & 0xF == 0
            assert reply[7]
            return time.monotonic() - begun


def by_tcp(endpoint: Endpoint) -> bool:
    """Whether a client that is not slow gets its answer over TCP."""
    query = dns.message.make_query(*CACHED[0][:2]).to_wire()
    with socket.create_connection(endpoint, timeout=5, source_address=("127.0.1.2", 0)) as client:
        client.sendall(len(query).to_bytes(2, "big") + query)
        reply = client.recv(4096)
    return len(reply) > 14 and reply[2:4] == query[:2]


def floods(scene: Scene, kinds: Sequence[str], seconds: float) -> dict[str, subprocess.Popen[str]]:
    host, port = scene.shim
    return {
        kind: subprocess.Popen(
            [sys.executable, "-m", "tests.farm.flood", kind, host, str(port), str(seconds)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind in kinds
    }


@pytest.mark.parametrize(
    ("kinds", "dead"),
    [
        pytest.param(("names",), False, id="random subdomains"),
        pytest.param(("malformed",), False, id="malformed packets"),
        pytest.param(("tcp",), False, id="slow TCP clients"),
        pytest.param(("names",), True, id="a dead upstream"),
        pytest.param(("names", "malformed", "tcp"), True, id="all at once"),
    ],
)
def test_cached_names_are_answered_in_a_flood(scene: Scene, kinds: tuple[str, ...], dead: bool) -> None:
    before, counted = resident(scene.node.pid), scene.node.status()["shim"]
    if dead:
        scene.upstream.signal(signal.SIGSTOP)
    started = floods(scene, kinds, SECONDS + 1)
    try:
        eventually(lambda: has_begun(scene, counted), ARRIVE, "the flood is here")
        for _ in range(3):
            question = scene.fresh()
            assert ask(scene.peer_shim, question)
            eventually(lambda question=question: is_cached(scene.shim, question), ARRIVE, "the bus goes on filling")
        times = probe(scene.shim, SECONDS)
        assert by_tcp(scene.shim)
        grown = resident(scene.node.pid) - before
        sent = {kind: int(out.read()) for kind, flood in started.items() if (out := flood.stdout) is not None}
    finally:
        if dead:
            scene.upstream.signal(signal.SIGCONT)
        for flood in started.values():
            flood.kill()
            flood.communicate()
    assert times[len(times) * 99 // 100] < P99, f"{kinds}: {len(times)} questions, {sent} sent"
    assert grown < MAX_GROWTH, grown
    assert scene.node.status()["cache"]["entries"] <= CACHE_ENTRIES
    for kind, count in sent.items():
        assert count > (CLIENTS / 2 if kind == "tcp" else RATE * SECONDS / 2), f"the flood {kind} was none: {count}"
    log = scene.node.log.read_text()
    assert "Traceback" not in log
    assert "nobody expected" not in log


def has_begun(scene: Scene, before: dict[str, int]) -> bool:
    now = scene.node.status()["shim"]
    grown = {name: now[name] - before[name] for name in ("queries", "tcp_accepted")}
    return grown["queries"] > 100 or grown["tcp_accepted"] > 100


def test_when_it_is_over_all_is_as_before(scene: Scene) -> None:
    """Nothing is left under way, and what was dead is asked again."""
    eventually(lambda: scene.node.status()["shim"]["in_flight"] == 0, ARRIVE, "nothing is under way")
    eventually(
        lambda: (reply := ask(scene.shim, scene.fresh(), timeout=PATIENCE)) is not None and reply.answer,
        ARRIVE,
        "the upstream is asked again",
    )
