"""SWILD with real authoritative servers and real nodes: 10,000 subdomains, and nobody is asked."""

from __future__ import annotations

import contextlib
import itertools
import random
import select
import socket
import subprocess
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import dns.flags
import dns.message
import pytest

from cachebus.presentation import name_from_text
from tests.farm.authoritative import Knot, Nsd
from tests.farm.client import Endpoint, Question, ask, data
from tests.farm.node import Cluster
from tests.farm.process import eventually
from tests.farm.unbound import Unbound
from tests.interop.test_shim import ShimNode, upstream
from tests.servers import find, require

pytestmark = pytest.mark.interop

NAMES = 10_000
WINDOW = 64
"""Questions under way at once: fewer than a socket buffer holds."""
RETRY_AFTER = 1.0
ZONES = {
    "foo.test.": """@ 86400 IN SOA ns host 1 7200 3600 604800 60
@ 86400 IN NS ns
ns 86400 IN A 127.0.0.1
@ 86400 IN TYPE65392 \\# 12 015f03666f6f047465737400
_ 3600 IN CNAME map.bar.test.
* 600 IN CNAME _
""",
    "bar.test.": """@ 86400 IN SOA ns host 1 7200 3600 604800 60
@ 86400 IN NS ns
ns 86400 IN A 127.0.0.1
map 600 IN A 192.0.2.10
""",
}
SWILD = {"swild": {"zones": ["."]}}


class CountedNsd(Nsd):
    """Follows the alias into the other zone, which it serves too."""

    def prepare(self) -> None:
        super().prepare()
        path = self.directory / "nsd.conf"
        control = f'control-enable: yes\n  control-interface: "{self.directory}/ctl"'
        path.write_text(path.read_text().replace("control-enable: no", control))

    def queries(self) -> int:
        return _number("num.queries=", "nsd-control", "-c", str(self.directory / "nsd.conf"), "stats_noreset")


class CountedKnot(Knot):
    """Answers from one zone only, so the chain breaks off at the other's name."""

    def prepare(self) -> None:
        super().prepare()
        path = self.directory / "knot.conf"
        counters = "mod-stats:\n  - id: all\n    server-operation: on\n"
        counters += "template:\n  - id: default\n    global-module: mod-stats/all\n"
        path.write_text(path.read_text().replace("zone:", f"{counters}zone:", 1))

    def queries(self) -> int:
        return _number("server-operation[query] = ", "knotc", "-s", str(self.directory / "knot.sock"), "stats")


def _number(before: str, *command: str) -> int:
    program = find(command[0])
    assert program
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=True, timeout=20)
    return int(done.stdout.partition(before)[2].split()[0])


def files(directory: Path) -> dict[str, Path]:
    found = {}
    for zone, text in ZONES.items():
        found[zone] = directory / f"{zone}zone"
        found[zone].write_text(f"$ORIGIN {zone}\n{text}")
    return found


def flood(server: Endpoint, names: Iterable[str]) -> dict[str, bytes]:
    """Ask for the A records of all names over one socket; the replies, by name."""
    todo = dict(enumerate(names))
    queries = {
        number: number.to_bytes(2, "big") + b"\1\0\0\1\0\0\0\0\0\0" + name_from_text(name) + b"\0\1\0\1"
        for number, name in todo.items()
    }
    waiting: set[int] = set()
    replies: dict[str, bytes] = {}
    order = iter(queries)
    deadline = time.monotonic() + 60
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(server)
        udp.setblocking(False)
        while len(replies) < len(todo) and time.monotonic() < deadline:
            for number in itertools.islice(order, WINDOW - len(waiting)):
                waiting.add(number)
                udp.send(queries[number])
            if not select.select([udp], [], [], RETRY_AFTER)[0]:
                for number in waiting:
                    udp.send(queries[number])
                continue
            with contextlib.suppress(BlockingIOError):
                while True:
                    reply = udp.recv(4096)
                    number = int.from_bytes(reply[:2], "big")
                    waiting.discard(number)
                    replies[todo[number]] = reply
    return replies


def held(node: ShimNode) -> tuple[int, int]:
    cache = node.status()["cache"]
    return cache["entries"], cache["bytes"]


@pytest.mark.parametrize("server", [CountedNsd, CountedKnot])
def test_one_swild_serves_ten_thousand_subdomains_on_every_node(
    farm: Path, server: type[CountedNsd | CountedKnot]
) -> None:
    require(server.__base__.__name__.lower())
    cluster = Cluster()
    cluster.add("a", "b")
    chance = random.Random(1)
    with ExitStack() as running:
        authority = running.enter_context(server(farm, files(farm)))
        behind = upstream(authority.endpoint, authoritative=True)
        b = running.enter_context(ShimNode(farm, cluster.config("b"), behind, **SWILD))
        a = running.enter_context(ShimNode(farm, cluster.config("a"), behind, **SWILD))
        b.wait_until_live()
        for name in ("one.foo.test.", "two.foo.test."):
            answer = ask(a.endpoint, Question(name, "A"))
            assert data(answer or dns.message.Message()) == {
                f"{name} CNAME _.foo.test.", "_.foo.test. CNAME map.bar.test.", "map.bar.test. A 192.0.2.10",
            }  # fmt: skip
        eventually(lambda: a.counters()["swild_owners"], 5.0, "a has found the SWILD")
        eventually(lambda: b.counters()["swild_owners"], 5.0, "b has heard of it")
        eventually(lambda: b.lookup(Question("map.bar.test.", "A")), 5.0, "b has heard the end of the chain")
        assert b.counters()["upstream_queries"] == 0
        queries = authority.queries()
        for node in (a, b):
            before, counters = held(node), node.counters()
            names = {f"{chance.randrange(1 << 62):x}.foo.test." for _ in range(NAMES)}
            replies = flood(node.endpoint, names)
            assert len(replies) == NAMES
            for name, reply in list(replies.items())[::500]:
                message = dns.message.from_wire(reply)
                assert data(message) == {
                    f"{name} CNAME _.foo.test.", "_.foo.test. CNAME map.bar.test.", "map.bar.test. A 192.0.2.10",
                    "foo.test. TYPE65392 \\# 12 015f03666f6f047465737400",
                }  # fmt: skip
                assert not message.flags & (dns.flags.AA | dns.flags.AD)
            assert {(reply[3] & 15, reply[7]) for reply in replies.values()} == {(0, 4)}
            after = node.counters()
            assert held(node) == before
            assert after["upstream_queries"] == counters["upstream_queries"]
            assert after["swild_synthesised"] - counters["swild_synthesised"] >= NAMES
            assert NAMES * 0.98 <= after["swild_entries_saved"] - counters["swild_entries_saved"] <= NAMES
            node.assert_quiet()
        assert authority.queries() == queries, "the authoritative server was asked nothing"


def test_behind_a_resolver_that_validates(farm: Path) -> None:
    """Nothing of the unsigned zone is shared; what the resolver answers to the shim's own question is believed."""
    require("nsd", "unbound")
    with ExitStack() as running:
        authority = running.enter_context(CountedNsd(farm, files(farm)))
        unbound = running.enter_context(Unbound(farm, stubs=dict.fromkeys(ZONES, authority.endpoint)))
        config = {"node": "a", "share": {"min_ttl": 1, "allow": ["test."]}}
        node = running.enter_context(ShimNode(farm, config, upstream(unbound.endpoint, validating=True), **SWILD))
        for name in ("one.foo.test.", "two.foo.test."):
            ask(node.endpoint, Question(name, "A"))
        eventually(lambda: node.counters()["swild_owners"], 5.0, "the SWILD was found")
        queries, asked = authority.queries(), node.counters()["upstream_queries"]
        replies = flood(node.endpoint, [f"n{number}.foo.test." for number in range(1000)])
        assert {(reply[3] & 15, reply[7]) for reply in replies.values()} == {(0, 4)}
        assert len(replies) == 1000
        assert (authority.queries(), node.counters()["upstream_queries"]) == (queries, asked)
        signed = ask(node.endpoint, Question("n1.foo.test.", "A", dnssec=True))
        assert signed is not None
        assert len(signed.answer) == 3
        assert node.counters()["upstream_queries"] > asked, "DO=1 is answered by who knows signatures"
        node.assert_quiet()
