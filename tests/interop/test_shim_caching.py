"""What the shim keeps, with real servers: stale data for its own clients, flushes that reach the resolver (D-23)."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.rcode
import pytest

from tests.farm.authoritative import Nsd
from tests.farm.client import Endpoint, Question, ask, data
from tests.farm.lies import a
from tests.farm.node import Cluster, cachebus, unbound_sink
from tests.farm.process import eventually
from tests.farm.python_server import PythonServer, Query, reply
from tests.farm.unbound import Unbound
from tests.interop.test_shim import ShimNode, upstream
from tests.servers import require

pytestmark = pytest.mark.interop

ZONE = "mortal.test."
TTL = 4
"""Seconds: whole seconds and up to a tenth are lost on the way to a filled resolver; some life must be left."""
CLIENT_TIMER = 1.0
WITHIN = 10.0
STALE = {"max_age": 60, "client_timer": CLIENT_TIMER, "answer_ttl": 30}
NAMES = [Question(f"n{number}.{ZONE}", "A") for number in range(4)]
DEAD = Endpoint("127.0.0.1", 1)


@pytest.fixture
def mortal(farm: Path) -> Iterator[Nsd]:
    """A zone whose data lives for some seconds."""
    require("nsd", "unbound")
    lines = [f"n{number} {TTL} IN A 192.0.2.{number + 1}" for number in range(len(NAMES))]
    path = farm / "mortal.zone"
    path.write_text(
        f"$ORIGIN {ZONE}\n@ {TTL} IN SOA ns host 1 7200 3600 604800 {TTL}\n@ {TTL} IN NS ns\nns {TTL} IN A 127.0.0.1\n"
        + "\n".join(lines)
        + "\n"
    )
    with Nsd(farm, {ZONE: path}) as server:
        yield server


def codes(message: dns.message.Message) -> list[int]:
    return [int(option.code) for option in message.options if isinstance(option, dns.edns.EDEOption)]


def asked(endpoint: Endpoint, question: Question) -> dns.message.Message:
    answer = ask(endpoint, question)
    assert answer is not None, question
    return answer


def test_dead_data_is_served_stale_by_the_shim_that_had_it_and_lives_nowhere_else(
    farm: Path, running: ExitStack, mortal: Nsd
) -> None:
    cluster = Cluster()
    cluster.add("a", "b")
    resolver = running.enter_context(Unbound(farm, stubs={".": DEAD}, server=["outbound-msg-retry: 1"]))
    sinks = {"resolver": unbound_sink(resolver.control_path)}
    trusted = upstream(mortal.endpoint, authoritative=True)
    b = running.enter_context(ShimNode(farm, cluster.config("b", sinks=sinks), serve_stale="on"))
    a_ = running.enter_context(ShimNode(farm, cluster.config("a"), trusted, serve_stale=STALE))
    eventually(lambda: b.status()["sinks"]["resolver"]["up"], WITHIN, "the sink is up")
    b.wait_until_live()
    gone = Question(f"gone.{ZONE}", "A")
    fresh = {question: data(asked(a_.endpoint, question)) for question in NAMES}
    assert asked(a_.endpoint, gone).rcode() == dns.rcode.NXDOMAIN
    eventually(lambda: b.lookup(NAMES[0]), WITHIN, "b has heard it")
    eventually(lambda: (NAMES[0].name, "A") in resolver.answers(), WITHIN, "the resolver was filled")
    mortal.kill()
    death = time.monotonic() + TTL + 1
    eventually(lambda: time.monotonic() > death, TTL + 5, "everything has expired")
    sent = a_.transport()["sent"]
    for _ in range(2):
        for question in NAMES:
            start = time.monotonic()
            stale = asked(a_.endpoint, question)
            assert time.monotonic() - start < CLIENT_TIMER + 0.5
            assert (stale.rcode(), data(stale)) == (0, fresh[question])
            assert [rrset.ttl for rrset in stale.answer] == [30]
            assert codes(stale)[0] == 3
        denied = asked(a_.endpoint, gone)
        assert (denied.rcode(), codes(denied)[0]) == (dns.rcode.NXDOMAIN, 19)
    assert a_.counters()["stale_answered"] == 2 * (len(NAMES) + 1)

    # Nothing of it is anywhere else: not on the bus, in no copy, not at b, not in the resolver that b filled.
    assert a_.transport()["sent"] == sent
    copy = farm / "copy.cdns"
    assert cachebus("snapshot", "save", str(copy), "--socket", str(a_.socket)).returncode == 0
    assert ZONE.split(".")[0].encode() not in copy.read_bytes()
    for question in NAMES:
        assert not a_.lookup(question)
        assert not b.lookup(question)
        assert asked(b.endpoint, question).rcode() == dns.rcode.SERVFAIL
    assert not any(name.endswith(ZONE) for name, _ in resolver.answers())

    mortal.start()
    eventually(
        lambda: not codes(asked(a_.endpoint, Question(f"ns.{ZONE}", "A"))), WITHIN, "what has not failed is asked for"
    )
    a_.assert_quiet()
    b.assert_quiet()


def test_a_silent_unbound_costs_a_client_the_client_timer_and_its_late_answer_is_learned(
    farm: Path, running: ExitStack, mortal: Nsd
) -> None:
    resolver = running.enter_context(Unbound(farm, stubs={ZONE: mortal.endpoint}))
    node = {"node": "a", "share": {"min_ttl": 1, "allow": ["test."]}}
    shim = running.enter_context(ShimNode(farm, node, upstream(resolver.endpoint), serve_stale=STALE))
    fresh = data(asked(shim.endpoint, NAMES[0]))
    expired = time.monotonic() + TTL + 1
    eventually(lambda: time.monotonic() > expired, TTL + 5, "it has expired")
    resolver.signal(signal.SIGSTOP)
    start = time.monotonic()
    stale = asked(shim.endpoint, NAMES[0])
    taken = time.monotonic() - start
    assert CLIENT_TIMER - 0.1 < taken < CLIENT_TIMER + 1
    assert (data(stale), codes(stale)) == (fresh, [3])
    resolver.signal(signal.SIGCONT)
    eventually(lambda: shim.lookup(NAMES[0]), 3.0, "the late answer was learned")
    again = asked(shim.endpoint, NAMES[0])
    assert (data(again), codes(again)) == (fresh, [])
    assert again.answer[0].ttl <= TTL
    shim.assert_quiet()


# Flushes


def fill_line(name: str) -> str:
    return f'{name} 3600 IN A 192.0.2.1\n{name} 3600 IN TXT "x"\n'


def test_a_flush_reaches_the_resolver_that_was_filled(farm: Path, running: ExitStack) -> None:
    require("nsd", "unbound")
    path = farm / "zone"
    names = ["www.f.test.", "below.www.f.test.", "other.f.test."]
    soa = "f.test. 60 IN SOA ns.f.test. host.f.test. 1 7200 3600 604800 60\nf.test. 60 IN NS ns.f.test.\n"
    path.write_text(soa + "ns.f.test. 60 IN A 127.0.0.1\n" + "".join(map(fill_line, names)))
    authority = running.enter_context(Nsd(farm, {"f.test.": path}))
    resolver = running.enter_context(Unbound(farm, stubs={".": DEAD}, server=["outbound-msg-retry: 1"]))
    cluster = Cluster()
    cluster.add("a", "b")
    b_config = cluster.config("b", sinks={"resolver": unbound_sink(resolver.control_path)})
    b = running.enter_context(ShimNode(farm, b_config))
    a_ = running.enter_context(ShimNode(farm, cluster.config("a"), upstream(authority.endpoint, authoritative=True)))
    eventually(lambda: b.status()["sinks"]["resolver"]["up"], WITHIN, "the sink is up")
    b.wait_until_live()
    questions = [Question(name, rrtype) for name in names for rrtype in ("A", "TXT")]
    for question in questions:
        asked(a_.endpoint, question)
    held = {(question.name, question.type) for question in questions}
    eventually(lambda: held <= resolver.answers(), WITHIN, "the resolver was filled")

    def left() -> set[tuple[str, str]]:
        in_cache = {(question.name, question.type) for question in questions if b.lookup(question)}
        assert in_cache == held & resolver.answers()
        return in_cache

    (report,) = b.cli("flush", "www.f.test", "--type", "TXT")
    assert (report["removed"], report["sinks"]) == (1, {"resolver": "done"})
    assert left() == held - {("www.f.test.", "TXT")}
    (report,) = b.cli("flush", "www.f.test")
    assert report["removed"] == 1
    assert left() == held - {("www.f.test.", "TXT"), ("www.f.test.", "A")}
    b.cli("flush", "www.f.test", "--subtree")
    assert left() == {("other.f.test.", "A"), ("other.f.test.", "TXT")}
    (report,) = b.cli("flush", "--all")
    assert left() == set()
    assert report["generation"] == 4
    assert b.status()["sinks"]["resolver"]["flushes"] == 4
    b.assert_quiet()


def test_what_was_asked_for_before_a_flush_is_neither_kept_nor_shared(farm: Path, running: ExitStack) -> None:
    begun, gate = threading.Event(), threading.Event()
    running.callback(gate.set)

    def holds(query: Query) -> bytes:
        if not begun.is_set():
            begun.set()
            gate.wait(WITHIN)
        return reply(query, a(query.owner, ttl=300))

    server = running.enter_context(PythonServer(holds))
    cluster = Cluster()
    cluster.add("a", "b")
    b = running.enter_context(ShimNode(farm, cluster.config("b")))
    trusted = upstream(server.endpoint, authoritative=True)
    a_ = running.enter_context(ShimNode(farm, cluster.config("a"), trusted))
    b.wait_until_live()
    question = Question("www.held.test.", "A")
    got: list[Any] = []
    client = threading.Thread(target=lambda: got.append(ask(a_.endpoint, question)))
    client.start()
    assert begun.wait(WITHIN)
    a_.cli("flush", "held.test", "--subtree")
    gate.set()
    client.join()
    assert got[0] is not None
    assert got[0].rcode() == 0, "who asked gets the answer"
    assert a_.counters()["not_shared_flushed"] >= 1
    assert not a_.lookup(question)
    assert asked(a_.endpoint, question).rcode() == 0
    eventually(lambda: b.lookup(question), WITHIN, "what is asked for after the flush is shared again")
    a_.assert_quiet()
