"""The shim between real clients (dig, kdig, drill, a validating Unbound) and real upstreams (Unbound, NSD, Knot)."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.query
import pytest

from tests.farm.authoritative import Knot, Nsd
from tests.farm.client import Endpoint, Question, ask, ask_all, data, exchange, query, signatures
from tests.farm.node import CachebusNode, Cluster
from tests.farm.process import eventually
from tests.farm.unbound import Unbound
from tests.farm.zones import PLAIN, SIGNED, Zones, make_zones
from tests.servers import find, free_port, require

pytestmark = pytest.mark.interop

BIG = "big.test."
SHIM_TIMEOUT = 2
"""Seconds that the shim gives a question in the tests of dead upstreams."""


@pytest.fixture(scope="module")
def zones(tmp_path_factory: pytest.TempPathFactory) -> Zones:
    made = make_zones(tmp_path_factory.mktemp("zones"))
    text = "\n".join(f'@ 300 IN TXT "{letter * 200}"' for letter in "abcdefghijklmno")
    path = tmp_path_factory.mktemp("big") / "big.zone"
    apex = "@ 300 IN SOA ns host 1 7200 3600 604800 60\n@ 300 IN NS ns\nns 300 IN A 127.0.0.1"
    path.write_text(f"$ORIGIN {BIG}\n{apex}\n{text}\n")
    made.files[BIG] = path
    return made


@pytest.fixture(scope="module")
def nsd(tmp_path_factory: pytest.TempPathFactory, zones: Zones) -> Iterator[Nsd]:
    require("nsd")
    with Nsd(tmp_path_factory.mktemp("f"), zones.files) as server:
        yield server


@pytest.fixture(scope="module")
def unbound(tmp_path_factory: pytest.TempPathFactory, zones: Zones, nsd: Nsd) -> Iterator[Unbound]:
    require("unbound")
    stubs = dict.fromkeys(zones.names, nsd.endpoint)
    with Unbound(tmp_path_factory.mktemp("f"), stubs=stubs, anchors=[zones.anchor]) as server:
        yield server


class ShimNode(CachebusNode):
    """A node with a shim on a free port; ready when the shim answers."""

    def __init__(self, directory: Path, config: Mapping[str, Any], *upstreams: Any, **shim: Any) -> None:
        self.endpoint = Endpoint("127.0.0.1", free_port())
        listen = {"listen": [f"127.0.0.1:{self.endpoint.port}"]}
        super().__init__(directory, {**config, "shim": {**listen, "upstreams": list(upstreams), **shim}})

    def is_ready(self) -> bool:
        return super().is_ready() and ask(self.endpoint, Question(".", "NS"), timeout=0.3, recurse=False) is not None

    def counters(self) -> dict[str, int]:
        result: dict[str, int] = self.status()["shim"]
        return result

    def assert_quiet(self) -> None:
        """No traceback, nothing unexpected."""
        assert self.running
        log = self.log.read_text()
        assert "Traceback" not in log, log
        assert "nobody expected" not in log, log


def upstream(server: Endpoint, **more: Any) -> dict[str, Any]:
    return {"address": f"{server.host}:{server.port}", **more}


def alone(name: str = "a") -> dict[str, Any]:
    return {"node": name, "share": {"min_ttl": 1, "allow": ["test."]}}


@pytest.fixture(scope="module")
def validating_shim(tmp_path_factory: pytest.TempPathFactory, unbound: Unbound) -> Iterator[ShimNode]:
    with ShimNode(tmp_path_factory.mktemp("s"), alone(), upstream(unbound.endpoint, validating=True)) as node:
        yield node
        node.assert_quiet()


def run(*command: str) -> str:
    program = find(command[0])
    assert program
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_answer_is_the_upstreams_cold_and_from_the_cache(
    zones: Zones, unbound: Unbound, validating_shim: ShimNode
) -> None:
    questions = [*zones.questions, *zones.mixed, *zones.wildcards]
    theirs = ask_all(unbound.endpoint, questions)
    for turn in ("cold", "cached"):
        ours = ask_all(validating_shim.endpoint, questions)
        assert len(ours) == len(theirs)
        for question, expected in theirs.items():
            got = ours[question]
            assert got.rcode() == expected.rcode(), (turn, question)
            assert data(got) == data(expected), (turn, question)
            assert signatures(got) == signatures(expected), (turn, question)
            assert got.flags == expected.flags, (turn, question)
    counters = validating_shim.counters()
    assert counters["hits"] >= len(zones.questions)
    assert counters["learned"] >= sum(question.secure for question in zones.questions)
    assert counters["servfail"] == 0


def test_denials_have_the_upstreams_proofs(zones: Zones, unbound: Unbound, validating_shim: ShimNode) -> None:
    for name, rrtype in ((f"no.{SIGNED}", "A"), (f"a0.{SIGNED}", "AAAA"), (f"no.{PLAIN}", "A"), (f"a0.{PLAIN}", "MX")):
        for dnssec in (True, False):
            question = Question(name, rrtype, dnssec=dnssec)
            for _ in range(2):
                theirs, ours = ask(unbound.endpoint, question), ask(validating_shim.endpoint, question)
                assert theirs is not None
                assert ours is not None
                assert ours.rcode() == theirs.rcode(), question
                kinds = {(rrset.name, rrset.rdtype, rrset.covers) for rrset in theirs.authority}
                assert {(rrset.name, rrset.rdtype, rrset.covers) for rrset in ours.authority} == kinds, question
                if dnssec:
                    assert ours.flags == theirs.flags, question


def test_a_validating_unbound_behind_the_shim_finds_nothing_bogus(
    tmp_path: Path, zones: Zones, validating_shim: ShimNode
) -> None:
    shim = validating_shim.endpoint
    forward = f'forward-zone:\n  name: "test."\n  forward-addr: {shim.host}@{shim.port}'
    reverse = f'forward-zone:\n  name: "2.0.192.in-addr.arpa."\n  forward-addr: {shim.host}@{shim.port}'
    with Unbound(tmp_path, anchors=[zones.anchor], extra=[forward, reverse]) as behind:
        for _ in range(2):  # from the upstream, and again from the shim's cache
            answers = ask_all(behind.endpoint, zones.questions)
            assert len(answers) == len(set(zones.questions))
            for question, answer in answers.items():
                assert answer.rcode() == 0, question
                assert bool(answer.flags & dns.flags.AD) == question.secure, question
            behind.flush()


@pytest.mark.parametrize("server", [Nsd, Knot])
def test_an_authoritative_upstream(tmp_path: Path, zones: Zones, server: type[Nsd | Knot]) -> None:
    require(server.__name__.lower())
    with (
        server(tmp_path, zones.files) as authority,
        ShimNode(tmp_path, alone(), upstream(authority.endpoint, authoritative=True)) as node,
    ):
        expected = ask_all(authority.endpoint, zones.questions, recurse=False)
        for _ in range(2):
            answers = ask_all(node.endpoint, zones.questions)
            assert len(answers) == len(set(zones.questions))
            for question, answer in answers.items():
                assert data(answer) >= data(expected[question]), question
                assert not answer.flags & (dns.flags.AA | dns.flags.AD), question
        found = node.lookup(Question(f"a0.{PLAIN}", "A"))
        assert [line["evidence"] for line in found] == ["authoritative"]
        assert node.counters()["servfail"] == 0
        node.assert_quiet()


def test_what_one_shim_learns_the_other_answers_by_itself(tmp_path: Path, zones: Zones, unbound: Unbound) -> None:
    cluster = Cluster()
    cluster.add("a", "b")
    secure = [question for question in zones.questions if question.secure]
    with ExitStack() as running:
        b = running.enter_context(ShimNode(tmp_path, cluster.config("b")))
        a = running.enter_context(ShimNode(tmp_path, cluster.config("a"), upstream(unbound.endpoint, validating=True)))
        b.wait_until_live()
        expected = ask_all(a.endpoint, secure)

        def all_there() -> bool:
            answers = ask_all(b.endpoint, secure)
            for question in secure:
                assert question in answers, question
                assert answers[question].rcode() == 0, question
                assert answers[question].flags & dns.flags.AD, question
                assert data(answers[question]) == data(expected[question]), question
                assert signatures(answers[question]) == signatures(expected[question]), question
            return True

        eventually(all_there, 5.0, "b answers every signed name with AD=1 and RRSIGs")
        a.assert_quiet()
        b.assert_quiet()


# Clients


def test_dig(validating_shim: ShimNode) -> None:
    require("dig")
    at = ["dig", "@127.0.0.1", "-p", str(validating_shim.endpoint.port), "+tries=1"]
    signed = run(*at, "+dnssec", f"A0.{SIGNED}", "A")
    assert "flags: qr rd ra ad" in signed
    assert "RRSIG" in signed
    assert f"A0.{SIGNED}" in signed
    plain = run(*at, "+noadflag", f"a0.{SIGNED}", "A")
    assert "RRSIG" not in plain
    assert "flags: qr rd ra;" in plain
    assert "flags: qr rd ra cd" in run(*at, "+cdflag", f"a1.{SIGNED}", "A").replace(" ad", "")
    assert "Truncated" in run(*at, "+bufsize=512", f"long2.{PLAIN}", "TXT")
    assert "(TCP)" in run(*at, "+tcp", f"a0.{PLAIN}", "A")
    assert "status: BADVERS" in run(*at, "+edns=1", "+noednsnegotiation", f"a0.{PLAIN}")
    assert "status: NOERROR" in run(*at, "+edns=1", "+ednsnegotiation", f"a0.{PLAIN}")
    assert "status: NOERROR" in run(*at, "+ednsopt=65001:abcd", "+ednsflags=0x40", f"a0.{PLAIN}")
    assert "status: NOTIMP" in run(*at, "+opcode=NOTIFY", f"a0.{PLAIN}")
    assert "status: REFUSED" in run(*at, "-c", "CH", "version.bind", "TXT")
    assert "Transfer failed" in run(*at, PLAIN, "AXFR")
    assert "status: NOERROR" in run(*at, f"a0.{PLAIN}", "ANY")
    assert "EDE: 20" in run(*at, "+norecurse", f"never-asked.{PLAIN}")


def test_kdig_and_drill(validating_shim: ShimNode) -> None:
    require("kdig", "drill")
    port = str(validating_shim.endpoint.port)
    kept = run("kdig", "@127.0.0.1", "-p", port, "+tcp", "+keepopen", f"a0.{PLAIN}", "A", f"a1.{PLAIN}", "A")
    assert kept.count("status: NOERROR") == 2
    assert "NOERROR" in run("kdig", "@127.0.0.1", "-p", port, "+dnssec", "+padding=128", f"a0.{SIGNED}", "A")
    assert "192.0.2." in run("drill", "-p", port, "-D", f"a0.{SIGNED}", "@127.0.0.1", "A")
    assert "192.0.2." in run("drill", "-p", port, "-t", f"a0.{PLAIN}", "@127.0.0.1", "A")


def test_an_answer_beyond_1232_bytes_comes_over_tcp_from_the_upstream_and_to_the_client(
    nsd: Nsd, validating_shim: ShimNode
) -> None:
    message = query(Question(BIG, "TXT"))
    message.use_edns(0, payload=4096)
    cut = dns.query.udp(message, "127.0.0.1", port=validating_shim.endpoint.port, timeout=5)
    assert cut.flags & dns.flags.TC
    assert not cut.answer
    whole = exchange(validating_shim.endpoint, message)
    assert whole is not None
    assert len(whole.answer[0]) == 15
    assert validating_shim.counters()["upstream_queries_stream"] >= 1


# Failure


def test_dead_upstreams(tmp_path: Path, zones: Zones, nsd: Nsd, unbound: Unbound) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        hole = Endpoint(*silent.getsockname())
        names = [Question(f"a{number}.{PLAIN}", "A") for number in range(4)]
        with ShimNode(tmp_path / "1", alone(), upstream(hole), timeout=SHIM_TIMEOUT) as node:
            start = time.monotonic()
            answer = ask(node.endpoint, names[0])
            assert answer is not None
            assert answer.rcode() == dns.rcode.SERVFAIL
            assert [int(option.code) for option in answer.options] == [22]
            assert time.monotonic() - start < SHIM_TIMEOUT + 1
            node.assert_quiet()
        with ShimNode(tmp_path / "2", alone(), upstream(hole), upstream(unbound.endpoint)) as node:
            start = time.monotonic()
            answer = ask(node.endpoint, names[0])
            assert answer is not None
            assert answer.rcode() == 0
            first = time.monotonic() - start
            answer = ask(node.endpoint, names[1])
            assert answer is not None
            assert time.monotonic() - start - first < first, "the dead one is asked last from now on"
            node.assert_quiet()


def test_an_upstream_that_comes_and_goes(tmp_path: Path, zones: Zones) -> None:
    require("nsd")
    with (
        Nsd(tmp_path, zones.files) as authority,
        ShimNode(tmp_path, alone(), upstream(authority.endpoint, authoritative=True)) as node,
    ):
        assert data(ask(node.endpoint, Question(f"a0.{PLAIN}", "A")) or dns.message.Message())
        authority.kill()
        cached = ask(node.endpoint, Question(f"a0.{PLAIN}", "A"))
        assert cached is not None
        assert cached.rcode() == 0
        failed = ask(node.endpoint, Question(f"a1.{PLAIN}", "A"))
        assert failed is not None
        assert failed.rcode() == dns.rcode.SERVFAIL
        authority.start()

        def is_back() -> bool:
            answer = ask(node.endpoint, Question(f"a1.{PLAIN}", "A"))
            return answer is not None and answer.rcode() == 0

        eventually(is_back, 5.0, "the upstream is asked again")
        node.assert_quiet()


def test_garbage_never_gives_a_traceback(zones: Zones, validating_shim: ShimNode) -> None:
    chance = random.Random(1)
    good = query(Question(f"a0.{PLAIN}", "A")).to_wire()
    endpoint = validating_shim.endpoint
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.connect(endpoint)
        for _ in range(2000):
            wire = bytearray(good)
            for _ in range(chance.randrange(1, 6)):
                wire[chance.randrange(len(wire))] = chance.randrange(256)
            udp.send(bytes(wire[: chance.randrange(len(wire) + 1)]))
            udp.send(chance.randbytes(chance.randrange(600)))
    for _ in range(20):
        with socket.create_connection(endpoint, timeout=5) as tcp:
            tcp.sendall(chance.randbytes(chance.randrange(1, 3000)))

    def still_answers() -> bool:  # the kernel may drop what comes faster than it is read, so it is asked again
        answer = ask(endpoint, Question(f"a0.{PLAIN}", "A"), timeout=0.5)
        return answer is not None and answer.rcode() == 0

    eventually(still_answers, 10, "it answers after the flood")
    validating_shim.assert_quiet()
    eventually(lambda: validating_shim.counters()["tcp_open"] == 0, 15, "no connection is left")
